"""Where a command sends spans to, and how ``ztprobe trace`` does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from ztprobe.errors import UsageError, ZtprobeError

if TYPE_CHECKING:
    from ztprobe.progress import Progress

__all__ = ("otlp_option", "sent", "traces_url")

_TRACES = "/v1/traces"


def traces_url(
    _context: click.Context | None, _parameter: click.Parameter | None, value: str | None
) -> str | None:
    """A collector's address as OpenTelemetry's own settings have it: without a path, its traces are meant."""
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise click.BadParameter(f"{value}: expected http://HOST:PORT of an OTLP collector (HTTP).")
    return parts._replace(path=_TRACES).geturl() if parts.path in ("", "/") else value


otlp_option = click.option(
    "--otlp",
    metavar="URL",
    callback=traces_url,
    help="Send the rounds as spans to this OpenTelemetry collector (OTLP over HTTP), such as"
    " http://127.0.0.1:4318, once the run is analysed.",
)


def sent(
    report: Mapping[str, Any], url: str | None, directory: Path, progress: Progress
) -> ZtprobeError | None:
    """Send a run's rounds, if anywhere. :returns: why they were not taken; None: nothing is wrong."""
    if url is None:
        return None
    from analysis.results.otlp import send, spans_of

    progress.stage("spans")
    spans = spans_of(report)
    try:
        send(spans, url, option="--otlp")
    except UsageError as error:
        again = f"`ztprobe export {directory} --format otlp --endpoint {url}` sends them again"
        return ZtprobeError(f"{error} The run is complete, and {again}")
    progress.done(f"{len(spans)} sent to {url}")
    return None
