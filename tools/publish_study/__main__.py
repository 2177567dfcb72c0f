"""python -m tools.publish_study STUDY: a finished study's record and report into this tree."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.publish_study.record import publish
from ztprobe.errors import ZtprobeError
from ztprobe.paths import REPO_DIR

_USAGE = 2


def main(arguments: list[str], tree: Path = REPO_DIR) -> int:
    """:returns: the exit status; where it is not 0 one line says why."""
    if len(arguments) != 1:
        print(
            "publish-study: expected a study's directory: make publish-study STUDY=runs/paper-80",
            file=sys.stderr,
        )
        return _USAGE
    try:
        written = publish(Path(arguments[0]), tree)
    except ZtprobeError as error:
        print(f"publish-study: {error}", file=sys.stderr)
        return error.exit_code
    for path, size in written.items():
        print(f"{size / 1e3:8.1f} kB  {path}")
    print(f"{sum(written.values()) / 1e6:8.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
