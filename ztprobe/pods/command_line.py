"""Command lines of others as they may be shown and saved: without what lets somebody in.

Programs are given tokens and passwords as arguments, which ``ps`` shows as long as they run; a run directory
is kept and handed on.
"""

from __future__ import annotations

import re

__all__ = ("HIDDEN", "without_secrets")

HIDDEN = "…"
_SECRET = r"(?:token|secret|passw|passphrase|credential|auth|cookie|api-?_?key|private-?_?key)"
_OPTION = re.compile(rf"-{{0,2}}[\w.-]*{_SECRET}[\w.-]*", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_OPAQUE = re.compile(
    r"[A-Za-z0-9+_=-]{40,}"
)  # keys and tokens as hexadecimal or base64; names of files have dots


def without_secrets(command: str) -> str:
    """A command line with an ellipsis for values of options that sound like secrets, for users in URLs, and
    for long opaque words.
    """
    words: list[str] = []
    hide_next = False
    for word in command.split(" "):
        name, equals, value = word.partition("=")
        if hide_next and not word.startswith("-"):
            word = HIDDEN
        elif equals and value and _OPTION.fullmatch(name):
            word = f"{name}={HIDDEN}"
        elif any(character.isdigit() for character in word) and _OPAQUE.fullmatch(word):
            word = HIDDEN
        else:
            word = _IN_URL.sub(f"{HIDDEN}@", word)
        hide_next = not equals and word.startswith("-") and _OPTION.fullmatch(word) is not None
        words.append(word)
    return " ".join(words)
