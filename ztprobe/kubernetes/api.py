"""Lists of a Kubernetes cluster's objects: the one door to the client library.

Answers are read as JSON (`ztprobe.kubernetes.answers`): the library's own models cost seconds for a few
hundred pods, and refuse what a newer API says. Whatever is asked has an end: the library waits for each
byte and not for the whole, so its calls run in a thread of their own that is left behind when their
time is up. What the library would print goes into our messages.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_yaml import kubectl_scalar, parse_yaml
from ztprobe.errors import PreflightError, ZtprobeError
from ztprobe.kubernetes import credential_plugin
from ztprobe.kubernetes.answers import (
    MOST_REFUSAL_BYTES,
    ApiRefusal,
    ApiVersion,
    Object,
    page_of,
    refusal_of,
    secret_of,
    version_of,
)
from ztprobe.kubernetes.api_errors import LONGEST_REASON, error_of, reason_of
from ztprobe.printable import printable

__all__ = ("Api", "NotThere", "Object", "configured")

_PAGE = 500
_ANSWER_S = (5.0, 20.0)  # to connect, to read
_PAGE_S = 30.0  # a whole answer
_LIST_S = 120.0  # all pages of a list
_LOG_IN_S = 120.0  # a credential plugin may ask its user
_MOST_BYTES = 64 << 20  # of a page; 500 pods have 5 MB
_CHUNK_BYTES = 1 << 20
_KUBECONFIG = "~/.kube/config"

_T = TypeVar("_T")


def configured() -> bool:
    """Whether something says which cluster to ask."""
    return bool(os.environ.get("KUBECONFIG")) or _in_cluster() or Path(_KUBECONFIG).expanduser().exists()


class Api:
    """A cluster's API.

    :param kubeconfig: instead of KUBECONFIG.
    :param context: of the kubeconfig, instead of its current one.
    :raises PreflightError: nothing says which cluster, or how to log in.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        self._core = _client(kubeconfig, context)
        self._given = (kubeconfig, context)

    def __reduce__(self) -> tuple[type[Api], tuple[str | None, str | None]]:
        """In another process: the same cluster, logged in to anew."""
        return Api, self._given

    def dynamic(self, cache: Path) -> Any:
        """The library's client for objects of any kind, which first asks what kinds there are.

        :param cache: a file that nobody else writes to; the library's own has a name that anybody can guess.
        :raises PreflightError: as `asked`.
        """
        from kubernetes.dynamic import DynamicClient

        make: Any = DynamicClient
        return self.asked("list", "kinds", lambda: make(self._core.api_client, str(cache)))

    def asked(self, verb: str, what: str, call: Callable[[], _T]) -> _T:
        """What a call of `dynamic`'s client gives.

        :raises PreflightError: the API refuses, does not answer, or does not finish; says what is missing.
        """
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        def translated() -> _T:
            with self._translating(f"{verb} {what}", ""):
                return call()

        try:
            return _within(_PAGE_S, translated, f"{self._host} does not finish its answer")
        except ResourceNotFoundError as error:
            raise PreflightError(
                f"{self._host} knows no such kind: {' '.join(str(error).split())}"
            ) from error

    def objects(self, kind: str, namespace: str, label_selector: str = "") -> list[Object]:
        """Every object of a namespace that the API's own reading of the selector picks.

        :param kind: pods | services
        :raises PreflightError: the API refuses or does not answer; says what is missing.
        :raises UsageError: the API does not understand the selector.
        """
        list_ = getattr(self._core, f"list_namespaced_{kind.removesuffix('s')}")
        call: Callable[..., Any] = functools.partial(list_, namespace, label_selector=label_selector)
        return self._all_pages(call, kind, f"list {kind} in namespace {namespace}", label_selector)

    def secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """What a Secret holds.

        :raises PreflightError: there is none, or the API refuses or does not answer; says what is missing.
        """
        read = functools.partial(self._core.read_namespaced_secret, name, namespace)
        return self._one(read, f"get Secret {namespace}/{name}", secret_of)

    def version(self) -> tuple[ApiVersion, str]:
        """The API server's version, and how it calls that.

        :raises PreflightError: the API refuses or does not answer.
        """
        from kubernetes.client import VersionApi

        return self._one(VersionApi(self._core.api_client).get_code, "get its version", version_of)

    def log(
        self, namespace: str, pod: str, container: str, since_s: int | None, follow: bool
    ) -> Iterator[bytes]:
        """Lines of a container's log, each with the time at which it was written.

        :param since_s: only what was written in the last seconds; None: all that there is.
        :param follow: wait for more, until the container has ended or nothing comes for a while.
        :raises PreflightError: there is none yet, or the API refuses or does not answer.
        """
        more = {} if since_s is None else {"since_seconds": since_s}
        with self._translating(f"get the log of {namespace}/{pod}", ""):
            answer = self._core.read_namespaced_pod_log(
                pod,
                namespace,
                container=container,
                timestamps=True,
                follow=follow,
                _preload_content=False,
                _request_timeout=_ANSWER_S,
                **more,
            )
            with contextlib.closing(answer):
                part, end_s = b"", time.monotonic() + _PAGE_S
                for chunk in answer.stream(_CHUNK_BYTES, decode_content=True):
                    if not follow and time.monotonic() > end_s:
                        raise PreflightError(f"{self._host} does not come to the end of a log")
                    *lines, part = (part + chunk).split(b"\n")
                    yield from lines
                    if len(part) > _MOST_BYTES:
                        raise PreflightError(f"{self._host} answers with a line of more than 64 MiB")

    def _one(self, call: Callable[..., Any], what: str, read: Callable[[bytes], _T]) -> _T:
        ask = functools.partial(self._ask, call, what, "", "")
        body = _within(_PAGE_S, ask, f"{self._host} does not finish its answer")
        try:
            return read(body)
        except DocumentError as error:
            raise PreflightError(
                f"{self._host} answers, but not as a Kubernetes API does: {error}"
            ) from error

    def everywhere(self, kind: str, group: str, version: str) -> list[Object] | None:
        """Every object of a kind in all namespaces; None: this cluster knows no such kind.

        :param kind: as in the API's paths, e.g. networkpolicies.
        :param group: empty: the core's.
        :raises PreflightError: the API refuses or does not answer; says what is missing.
        """
        from kubernetes.client import CustomObjectsApi

        if group:
            # This call is a path and nothing more: kinds that are built in have the same.
            custom = CustomObjectsApi(self._core.api_client).list_cluster_custom_object
            call: Callable[..., Any] = functools.partial(custom, group, version, kind)
        elif kind in ("namespaces", "nodes"):
            call = getattr(self._core, f"list_{kind.removesuffix('s')}")
        else:
            call = getattr(self._core, f"list_{kind.removesuffix('s')}_for_all_namespaces")
        try:
            return self._all_pages(call, kind, f"list {kind} in all namespaces", "")
        except NotThere:
            return None

    def _all_pages(self, call: Callable[..., Any], kind: str, what: str, selector: str) -> list[Object]:
        found: list[Object] = []
        more, end_s = "", time.monotonic() + _LIST_S
        while True:
            ask = functools.partial(self._ask, call, what, selector, more)
            try:
                body = _within(_PAGE_S, ask, f"{self._host} does not finish its answer")
                items, following = page_of(body, kind)
            except DocumentError as error:
                raise PreflightError(
                    f"{self._host} answers, but not as a Kubernetes API does: {error}"
                ) from error
            found += items
            if not following:
                return found
            if following == more or time.monotonic() > end_s:
                raise PreflightError(f"{self._host} does not come to the end of its list of {kind}")
            more = following

    @property
    def _host(self) -> str:
        return f"the Kubernetes API at {self._core.api_client.configuration.host}"

    def _ask(self, call: Callable[..., Any], what: str, selector: str, more: str) -> bytes:
        options: dict[str, Any] = {"_continue": more} if more else {}
        if what.startswith("list "):
            options["limit"] = _PAGE
        with self._translating(what, selector):
            answer = call(
                _preload_content=False,
                _request_timeout=_ANSWER_S,
                **options,
            )
            with contextlib.closing(answer):
                body = b""
                while chunk := answer.read(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > _MOST_BYTES:
                        raise PreflightError(f"{self._host} answers with more than {_MOST_BYTES >> 20} MiB")
                return body

    @contextlib.contextmanager
    def _translating(self, what: str, selector: str) -> Iterator[None]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except _Refused as error:
            if error.refusal.status == 404:
                raise NotThere(str(error_of(error.refusal, what, selector))) from error
            raise error_of(error.refusal, what, selector) from error
        except ApiException as error:  # the library's only other reason: TLS
            said = printable(" ".join(str(error.reason).split()), LONGEST_REASON)
            raise PreflightError(f"{self._host} does not answer: {said}") from error
        except (HTTPError, OSError) as error:
            raise PreflightError(f"{self._host} does not answer: {reason_of(error)}") from error
        except ValueError as error:  # a host or a header that http.client cannot make sense of
            raise PreflightError(f"{self._host} cannot be asked: {reason_of(error)}") from error


class _Refused(Exception):
    def __init__(self, refusal: ApiRefusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class NotThere(PreflightError):
    """There is no such object, or no such kind."""


class _RefusalsFirst:
    # In the place of the library's connection pools: the library reads the whole body of an answer that
    # is no success, however long, before it raises. Here its beginning is read, and raised with.

    def __init__(self, pools: Any) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pools, name)

    def request(self, *args: Any, **options: Any) -> Any:
        from urllib3.exceptions import HTTPError

        answer = self._pools.request(*args, **options)
        if 200 <= answer.status <= 299:
            return answer
        with contextlib.closing(answer):
            try:
                body = answer.read(MOST_REFUSAL_BYTES + 1)
            except (HTTPError, OSError):  # the status says enough
                body = b""
        kind = answer.headers.get("Content-Type", "")
        raise _Refused(refusal_of(answer.status, answer.reason or "", kind, body))


def _within(seconds: float, call: Callable[[], _T], problem: str) -> _T:
    # The thread ends with the process: nothing can end a read of somebody else's that drips.
    outcome: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise PreflightError(f"{problem} within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


class _Kept(logging.Handler):
    # What the library says, instead of on standard error.

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(" ".join(record.getMessage().split())[:500])


@contextlib.contextmanager
def _kept_log() -> Iterator[_Kept]:
    kept, root = _Kept(), logging.getLogger()
    others, root.handlers = root.handlers, [kept]
    try:
        yield kept
    finally:
        root.handlers = others


def _client(kubeconfig: str | None, context: str | None) -> Any:
    from kubernetes import client, config
    from kubernetes.config import exec_provider, kube_config
    from kubernetes.config.config_exception import ConfigException
    from yaml import YAMLError

    # Said each time: the library reads the environment when it is imported.
    said = kubeconfig or os.environ.get("KUBECONFIG")
    where = said or str(Path(_KUBECONFIG).expanduser())
    log_in: Callable[..., None] = functools.partial(
        config.load_kube_config, config_file=where, context=context
    )
    if _in_cluster() and not said and context is None:
        where, log_in = "this pod's service account", config.load_incluster_config
    else:
        _check_kubeconfig(where)
    for module in (exec_provider, kube_config):
        vars(module)["subprocess"] = credential_plugin.Subprocess
    settings = client.Configuration()
    settings.retries = False  # a command says so at once and is called again
    try:
        with _kept_log() as kept:
            _within(
                _LOG_IN_S,
                functools.partial(log_in, client_configuration=settings),
                f"{where}: what it names to log in with does not end",
            )
    except (ConfigException, YAMLError, OSError) as error:
        raise _no_access(f"{where}: {' '.join(str(error).split())}") from error
    except credential_plugin.TooMuch as error:
        raise _no_access(f"{where}: what it names to log in with cannot be used: {error}") from error
    except ZtprobeError:
        credential_plugin.end_plugins()
        raise
    except Exception as error:  # whatever the library makes of a file that is no kubeconfig
        raise _no_access(f"{where}: is no kubeconfig ({type(error).__name__})") from error
    if kept.said and not settings.api_key:
        # The library goes on without a credential plugin that failed, and the API then knows nobody.
        raise PreflightError(
            f"the credential plugin that {where} names (users: exec) failed: {kept.said[0]};"
            " install it, or run it by hand to see why"
        )
    core = client.CoreV1Api(client.ApiClient(settings))
    core.api_client.rest_client.pool_manager = _RefusalsFirst(core.api_client.rest_client.pool_manager)
    return core


def _check_kubeconfig(where: str) -> None:
    # The library takes the last of two equal keys and expands whatever aliases there are.
    for path in filter(None, where.split(os.pathsep)):
        if Path(
            path
        ).is_file():  # a pipe of the shell's can be read once, and what is missing the library names
            try:
                parse_yaml(read_text(Path(path), _MOST_BYTES), kubectl_scalar)
            except DocumentError as error:
                raise _no_access(f"{path}: {error}") from error


def _no_access(reason: str) -> PreflightError:
    return PreflightError(
        f"no access to a Kubernetes cluster: {reason[:500]}; set KUBECONFIG"
        " (sudo drops it: sudo KUBECONFIG=... ztprobe ...), or say --runtime local"
    )


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ
