"""python -m tools.image_archive NAME TAG TARGET: images/NAME.Dockerfile as an OCI archive.

All that it makes on the way is in memory: in a file system and among processes that only it sees, which
the kernel takes away with it, by whatever it ends.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

from tools.image_archive.build import build
from tools.image_archive.errors import ImageError

_TREE = Path(__file__).parents[2]
_WORK = Path("/run/ztprobe-images")
_NEEDS_GIB = 5  # twice what the larger image holds


def _cache() -> Path:
    given = os.environ.get("IMAGES_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{home}/ztprobe-images").expanduser().resolve()


def outside(arguments: list[str]) -> int:
    """Start the one that works, and take it away on a signal. :returns: its exit status."""
    if os.geteuid() != 0:
        raise ImageError("without a container engine an image is made by root (sudo make images)")
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available_gib = int(memory["MemAvailable"].split()[0]) >> 20
    if available_gib < _NEEDS_GIB:
        raise ImageError(f"needs {_NEEDS_GIB} GiB of memory for the files, and {available_gib} GiB are free")
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time: they share the cache and the place
        _WORK.mkdir(exist_ok=True)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
        inner = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"),
                *("--pid", "--fork", "--kill-child", "--mount-proc"),
                *(sys.executable, "-m", "tools.image_archive", "--inside", *arguments),
            ],
            start_new_session=True,  # Ctrl-C is this process's matter
        )
        try:
            status = inner.wait()
        finally:
            inner.kill()
            inner.wait()
            _WORK.rmdir()
    return status


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def inside(name: str, tag: str, target: str) -> None:
    """Make the image, in this process's own mounts."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_NEEDS_GIB}G,mode=755", "ztprobe-images", str(_WORK)]
    subprocess.run(mount, check=True)
    os.environ["TMPDIR"] = str(_WORK)
    path = Path(target).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    written = build(_TREE / f"images/{name}.Dockerfile", _TREE, tag, _WORK, _cache(), path)
    print(f"images: {target}: {tag}, {written.compressed_bytes / 1e6:.1f} MB, {written.digest}", flush=True)


def main(arguments: list[str]) -> int:
    """:returns: the exit status; 3: the image cannot be made, and one line says why."""
    try:
        if arguments[:1] == ["--inside"]:
            inside(*arguments[1:])
            return 0
        return outside(arguments)
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
