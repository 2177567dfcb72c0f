"""What this machine lends to the steps of an image, without a trace of it in the image.

That is its way to the package registries (its apt and pip configuration), a cache of packages, its network,
and a /proc and /dev. They are mounts that a step alone sees.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.image_archive.errors import ImageError

__all__ = ("Machine",)

_TREE = Path(__file__).parents[2]
# Seen by a step under /run, which is a file system of its own there, as /tmp is.
_LENT = "/run/machine"
# What Debian's slim image leaves out.
_SLIM = ("doc", "groff", "info", "linda", "lintian", "locale", "man")
_PUBLIC_SOURCES = """\
deb http://deb.debian.org/debian {suite} main
deb http://deb.debian.org/debian {suite}-updates main
deb http://deb.debian.org/debian-security {suite}-security main
"""
_ENTER = f"""set -e
mount -t proc proc "$1/proc"
for place in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs "$1/$place"; done
chmod 1777 "$1/tmp"
mkdir "$1/dev/shm" "$1/run/lock" "$1{_LENT}"
for device in null zero full random urandom tty; do cp -a "/dev/$device" "$1/dev/$device"; done
ln -s /proc/self/fd "$1/dev/fd"
mount --bind "$2" "$1{_LENT}"
mount --bind "$3" "$1{_LENT}/archives"
mount --bind /etc/resolv.conf "$1/etc/resolv.conf"
root=$1
shift 3
while [ "$1" != -- ]; do mount --bind -o ro "$1" "$root$1"; shift; done
shift
exec "$@"
"""


class Machine:
    """This machine.

    :param work: a directory for what is lent; it goes with the caller.
    :param cache: where packages and Debian's bare roots are kept from one time to the next.
    :param made_unix_s: SOURCE_DATE_EPOCH for what runs; by it Python checks compiled files by their content.
    """

    def __init__(self, work: Path, cache: Path, made_unix_s: int) -> None:
        self._lent, self._cache, self._log = work / "lent", cache, work / "log"
        self._made_unix_s = made_unix_s
        self._lent.mkdir()
        self._archives = cache / "archives"
        (self._archives / "partial").mkdir(parents=True, exist_ok=True)
        (self._lent / "archives").mkdir()
        self._binds: list[Path] = []
        self._write_pip()

    def _write_pip(self) -> None:
        lines = []
        for line in self._told("tools/pip-configuration", f"{_LENT}/certificates.pem").splitlines():
            kind, _, value = line.partition(" ")
            if kind == "bind":
                self._binds.append(Path(value))
            elif kind == "certificate":
                shutil.copy(value, self._lent / "certificates.pem")
            else:
                lines.append(f"{value}\n")
        (self._lent / "pip.conf").write_text("".join(lines))

    def _write_apt(self, suite: str) -> list[str]:
        # :returns: the sources.
        sources = self._told("tools/apt-configuration", "sources", suite).splitlines()
        for line in sources:
            place = line.split()[1]
            if place.startswith(("file:/", "copy:/")):
                self._binds.append(Path("/" + place.partition(":")[2].lstrip("/")))
        (self._lent / "sources.list").write_text("".join(f"{line}\n" for line in sources))
        (self._lent / "apt.conf").write_text(
            self._told("tools/apt-configuration", "options")
            + f'Dir::Etc::SourceList "{_LENT}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
            # Kept on this machine for the next time, and in no image.
            + f'Dir::Cache::Archives "{_LENT}/archives";\n'
            + 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nAcquire::Languages "none";\n'
        )
        return sources

    def make_root(self, suite: str, root: Path) -> None:
        """Debian's bare system, as its slim image has it; made anew once a week."""
        sources = self._write_apt(suite)
        kept = self._cache / f"{suite}-slim.tar"
        week_ago_s = time.time() - 7 * 24 * 3600
        if not kept.exists() or kept.stat().st_mtime < week_ago_s:
            options = self._lent / "options"
            options.write_text(self._told("tools/apt-configuration", "options"))
            new = self._cache / f"{suite}-slim.new"
            # It makes the same bytes of the same packages, which debootstrap does not.
            self._call(
                # No time of its own, so that the root is the same whenever it was made.
                *("env", "SOURCE_DATE_EPOCH=0", "mmdebstrap"),
                *("--mode=root", "--variant=minbase", "--format=tar"),
                *([f"--aptopt={options}"] if options.stat().st_size else []),
                *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _SLIM),
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                *(suite, str(new), *sources),
            )
            new.replace(kept)
        root.mkdir()
        self._call("tar", "-C", str(root), "--numeric-owner", "-xf", str(kept))
        (root / "etc/apt/sources.list").write_text(_PUBLIC_SOURCES.format(suite=suite))
        for name in ("etc/apt/apt.conf.d/99mmdebstrap", "etc/hostname", "etc/resolv.conf"):
            (root / name).unlink(missing_ok=True)
        (root / "etc/resolv.conf").touch()

    def run(self, root: Path, argv: Sequence[str], env: Mapping[str, str], user: str, workdir: str) -> None:
        """A command in a root.

        :raises ImageError: it failed; its last line is named.
        """
        lent = {
            **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
            "SOURCE_DATE_EPOCH": str(self._made_unix_s),
            "APT_CONFIG": f"{_LENT}/apt.conf",
            "PIP_CONFIG_FILE": f"{_LENT}/pip.conf",
            "DEBIAN_FRONTEND": "noninteractive",
            "HOME": "/root",
        }
        with _places(root, self._binds):
            self._call(
                *("unshare", "--mount", "--propagation", "private", "bash", "-c", _ENTER, "enter"),
                *(str(root), str(self._lent), str(self._archives), *map(str, self._binds), "--"),
                *("env", "-i", *(f"{name}={value}" for name, value in (lent | dict(env)).items())),
                *("/usr/sbin/chroot", *([f"--userspec={user}"] if user else []), str(root)),
                *("/usr/bin/env", f"--chdir={workdir}", *argv),
            )

    def _call(self, *argv: str) -> None:
        with self._log.open("ab") as log:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        if done.returncode != 0:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise ImageError("\n".join(["failed:", *lines[-5:]]))

    def _told(self, program: str, *arguments: str) -> str:
        argv = [str(_TREE / program), *arguments]
        if program.endswith("pip-configuration"):
            argv.insert(0, sys.executable)
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@contextmanager
def _places(root: Path, binds: Sequence[Path]) -> Iterator[None]:
    # Where this machine's directories are mounted in the root: there for as long as a step takes.
    made: list[Path] = []
    for bind in binds:
        place = root / bind.relative_to("/")
        for parent in reversed([place.parent, *place.parent.parents]):
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        if not place.exists():
            place.mkdir() if bind.is_dir() else place.touch()
            made.append(place)
    try:
        yield
    finally:
        for place in reversed(made):
            place.rmdir() if place.is_dir() else place.unlink()
