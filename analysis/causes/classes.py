"""The causes that a diagnosis can name: one stable id each, in five failure classes.

An id is `<failure class>.<cause>`. Programs compare ids (`ztprobe diagnose --json`, report.json's
`causes`), so an id is never given another meaning.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ("CAUSES", "CauseClass", "FailureClass", "Remedy")


class FailureClass(enum.StrEnum):
    """Where the mistake sits, in the order of the published taxonomy."""

    POLICY = "policy"
    TLS = "tls"
    RESOURCES = "resources"
    EMULATION = "emulation"
    APPLICATION = "application"


class Remedy(enum.StrEnum):
    """What kind of thing has to change; a finding says which one and to what."""

    ADD_RULE = "add_rule"  # a rule that is missing, as YAML
    CORRECT_RULE = "correct_rule"  # a rule that is there and does not mean what it should
    CERTIFICATE = "certificate"  # renew, sign by the right authority, name the right host
    PROXY = "proxy"  # the sidecar: start it, wait for it, configure it
    TLS_SETTINGS = "tls_settings"  # both ends have to speak TLS, of a common version and cipher
    RAISE_LIMIT = "raise_limit"  # memory, CPU, descriptors, queues, buffers, tables, disk
    CHANGE_PROFILE = "change_profile"  # the emulated network
    REPAIR_PATH = "repair_path"  # what lies between two machines or pods loses packets
    CHANGE_TIMEOUT = "change_timeout"  # a deadline, keepalive or idle time
    START_PROCESS = "start_process"  # something has to run, or to stay alive
    CHANGE_ADDRESS = "change_address"  # a name, an address or a port
    CHANGE_MESSAGE = "change_message"  # a message's size, or the limit for it
    FASTER_CLIENT = "faster_client"  # a participant that is too slow for the others


@dataclass(frozen=True)
class CauseClass:
    """One cause: its id, a title in plain words and the kind of remedy."""

    id: str
    title: str
    remedy: Remedy

    @property
    def failure_class(self) -> FailureClass:
        return FailureClass(self.id.partition(".")[0])


_R = Remedy

_POLICY = (
    ("dns_blocked", "a policy blocks DNS over UDP and TCP", _R.ADD_RULE),
    ("dns_blocked_udp", "a policy blocks DNS over UDP", _R.ADD_RULE),
    ("dns_blocked_tcp", "a policy blocks DNS over TCP, which long answers need", _R.ADD_RULE),
    ("port_denied_egress", "a policy of the sender does not allow this port", _R.ADD_RULE),
    ("port_denied_ingress", "a policy of the receiver does not allow this port", _R.ADD_RULE),
    ("default_deny", "a pod is isolated and no policy has a rule for it", _R.ADD_RULE),
    ("wrong_label", "a rule selects pods by labels that the pod does not have", _R.CORRECT_RULE),
    ("wrong_namespace", "a rule selects a namespace that is not the pod's", _R.CORRECT_RULE),
    ("wrong_port", "a rule for these pods allows another port", _R.CORRECT_RULE),
    ("wrong_port_name", "a rule names a port that the pod does not have", _R.CORRECT_RULE),
    ("wrong_port_range", "a rule's range of ports (endPort) ends before this port", _R.CORRECT_RULE),
    ("ip_block_except", "a rule's ipBlock leaves this address out", _R.CORRECT_RULE),
    ("sidecar_port_blocked", "a policy allows the application's port and blocks the sidecar's", _R.ADD_RULE),
    ("denied_by_rule", "a cluster policy denies this connection", _R.CORRECT_RULE),
    ("added_mid_run", "a policy that was added during the run blocks new connections", _R.CORRECT_RULE),
    ("cut_established", "a filter that was added during the run cuts open connections", _R.CORRECT_RULE),
    ("rejected", "a packet filter rejects the connection, by an RST or an ICMP error", _R.CORRECT_RULE),
    ("filter_without_policy", "a packet filter drops packets that the policies allow", _R.CORRECT_RULE),
)

_TLS = (
    ("expired_certificate", "a certificate has expired", _R.CERTIFICATE),
    ("not_yet_valid_certificate", "a certificate is not valid yet", _R.CERTIFICATE),
    ("unknown_ca", "a certificate's authority is not known to the other end", _R.CERTIFICATE),
    ("no_client_certificate", "the client shows no certificate and the server requires one", _R.CERTIFICATE),
    ("wrong_name", "a certificate is for another name", _R.CERTIFICATE),
    ("bad_certificate", "a certificate was refused, and what was seen does not tell why", _R.CERTIFICATE),
    ("plaintext_to_tls_port", "plaintext is sent to a port that expects TLS", _R.TLS_SETTINGS),
    ("tls_to_plaintext_port", "TLS is sent to a port that expects plaintext", _R.TLS_SETTINGS),
    ("version_mismatch", "the ends have no TLS version in common", _R.TLS_SETTINGS),
    ("cipher_mismatch", "the ends have no TLS cipher in common", _R.TLS_SETTINGS),
    ("handshake_failed", "a TLS handshake fails, and what was seen does not tell why", _R.TLS_SETTINGS),
    ("sidecar_down", "a sidecar does not run", _R.PROXY),
    ("sidecar_not_ready", "a sidecar was not ready when the application connected", _R.PROXY),
    ("detection_stall", "a proxy waits for bytes to tell which protocol it is", _R.PROXY),
)

_RESOURCES = (
    ("oom_kill", "the kernel killed a process that was out of memory", _R.RAISE_LIMIT),
    ("cpu_throttling", "a CPU limit stops a pod's processes", _R.RAISE_LIMIT),
    ("cpu_contention", "processes wait for a CPU that others use", _R.RAISE_LIMIT),
    ("syn_queue_overflow", "a listener's queue of half-open connections is full", _R.RAISE_LIMIT),
    ("accept_queue_overflow", "a listener's queue of connections to accept is full", _R.RAISE_LIMIT),
    ("descriptors", "a process has no file descriptors left", _R.RAISE_LIMIT),
    ("ephemeral_ports", "a pod has no ephemeral ports left", _R.RAISE_LIMIT),
    ("receive_buffer_full", "a socket's receive buffer is full", _R.RAISE_LIMIT),
    ("conntrack_full", "the connection tracking table is full", _R.RAISE_LIMIT),
    ("disk_full", "a pod's disk is full", _R.RAISE_LIMIT),
)

_EMULATION = (
    ("queue_overflow", "an emulated link's queue overflows", _R.CHANGE_PROFILE),
    ("loss_profile", "an emulated link loses more than the transfer bears", _R.CHANGE_PROFILE),
    ("rate_too_low", "an emulated rate is too low for a deadline", _R.CHANGE_PROFILE),
    ("delay_too_long", "an emulated delay is too long for a deadline", _R.CHANGE_PROFILE),
    ("mtu_black_hole", "packets above a size vanish without an answer", _R.CHANGE_PROFILE),
    ("leftover_profile", "a network profile from elsewhere is still on a pod", _R.CHANGE_PROFILE),
    ("wrong_interface", "a network profile is where the traffic does not pass", _R.CHANGE_PROFILE),
)

_APPLICATION = (
    ("nothing_listens", "nothing listens at the port", _R.START_PROCESS),
    ("server_died", "the server's process ended during the run", _R.START_PROCESS),
    ("edge_died", "an edge aggregator's process ended during the run", _R.START_PROCESS),
    ("client_died", "a client's process ended during the run", _R.START_PROCESS),
    ("pod_restarted", "a pod was restarted or evicted during the run", _R.START_PROCESS),
    ("process_stopped", "a process is stopped or does nothing, with its connections open", _R.START_PROCESS),
    ("peer_unreachable", "the other end does not answer, and nothing seen tells why", _R.START_PROCESS),
    ("deadline_too_short", "a deadline is shorter than the transfer takes", _R.CHANGE_TIMEOUT),
    ("keepalive", "a keepalive timeout is shorter than the round trip", _R.CHANGE_TIMEOUT),
    ("too_many_pings", "the server ends a connection because of too many pings", _R.CHANGE_TIMEOUT),
    ("message_too_large", "a message is larger than the receiver's limit", _R.CHANGE_MESSAGE),
    ("no_such_name", "a name does not exist", _R.CHANGE_ADDRESS),
    ("wrong_address", "a name leads to an address where nobody is", _R.CHANGE_ADDRESS),
    ("idle_connection_dropped", "an idle connection was forgotten on the way", _R.CHANGE_TIMEOUT),
    ("half_open", "a connection is open at one end only", _R.CHANGE_TIMEOUT),
    ("connection_reset", "a connection was reset, and nothing seen tells why", _R.START_PROCESS),
    ("packets_lost", "packets of a connection are lost on the way", _R.REPAIR_PATH),
    ("slow_client", "a client computes for longer than the others, or than the deadline", _R.FASTER_CLIENT),
)

_TABLE = {
    FailureClass.POLICY: _POLICY,
    FailureClass.TLS: _TLS,
    FailureClass.RESOURCES: _RESOURCES,
    FailureClass.EMULATION: _EMULATION,
    FailureClass.APPLICATION: _APPLICATION,
}

# Every cause by its id, in the order of the failure classes.
CAUSES: dict[str, CauseClass] = {
    f"{failure_class.value}.{name}": CauseClass(f"{failure_class.value}.{name}", title, remedy)
    for failure_class, rows in _TABLE.items()
    for name, title, remedy in rows
}
