"""Lists of a Kubernetes cluster's objects: the one door to the client library.

Answers are read as JSON: the library's own models cost seconds for a few hundred pods, and refuse
what a newer API says.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ztprobe.errors import PreflightError, UsageError, ZtprobeError

__all__ = ("Api", "Object", "configured")

_PAGE = 500
_ANSWER_S = (5.0, 20.0)  # to connect, to read
_KUBECONFIG = "~/.kube/config"

Object = Mapping[str, Any]


def configured() -> bool:
    """Whether something says which cluster to ask."""
    return bool(os.environ.get("KUBECONFIG")) or _in_cluster() or Path(_KUBECONFIG).expanduser().exists()


class Api:
    """A cluster's API.

    :raises PreflightError: nothing says which cluster, or how to log in.
    """

    def __init__(self) -> None:
        self._core = _client()

    def objects(self, kind: str, namespace: str, label_selector: str = "") -> list[Object]:
        """Every object of a namespace that the API's own reading of the selector picks.

        :param kind: pods | services
        :raises PreflightError: the API refuses or does not answer; says what is missing.
        :raises UsageError: the API does not understand the selector.
        """
        call: Callable[..., Any] = getattr(self._core, f"list_namespaced_{kind.removesuffix('s')}")
        found: list[Object] = []
        more = ""
        while True:
            page = self._ask(call, f"list {kind} in namespace {namespace}", namespace, label_selector, more)
            found += page["items"]
            more = page["metadata"].get("continue") or ""
            if not more:
                return found

    def _ask(self, call: Callable[..., Any], what: str, namespace: str, selector: str, more: str) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        options = {"_continue": more} if more else {}
        try:
            answer = call(
                namespace,
                label_selector=selector,
                limit=_PAGE,
                _preload_content=False,
                _request_timeout=_ANSWER_S,
                **options,
            )
            return json.loads(answer.data)
        except ApiException as error:
            raise _refused(error.status, _message(error.body) or str(error.reason), what, selector) from error
        except (HTTPError, OSError) as error:
            host = self._core.api_client.configuration.host
            raise PreflightError(f"the Kubernetes API at {host} does not answer: {_reason(error)}") from error
        except ValueError as error:
            host = self._core.api_client.configuration.host
            raise PreflightError(f"{host} answers, but not as a Kubernetes API does") from error


def _client() -> Any:
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException
    from yaml import YAMLError

    # Said each time: the library reads the environment when it is imported.
    where = os.environ.get("KUBECONFIG") or str(Path(_KUBECONFIG).expanduser())
    log_in: Callable[..., None] = functools.partial(config.load_kube_config, config_file=where)
    if _in_cluster() and not os.environ.get("KUBECONFIG"):
        where, log_in = "this pod's service account", config.load_incluster_config
    settings = client.Configuration()
    settings.retries = False  # a command says so at once and is called again
    try:
        log_in(client_configuration=settings)
    except (ConfigException, YAMLError, OSError) as error:
        raise PreflightError(
            f"no access to a Kubernetes cluster: {where}: {' '.join(str(error).split())}; set KUBECONFIG"
            " (sudo drops it: sudo KUBECONFIG=... ztprobe ...), or say --runtime local"
        ) from error
    return client.CoreV1Api(client.ApiClient(settings))


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _refused(status: int, message: str, what: str, selector: str) -> ZtprobeError:
    if status == 400:
        return UsageError(f"selector {selector!r}: {message}")
    if status == 401:
        return PreflightError(
            f"the Kubernetes API does not know us (401, {message}): log in again, or set KUBECONFIG"
        )
    if status == 403:
        kind = what.split()[1]
        return PreflightError(
            f"the Kubernetes API does not let us {what} (403): {message}; missing: the verb list on {kind}"
            " (manifests/components/node-access grants what ztprobe needs)"
        )
    return PreflightError(f"the Kubernetes API failed to {what} ({status}): {message}")


def _message(body: Any) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, TypeError, KeyError):
        return ""


def _reason(error: BaseException) -> str:
    # urllib3 wraps the system's own words several times.
    while (inner := getattr(error, "reason", None) or error.__cause__ or error.__context__) is not None:
        if not isinstance(inner, BaseException):
            return str(inner)
        error = inner
    return getattr(error, "strerror", None) or " ".join(str(error).split())
