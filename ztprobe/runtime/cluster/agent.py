"""The agent for every node of a cluster: its manifests, with certificates. Pure but for new keys."""

from __future__ import annotations

import datetime
from pathlib import Path

from ztprobe import paths
from ztprobe.agent.service.wire import SERVER_NAME
from ztprobe.kubernetes.agents import AGENTS_NAMESPACE, COLLECTOR_SECRET
from ztprobe.runtime.cluster.rewriting import in_namespace, labelled, tls_secret, with_image
from ztprobe.runtime.local.certificates import Authority
from ztprobe.runtime.local.kustomize import Document, render

__all__ = ("AGENT_RUN", "IMAGE", "agent_documents")

IMAGE = "ztprobe/agent"
AGENT_RUN = "agent"  # its label, where an experiment's is the run's
_SECRET = "ztprobe-agent-tls"
_ACCOUNT, _COLLECTOR = "ztprobe-agent", "ztprobe-collector"
_LIFETIME = datetime.timedelta(days=365)


def agent_documents(
    *,
    namespace: str | None = None,
    least_privilege: bool = False,
    image: str | None = None,
    manifests_dir: Path = paths.MANIFESTS_DIR,
) -> list[Document]:
    """Everything that the agent is made of, in the order in which it is to be applied.

    Its authority signs two certificates and is forgotten: the agents', and the one that collectors show,
    which is for whoever may read Secrets in the agent's namespace.

    :param namespace: one that is there, instead of ``ztprobe``.
    :raises UsageError: the manifests cannot be read.
    """
    documents = render(manifests_dir / "agent" / ("least-privilege" if least_privilege else ""))
    place = namespace or AGENTS_NAMESPACE
    documents = in_namespace(documents, AGENTS_NAMESPACE, place, [])
    if namespace is not None:
        documents = [document for document in documents if document["kind"] != "Namespace"]
    if image is not None:
        documents = [with_image(document, IMAGE, image) for document in documents]
    authority = Authority("agent", _LIFETIME)
    secrets = [
        tls_secret(authority, _SECRET, place, _ACCOUNT, [SERVER_NAME]),
        tls_secret(authority, COLLECTOR_SECRET, place, _COLLECTOR, []),
    ]
    pods = [document for document in documents if document["kind"] == "DaemonSet"]
    others = [document for document in documents if document["kind"] != "DaemonSet"]
    for pod in pods:  # agents read their certificate when they start
        made = authority.not_after.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = pod["spec"]["template"]["metadata"]
        metadata["annotations"] = {**metadata.get("annotations", {}), "ztprobe.certificates-until": made}
    return labelled([*others, *secrets, *pods], AGENT_RUN)
