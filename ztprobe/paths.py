"""Where the data files of a clone live: C sources, profiles and manifests."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ("EBPF_DIR", "LEASES", "MANIFESTS_DIR", "NETPROFILES_DIR", "REPO_DIR", "STATE_DIR")

REPO_DIR = Path(__file__).resolve().parents[1]
EBPF_DIR = REPO_DIR / "ebpf"
NETPROFILES_DIR = REPO_DIR / "netprofiles"
MANIFESTS_DIR = REPO_DIR / "manifests"

# One directory per live run: the journal that `ztprobe clean` undoes after SIGKILL.
# /run is emptied by a reboot, as are the namespaces, queues and processes it describes.
# (ZTPROBE_STATE_DIR is for tests, which must not meet other people's runs.)
STATE_DIR = Path(os.environ.get("ZTPROBE_STATE_DIR", "/run/ztprobe"))
# The one directory in there that is no run's: what `ztprobe profile apply` has put on pods.
LEASES = "leases"
