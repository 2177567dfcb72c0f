"""Where the data files are (C sources, profiles and manifests): beside the packages in a clone, in an
installed wheel within this one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = (
    "COMPILED_DIR",
    "EBPF_DIR",
    "LEASES",
    "MANIFESTS_DIR",
    "NETPROFILES_DIR",
    "REPO_DIR",
    "STATE_DIR",
    "missing_data",
    "unknown_variables",
)

REPO_DIR = Path(__file__).resolve().parents[1]  # or site-packages: where ztprobe can be imported from
_INSTALLED = Path(__file__).resolve().parent / "data"
_DATA_DIR = _INSTALLED if _INSTALLED.is_dir() else REPO_DIR
EBPF_DIR = _DATA_DIR / "ebpf"
NETPROFILES_DIR = _DATA_DIR / "netprofiles"
MANIFESTS_DIR = _DATA_DIR / "manifests"

# One directory per live run: the journal that `ztprobe clean` undoes after SIGKILL.
# /run is emptied by a reboot, as are the namespaces, queues and processes it describes.
# (ZTPROBE_STATE_DIR is for tests, which must not meet other people's runs.)
_STATE_VARIABLE = "ZTPROBE_STATE_DIR"
_OF_TESTS = (
    "ZTPROBE_EXAMPLES",
    "ZTPROBE_FRAMEWORKS",
    "ZTPROBE_IN_VM",
    "ZTPROBE_POLICY_PACKET_FIRST",
    "ZTPROBE_POLICY_PACKET_SETS",
    "ZTPROBE_POLICY_SETS",
    "ZTPROBE_QUIET_PAIRS",
    "ZTPROBE_REQUIRE_KERNEL",
    "ZTPROBE_TEST_PATIENCE",
)
# Who is not root brings up nothing here, but runs elsewhere, through agents; those are written down, too.
_OWN_RUNTIME_DIR = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() != 0 else None
STATE_DIR = Path(os.environ.get(_STATE_VARIABLE) or f"{_OWN_RUNTIME_DIR or '/run'}/ztprobe")
# Beside it, what the probes compile to (`ztprobe.probes.compiler`): valid for this kernel, hence as long.
COMPILED_DIR = STATE_DIR.with_name(f"{STATE_DIR.name}-compiled")
# The one directory in there that is no run's: what `ztprobe profile apply` has put on pods.
LEASES = "leases"


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """What to say of variables that look like ours and are not, a line each."""
    known = (_STATE_VARIABLE, *_OF_TESTS)
    said = []
    for name in sorted(environment):
        if name.startswith("ZTPROBE_") and name not in known:
            near = difflib.get_close_matches(name, [_STATE_VARIABLE], n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; there is {_STATE_VARIABLE}"
            said.append(f"the variable {name} is not known and changes nothing{meant}")
    return said


def missing_data() -> list[Path]:
    """What an incomplete installation lacks."""
    wanted = (EBPF_DIR / "events.h", NETPROFILES_DIR / "schema.json", MANIFESTS_DIR / "overlays")
    return [path for path in wanted if not path.exists()]
