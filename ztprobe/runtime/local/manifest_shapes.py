"""What fields of the manifests may hold, as the API server would see them. Pure.

The API server decodes a manifest into typed fields and fills in defaults; a local run has to come to
the same, and to say so before it has made anything. So a document is first read the way the API
decodes JSON (`as_decoded`): ``null`` is the same as absent, and in a map of texts the empty text.
Then every field that the local runtime looks at has a type here, and a field that it does not know
is refused by name, because it may be the one that makes a cluster behave differently.

Fields with ``_ANY`` have no meaning without an API server, a scheduler, an image or a kubelet;
`ztprobe.runtime.local.workload` reports them as not applied.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ztprobe.documents.problem import shown
from ztprobe.errors import UsageError

__all__ = ("CONTAINER_WITHOUT_MEANING", "POD_WITHOUT_MEANING", "as_decoded", "check_shape")

POD_WITHOUT_MEANING = (
    "automountServiceAccountToken",
    "enableServiceLinks",
    "restartPolicy",
    "securityContext",
)
CONTAINER_WITHOUT_MEANING = ("image", "imagePullPolicy", "securityContext", "startupProbe", "restartPolicy")
# Maps of texts, in which the API keeps a key whose value is null.
_TEXT_MAPS = ("annotations", "data", "labels", "matchLabels")

_ANY: dict[str, Any] = {}
_TEXT = {"type": "string", "description": "text (a number or true in quotes)"}
_NAME = _TEXT | {"minLength": 1, "description": "a name"}
_FLAG = {"type": "boolean", "description": "true or false"}
_COUNT = {"type": "integer", "minimum": 0, "description": "a whole number"}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535, "description": "a port, 1 to 65535"}
_PROTOCOL = {"enum": ["", "TCP", "UDP", "SCTP"], "description": "TCP, UDP or SCTP"}
_QUANTITY = {"type": ["string", "number"], "description": "a quantity such as 512Mi or 2"}
_QUANTITIES = {"type": "object", "additionalProperties": _QUANTITY, "description": "a mapping of quantities"}
_MAP = {"type": "object", "additionalProperties": _TEXT, "description": "a mapping of texts"}


def _of(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    known = ", ".join(fields)
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
        "description": f"a mapping with {known}",
    }


def _list(item: Mapping[str, Any], words: str) -> dict[str, Any]:
    return {"type": "array", "items": item, "description": f"a list of {words}"}


_METADATA = {
    "type": "object",
    "properties": {"name": _NAME, "namespace": _TEXT, "labels": _MAP, "annotations": _MAP},
    "description": "a mapping",
}
_ENV = _of(
    ("name",),
    name=_NAME,
    value=_TEXT,
    valueFrom=_of(("fieldRef",), fieldRef=_of(("fieldPath",), fieldPath=_TEXT, apiVersion=_TEXT)),
)
_ENV_FROM = _of(("configMapRef",), configMapRef=_of(("name",), name=_NAME, optional=_FLAG), prefix=_TEXT)
_CONTAINER = _of(
    ("name",),
    name=_NAME,
    command=_list(_TEXT, "texts"),
    args=_list(_TEXT, "texts"),
    env=_list(_ENV, "variables"),
    envFrom=_list(_ENV_FROM, "configMapRefs"),
    ports=_list(_of(("containerPort",), containerPort=_PORT, name=_TEXT, protocol=_PROTOCOL), "ports"),
    resources=_of(limits=_QUANTITIES, requests=_QUANTITIES),
    volumeMounts=_list(
        _of(("name", "mountPath"), name=_NAME, mountPath=_NAME, readOnly=_FLAG), "volume mounts"
    ),
    **dict.fromkeys(CONTAINER_WITHOUT_MEANING, _ANY),
)
_VOLUME = _of(
    ("name",),
    name=_NAME,
    configMap=_of(("name",), name=_NAME, defaultMode=_COUNT, optional=_FLAG),
    secret=_of(("secretName",), secretName=_NAME, defaultMode=_COUNT, optional=_FLAG),
)
_POD = _of(
    ("containers",),
    serviceAccountName=_TEXT,
    dnsConfig=_of(options=_list(_of(("name",), name=_NAME, value=_TEXT), "resolver options")),
    subdomain=_TEXT,
    containers=_list(_CONTAINER, "containers"),
    initContainers=_list(_CONTAINER, "containers"),
    volumes=_list(_VOLUME, "volumes"),
    **dict.fromkeys(POD_WITHOUT_MEANING, _ANY),
)


def _template(*restart_policies: str) -> dict[str, Any]:
    policy = {"enum": list(restart_policies), "description": " or ".join(filter(None, restart_policies))}
    return _of(
        ("spec",),
        metadata=_METADATA,
        spec=_POD | {"properties": _POD["properties"] | {"restartPolicy": policy}},
    )


_DEPLOYMENT = _of(
    ("selector", "template"),
    replicas={"enum": [1], "description": "1: there is one server"},
    selector=_of(matchLabels=_MAP),
    template=_template("", "Always"),
    **dict.fromkeys(("strategy", "revisionHistoryLimit", "progressDeadlineSeconds", "minReadySeconds"), _ANY),
)
_JOB = _of(
    ("completionMode", "template"),
    completionMode={
        "enum": ["Indexed"],
        "description": "Indexed (without it a client does not get its number, JOB_COMPLETION_INDEX)",
    },
    template=_template("Never", "OnFailure"),
    **dict.fromkeys(("completions", "parallelism", "backoffLimit", "ttlSecondsAfterFinished"), _ANY),
)
_SERVICE_PORT = _of(
    ("port",),
    port=_PORT,
    name=_TEXT,
    protocol={"enum": ["", "TCP"], "description": "TCP"},
    targetPort={"type": ["integer", "string"], "description": "a port's number or name"},
)
_SERVICE = _of(
    ("clusterIP", "ports"),
    clusterIP={"const": "None", "description": "`clusterIP: None` (the local runtime has no load balancer)"},
    publishNotReadyAddresses=_FLAG,
    selector=_MAP,
    ports=_list(_SERVICE_PORT, "ports") | {"minItems": 1, "maxItems": 1, "description": "one port"},
    type={"enum": ["", "ClusterIP"], "description": "ClusterIP"},
)


def _kind(spec: Mapping[str, Any]) -> dict[str, Any]:
    return _of(("metadata", "spec"), apiVersion=_TEXT, kind=_TEXT, metadata=_METADATA, spec=spec, status=_ANY)


_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "ConfigMap": _of(
        ("metadata",), apiVersion=_TEXT, kind=_TEXT, metadata=_METADATA, data=_MAP, immutable=_FLAG
    ),
    "Deployment": _kind(_DEPLOYMENT),
    "Job": _kind(_JOB),
    "Service": _kind(_SERVICE),
}


def as_decoded(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without its nulls, as Go decodes JSON into typed fields."""
    decoded: dict[str, Any] = _decoded(document, is_map=False)
    return decoded


def _decoded(value: Any, *, is_map: bool) -> Any:
    if isinstance(value, dict):
        return {
            key: "" if item is None else _decoded(item, is_map=_is_text_map(key, item))
            for key, item in value.items()
            if item is not None or is_map
        }
    if isinstance(value, list):
        return [_decoded(item, is_map=False) for item in value]
    return value


def _is_text_map(key: str, value: Any) -> bool:
    # A Service's selector is a map of labels, a Deployment's is not.
    return key in _TEXT_MAPS or (
        key == "selector" and isinstance(value, dict) and not any(isinstance(v, dict) for v in value.values())
    )


def check_shape(document: Mapping[str, Any]) -> None:
    """Look at every field that the local runtime reads.

    :raises UsageError: one has another type, or is not supported; names it and what was expected.
    """
    validator = _validator(document["kind"])
    if validator is None:
        return
    errors = sorted(
        validator.iter_errors(document),
        key=lambda error: (error.validator == "required", list(map(str, error.absolute_path))),
    )
    if errors:
        name = document["metadata"]["name"]
        raise UsageError(f"manifests: {document['kind']} {name}: {_explain(errors[0])}")


@functools.cache
def _validator(kind: str) -> Any:
    import jsonschema  # 0.2 s to import

    shape = _SHAPES.get(kind)
    return None if shape is None else jsonschema.Draft202012Validator(shape)


def _explain(error: Any) -> str:
    path = list(error.absolute_path)
    if error.validator == "additionalProperties":
        extra = next(key for key in error.instance if key not in error.schema["properties"])
        return f"field `{_joined([*path, extra])}` is not supported by the local runtime"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        expected = error.schema["properties"][missing].get("description", "a value")
        return f"field `{_joined([*path, missing])}` is missing, expected {expected}"
    expected = error.schema.get("description", error.message)
    return f"field `{_joined(path)}` is {shown(error.instance)}, expected {expected}"


def _joined(path: list[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
