"""Which framework a deployment is of, by evidence: what its processes run and have loaded, what they say.

Ports tell nothing, names of gRPC methods only where they are one framework's own (NVFlare's stream is called
`/streamer.Streamer/Stream`, as anybody's might be). TLS hides what is said; the commands remain. What none of
it tells is generic, which is no failure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ztprobe.frameworks.source import Framework
from ztprobe.printable import printable

__all__ = ("ProcessFacts", "framework_of", "version_of")

_LONGEST_WORD = 80  # characters of a command that evidence shows


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """What is known of one process from outside of it."""

    pid: int
    command: str  # its words with spaces between them
    files: frozenset[str] = frozenset()  # that it maps or has open


@dataclass(frozen=True)
class _Signs:
    programs: frozenset[str]  # names of installed commands
    modules: tuple[str, ...]  # packages that are run with -m
    paths: tuple[str, ...]  # directories of its installed files
    words: re.Pattern[bytes]  # in a connection's first bytes; group 1 is shown


_SIGNS: Mapping[str, _Signs] = {
    # [project.scripts] of flwr 1.36 to 1.42; flower-server-app and flower-client-app of earlier ones.
    "flower": _Signs(
        programs=frozenset(
            (
                *("flower-superlink", "flower-supernode", "flower-superexec", "flower-simulation"),
                *("flower-server-app", "flower-client-app", "flwr", "flwr-serverapp", "flwr-clientapp"),
                *("flwr-simulation", "flwr-agentapp", "flwr-connector", "flwr-model"),
            )
        ),
        modules=("flwr",),
        paths=("/flwr/",),
        # HTTP/1.1 from 1.40 on; before, method names, which gRPC writes without Huffman coding.
        words=re.compile(
            rb"(?:POST|GET) (/v1/(?:fleet|runtime|control)/[a-z-]{1,40}) HTTP/1\.[01]"
            rb"|(/flwr\.proto\.[A-Za-z]{1,40}/[A-Za-z]{1,40})"
        ),
    ),
    "nvflare": _Signs(
        programs=frozenset(("nvflare",)),
        modules=("nvflare",),
        paths=("/nvflare/",),
        words=re.compile(rb"(nvflare\.[a-z_.]{1,60})"),
    ),
}
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*$")
_METADATA = re.compile(r"(flwr|nvflare)-(\d[\w.]*)\.dist-info$")
_PACKAGES = {"flwr": "flower", "nvflare": "nvflare"}


def framework_of(
    processes: Iterable[ProcessFacts], heads: Iterable[bytes] = (), installed: Iterable[str] = ()
) -> Framework:
    """The framework that most of the evidence is of.

    :param heads: the first bytes of payloads, as the table of packets has them.
    :param installed: names of ``*.dist-info`` directories beside what the processes run: they tell a version,
        and are no evidence that anything of it runs.
    """
    found: dict[str, list[str]] = {name: [] for name in _SIGNS}
    for process in processes:
        for name, signs in _SIGNS.items():
            if (sign := _of_process(process, signs)) is not None:
                found[name].append(sign)
    for name, requests in _of_heads(heads).items():
        found[name] += requests
    name = max(found, key=lambda each: len(found[each]))
    if not found[name]:
        return Framework(name="generic")
    return Framework(
        name=name, evidence=tuple(dict.fromkeys(found[name])), version=version_of(name, installed)
    )


def version_of(framework: str, installed: Iterable[str]) -> str | None:
    """The framework's version by the names of ``*.dist-info`` directories; None: they do not tell one."""
    versions = {
        match[2]
        for name in installed
        if (match := _METADATA.match(name)) and _PACKAGES[match[1]] == framework
    }
    return versions.pop() if len(versions) == 1 else None


def _of_process(process: ProcessFacts, signs: _Signs) -> str | None:
    program, module = _program(process.command.split())
    if program.rpartition("/")[2] in signs.programs:
        return f"process {process.pid} runs {printable(program.rpartition('/')[2], _LONGEST_WORD)}"
    if module.split(".")[0] in signs.modules:
        return f"process {process.pid} runs the module {printable(module, _LONGEST_WORD)}"
    for path in signs.paths:
        for file in sorted(process.files):
            if f"/site-packages{path}" in file or f"/dist-packages{path}" in file:
                return f"process {process.pid} has {printable(file, _LONGEST_WORD)} loaded"
    return None


def _program(words: Sequence[str]) -> tuple[str, str]:
    """The program or script of a command, and the module that it runs with -m."""
    if not words or not _PYTHON.match(words[0].rpartition("/")[2]):
        return (words[0] if words else ""), ""
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return "", next(rest, "")
        if word == "-c":
            return "", ""
        if word in ("-W", "-X"):
            next(rest, "")
        elif not word.startswith("-"):
            return word, ""
    return "", ""


def _of_heads(heads: Iterable[bytes]) -> dict[str, list[str]]:
    """In how many first payloads a framework's own words are, by framework."""
    seen: dict[str, Counter[str]] = {}
    for head in heads:
        for name, signs in _SIGNS.items():
            if (match := signs.words.search(head)) is not None:
                word = next(group for group in match.groups() if group)
                seen.setdefault(name, Counter())[word.decode("ascii", "replace")] += 1
    return {
        name: [f"{count} requests for {word}" for word, count in counts.most_common(3)]
        for name, counts in seen.items()
    }
