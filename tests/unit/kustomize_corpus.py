"""Patches in pairs with what they patch: what kustomize does with each is what we have to do.

Every case is (kind's header, base, patch), spliced into a kustomization of two files.
"""

from __future__ import annotations

from pathlib import Path

KUSTOMIZATION = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
_DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  template:\n    spec:\n"
_SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n"
_POLICY = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n"
_CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n"
_ACCOUNT = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n"
_PATCHES = "patches: [{path: p.yaml}]\n"
_ROLE = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r}\n"


def _containers(*fields: str) -> str:
    return "      containers:\n" + "".join(
        f"      - {{name: c{n}, {text}}}\n" for n, text in enumerate(fields)
    )


def _ports(*texts: str) -> str:
    return _containers(f"ports: [{', '.join(f'{{containerPort: {text}}}' for text in texts)}]")


PATCHES: dict[str, tuple[str, str, str]] = {
    "one number, two protocols": (
        _DEPLOYMENT,
        _ports("53, protocol: TCP, name: a", "53, protocol: UDP, name: b"),
        _ports("53, protocol: UDP, name: bb", "54, protocol: UDP"),
    ),
    "a port that is taken away": (
        _DEPLOYMENT,
        _ports("53, protocol: TCP", "53, protocol: UDP"),
        _ports("53, protocol: UDP, $patch: delete"),
    ),
    "ports without protocol": (_DEPLOYMENT, _ports("53, name: a", "54"), _ports("53, name: b", "55")),
    "a new port of another protocol": (_DEPLOYMENT, _ports("53"), _ports("54, protocol: UDP")),
    "a Service's two protocols": (
        _SERVICE,
        "  ports: [{port: 53, protocol: TCP, name: a}, {port: 53, protocol: UDP, name: b}]\n",
        "  ports: [{port: 53, protocol: UDP, name: bb}, {port: 1, name: n}]\n",
    ),
    "a Service's ports without protocol": (
        _SERVICE,
        "  ports: [{port: 53, name: a}, {port: 54, name: b}]\n",
        "  ports: [{port: 53, name: bb, targetPort: x}]\n",
    ),
    "variables, in which order": (
        _DEPLOYMENT,
        _containers("env: [{name: A, value: a}, {name: B, value: b}]"),
        _containers("env: [{name: C, value: $(B)}, {name: B, value: bb}, {name: D, value: d}]"),
    ),
    "a value becomes a reference": (
        _DEPLOYMENT,
        _containers("env: [{name: A, value: a}]"),
        _containers("env: [{name: A, value: null, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"),
    ),
    "a variable that is not there is taken away": (
        _DEPLOYMENT,
        _containers("env: [{name: A, value: a}]"),
        _containers("env: [{name: Z, $patch: delete}, {name: A, $patch: delete}]"),
    ),
    "a list is replaced by a directive": (
        _DEPLOYMENT,
        _containers("env: [{name: A, value: a}]"),
        _containers("env: [{$patch: replace}, {name: B, value: z}]"),
    ),
    "a list is removed": (_DEPLOYMENT, _containers("env: [{name: A}]"), _containers("env: null")),
    "a list is removed by a directive": (
        _DEPLOYMENT,
        _containers("env: [{name: A}]"),
        _containers("env: [{$patch: delete}]"),
    ),
    "an empty list adds nothing": (_DEPLOYMENT, _containers("env: [{name: A}]"), _containers("env: []")),
    "an empty command replaces": (_DEPLOYMENT, _containers("command: [a]"), _containers("command: []")),
    "command and args": (_DEPLOYMENT, _containers("command: [a, b]"), _containers("command: [c], args: [x]")),
    "envFrom is replaced": (
        _DEPLOYMENT,
        _containers("envFrom: [{configMapRef: {name: a}}]"),
        _containers("envFrom: [{configMapRef: {name: b}}]"),
    ),
    "containers, in which order": (
        _DEPLOYMENT,
        _containers("image: a", "image: b", "image: c"),
        "      containers: [{name: n, image: z}, {name: c1, image: bb}]\n",
    ),
    "a container is taken away": (
        _DEPLOYMENT,
        _containers("image: a", "image: b"),
        _containers("$patch: delete"),
    ),
    "a list that was not there": (
        _DEPLOYMENT,
        _containers("image: a"),
        "      initContainers: [{name: i, ports: [{containerPort: 1}], env: [{name: A, $patch: delete}]}]\n",
    ),
    "limits are added": (
        _DEPLOYMENT,
        _containers("resources: {limits: {cpu: 1}, requests: {cpu: 2}}"),
        _containers("resources: {limits: {memory: 1Gi, cpu: null}}"),
    ),
    "limits are replaced": (
        _DEPLOYMENT,
        _containers("resources: {limits: {cpu: 1}, requests: {cpu: 2}}"),
        _containers("resources: {$patch: replace, limits: {memory: 1Gi}}"),
    ),
    "limits are removed": (
        _DEPLOYMENT,
        _containers("image: a, resources: {limits: {cpu: 1}}"),
        _containers("resources: {$patch: delete}"),
    ),
    "nulls in what is new": (
        _DEPLOYMENT,
        _containers("image: a"),
        _containers("resources: {limits: null, requests: {cpu: null, memory: 1}}"),
    ),
    "mounts by their path, volumes by their name": (
        _DEPLOYMENT,
        _containers("volumeMounts: [{name: v, mountPath: /a}, {name: v, mountPath: /b}]")
        + "      volumes: [{name: v, secret: {secretName: x, items: [{key: a, path: b}]}}]\n",
        _containers("volumeMounts: [{name: w, mountPath: /a}]")
        + "      volumes: [{name: v, secret: {items: [{key: c, path: d}], defaultMode: 0440}}]\n",
    ),
    "capabilities are replaced": (
        _DEPLOYMENT,
        _containers("securityContext: {capabilities: {drop: [ALL]}}"),
        _containers("securityContext: {capabilities: {drop: [X], add: [Y]}}"),
    ),
    "two keys of a constraint": (
        _DEPLOYMENT,
        "      topologySpreadConstraints: [{topologyKey: a, whenUnsatisfiable: X, maxSkew: 1},"
        " {topologyKey: a, whenUnsatisfiable: Y}]\n      hostAliases: [{ip: 1, hostnames: [a]}]\n",
        "      topologySpreadConstraints: [{topologyKey: a, whenUnsatisfiable: X, maxSkew: 2}]\n"
        "      hostAliases: [{ip: 1, hostnames: [b]}]\n",
    ),
    "rules of a policy are replaced": (
        _POLICY,
        "  podSelector: {}\n  policyTypes: [Ingress]\n  egress: [{ports: [{port: 1}]}]\n",
        "  policyTypes: [Egress]\n  egress: [{ports: [{port: 2}]}]\n",
    ),
    "words that YAML 1.1 took for others": (
        _CONFIG,
        "data: {a: on, b: yes, c: 010, d: 1:20, e: 1e2, f: 0x50, g: 1_0, h: 2026-02-31, i: '1', j: y}\n",
        "data: {k: off, l: no, m: 08, n: .5, o: ~, p: 'null', q: \"\"}\n",
    ),
    "anchors and merge keys": (
        _CONFIG,
        "data:\n  <<: {q: r, a: z}\n  a: b\n",
        "data: {x: &x y, z: *x}\n",
    ),
    "data is replaced": (_CONFIG, "data: {a: b, c: null}\n", "data: {$patch: replace, c: d}\n"),
    "data that was null": (_CONFIG, "data: null\n", "data: {c: d}\n"),
    "rules of a role are replaced": (_ROLE, "rules: [{verbs: [get]}]\n", "rules: [{verbs: [list]}]\n"),
    "an account's secrets": (
        _ACCOUNT,
        "imagePullSecrets: [{name: a}]\nsecrets: [{name: a}]\n",
        "imagePullSecrets: [{name: b}]\nsecrets: [{name: b}]\n",
    ),
}

# Whole trees: names of files and their texts; the overlay is o/.
TREES: dict[str, dict[str, str]] = {
    "a namespace reaches what has one": {
        "o/kustomization.yaml": KUSTOMIZATION + "namespace: two\nresources: [r.yaml]\n",
        "o/r.yaml": "---\n".join(
            (
                "apiVersion: v1\nkind: Namespace\nmetadata: {name: q}\n",
                _CONFIG.replace("name: c", "name: c, namespace: old"),
                _ROLE.replace("Role", "RoleBinding") + "roleRef: {kind: Role, name: x}\n"
                "subjects: [{kind: ServiceAccount, name: a, namespace: old},"
                " {kind: ServiceAccount, name: default, namespace: old}]\n",
                "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: p}\n",
            )
        ),
    },
    "a patch names the namespace before the overlay's": {
        "o/kustomization.yaml": KUSTOMIZATION
        + "namespace: two\nresources: [../b]\npatches: [{path: p.yaml}]\n",
        "o/p.yaml": _CONFIG.replace("name: c", "name: c, namespace: one") + "data: {c: d}\n",
        "b/kustomization.yaml": KUSTOMIZATION + "namespace: one\nresources: [r.yaml]\n",
        "b/r.yaml": _CONFIG + "data: {a: b}\n",
    },
    "a patch names none": {
        "o/kustomization.yaml": KUSTOMIZATION
        + "namespace: two\nresources: [../b]\npatches: [{path: p.yaml}]\n",
        "o/p.yaml": _CONFIG + "data: {c: d}\n",
        "b/kustomization.yml": KUSTOMIZATION + "namespace: one\nresources: [r.yaml]\n",
        "b/r.yaml": _CONFIG + "data: {a: b}\n",
    },
    "a document is deleted": {
        "o/kustomization.yaml": KUSTOMIZATION + "resources: [r.yaml]\npatches: [{path: p.yaml}]\n",
        "o/r.yaml": _CONFIG + "---\n" + _ACCOUNT,
        "o/p.yaml": _CONFIG + "$patch: delete\n",
    },
    "one name in two namespaces": {
        "o/Kustomization": "resources: [a.yaml, b.yaml]\nnamespace: ''\n",
        "o/a.yaml": _CONFIG,
        "o/b.yaml": _CONFIG.replace("name: c", "name: c, namespace: two"),
    },
    "a component patches what includes it": {
        "o/kustomization.yaml": KUSTOMIZATION + "components: [../c]\nresources: [a.yaml]\n",
        "o/a.yaml": _CONFIG + "data: {a: b}\n",
        "c/kustomization.yaml": KUSTOMIZATION.replace("beta1", "alpha1").replace("Kustomization", "Component")
        + "namespace: one\npatches: [{path: p.yaml}]\n",
        "c/p.yaml": _CONFIG + "data: {n: m}\n",
    },
}

# What kustomize refuses, and so do we.
REFUSED: dict[str, dict[str, str]] = {
    "a patch for another namespace": {
        "o/kustomization.yaml": KUSTOMIZATION + "resources: [a.yaml]\npatches: [{path: p.yaml}]\n",
        "o/a.yaml": _CONFIG.replace("name: c", "name: c, namespace: old"),
        "o/p.yaml": _CONFIG,
    },
    "a patch for another version": {
        "o/kustomization.yaml": KUSTOMIZATION + "resources: [a.yaml]\npatches: [{path: p.yaml}]\n",
        "o/a.yaml": _CONFIG,
        "o/p.yaml": _CONFIG.replace("v1", "v2"),
    },
    "twins": {
        "o/kustomization.yaml": KUSTOMIZATION + "resources: [a.yaml, b.yaml]\n",
        "o/a.yaml": _CONFIG,
        "o/b.yaml": _CONFIG,
    },
    "a file outside": {
        "o/kustomization.yaml": KUSTOMIZATION + "resources: [../a.yaml]\n",
        "a.yaml": _CONFIG,
    },
    "a key twice": {
        "o/kustomization.yaml": KUSTOMIZATION + "resources: [a.yaml]\n",
        "o/a.yaml": _CONFIG + "data: {a: b}\ndata: {c: d}\n",
    },
    "a list over a mapping": {
        "o/kustomization.yaml": KUSTOMIZATION + "resources: [a.yaml]\npatches: [{path: p.yaml}]\n",
        "o/a.yaml": _DEPLOYMENT + _containers("resources: {limits: {cpu: 1}}"),
        "o/p.yaml": _DEPLOYMENT + _containers("resources: x"),
    },
}


def patched(name: str) -> dict[str, str]:
    """The files of one of `PATCHES`."""
    head, base, patch = PATCHES[name]
    return {
        "o/kustomization.yaml": KUSTOMIZATION + "resources: [r.yaml]\npatches: [{path: p.yaml}]\n",
        "o/r.yaml": head + base,
        "o/p.yaml": head + patch,
    }


def written(files: dict[str, str], directory: Path) -> Path:
    """Put the files there; the overlay's directory."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory / "o"
