"""CI cannot turn green by testing nothing: the rule in tests/conftest.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPPING = "import pytest\ndef test_it():\n    pytest.skip('no netem (CONFIG_NET_SCH_NETEM)')\n"
SKIPPING_MODULE = "import pytest\npytest.skip('no netem (CONFIG_NET_SCH_NETEM)', allow_module_level=True)\n"
OPTIONAL = "import pytest\n@pytest.mark.optional\ndef test_it():\n    pytest.skip('no netem')\n"


def closing_line(tmp_path: Path, folder: str, text: str, require: str) -> str:
    place = tmp_path / "tests" / folder
    place.mkdir(parents=True)
    shutil.copy(CONFTEST, tmp_path / "tests")
    (place / "test_it.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = optional\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(place)],
        cwd=tmp_path,
        env={"ZTPROBE_REQUIRE_KERNEL": require},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("folder", "text", "require", "expected"),
    [
        ("kernel", SKIPPING, "0", "1 skipped"),
        ("kernel", SKIPPING, "1", "1 failed"),
        ("e2e", SKIPPING, "1", "1 failed"),
        ("kernel", SKIPPING_MODULE, "1", "1 error"),
        ("kernel", OPTIONAL, "1", "1 skipped"),
        ("unit", SKIPPING, "1", "1 skipped"),
    ],
)
def test_who_may_skip(tmp_path: Path, folder: str, text: str, require: str, expected: str) -> None:
    assert expected in closing_line(tmp_path, folder, text, require)
