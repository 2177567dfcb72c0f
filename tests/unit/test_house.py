"""How the code is laid out: sizes, names, imports without circles, dependencies that are used."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from ztprobe.paths import REPO_DIR

PACKAGES = ("ztprobe", "analysis", "fl", "bench", "tools")
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
# PyPI's name -> the one that is imported, where they differ.
IMPORTED = {
    "grpcio": "grpc",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "prometheus-client": "prometheus_client",
    "dnspython": "dns",
    "pyyaml": "yaml",
    "import-linter": "importlinter",
    "scikit-learn": "sklearn",
}
# Still to be told apart: an end of a connection and of a policy's question, who takes part as found and as
# recorded, rounds of a workload and of a deployment that was attached to.
NOT_YET_APART = ("Endpoint", "Participant", "Rounds")
# Run by name, or there for what another one reads: linters and the types of a library.
PROGRAMS = ("mypy", "pandas-stubs", "ruff", "types-PyYAML")


def files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (REPO_DIR / package).rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_of(path: Path) -> str:
    parts = path.relative_to(REPO_DIR).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in files(*PACKAGES, "tests")}
    assert {str(path): count for path, count in lines.items() if count > MOST_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    found = {
        f"{path.relative_to(REPO_DIR)}:{node.lineno} {node.name}": lines
        for path in files(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        # From its first line, decorators and what it says of itself apart.
        if (lines := body_lines(node)) > MOST_FUNCTION_LINES
    }
    assert found == {}


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_every_package_says_what_lives_there() -> None:
    inits = [path for path in files(*PACKAGES) if path.name == "__init__.py"]
    assert [str(path) for path in inits if not ast.get_docstring(tree(path))] == []
    directories = {path.parent for path in files(*PACKAGES)}
    assert [str(path) for path in directories if not (path / "__init__.py").exists()] == []


def test_two_classes_that_others_may_use_never_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in files("ztprobe", "analysis", "fl"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(REPO_DIR)}:{node.lineno}")
    shared = {name: where for name, where in places.items() if len(where) > 1}
    assert {name: where for name, where in shared.items() if name not in NOT_YET_APART} == {}


def test_imports_have_no_circles() -> None:
    """Those within functions count, too; those that only a type checker follows do not."""
    modules = {module_of(path): path for path in files("ztprobe", "analysis", "fl")}
    graph = {name: imported_by(path, modules) - {name} for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def imported_by(path: Path, modules: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = submodules & modules.keys()
            found |= inner or {node.module}
        waiting += ast.iter_child_nodes(node)
    return found & modules.keys()


def test_what_is_declared_is_imported() -> None:
    project = tomllib.loads((REPO_DIR / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    runtime = [*project["dependencies"], *extras["workload"], *extras["torchvision"]]
    assert unused(runtime, files("ztprobe", "analysis", "fl")) == []
    assert unused(extras["dev"], [*files("tests", "bench", "tools"), REPO_DIR / "Makefile"]) == []


def unused(requirements: list[str], where: list[Path]) -> list[str]:
    text = "\n".join(path.read_text() for path in where)
    names = {re.split(r"[<>=\[ ]", requirement)[0] for requirement in requirements} - set(PROGRAMS)
    modules = {name: IMPORTED.get(name, name.replace("-", "_")) for name in sorted(names)}
    return [name for name, module in modules.items() if not re.search(rf"(from|import) {module}\b", text)]


@pytest.mark.parametrize("room", ["analysis", "ztprobe/agent", "ztprobe/probes", "ztprobe/events", "ebpf"])
def test_nothing_that_sees_or_judges_knows_the_workload_s_port_or_names(room: str) -> None:
    """Endpoints are data of a run; the manifests alone say what they are called."""
    known = re.compile(r"\b50051\b|fl-server|fl-client")
    examples = REPO_DIR / "analysis" / "results" / "packet_filter.py"  # a message shows tcpdump's syntax
    found = [
        f"{path.relative_to(REPO_DIR)}: {node.value!r}"
        for path in files(room)
        if path != examples
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and not is_docstring(node.value) and known.search(str(node.value))
    ]
    found += [
        str(path)
        for path in sorted((REPO_DIR / room).rglob("*.[ch]"))
        if known.search(re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S))
    ]
    assert found == []


def is_docstring(value: object) -> bool:
    """Which may give an example."""
    return isinstance(value, str) and value.rstrip().endswith((".", "``."))
