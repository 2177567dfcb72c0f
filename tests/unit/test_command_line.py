"""What is saved of others' command lines lets nobody in."""

from __future__ import annotations

import pytest

from ztprobe.pods.command_line import without_secrets


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("flwr-serverapp --token d710fb6847299c --insecure", "flwr-serverapp --token … --insecure"),
        ("server --api-key=abc --port 8000", "server --api-key=… --port 8000"),
        ("env DB_PASSWORD=hunter2 python app.py", "env DB_PASSWORD=… python app.py"),
        ("client http://me:secret@host:80/x", "client http://…@host:80/x"),
        (f"client {'0a' * 24} --rounds 3", "client … --rounds 3"),
        ("client -password --verbose", "client -password --verbose"),
        ("python -m fl.server --rounds 10", "python -m fl.server --rounds 10"),
        ("/opt/a-very-long-name-of-a-program-that-is-no-secret-at-all run", None),
        ("flower-supernode --superlink 10.99.0.1:8000 --node-config partition-id=0 num-partitions=5", None),
    ],
)
def test_secrets_are_hidden_and_all_else_stays(command: str, shown: str | None) -> None:
    assert without_secrets(command) == (command if shown is None else shown)
