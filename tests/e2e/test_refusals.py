"""What cannot be done is refused in one line, before anything is made."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.command import ZTPROBE, run, unprivileged
from tests.e2e.conftest import Traced
from ztprobe.paths import STATE_DIR
from ztprobe.rundir.state import LOCK


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty directory to be in, which anybody may write to."""
    place = tmp_path / "here"
    place.mkdir()
    place.chmod(0o1777)  # as /tmp is
    # pytest's own directories are for their owner alone.
    for parent in place.parents[:3]:
        parent.chmod(0o755)
    return place


def _states() -> set[str]:
    return set(os.listdir(STATE_DIR)) - {LOCK} if STATE_DIR.is_dir() else set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--experiment", "net9-sec3"], ["net9", "net0", "net1", "net2", "net2a", "net4a", "net5"]),
        (["--experiment", "net2-sec4"], ["net2-sec4", "sec"]),
        (["--experiment", "net2-sec3-oddly"], ["oddly", "iid"]),
        (["--experiment", ""], ["experiment"]),
        (["--baseline", "net9-sec0"], ["net9", "net0"]),
        (["--baseline", "net0-sec0", "--no-baseline"], ["--baseline", "--no-baseline"]),
        (["--clients", "0"], ["--clients", "0"]),
        (["--clients", "-3"], ["--clients", "-3"]),
        (["--clients", "many"], ["--clients", "many"]),
        (["--rounds", "0"], ["--rounds", "0"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--dataset", "cifar"], ["--dataset", "digits", "mnist"]),
        (["--dataset", "mnist"], ["--data-dir", "train-images-idx3-ubyte"]),
        (["--dataset", "mnist", "--data-dir", "."], ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]),
        (["--dataset", "mnist", "--data-dir", "nowhere"], ["nowhere"]),
        (["--data-dir", "."], ["--data-dir", "digits"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line(here: Path, arguments: list[str], words: list[str]) -> None:
    before = _states()
    run("trace", *arguments, cwd=here).assert_refused(2, *words)
    assert list(here.iterdir()) == []
    assert _states() <= before


def test_more_clients_than_addresses(here: Path) -> None:
    run("trace", "--clients", "100000", cwd=here).assert_refused(2, "addresses")
    assert list(here.iterdir()) == []


def test_a_malformed_profile_is_named_with_file_and_key(here: Path, tmp_path: Path) -> None:
    # A copy of the product, because profiles are where it is.
    root = Path(importlib.util.find_spec("ztprobe").submodule_search_locations[0]).parent  # type: ignore[union-attr, index]
    for name in ("ztprobe", "analysis", "netprofiles", "manifests", "ebpf"):
        shutil.copytree(root / name, tmp_path / "copy" / name)
    profile = tmp_path / "copy" / "netprofiles" / "net2.yaml"
    good = profile.read_text()
    environment = {"PYTHONPATH": str(tmp_path / "copy")}
    for bad, words in (
        (
            good.replace("delay_ms: 80", "delay_ms: soon", 1),
            ["net2.yaml:3", "delay_ms", "soon", "milliseconds"],
        ),
        (good.replace("delay_ms: 80", "delay: 80", 1), ["net2.yaml:3", "delay:", "delay_ms"]),
        (good + "\n: [", ["net2.yaml", "YAML"]),
        ("", ["net2.yaml"]),
    ):
        assert bad != good
        profile.write_text(bad)
        run("trace", cwd=here, env=environment).assert_refused(2, *words)
    assert list(here.iterdir()) == []


def test_an_output_place_that_cannot_be(here: Path) -> None:
    (here / "full").mkdir()
    (here / "full" / "precious").write_text("mine")
    (here / "file").write_text("mine")
    for out, word in (("full", "not empty"), ("file", "is a file"), ("file/below", "is a file")):
        run("trace", "--out", out, cwd=here).assert_refused(4, out, word)
    run("trace", "--out", "/proc/x", cwd=here).assert_refused(4, "ztprobe: /proc/x: ", "--out")
    assert sorted(p.name for p in here.rglob("*")) == ["file", "full", "precious"]


def test_a_read_only_output_place(here: Path) -> None:
    script = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    outcome = run(
        *("trace", "--out", here / "out"), prefix=["unshare", "-m", "sh", "-c", script, str(here)], cwd=here
    )
    outcome.assert_refused(4, "not writable", "--out")


def test_not_root(here: Path) -> None:
    run("trace", cwd=here, prefix=unprivileged()).assert_refused(3, "not root", "sudo")
    run("clean", cwd=here, prefix=unprivileged()).assert_refused(3, "not root", "sudo")
    assert list(here.iterdir()) == []


def _without(place: Path | str, *, directory: bool = False) -> list[str]:
    """A prefix under which something of the machine seems to be missing."""
    over = 'mount -t tmpfs none "$0"' if directory else 'mount --bind /dev/null "$0"'
    return ["unshare", "-m", "sh", "-c", f'{over} && exec "$@"', str(place)]


def test_without_btf(here: Path) -> None:
    prefix = _without("/sys/kernel/btf/vmlinux")
    run("trace", cwd=here, prefix=prefix).assert_refused(3, "BTF", "CONFIG_DEBUG_INFO_BTF")
    assert list(here.iterdir()) == []


def test_without_bcc(here: Path) -> None:
    (place,) = importlib.util.find_spec("bcc").submodule_search_locations  # type: ignore[union-attr, misc]
    prefix = _without(place, directory=True)
    run("trace", cwd=here, prefix=prefix).assert_refused(3, "bcc is missing", "python3-bpfcc")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "experiment", "package"),
    [
        ("haproxy", "net0-sec2", "haproxy"),
        ("nft", "net0-sec1", "nftables"),
        ("dnsmasq", "net0-sec0", "dnsmasq-base"),
    ],
)
def test_without_a_program(here: Path, program: str, experiment: str, package: str) -> None:
    place = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert place is not None
    arguments = ("trace", "--no-baseline", "--experiment", experiment)
    outcome = run(*arguments, cwd=here, prefix=_without(os.path.realpath(place)))
    outcome.assert_refused(3, f"{program} is missing", package)
    assert list(here.iterdir()) == []


def _edit(**changes: object) -> Callable[[Path], None]:
    def edit(run_dir: Path) -> None:
        meta = json.loads((run_dir / "run.json").read_text())
        (run_dir / "run.json").write_text(json.dumps(meta | changes))

    return edit


def _cut(name: str) -> Callable[[Path], None]:
    def cut(run_dir: Path) -> None:
        content = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes(content[: len(content) // 2])

    return cut


def _drop(name: str) -> Callable[[Path], None]:
    def drop(run_dir: Path) -> None:
        place = run_dir / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return drop


def _rounds_without(event: str) -> Callable[[Path], None]:
    def strip(run_dir: Path) -> None:
        lines = (run_dir / "rounds.jsonl").read_text().splitlines(keepends=True)
        (run_dir / "rounds.jsonl").write_text("".join(x for x in lines if json.loads(x)["event"] != event))

    return strip


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(_edit(complete=False), ["incomplete"], id="incomplete"),
        pytest.param(_edit(schema_version=3), ["schema_version 3", "newer"], id="newer-schema"),
        pytest.param(_edit(schema_version="1"), ["schema_version"], id="odd-schema"),
        pytest.param(_edit(emulation=None), ["emulation"], id="no-emulation"),
        pytest.param(_edit(pods=[]), ["pods"], id="no-pods"),
        pytest.param(_edit(pods=7), ["pods"], id="odd-pods"),
        pytest.param(_edit(options=[]), ["options"], id="odd-options"),
        pytest.param(_edit(coverage="all"), ["'all'"], id="odd-coverage"),
        pytest.param(_cut("run.json"), ["run.json", "JSON"], id="half-a-run.json"),
        pytest.param(_drop("run.json"), ["run.json", "never finished"], id="no-run.json"),
        pytest.param(_drop("rounds.jsonl"), ["rounds.jsonl"], id="no-rounds"),
        pytest.param(_cut("rounds.jsonl"), ["rounds.jsonl"], id="half-of-the-rounds"),
        pytest.param(_rounds_without("round_end"), ["round"], id="no-round-ended"),
        pytest.param(_drop("events"), ["events"], id="no-events"),
        pytest.param(_cut("events/bursts.parquet"), ["bursts.parquet", "damaged"], id="half-a-table"),
        pytest.param(_drop("events/bursts.parquet"), ["bursts"], id="no-bursts"),
        pytest.param(_drop("events/packets.parquet"), ["packets"], id="no-packets"),
    ],
)
def test_a_run_directory_that_cannot_be_analysed(
    traced: Callable[[str], Traced], tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(
        traced("net0-sec0").path, copy, ignore=shutil.ignore_patterns("report.*", "figures", "logs")
    )
    damage(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    run("report", copy).assert_refused(4, str(copy), *words)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_run_directory_that_is_none(here: Path) -> None:
    (here / "file").write_text("{}")
    (here / "empty").mkdir()
    for name in ("nowhere", "file", "empty"):
        run("report", name, cwd=here).assert_refused(4, name)
    run("report", cwd=here).assert_refused(2, "RUN")
    assert sorted(p.name for p in here.rglob("*")) == ["empty", "file"]


def test_a_baseline_that_is_damaged_is_named(traced: Callable[[str], Traced], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(traced("net0-sec3").path, copy, ignore=shutil.ignore_patterns("report.*", "figures"))
    _edit(complete=False)(copy / "baseline")
    run("report", copy).assert_refused(4, str(copy / "baseline"), "incomplete")
    assert not (copy / "report.json").exists()


def test_help_and_version_need_nothing(here: Path) -> None:
    for arguments in (("--help",), ("--version",), ("trace", "-h"), ("report", "-h"), ("doctor", "-h")):
        outcome = run(*arguments, cwd=here, prefix=unprivileged())
        assert (outcome.status, outcome.stderr) == (0, "")
        assert max(map(len, outcome.stdout.splitlines())) <= 100
    assert ZTPROBE[-1] in outcome.stdout
