"""``python -m ztprobe``, the same as the command ``ztprobe``."""

import sys

from ztprobe.cli import main

__all__ = ()

if __name__ == "__main__":
    sys.exit(main())
