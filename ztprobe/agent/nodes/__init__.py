"""Several nodes through their agents, as one."""

from __future__ import annotations

__all__ = ()
