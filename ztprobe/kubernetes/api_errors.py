"""What it means, as one line, that the Kubernetes API refuses or is not there. Pure."""

from __future__ import annotations

import re

from ztprobe.errors import PreflightError, UsageError, ZtprobeError
from ztprobe.kubernetes.answers import ApiRefusal
from ztprobe.printable import printable

__all__ = ("LONGEST_REASON", "error_of", "reason_of")

LONGEST_REASON = 500
# Of RBAC's own refusals; admission's are of the same status and name neither verb nor resource.
_FORBIDDEN = re.compile(r'cannot (\w+) resource "([^"]+)"')


def error_of(refusal: ApiRefusal, what: str, selector: str) -> ZtprobeError:
    """An answer that is no success.

    :param what: was asked for, as a verb and its object: ``list pods in namespace a``.
    :param selector: of labels; empty: none.
    """
    status, message = refusal.status if refusal.is_status else None, refusal.message
    if status == 400 and selector:
        return UsageError(f"selector {selector!r}: {message}")
    if status == 401:
        return PreflightError(
            f"the Kubernetes API does not know us (401, {message}): log in again, or set KUBECONFIG"
        )
    forbidden = _FORBIDDEN.search(message)
    if status == 403 and (forbidden is not None or what.startswith("list ")):  # admission is for changes
        verb, kind = forbidden.groups() if forbidden is not None else what.split()[:2]
        hint = " (manifests/components/node-access grants what ztprobe needs)" if verb == "list" else ""
        return PreflightError(
            f"the Kubernetes API does not let us {what} (403): {message}; missing: the verb {verb} on {kind}"
            + hint
        )
    if "field not declared in schema" in message:
        return PreflightError(
            f"the cluster's Kubernetes is too old to {what}: {message}; 1.29 or newer is needed"
        )
    if status in (400, 403, 409, 422):  # admission, or a field that this version does not know
        return PreflightError(f"the Kubernetes API refuses to {what} ({status}): {message}")
    return PreflightError(f"the Kubernetes API failed to {what} ({refusal.status}): {message}")


def reason_of(error: BaseException) -> str:
    """Why no answer came."""
    # urllib3 wraps the system's own words several times.
    while (inner := getattr(error, "reason", None) or error.__cause__ or error.__context__) is not None:
        if not isinstance(inner, BaseException):
            return printable(" ".join(str(inner).split()), LONGEST_REASON)
        error = inner
    said = getattr(error, "strerror", None) or " ".join(str(error).split())
    return printable(said, LONGEST_REASON)
