"""A fresh machine gets this machine's way to the registries: what pip is told, and what that lies in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ztprobe.paths import REPO_DIR

CERTIFICATE = "/etc/ssl/machine.pem"


def configuration(tmp_path: Path, file: str = "", **environment: str) -> list[str]:
    """What the tool prints where pip has this file and this environment alone."""
    conf = tmp_path / "home/.config/pip/pip.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(file)
    command = [sys.executable, REPO_DIR / "tools/pip-configuration", CERTIFICATE]
    home = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "XDG_CONFIG_DIRS": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=home | environment)
    return done.stdout.splitlines()


def test_local_directories_come_along(tmp_path: Path) -> None:
    for name in ("wheels", "mirror/simple"):
        (tmp_path / name).mkdir(parents=True)
    links = tmp_path / "links.html"
    links.touch()
    lines = configuration(
        tmp_path,
        f"[global]\nextra-index-url = https://example.org/simple file://{tmp_path}/mirror/simple\n"
        f"[install]\nfind-links = {tmp_path}/wheels\n    {tmp_path}/nowhere\n",
        PIP_CONSTRAINT=str(links),
    )
    bound = {line.removeprefix("bind ") for line in lines if line.startswith("bind ")}
    assert bound >= {f"{tmp_path}/wheels", f"{tmp_path}/mirror", str(tmp_path)}
    assert f"{tmp_path}/nowhere" not in bound
    assert f"config find-links = {tmp_path}/wheels {tmp_path}/nowhere" in lines
    assert f"config extra-index-url = https://example.org/simple file://{tmp_path}/mirror/simple" in lines


def test_the_environment_comes_before_files(tmp_path: Path) -> None:
    file = "[global]\nindex-url = https://one.example/simple\n[install]\nindex-url = https://two.example/simple\n"
    lines = configuration(tmp_path, file, PIP_INDEX_URL="https://three.example/simple")
    assert [line for line in lines if line.startswith("config index-url")] == [
        "config index-url = https://three.example/simple"
    ]


def test_certificates_move_out_of_the_way_of_the_package_that_owns_their_place(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.crt"
    bundle.touch()
    nothing_else = {"PIP_CONFIG_FILE": "/dev/null"}
    for settings in ({"PIP_CERT": str(bundle)}, {"SSL_CERT_FILE": str(bundle)}):
        lines = configuration(tmp_path, **nothing_else, **settings)
        assert lines == [f"certificate {bundle}", "config [global]", f"config cert = {CERTIFICATE}"]
    lines = configuration(tmp_path, **nothing_else, SSL_CERT_FILE="/nowhere/bundle.crt")
    assert lines == ["config [global]"]
