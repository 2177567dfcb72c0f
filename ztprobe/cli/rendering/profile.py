"""What ``ztprobe profile`` prints: tables, lines and the dictionaries behind --json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli.output import say
from ztprobe.printable import printable

if TYPE_CHECKING:
    from ztprobe.agent.interface import LeaseState
    from ztprobe.conformance.judgement import Allowance
    from ztprobe.conformance.verification import Conformance
    from ztprobe.leases.records import Lease
    from ztprobe.pods.model import Pod
    from ztprobe.profile.model import Profile

__all__ = (
    "lease_dict",
    "lease_row",
    "notes",
    "plan_lines",
    "pod_words",
    "print_verdict",
    "profile_dict",
    "profile_words",
    "step_dict",
    "step_words",
    "table",
    "value_words",
    "verdict_dict",
)


def verdict_dict(verdict: Conformance) -> dict[str, Any]:
    return {
        "lease": verdict.lease.id,
        "profile": verdict.lease.profile.name,
        "step": None if verdict.step is None else verdict.step + 1,
        "passed": verdict.passed,
        "problems": list(verdict.problems),
        "causes": list(verdict.causes),
        "allowed": [
            {
                "sender": d.sender,
                "receiver": d.receiver,
                **{name: asdict(a) for name, a in verdict.measured.allowances(d, verdict.profile).items()},
            }
            for d in verdict.measured.directions
        ],
        "measured": verdict.measured.as_dict(),
        **verdict.measured.details(),
    }


def print_verdict(verdict: Conformance) -> None:
    lease = verdict.lease
    step = "" if verdict.step is None else f", step {verdict.step + 1}"
    asked = profile_words(verdict.profile)
    say(f"lease {lease.id}: {lease.profile.name}{step} ({asked}) by {lease.backend}")
    rates = {rate.sender: rate for rate in verdict.measured.rates}
    rows = []
    for d in verdict.measured.directions:
        rate = rates.get(d.sender)
        goodput = (
            ""
            if rate is None
            else "not measured"
            if rate.goodput_mbit is None
            else f"{rate.goodput_mbit:.2f}"
        )
        allowed = verdict.measured.allowances(d, verdict.profile)

        def beside(value: str, figure: str, allowed: Mapping[str, Allowance] = allowed) -> str:
            return f"{value} ({allowed[figure]})" if figure in allowed else value

        rows.append(
            (
                str(d),
                beside(f"{d.mean_ms:.2f}", "mean_ms"),
                beside(f"{d.sd_ms:.2f}", "sd_ms"),
                "" if d.shape_distance is None else beside(f"{d.shape_distance:.3f}", "shape_distance"),
                beside(f"{d.loss_pct:.2f}", "loss_pct"),
                goodput,
            )
        )
    table(("from -> to", "mean ms", "sd ms", "KS", "lost %", "Mbit/s"), rows)
    say(
        "in brackets: asked for ± tolerance ± sampling error of so many probes (99.9 %, for all figures"
        " together)"
    )
    for problem in verdict.problems:
        say(f"wrong: {printable(problem)}")
    for cause in verdict.causes:
        say(f"because: {printable(cause)}")
    if verdict.passed:
        say("as asked for")


def profile_dict(found: Profile) -> dict[str, Any]:
    from ztprobe.cli.rendering.schedule import schedule_dict

    return asdict(found) | {"schedule": schedule_dict(found)}


def profile_words(p: Profile) -> str:
    if p.schedule is not None:
        from ztprobe.cli.rendering.schedule import schedule_words

        return schedule_words(p)
    parts = []
    if p.samples_ms:
        parts.append(f"{p.delay_ms:.4g} ± {p.sd_ms:.4g} ms as measured")
    elif p.delay_ms:
        jitter = f" ± {p.jitter_ms:.6g} ms {p.distribution}" if p.jitter_ms else " ms"
        parts.append(f"{p.delay_ms:.6g}{jitter}")
    if p.mean_loss_pct:
        parts.append(f"{p.mean_loss_pct:.4g} % lost{' in bursts' if p.loss_states else ''}")
    for key, word in (("duplicate_pct", "twice"), ("corrupt_pct", "corrupted"), ("reorder_pct", "ahead")):
        if value := getattr(p, key):
            parts.append(f"{value:g} % {word}")
    if p.rate_mbit is not None:
        parts.append(f"{p.rate_mbit:g} Mbit/s")
    return ", ".join(parts) or "nothing"


def value_words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:g}" for k, v in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def pod_words(lease: Lease) -> str:
    names = [pod.name for pod in lease.pods]
    if not names:
        return "no pod now"
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} pods"


def plan_lines(lease: Lease) -> list[str]:
    """What is put where, a line for each pod and direction."""
    lines = []
    towards = f", towards {', '.join(p.name for p in lease.peers)} only" if lease.peers is not None else ""
    for point in lease.points:
        kind = "tbf" if lease.backend == "nfqueue+tbf" else lease.backend
        put_aside = f" (in place of {point.saved.kind})" if point.saved is not None else ""
        netns = point.netns.name if point.netns.parent.name == "netns" else str(point.netns)
        where = f"{kind} on {point.interface} in {netns}"
        if point.ifb is not None:
            where = f"{kind} on {point.ifb}, for what enters by {point.interface} in {netns}"
        lines.append(f"{point.pod} {point.direction}: {where}{put_aside}{towards}")
    for rules in lease.rules:
        here: list[Pod] = [pod for pod in lease.pods if pod.node_netns == rules.netns]
        lines += [
            f"{pod} {direction}: delay line in {rules.netns.name}{towards}"
            for pod in here
            for direction in lease.directions
        ]
    return lines


def notes(lease: Lease) -> list[str]:
    notes = []
    if lease.why_not_followed:
        notes.append(f"pods that come later or are restarted are not under it: {lease.why_not_followed}")
    if lease.direction == "both":
        ends = {p.address for p in lease.pods}
        others = ends if lease.peers is None else {p.address for p in lease.peers}
        if len(ends) > 1 and ends & others:
            notes.append(
                "traffic between two of these pods meets the profile twice: leaving one, entering the other"
            )
    if any(p.ifb is not None and p.direction == "ingress" for p in lease.points):
        notes.append(
            "what enters is held inside the pod, after its tc ingress: a trace of these pods takes the delay"
            " for the receiver's, not for the network's"
        )
    return notes


def lease_dict(lease: Lease) -> dict[str, Any]:
    return {
        "lease": lease.id,
        "profile": lease.profile.name,
        "asks_for": profile_words(lease.profile),
        "backend": lease.backend,
        "direction": lease.direction,
        "selector": lease.selector,
        "namespace": lease.namespace,
        "runtime": lease.runtime,
        "to": lease.to,
        "pods": [str(pod) for pod in lease.pods],
        "peers": None if lease.peers is None else [str(pod) for pod in lease.peers],
        "state": lease.state,
        "remaining_s": round(lease.remaining_s, 1),
        "interfaces": [
            {
                "pod": p.pod,
                "direction": p.direction,
                "interface": p.interface,
                "ifb": p.ifb,
                "replaces": p.saved.kind if p.saved is not None else None,
            }
            for p in lease.points
        ],
    }


def lease_row(one: LeaseState) -> tuple[str, ...]:
    """A lease in the table that `status` prints."""
    from ztprobe.leases.records import words

    lease, counted = one.lease, one.counted
    towards = f" to {lease.to}" if lease.to is not None else ""
    way = "both ways" if lease.direction == "both" else lease.direction
    return (
        lease.id,
        lease.profile.name,
        lease.backend,
        f"{way} of {pod_words(lease)}{towards}",
        counted["in_force"],
        words(lease.remaining_s),
        f"{counted['packets']} packets, {counted['drops']} dropped",
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120  # a pipe has no width, and rich would take 80
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(printable, row))
    with console.capture() as printed:
        console.print(table)
    click.echo(printed.get(), nl=False)  # rich itself would exit where nobody reads any more


def step_dict(state: LeaseState) -> dict[str, Any] | None:
    """Where a lease is in its schedule, as its keeper confirmed it; None: it has none."""
    from ztprobe.leases.records import now_ns

    profile, held = state.lease.profile, state.step
    schedule = profile.schedule
    if schedule is None:
        return None
    if held is None:
        return {"step": 0, "of": len(schedule.steps), "asks_for": "", "next_s": None, "problems": 0}
    return {
        "step": held.step + 1,
        "of": len(schedule.steps),
        "asks_for": profile_words(profile.steps[held.step]),
        "since_s": round((now_ns() - held.since_ns) / 1e9, 3),
        "next_s": None if held.until_ns is None else round(max(0, held.until_ns - now_ns()) / 1e9, 3),
        "changes": held.number,
        "failed": held.failed,
        "problems": held.problems,
        "last_problem": held.last_problem,
    }


def step_words(state: LeaseState) -> list[str]:
    """What `status` says below its table, for a lease whose profile changes over time."""
    step, lease = step_dict(state), state.lease
    if step is None or not step["step"]:
        return []
    after = "stays" if step["next_s"] is None else f"the next in {step['next_s']:.1f} s"
    lines = [
        f"lease {lease.id}: step {step['step']} of {step['of']} ({step['asks_for']}) since "
        f"{step['since_s']:.1f} s, {after}"
    ]
    if step["problems"]:
        count = f"{step['problems']} changes" if step["problems"] > 1 else "1 change"
        lines.append(f"lease {lease.id}: {count} failed or came late; the last: {step['last_problem']}")
    return lines
