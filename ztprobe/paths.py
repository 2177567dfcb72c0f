"""Where the data files are (C sources, profiles and manifests): beside the packages in a clone, in an
installed wheel within this one.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ("EBPF_DIR", "LEASES", "MANIFESTS_DIR", "NETPROFILES_DIR", "REPO_DIR", "STATE_DIR", "missing_data")

REPO_DIR = Path(__file__).resolve().parents[1]  # or site-packages: where ztprobe can be imported from
_INSTALLED = Path(__file__).resolve().parent / "data"
_DATA_DIR = _INSTALLED if _INSTALLED.is_dir() else REPO_DIR
EBPF_DIR = _DATA_DIR / "ebpf"
NETPROFILES_DIR = _DATA_DIR / "netprofiles"
MANIFESTS_DIR = _DATA_DIR / "manifests"

# One directory per live run: the journal that `ztprobe clean` undoes after SIGKILL.
# /run is emptied by a reboot, as are the namespaces, queues and processes it describes.
# (ZTPROBE_STATE_DIR is for tests, which must not meet other people's runs.)
STATE_DIR = Path(os.environ.get("ZTPROBE_STATE_DIR", "/run/ztprobe"))
# The one directory in there that is no run's: what `ztprobe profile apply` has put on pods.
LEASES = "leases"


def missing_data() -> list[Path]:
    """What an incomplete installation lacks."""
    wanted = (EBPF_DIR / "events.h", NETPROFILES_DIR / "schema.json", MANIFESTS_DIR / "overlays")
    return [path for path in wanted if not path.exists()]
