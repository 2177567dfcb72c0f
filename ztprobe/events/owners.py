"""The table that says whose each end of a connection was: only runs that were attached to have it.

A pod of such a run is a network namespace, and several participants may share one. Which of them an end of
a connection belonged to is told by the sockets that their processes had open, looked at while the run went
on, and by the threads that read and wrote.
"""

from __future__ import annotations

from ztprobe.events.tables import Column, Table

__all__ = ("AT_ATTACHMENT", "BY_EVENT", "OWNERS", "SIDECAR", "WHILE_RUNNING")

SIDECAR = "proxy"  # the container that events of a participant's proxy go by
AT_ATTACHMENT, WHILE_RUNNING, BY_EVENT = "at_attachment", "while_running", "event"

OWNERS = Table(
    name="owners",
    order="first_seen_ns",
    description="An end of a connection, or a socket that listens, and the participant whose it was. "
    "Only of runs that were attached to.",
    columns=(
        Column(name="first_seen_ns", kind="integer", description="when it was first seen to be so"),
        Column(name="pod", kind="text", description="the network namespace, as run.json's pods call it"),
        Column(name="last_seen_ns", kind="integer", description="when it was last seen to be so"),
        Column(name="participant", kind="text", description="its name in run.json's attachment"),
        Column(name="pid", kind="integer", description="the process that had it open or used it"),
        Column(name="local", kind="text", description="address of this end"),
        Column(name="local_port", kind="integer", description="its port"),
        Column(name="remote", kind="text", description="address of the other end; empty: it listens"),
        Column(name="remote_port", kind="integer", description="its port; 0: it listens"),
        Column(
            name="family",
            kind="text",
            description="of its packets: an IPv6 socket may carry IPv4",
            values=frozenset(("ipv4", "ipv6")),
        ),
        Column(
            name="found",
            kind="text",
            description="by the socket table at the attachment or while it ran, or by an event's thread",
            values=frozenset((AT_ATTACHMENT, WHILE_RUNNING, BY_EVENT)),
        ),
        Column(name="older", kind="integer", description="1: the connection is older than the attachment"),
        Column(name="netns", kind="integer", description="inode of the network namespace"),
    ),
)
