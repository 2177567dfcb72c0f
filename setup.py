"""Puts the data that stands beside the packages in a clone into a wheel's ztprobe/data."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = ("ebpf", "manifests", "netprofiles")  # as ztprobe.paths has them


class BuildWithData(build_py):
    """`build_py`, and the data files; an editable installation has them where they are."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            for source, target in self._data():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What `run` makes."""
        data = [] if self.editable_mode else [str(target) for _, target in self._data()]
        return [*super().get_outputs(include_bytecode), *data]

    def _data(self) -> list[tuple[Path, Path]]:
        into = Path(self.build_lib, "ztprobe", "data")
        found = sorted(path for name in DATA for path in Path(name).rglob("*") if path.is_file())
        return [(path, into / path) for path in found]


setup(cmdclass={"build_py": BuildWithData})
