"""What is written about the code stays true."""

import importlib
import pkgutil
import re
from types import ModuleType

import click
import pytest

import analysis
import fl
import ztprobe
from ztprobe.cli.entry import ztprobe as cli
from ztprobe.paths import REPO_DIR

COMMANDS = sorted(cli.commands)
README = REPO_DIR / "README.md"


def modules() -> list[str]:
    packages: list[ModuleType] = [ztprobe, fl, analysis]
    return [
        info.name
        for package in packages
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not info.name.endswith("__main__")
    ]


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


def test_the_readme_mentions_every_command() -> None:
    text = README.read_text()
    assert [name for name in COMMANDS if f"ztprobe {name}" not in text] == []
