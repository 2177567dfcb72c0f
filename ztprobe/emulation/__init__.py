"""What a network profile does to packets, and the proof that it does it.

``emulator`` is the one interface the agent uses. Below it: ``netem`` and ``tbf``
(qdiscs on the pod's own interface), ``delayline`` over ``nfqueue`` (a process of its
own, where the kernel has no netem), ``probing`` (UDP probes between pods) and
``measured`` (what the probes say, compared with the profile; pure).
Nothing is imported here, because the delay line's process starts through this package.
"""

from __future__ import annotations

__all__ = ()
