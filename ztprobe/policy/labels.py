"""Label selectors as API objects write them (matchLabels, matchExpressions). Pure."""

from __future__ import annotations

from typing import Any

from ztprobe.label_selectors import EVERYTHING, LabelSelector, Requirement
from ztprobe.policy.fields import Where

__all__ = ("NAMESPACE_NAME", "parse_label_selector")

NAMESPACE_NAME = "kubernetes.io/metadata.name"  # which the API server sets on every namespace

_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def parse_label_selector(value: Any, where: Where) -> LabelSelector:
    """A selector from its field; nothing selects everything.

    :raises UsageError: it is none.
    """
    value = where.mapping(value, ("matchLabels", "matchExpressions"))
    if not value:
        return EVERYTHING
    labels = (where / "matchLabels").labels(value.get("matchLabels"))
    found = [Requirement(key, "In", (label,)) for key, label in labels.items()]
    expressions = where / "matchExpressions"
    for number, item in enumerate(expressions.sequence(value.get("matchExpressions"))):
        here = expressions[number]
        item = here.mapping(item, ("key", "operator", "values"))
        operator = (here / "operator").one_of(item.get("operator"), _OPERATORS)
        values = (here / "values").sequence(item.get("values"))
        if (operator in ("In", "NotIn")) != bool(values) or not isinstance(item.get("key"), str):
            raise here.error("needs a key, and values with In and NotIn only")
        texts = tuple((here / "values")[n].text(text) if text != "" else "" for n, text in enumerate(values))
        found.append(Requirement(item["key"], operator, tuple(sorted(set(texts)))))
    # In one order, so that equal selectors are equal values.
    return LabelSelector(tuple(sorted(set(found), key=lambda r: (r.key, r.operator, r.values))))
