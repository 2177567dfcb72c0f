"""References to variables in env, command and args, as the kubelet expands them. Pure.

``$(NAME)`` becomes the variable's value where it is known and stays as it is where it is not;
``$$`` becomes ``$``, so that ``$$(NAME)`` is the text ``$(NAME)``. What comes out is not looked at again
(k8s.io/kubernetes/third_party/forked/golang/expansion).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ("expand",)

_REFERENCE = re.compile(r"\$(?:(\$)|\(([^)]*)\))")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``text`` with its references replaced by what ``variables`` hold."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[1] else variables.get(match[2], match[0])

    return _REFERENCE.sub(value, text)
