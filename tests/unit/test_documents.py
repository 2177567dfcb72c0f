"""Text from outside: each key once, scalars as their reader means them, limits that are named, no waiting."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.programs import program
from ztprobe.documents.files import read_bytes, read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.documents.strict_yaml import (
    Scalars,
    decimal_scalar,
    kubectl_scalar,
    kustomize_scalar,
    parse_yaml,
)


def yaml_of(text: str, scalars: Scalars = kustomize_scalar) -> Any:
    (parsed,) = parse_yaml(text, scalars)
    return parsed.value


@pytest.mark.parametrize(
    ("word", "kubernetes", "decimal"),
    [
        ("on", "on", "on"),
        ("yes", "yes", "yes"),
        ("n", "n", "n"),
        ("true", True, True),
        ("False", False, False),
        ("~", None, None),
        ("", None, None),
        ("0440", 288, "0440"),
        ("010", 8, "010"),
        ("0o10", 8, "0o10"),
        ("08", 8.0, "08"),
        ("0x50", 80, "0x50"),
        ("1_0", 10, "1_0"),
        ("1:20", "1:20", "1:20"),
        ("1e2", 100.0, 100.0),
        ("-0.5", -0.5, -0.5),
        (".5", 0.5, 0.5),
        ("80", 80, 80),
        ("+7", 7, 7),
        (str(2**64 - 1), 2**64 - 1, 2**64 - 1),
        (str(2**64), float(2**64), 2**64),
        ("0x" + "f" * 300, "0x" + "f" * 300, "0x" + "f" * 300),
        ("1e999", "1e999", "1e999"),
        ("9" * 5000, "9" * 5000, "9" * 5000),
        (".nan", ".nan", ".nan"),
        (".inf", ".inf", ".inf"),
        ("2026-02-31", "2026-02-31", "2026-02-31"),
        ("'1'", "1", "1"),
        ("!!str 1", "1", "1"),
    ],
)
def test_a_word_is_what_its_reader_means(word: str, kubernetes: Any, decimal: Any) -> None:
    for scalars, expected in ((kustomize_scalar, kubernetes), (decimal_scalar, decimal)):
        found = yaml_of(f"a: {word}\n", scalars)["a"]
        assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "key 'a' is given twice, on line 1 too"),
        ("x:\n  - {b: 1,\n     b: 2}\n", 3, "key 'b' is given twice, on line 2 too"),
        ('? "a"\n: 1\na: 2', 3, "key 'a' is given twice"),
        ("[a, b]: 1", 1, "a list as a key"),
        ("? {a: 1}\n: 2", 1, "a mapping as a key"),
        ("x: &a [*a]", 1, "an alias that stands for nothing before it, or for itself"),
        ("[" * 100_000, 1, "is nested more than 50 deep"),
        ("a: " + "{b: " * 60, 1, "is nested more than 50 deep"),
        ("a: !!python/object/apply:os.system [x]", 1, "a tag that is not understood"),
        ("a: !!int b", 1, "is not understood"),
        ('a: "\\ud800"', 1, "is not YAML"),
        ("a: b\nc: d\x07", 2, "is not YAML: control characters"),
        ("- a\nb: c\n", 2, "is not YAML"),
        ("a: {<<: 3}", 1, "<< merges mappings alone"),
    ],
)
def test_what_is_wrong_in_yaml_has_a_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(DocumentError) as raised:
        parse_yaml(text, kustomize_scalar)
    assert raised.value.line == line
    assert problem in raised.value.problem
    assert len(str(raised.value)) < 200


_KUBECTL_WORDS = """
    on Off ON oN yes no y N true TRUE tRue Null NULL ~ a _1 = 2026-02-31 010 0o17 0O17 0x1F 0b11 09 0440 1:20
    1_000 1_ 1.5 5. .5 +.5 -3 0.0 1e 0xg 1e3 1E3 -1e-3 1e+3
"""


def test_words_are_kubectls(tmp_path: Path) -> None:
    """Asked of kubectl itself, which turns a file into JSON without any cluster."""
    data = {f"k{number}": word for number, word in enumerate(_KUBECTL_WORDS.split())}
    text = "".join(f"  {key}: {word}\n" for key, word in data.items())
    path = tmp_path / "map.yaml"
    path.write_text(f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\ndata:\n{text}")
    command = [program("kubectl"), "label", "--local", "-f", str(path), "some=label", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    theirs = json.loads(done.stdout)["data"]
    ours = yaml_of(path.read_text(), kubectl_scalar)["data"]
    for key, word in data.items():
        # JSON has one number for 1e3 and 1000.
        assert (ours[key], type(ours[key]) is bool) == (theirs[key], type(theirs[key]) is bool), word


def test_limits_are_the_callers() -> None:
    text = "a: [1, 2, 3]"
    assert parse_yaml(text, kustomize_scalar, most_values=6, most_characters=4)
    for limits in ({"most_values": 5}, {"most_characters": 3}):
        with pytest.raises(DocumentError, match="holds more than"):
            parse_yaml(text, kustomize_scalar, **limits)


def test_a_document_that_is_a_word_has_a_line() -> None:
    assert [one.line(()) for one in parse_yaml("a: 1\n---\nb\n", kustomize_scalar)] == [1, 3]


def test_aliases_to_aliases_end_at_once() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    began = time.process_time()
    with pytest.raises(DocumentError, match=r"holds more than 500000 values \(aliases expanded\)"):
        parse_yaml(text, kustomize_scalar)
    assert time.process_time() - began < 2
    text = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]\n"
    with pytest.raises(DocumentError, match=r"holds more than 32 MiB of text"):
        parse_yaml(text, kustomize_scalar)


def test_aliases_within_aliases_count_for_the_depth() -> None:
    text = f"a0: &a0 {'[' * 9}{']' * 9}\n"
    text += "".join(f"a{n}: &a{n} {'[' * 9}*a{n - 1}{']' * 9}\n" for n in range(1, 99))
    with pytest.raises(DocumentError, match=r"line 6: is nested more than 50 deep \(aliases expanded\)"):
        parse_yaml(text, kustomize_scalar)
    depth = 0
    value = yaml_of("".join(text.splitlines(keepends=True)[:5]))["a4"]
    while value:
        value, depth = value[0], depth + 1
    assert depth == 5 * 9 - 1


def test_aliases_and_merge_keys_are_copies() -> None:
    found = yaml_of("x: &x {a: [1]}\ny: *x\nz: {<<: *x, b: 2}\n")
    assert found == {"x": {"a": [1]}, "y": {"a": [1]}, "z": {"a": [1], "b": 2}}
    assert found["y"] is not found["x"]


def test_lines_of_keys_and_items_are_kept() -> None:
    (parsed,) = parse_yaml("a:\n  - b: 1\n    c: 2\n  - 3\n", kustomize_scalar)
    assert [parsed.line(keys) for keys in ((), ("a",), ("a", 0, "c"), ("a", 1), ("a", 0, "d"))] == [
        1,
        1,
        3,
        4,
        2,
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1,\n "b": {"a": 2},\n "a": 3}', "line 3: 'a' is given twice, on line 1 too"),
        ('{"a": [{"x": "}", "x": 1}]}', "line 1: 'x' is given twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "'1e999' is no number"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ("[" * 100_000, "is nested too deeply"),
        ("[" * 500 + "]" * 500, "is nested more than 100 deep"),
        ("9" * 5000, "is not JSON that is read here"),
        ('{"a": 1', "line 1: is not JSON"),
        ("", "line 1: is not JSON"),
    ],
)
def test_what_is_wrong_in_json_is_named(text: str, problem: str) -> None:
    with pytest.raises(DocumentError) as raised:
        parse_json(text)
    assert problem in str(raised.value)
    assert len(str(raised.value)) < 200


def test_what_python_programs_write_for_no_number_can_be_null() -> None:
    assert parse_json('{"loss": NaN, "b": [Infinity, -Infinity, 1e999, 1.5]}', not_finite_as_null=True) == {
        "loss": None,
        "b": [None, None, None, 1.5],
    }
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_only_regular_files_are_read_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\nb\xff")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for path, problem in (
        (tmp_path / "fifo", "is a FIFO, expected a regular file"),
        (tmp_path / "link", "is a FIFO, expected a regular file"),
        (tmp_path, "is a directory, expected a regular file"),
        (Path("/dev/zero"), "is a device, expected a regular file"),
        (tmp_path / "none", "cannot be read: No such file"),
        (tmp_path / "a\0b", "cannot be read: no such name"),
        (tmp_path / "text", "line 2: is not UTF-8 text"),
    ):
        with pytest.raises(DocumentError, match=problem):
            read_text(path, 1 << 20)
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + b"a" * 3000)
    assert read_text(tmp_path / "text", 1 << 20) == "a" * 3000
    with pytest.raises(DocumentError, match="is larger than 2 KiB, the most that is read of such a file"):
        read_bytes(tmp_path / "text", 2048)
