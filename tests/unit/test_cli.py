import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ztprobe import __version__
from ztprobe.cli import main
from ztprobe.cli.command_names import COMMANDS
from ztprobe.cli.entry import ztprobe
from ztprobe.cli.overview import overview
from ztprobe.errors import (
    EnforcementError,
    PreflightError,
    RunDirError,
    UsageError,
    WorkloadError,
    ZtprobeError,
)
from ztprobe.paths import REPO_DIR
from ztprobe.process.interrupts import Interrupted


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Make `ztprobe report x` raise whatever is given."""

    def arrange(error: BaseException) -> None:
        def callback(**_arguments: object) -> None:
            raise error

        monkeypatch.setattr(ztprobe.commands["report"], "callback", callback)

    return arrange


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no"), 2),
        (PreflightError("no"), 3),
        (RunDirError("no"), 4),
        (EnforcementError("no"), 5),
        (WorkloadError("no"), 6),
    ],
)
def test_our_errors_are_one_line_and_a_code(failing, capsys, error: Exception, code: int) -> None:
    failing(error)
    assert main(["report", "x"]) == code
    assert capsys.readouterr() == ("", "ztprobe: no\n")


def test_several_problems_are_a_line_each(failing, capsys) -> None:
    failing(PreflightError("not root\nno BTF"))
    assert main(["report", "x"]) == 3
    assert capsys.readouterr().err == "ztprobe: not root\nztprobe: no BTF\n"


def test_a_bug_is_one_line_and_the_traceback_is_kept(failing, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(ValueError("seven\nis odd"))
    assert main(["report", "x"]) == 70
    (kept,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"ztprobe: unexpected ValueError: seven; please report it with {kept}\n"
    assert "Traceback" in kept.read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_their_code(failing, capsys, signum: int, code: int) -> None:
    failing(Interrupted(signum))
    assert main(["report", "x"]) == code
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trace", "--experiment", "net9-sec0"], "net0, net1, net2, net2a, net3, net4, net4a, net5"),
        (["trace", "--experiment", "net2-sec7"], "sec0, sec1, sec2, sec3"),
        (["trace", "--baseline", "fast"], "net<profile>-sec<level>"),
        (["trace", "--clients", "0"], "--clients"),
        (["trace", "--rounds", "0"], "--rounds"),
        (["trace", "--out", ""], "'--out': is empty, expected a directory"),
        (["validate", "--out", ""], "'--out': is empty, expected a directory"),
        (["report", "x", "--out", ""], "'--out': is empty, expected a directory"),
        (["trace", "--coverage-floor", "nan"], "'--coverage-floor': nan is not a number"),
        (["trace", "--rounds", "many"], "--rounds"),
        (["trace", "--seed", "4", "--experiment", "net2-sec3-s3"], "--seed"),
        (["trace", "--seed", "-1"], "--seed"),
        (["trace", "--dataset", "cifar"], "fashion-mnist"),
        (["trace", "--dataset", "mnist"], "train-images-idx3-ubyte"),
        (["trace", "--dataset", "mnist", "--data-dir", "/proc"], "train-images-idx3-ubyte"),
        (["trace", "--no-baseline", "--baseline", "net0-sec0"], "--no-baseline"),
        (["trace", "--duet"], "--duet: needs --repeat, the number of pairs"),
        (["trace", "--until-ci", "5%"], "--until-ci 5%: needs --repeat"),
        (["trace", "--repeat", "2", "--wait-for-quiet"], "--wait-for-quiet: is for a single run, not for"),
        (["trace", "--repeat", "2", "--stall-after", "9"], "--stall-after: is for a single run, not for"),
        (["trace", "--repeat", "2", "--coverage-floor", "9"], "--coverage-floor: is for a single run"),
        (["trace", "--bogus"], "--bogus"),
        (["report"], "RUN..."),
        (["bogus"], "bogus"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(capsys, arguments: list[str], expected: str) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("ztprobe: ")
    assert shown.err.count("\n") == 1
    assert expected in shown.err


def test_a_used_output_directory_is_refused_before_anything_starts(
    capsys, tmp_path: Path, monkeypatch
) -> None:
    def run_pair(*_: object) -> None:
        pytest.fail("something was started")

    monkeypatch.setattr("ztprobe.experiment.pair.run_pair", run_pair)
    (tmp_path / "file").touch()
    assert main(["trace", "--out", str(tmp_path)]) == 4
    assert f"output directory {tmp_path} is not empty" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]


def test_report_on_what_is_no_run_is_one_line(capsys, tmp_path: Path) -> None:
    assert main(["report", str(tmp_path / "none")]) == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ztprobe {__version__}\n"


def test_doctor_says_in_its_last_line_and_its_code_whether_the_main_job_can_run(capsys) -> None:
    code = main(["doctor"])
    last_line = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert (code, last_line) in {(0, "The main job can run."), (3, "The main job cannot run here.")}


def test_doctor_json_is_json_alone(capsys) -> None:
    code = main(["doctor", "--json"])
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["can_run"] == (code == 0) == (verdict["problems"] == [])
    assert {"signal", "hook", "gives", "remedy"} == set(verdict["signals"][0])


def test_the_list_of_scenarios_is_there_for_programs_too(capsys) -> None:
    assert main(["validate", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["validate", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [line.split()[:2] for line in lines] == [[row["name"], row["experiment"]] for row in rows]


def test_help_needs_none_of_the_slow_libraries() -> None:
    code = "import sys, ztprobe.cli as c; c.main(['trace', '--help']); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stderr.split()
    assert not {"numpy", "pandas", "torch", "bcc", "pyroute2", "matplotlib", "grpc", "rich"} & set(loaded)


@pytest.mark.parametrize("arguments", [["--help"], ["profile", "list"], ["doctor"]], ids=" ".join)
def test_a_reader_that_leaves_ends_us_as_it_would_end_others(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as gone:
        ended = subprocess.run(
            [sys.executable, "-m", "ztprobe", *arguments], stdout=gone, stderr=subprocess.PIPE, check=False
        )
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("stream", "mode", "reason"),
    [
        ("/dev/full", "w", "No space left on device; make room and try again"),
        (os.devnull, "r", "Bad file descriptor"),
    ],
    ids=["full", "open for reading"],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_cannot_be_written_to_is_no_bug(
    stream: str, mode: str, reason: str, unbuffered: str
) -> None:
    command = [sys.executable, "-m", "ztprobe", "profile", "list"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open(stream, mode) as refuses:
        ended = subprocess.run(command, stdout=refuses, stderr=subprocess.PIPE, check=False, env=environment)
    assert ended.returncode == 4
    assert ended.stderr.decode() == f"ztprobe: output: cannot be written: {reason}\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_bug(closed: str) -> None:
    command = f"'{sys.executable}' -m ztprobe profile list {closed}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert bool(ended.stdout) == (">&- " not in f"{closed} ".replace("2>&- ", ""))


def test_closed_streams_keep_no_command_from_its_work(tmp_path: Path) -> None:
    run = REPO_DIR / "tests" / "data" / "net2-sec3-reconnect"
    command = f"'{sys.executable}' -m ztprobe report '{run}' --out '{tmp_path}/out' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["experiment"] == "net2-sec3"


def test_what_others_open_never_gets_the_number_of_a_closed_stream() -> None:
    code = (
        "from ztprobe.cli.streams import open_standard_streams; open_standard_streams();"
        "import os, sys; fd = os.open('/', os.O_RDONLY); print('said'); assert fd > 2, fd;"
        "assert sys.stdin.read() == ''; assert all(os.get_inheritable(n) for n in range(3))"
    )
    command = f"'{sys.executable}' -c \"{code}\" <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


def test_a_pipe_of_our_own_that_breaks_is_a_bug(failing, capfd, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(BrokenPipeError("a child's"))
    assert main(["report", "x"]) == 70
    assert "unexpected BrokenPipeError: a child's" in capfd.readouterr().err


def test_the_table_in_the_help_has_every_exit_code(capsys) -> None:
    assert main(["--help"]) == 0
    table = " ".join(capsys.readouterr().out.partition("Exit codes:")[2].split())
    errors = (ZtprobeError, UsageError, PreflightError, RunDirError, EnforcementError, WorkloadError)
    for code in (0, 7, 70, 129, 130, 141, 143, *(error.exit_code for error in errors)):
        assert re.search(rf"\b{code}\b", table), code


def test_a_variable_that_looks_like_ours_and_is_not_is_told(capsys, monkeypatch) -> None:
    monkeypatch.setenv("ZTPROBE_STATEDIR", "/elsewhere")
    monkeypatch.setenv("ZTPROBE_STATE_DIR", "/somewhere")
    monkeypatch.setenv("ZTPROBE_COLOUR", "blue")
    assert main(["profile", "list"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "ztprobe: the variable ZTPROBE_COLOUR is not known and changes nothing; there is ZTPROBE_STATE_DIR",
        "ztprobe: the variable ZTPROBE_STATEDIR is not known and changes nothing; "
        "did you mean ZTPROBE_STATE_DIR?",
    ]


def test_json_alone_writes_nothing_into_runs(capsys, tmp_path: Path) -> None:
    recorded = REPO_DIR / "tests" / "data" / "net2-sec3-reconnect"
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        shutil.copytree(recorded, run, ignore=shutil.ignore_patterns("report.json"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", "--json", *map(str, runs)]) == 0
    assert [one["experiment"] for one in json.loads(capsys.readouterr().out)] == ["net2-sec3"] * 2
    assert main(["report", "--json", str(runs[0])]) == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "net2-sec3"
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["report", "--json", str(runs[0]), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.json").read_text() == capsys.readouterr().out


def test_a_full_disk_is_not_a_bug(failing, capsys) -> None:
    failing(OSError(errno.ENOSPC, "No space left on device", "/full/report.json"))
    assert main(["report", "x"]) == 4
    assert "ztprobe: /full/report.json: cannot be written: No space left" in capsys.readouterr().err


def test_commands_are_the_ones_we_mean() -> None:
    assert isinstance(ztprobe, click.Group)
    results = {"report", "compare", "whatif", "export", "drops", "diagnose"}
    machine = {"trace", "attach", "sweep", "reproduce", "limits", "profile", "policy", "doctor"}
    machine |= {"clean", "validate"}
    cluster = {"agent", "deploy", "undeploy"}
    assert set(ztprobe.commands) == results | machine | cluster


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    command = ztprobe.commands[name]
    _, words = COMMANDS[name]
    assert command.name == name
    assert " ".join((command.help or "").split()).startswith(words) and words.endswith(".")


def loaded_by(*arguments: str) -> tuple[set[str], str]:
    script = (
        "import sys; from ztprobe.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(done.stderr.split()), done.stdout


def test_help_imports_neither_commands_nor_what_runs_them() -> None:
    """It has to appear at once."""
    loaded, shown = loaded_by("--help")
    assert "ztprobe.cli.overview" in loaded and "Commands:" in shown
    assert not loaded & {"click", "ztprobe.cli.entry", "logging", "traceback"}


def test_a_command_imports_no_other() -> None:
    loaded, shown = loaded_by("whatif", "--help")
    assert "ztprobe.cli.whatif" in loaded and "--without" in shown
    others = {f"ztprobe.cli.{module}" for module, _ in COMMANDS.values()} - {"ztprobe.cli.whatif"}
    assert not loaded & others
    assert not loaded & {"numpy", "pandas", "jsonschema", "yaml", "grpc", "ztprobe.experiment"}


@pytest.mark.parametrize("columns", [1, *range(50, 104), 300])
def test_help_is_what_click_prints(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with ztprobe.make_context("ztprobe", ["trace"]) as context:
        assert overview(columns) == f"{context.get_help()}\n"


@pytest.mark.parametrize("options", [["--help"], ["-h"]])
def test_help_takes_the_terminals_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    for told, columns in (("64", 64), ("", 80), ("wide", 80), ("0", 80)):
        monkeypatch.setenv("COLUMNS", told)
        assert main(options) == 0
        assert capsys.readouterr() == (overview(columns), "")


def run_with(
    arguments: list[str], files: int | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.run(
        [sys.executable, "-m", "ztprobe", *arguments],
        capture_output=True,
        check=False,
        cwd=REPO_DIR,
        env=dict(os.environ) | environment,
        preexec_fn=limit,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_does_not_end_a_command(tmp_path: Path, encoding: str) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("name: p\ndescription: 5 ± 1 ms – \U0001f600\ndelay_ms: 5\nsource: {delay_ms: me}\n")
    shown = run_with(["profile", "show", str(profile)], PYTHONIOENCODING=encoding)
    assert (shown.returncode, shown.stderr) == (0, b"")
    as_json = run_with(["profile", "show", str(profile), "--json"], PYTHONIOENCODING=encoding)
    # click writes UTF-8 where Python took the locale for ASCII
    found = json.loads(as_json.stdout.decode("utf-8" if encoding == "ascii" else encoding))
    assert found["description"] == "5 ± 1 ms – \U0001f600"
    missing = run_with(["profile", "show", os.fsdecode(b"/no/\xff.yaml")], PYTHONIOENCODING=encoding)
    assert missing.returncode == 2 and missing.stderr.count(b"\n") == 1


def test_too_few_open_files_are_said_to_be_that(tmp_path: Path) -> None:
    recorded = REPO_DIR / "tests" / "data" / "net2-sec3"
    done = run_with(["report", str(recorded), "--out", str(tmp_path / "out")], files=9)
    assert done.returncode == 3
    said = b"ztprobe: too many open files: 9 are allowed; allow more (ulimit -n 4096) and try again\n"
    assert done.stderr.endswith(said)


def test_a_job_raises_its_limit_of_open_files_or_says_that_it_cannot() -> None:
    code = (
        "import resource; from ztprobe.experiment.requirements import open_files_problems as problems;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 2048)); assert problems() == [];"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1024;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); print(problems())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO_DIR, check=True
    )
    assert "only 64 files may be open at a time: allow 1024 (ulimit -n 1024)" in done.stdout
