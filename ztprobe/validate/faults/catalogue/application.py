"""Processes, timeouts, names and messages."""

from __future__ import annotations

from ztprobe.validate.faults.acts import Act, kill
from ztprobe.validate.faults.catalogue.words import SERVER, amid_round
from ztprobe.validate.faults.model import Fault, Variant
from ztprobe.validate.faults.objects import Edit, Objects

__all__ = ("FAULTS",)


def _client_calls(port: int) -> Edit:
    def edit(objects: Objects) -> None:
        server = f"fl-server.fl.svc.cluster.local:{port}"
        objects.set_env("fl-client", "client", {"FL_SERVER": server})

    return edit


FAULTS = (
    Fault(
        cause="application.nothing_listens",
        variants=(
            Variant(
                what="clients call a port at which nobody listens",
                edit=_client_calls(50061),
                shows="fl-server counts OutRsts",
            ),
        ),
    ),
    Fault(
        cause="application.server_died",
        variants=(
            Variant(
                what="the server is killed in round 2",
                acts=(Act("kill", kill(SERVER, "server"), amid_round(2)),),
                shows="ended: .*fl-server/server was killed by SIGKILL",
            ),
        ),
    ),
)
