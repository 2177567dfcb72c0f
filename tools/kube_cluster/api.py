"""Asking the cluster's API server, from within the node's network."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ("ApiServer", "Refused")

_TIMEOUT_S = 30.0


class Refused(Exception):
    """The server answers, and not with what was asked for."""


class ApiServer:
    """As the user of a kubeconfig that `ztprobe`'s like are given.

    :param enter: makes a connection's socket belong to the node's network; None: this process is there.
    """

    def __init__(
        self, kubeconfig: Path, enter: Callable[[], contextlib.AbstractContextManager[object]] | None = None
    ) -> None:
        self._kubeconfig, self._enter = kubeconfig, enter or contextlib.nullcontext

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers, decoded where it is JSON.

        :param path: with its query.
        :raises Refused: its status is not one of success.
        :raises OSError: it does not answer.
        """
        config = json.loads(self._kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        place = urlsplit(cluster["server"])
        with self._enter():
            connection = http.client.HTTPSConnection(
                str(place.hostname), place.port, context=tls, timeout=_TIMEOUT_S
            )
            connection.connect()
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {user['token']}", "Content-Type": kind}
        with contextlib.closing(connection):
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                text = answer.read().decode()
            except http.client.HTTPException as error:
                raise ConnectionError(f"{type(error).__name__}: {error}") from error
        if answer.status >= 300:
            raise Refused(f"{method} {path}: {answer.status} {text}")
        is_json = answer.getheader("Content-Type", "").startswith("application/json")
        return json.loads(text) if is_json else text
