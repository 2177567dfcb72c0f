"""What is written about the code stays true."""

import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

import analysis
import fl
import ztprobe
from analysis.results.headline import headline_markdown
from analysis.results.headline_figure import draw_headline
from analysis.results.study_rounds import RECORDS_DIR, read_rounds
from tools.publish_study.record import BEGIN, END, HEADLINE_STUDY
from ztprobe.cli.entry import ztprobe as cli
from ztprobe.paths import REPO_DIR

COMMANDS = sorted(cli.commands)
README = REPO_DIR / "README.md"
DOCS = REPO_DIR / "docs"


def modules() -> list[str]:
    packages: list[ModuleType] = [ztprobe, fl, analysis]
    return [
        info.name
        for package in packages
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not info.name.endswith("__main__")
    ]


def is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example(name: str) -> None:
    command = cli.commands[name]
    assert command.help
    assert len(command.get_short_help_str(limit=200)) <= 70, "the list of commands shows it on one line"
    assert command.epilog is not None
    assert re.search(rf"Example: (sudo )?ztprobe {name}\b", command.epilog)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_parses(name: str) -> None:
    command = cli.commands[name]
    words = (command.epilog or "").partition(f"ztprobe {name}")[2].split()
    command.make_context(name, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help, option.name


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_is_and_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, "a module's docstring is its design note"
    if hasattr(module, "__path__") and not hasattr(module, "__all__"):
        return  # a package that offers only its modules
    for public in module.__all__:
        assert hasattr(module, public), public


@pytest.mark.parametrize("name", [name for name in modules() if is_package(name)])
def test_what_a_package_says_of_its_modules_is_there(name: str) -> None:
    """Words in backticks are its own modules, or full names of others."""
    for word in re.findall(r"(?<!`)`([a-z_][a-z0-9_.]*)`(?!`)", importlib.import_module(name).__doc__ or ""):
        full = word if word.startswith(("ztprobe.", "analysis.")) else f"{name}.{word}"
        parent, _, last = full.rpartition(".")
        assert importlib.util.find_spec(full) or hasattr(importlib.import_module(parent), last), word


def test_the_readme_mentions_every_command() -> None:
    assert [name for name in COMMANDS if f"ztprobe {name}" not in README.read_text()] == []


def test_the_readme_is_read_in_two_minutes() -> None:
    """The study's table, which a program writes, apart."""
    before, _, rest = README.read_text().partition(BEGIN)
    assert len((before + rest.partition(END)[2]).splitlines()) <= 125


def test_the_readme_shows_the_study_that_comes_with_ztprobe() -> None:
    """As soon as one does: its table and figure are what its record gives."""
    text, file = README.read_text(), RECORDS_DIR / f"{HEADLINE_STUDY}.parquet"
    assert (BEGIN in text) == file.exists()
    if file.exists():
        rounds = read_rounds(file)
        assert headline_markdown(rounds) in text
        assert (DOCS / "studies" / HEADLINE_STUDY / "headline.svg").read_text() == draw_headline(rounds)


def shown() -> list[tuple[str, str, list[str]]]:
    """(page, command, lines below it) of every report of a recorded run that is shown."""
    found = []
    for page in (README, *sorted(DOCS.glob("*.md"))):
        for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.S | re.M):
            command, *lines = block.splitlines()
            if command.startswith("# ztprobe report tests/data/"):
                found.append((page.name, command.removeprefix("# ztprobe "), lines))
    return found


def test_a_report_is_shown() -> None:
    assert "README.md" in [page for page, _, _ in shown()]


@pytest.mark.parametrize(("page", "command", "lines"), shown(), ids=[page for page, _, _ in shown()])
def test_what_is_shown_is_what_is_printed(page: str, command: str, lines: list[str], tmp_path: Path) -> None:
    """Lines stand in this order; `…` leaves some out, and nothing else does."""
    words = [*command.split(), "--out", str(tmp_path / "report")]
    run = [sys.executable, "-m", "ztprobe", *words]
    printed = subprocess.run(
        run, cwd=REPO_DIR, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    at = 0
    skipping = False
    for line in lines:
        if line == "…":
            skipping = True
            continue
        if skipping:
            at = printed.index(line, at)
            skipping = False
        assert printed[at] == line
        at += 1
    drawn = (tmp_path / "report" / "figures" / "breakdown.svg").read_bytes()
    if page == README.name:
        assert (DOCS / "breakdown.svg").read_bytes() == drawn


def test_links_lead_somewhere() -> None:
    for page in (README, *DOCS.glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_package_stands_on_the_architecture_page() -> None:
    text = (DOCS / "architecture.md").read_text()
    packages = [path.parent for path in Path(ztprobe.__file__).parent.glob("*/__init__.py")]
    assert [package.name for package in packages if f"`ztprobe/{package.name}/" not in text] == []
