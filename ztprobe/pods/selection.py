"""The pods that a selector picks out of those that run, and what to say where it picks none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ztprobe.errors import UsageError
from ztprobe.pods.model import Pod
from ztprobe.pods.selectors import Selector

__all__ = ("choose", "no_match", "nothing_matches")

_FEW = 12


def choose(
    pods: Iterable[Pod], selector: Selector, namespace: str, *, option: str = "--selector"
) -> list[Pod]:
    """The pods of a namespace that a selector matches.

    :param option: for the message.
    :raises UsageError: none; says what there is.
    """
    everything = list(pods)
    chosen = [p for p in everything if p.namespace == namespace and selector.matches(p.labels)]
    if chosen:
        return chosen
    if not everything:
        raise UsageError(
            "no pods are running on this machine: start a run in another terminal (ztprobe trace ...),"
            " or name a cluster (KUBECONFIG)"
        )
    raise no_match(selector, namespace, [(p.namespace, p.name, p.labels) for p in everything], option=option)


def no_match(
    selector: Selector,
    namespace: str,
    there: Iterable[tuple[str, str, Mapping[str, str]]],
    *,
    option: str,
) -> UsageError:
    """What to say when a selector picks nothing: what there is.

    :param there: namespace, name, labels.
    """
    return UsageError(f"{option} {selector.text!r} {nothing_matches(namespace, there)}")


def nothing_matches(namespace: str, there: Iterable[tuple[str, str, Mapping[str, str]]]) -> str:
    """The end of a line that begins with a selector. :param there: namespace, name, labels."""
    running = sorted({f"{space}: {_words(labels) or name}" for space, name, labels in there})
    some = "; ".join(running[:_FEW]) + ("; ..." if len(running) > _FEW else "")
    what = f"running: {some}" if running else "nothing runs there"
    return f"matches no pod in namespace {namespace}; {what}"


def _words(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
