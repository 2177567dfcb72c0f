"""What all pages have in common: templates, one style sheet, and scripts that the page itself carries.

A page loads nothing and runs nothing but these scripts: its policy names each by its digest, so that whatever
a log or a name might bring into the page is text.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

__all__ = ("page_environment",)

_TEMPLATES = Path(__file__).parent / "templates"


def page_environment(templates: Path | None = None) -> Environment:
    """Where pages are made.

    :param templates: a package's own, beside those of reports.
    """
    environment = Environment(
        loader=FileSystemLoader([*filter(None, [templates]), _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"asset": _asset, "policy": _policy}
    return environment


def _asset(name: str) -> Markup:
    """A style sheet or a script, as it stands."""
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _policy(*scripts: str) -> Markup:
    """The page's content security policy: these scripts and no other."""
    digests = (hashlib.sha256(_asset(name).encode()).digest() for name in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return Markup(
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none';"
        " form-action 'none'"
    )
