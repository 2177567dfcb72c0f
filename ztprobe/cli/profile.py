"""``ztprobe profile``: network conditions on pods that are running."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli import completion
from ztprobe.cli.output import say, say_json
from ztprobe.cli.profile_agents import (
    apply_through,
    clear_through,
    leases_options,
    profile_access,
    show_leases_of,
    verify_through,
)
from ztprobe.cli.profile_pods import (
    choose_pods,
    node_option,
    running_pods,
    runtime_options,
)
from ztprobe.cli.rendering.profile import (
    lease_dict,
    lease_row,
    notes,
    plan_lines,
    pod_words,
    print_verdict,
    profile_dict,
    profile_words,
    step_words,
    table,
    value_words,
    verdict_dict,
)
from ztprobe.cli.rendering.profile_since import pod_lines, states_dicts
from ztprobe.errors import PreflightError, UsageError

if TYPE_CHECKING:
    from ztprobe.agent.interface import LeaseRequest, Leases
    from ztprobe.leases.records import Lease

__all__ = ("profile",)

_COMPUTED = ("burst_bytes", "queue_limit_packets")
_DEFAULT_FOR = "1h"
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")


@click.group(
    epilog="Example: sudo ztprobe profile apply net1 --selector app=fl-client --for 10m",
)
def profile() -> None:
    """Put network conditions on running pods, verified, and undone.

    A profile is a YAML file: delay, jitter, loss, rate and so on of one direction. What `apply` puts on
    pods is a lease: it ends by itself, at the latest after the time given, whatever happens to the
    terminal, the pods or the process that keeps it.
    """


@profile.command("list", epilog="Example: ztprobe profile list")
@_JSON
def list_(as_json: bool) -> None:
    """Show the profiles that come along."""
    from ztprobe.profile.model import load_profile, profile_names

    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        say_json([profile_dict(p) for p in profiles])
        return
    table(
        ("profile", "what it asks for", "description"),
        [(p.name, profile_words(p), p.description) for p in profiles],
    )


@profile.command(epilog="Example: ztprobe profile show net2a")
@click.argument("name", shell_complete=completion.profiles)
@_JSON
def show(name: str, as_json: bool) -> None:
    """Show one profile: every value with its source.

    What changes over time is drawn. NAME is one of `ztprobe profile list`, or a YAML file.
    """
    from ztprobe.cli.rendering.schedule import plot, range_words, schedule_words, step_rows
    from ztprobe.profile.model import load_profile
    from ztprobe.profile.schedule import CHANGING

    found = load_profile(name)
    values = profile_dict(found)
    if as_json:
        say_json(values)
        return
    say(f"{found.name}: {found.description or profile_words(found)}\n")
    sources = values.pop("source")
    if found.samples_ms:
        sources = sources | {
            "delay_ms": f"mean of {len(found.samples_ms)} samples",
            "jitter_ms": f"the table's unit; the samples' standard deviation is {found.sd_ms:.4g} ms",
            "distribution": sources.get("samples", ""),
        }
    rows = [
        (key, value_words(value), sources.get(key, "computed" if key in _COMPUTED else ""))
        for key, value in values.items()
        if key not in ("name", "description", "samples_ms", "schedule")
        and not (found.schedule is not None and key in CHANGING)
    ]
    if found.schedule is None:
        table(("key", "value", "source"), rows)
        return
    changing = [(key, range_words(found, key), sources.get(key, "")) for key in CHANGING]
    rows = [*changing, ("schedule", schedule_words(found), sources.get("schedule", "")), *rows]
    table(("key", "value", "source"), rows)
    say()
    table(*step_rows(found))
    say()
    for line in plot(found, shutil.get_terminal_size((100, 24)).columns):
        say(line)


@profile.command(
    epilog="Example: sudo ztprobe profile apply net1 --selector app=fl-client --to app=fl-server --for 10m"
)
@click.argument("name", shell_complete=completion.profiles)
@click.option("--selector", "-l", required=True, help="Pods, as a Kubernetes label selector.")
@click.option("--namespace", "-n", default="fl", show_default=True, help="Of the pods.")
@runtime_options
@click.option("--run", metavar="RUN", help="Only pods of this run, where several are going on.")
@click.option("--to", metavar="SELECTOR", help="Only traffic with these pods; everything else is left alone.")
@click.option(
    "--direction",
    type=click.Choice(["egress", "ingress", "both"]),
    default="egress",
    show_default=True,
    help="Of the selected pods' traffic.",
)
@click.option(
    "--for",
    "duration",
    default=_DEFAULT_FOR,
    show_default=True,
    metavar="TIME",
    help="How long, e.g. 90s, 10m, 1h30m; then it ends by itself.",
)
@click.option(
    "--at",
    type=click.Choice(["auto", "pod", "host"]),
    default="auto",
    show_default=True,
    help="Shape inside the pod, or at the host end of its veth (an IFB device serves what comes in)."
    " auto: what leaves in the pod, what enters at the host end.",
)
@click.option("--replace", is_flag=True, help="Take other qdiscs away for the time, and put them back.")
@click.option(
    "--backend",
    type=click.Choice(["netem", "nfqueue", "tbf"]),
    help="Instead of the kernel's best.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@leases_options
@_JSON
def apply(
    name: str,
    selector: str,
    namespace: str,
    runtime: str,
    node: str | None,
    run: str | None,
    to: str | None,
    direction: str,
    duration: str,
    at: str,
    replace: bool,
    backend: str | None,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Put a profile on running pods, for a time.

    NAME is one of `ztprobe profile list`, or a YAML file. Unless --at says otherwise, egress is shaped on
    the pod's own interface, ingress on the host end of its veth. The lease is written down first; a
    process of its own keeps it, puts it on pods that come, and ends it.

    Where the kernel has no netem, delay and loss are the delay line's, on the node's forward path:
    there is no end of a veth to choose then, and --at is refused for all profiles but net5, which is a
    rate alone (net6 --at host, for one, needs netem).

    With --agents it is put on a cluster's pods wherever they are, from anywhere and without root, by their
    nodes' agents: on all that match now, or on none, and on those that come.
    """
    from ztprobe.agent.interface import LeaseRequest
    from ztprobe.durations import duration_s
    from ztprobe.profile.model import load_profile

    wanted = load_profile(name)
    lasts_s = duration_s("--for", duration, longest_days=7)
    if wanted.is_empty:
        raise UsageError(f"{wanted.name} emulates nothing: there is nothing to apply")
    access = profile_access(given, runtime=runtime, node=node, namespace=namespace)
    request = functools.partial(
        LeaseRequest,
        profile=wanted,
        lasts_s=lasts_s,
        direction=direction,
        at=at,
        replace=replace,
        backend=backend,
        selector=selector,
        to=to,
        namespace=namespace,
    )
    if access is None:
        _need_root()
        chosen = choose_pods(runtime, selector, to, namespace, run=run, node=node)
        follow = chosen.following(at, replace=replace) if given["follow"] else None
        _apply_here(
            request(pods=chosen.pods, peers=chosen.peers, follow=follow), chosen.notes, dry_run, as_json
        )
        return
    if run is not None:
        raise UsageError("--run names a run of the local runtime; leave it out with --agents")
    apply_through(access, request, selector, to, follow=given["follow"], dry_run=dry_run, as_json=as_json)


def _apply_here(wanted: LeaseRequest, notes: Sequence[str], dry_run: bool, as_json: bool) -> None:
    from ztprobe.agent.node_leases import NodeLeases

    node_leases = NodeLeases()
    lease = node_leases.plan_lease(wanted)
    if dry_run:
        _tell(lease, notes, as_json)
        return
    with _begun(node_leases, lease):
        lease.state = "in force"
        _tell(lease, notes, as_json)


@contextlib.contextmanager
def _begun(leases: Leases, lease: Lease) -> Iterator[None]:
    # Beyond the body, unless that is interrupted: then nothing of the lease is left.
    from ztprobe.process.interrupts import Interrupted

    try:
        leases.begin_lease(lease)
        yield
    except Interrupted:
        with contextlib.suppress(UsageError):  # it came before anything was written down
            leases.end_leases([lease.id])
        raise


def _tell(lease: Lease, more: Sequence[str], as_json: bool) -> None:
    from ztprobe.leases.records import words

    dry_run = lease.state == "applying"
    said = [*more, *notes(lease)]
    if as_json:
        whole = lease_dict(lease) | {"dry_run": dry_run, "notes": said}
        say_json(whole)
        return
    for line in plan_lines(lease):
        say(line)
    for note in said:
        say(f"note: {note}")
    if dry_run:
        say("dry run: nothing was changed")
        return
    lasts_s = (lease.expires_ns - lease.created_ns) / 1e9
    say(
        f"lease {lease.id}: {lease.profile.name} on {pod_words(lease)} for {words(lasts_s)}; "
        "ztprobe profile verify | status | clear"
    )


@profile.command(epilog="Example: sudo ztprobe profile status")
@leases_options
@_JSON
@click.pass_context
def status(context: click.Context, /, as_json: bool, **given: Any) -> None:
    """Show what is in force now, as the kernel has it.

    With --agents on all nodes of a cluster, node by node, without root; 3 if an agent does not answer.
    """
    from ztprobe.agent.node_leases import NodeLeases

    if (access := profile_access(given)) is not None:
        show_leases_of(context, access, as_json=as_json)
        return
    _need_root()
    found = NodeLeases().leases()
    if as_json:
        say_json(states_dicts(found))
        return
    if not found:
        say("no profile is in force")
        return
    rows = [lease_row(one) for one in found]
    table(("lease", "profile", "backend", "pods", "in force", "left", "counted"), rows)
    for one in found:
        for line in (*step_words(one), *pod_lines(one)):
            say(line)


@profile.command(epilog="Example: sudo ztprobe profile verify --json")
@click.argument("ids", metavar="[LEASE]...", nargs=-1, shell_complete=completion.leases)
@click.option(
    "--probes",
    type=click.IntRange(min=100, max=20000),
    default=1500,
    show_default=True,
    help="Per pod and direction.",
)
@node_option
@leases_options
@_JSON
@click.pass_context
def verify(
    context: click.Context,
    /,
    ids: tuple[str, ...],
    probes: int,
    node: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure what pods really get, and compare.

    Real packets, with tolerances of 1 % or 0.2 ms (mean), 5 % (standard deviation), 0.03
    (Kolmogorov-Smirnov distance) and 2 % (rate). What chance does to so many probes is allowed for
    beside that, and shown: more --probes allow less. Exits with 5 if a pod gets something else, and
    says why, or if no profile is in force. With --agents pods of all nodes are measured, between nodes
    where nobody else is on theirs; then no clock is shared, and a delay that is wrong in one direction
    shows as half of that.
    """
    from ztprobe.conformance.verification import verify as verify_lease
    from ztprobe.errors import EnforcementError
    from ztprobe.leases.records import all_leases, named

    if (access := profile_access(given, node=node)) is not None:
        verify_through(context, access, ids, probes, as_json=as_json)
        return
    _need_root()
    everything = all_leases()
    wanted = named(everything, ids)
    running = running_pods(wanted, node)
    verdicts = [verify_lease(one, everything, running, probes=probes) for one in wanted]
    if as_json:
        say_json([verdict_dict(v) for v in verdicts])
    else:
        for verdict in verdicts:
            print_verdict(verdict)
    if not verdicts:
        raise EnforcementError("no profile is in force, so there is nothing to verify: ztprobe profile apply")
    if not all(verdict.passed for verdict in verdicts):
        context.exit(EnforcementError.exit_code)


@profile.command(epilog="Example: sudo ztprobe profile clear")
@click.argument("ids", metavar="[LEASE]...", nargs=-1, shell_complete=completion.leases)
@leases_options
@_JSON
@click.pass_context
def clear(context: click.Context, /, ids: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """End leases now: those named, or all of them.

    With --agents on all nodes of a cluster, whoever began them there; 3 if an agent does not answer.
    """
    from ztprobe.agent.node_leases import NodeLeases

    if (access := profile_access(given)) is not None:
        clear_through(context, access, ids, as_json=as_json)
        return
    _need_root()
    chosen = NodeLeases().end_leases(ids)
    if as_json:
        say_json({"cleared": [lease.id for lease in chosen]})
        return
    for lease in chosen:
        say(f"lease {lease.id} ended: {lease.profile.name} is off {pod_words(lease)}")
    if not chosen:
        say("no profile is in force")


def _need_root() -> None:
    if os.geteuid() != 0:
        raise PreflightError("not root: changing and reading pods' interfaces needs it; run it with sudo")
