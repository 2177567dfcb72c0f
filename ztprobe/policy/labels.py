"""Label selectors as API objects write them (matchLabels, matchExpressions). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ztprobe.policy.fields import Where

__all__ = ("EVERYTHING", "NAMESPACE_NAME", "LabelSelector", "Requirement", "parse_label_selector")

NAMESPACE_NAME = "kubernetes.io/metadata.name"  # which the API server sets on every namespace

_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: str  # In | NotIn | Exists | DoesNotExist
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy it."""
        if self.operator == "In":
            return self.key in labels and labels[self.key] in self.values
        if self.operator == "NotIn":  # also true without the label
            return self.key not in labels or labels[self.key] not in self.values
        return (self.key in labels) == (self.operator == "Exists")

    def __str__(self) -> str:
        if self.operator in ("In", "NotIn"):
            return f"{self.key} {self.operator.lower()} ({', '.join(self.values)})"
        return self.key if self.operator == "Exists" else f"!{self.key}"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements together; none: everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy every requirement."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ", ".join(map(str, self.requirements)) or "everything"


EVERYTHING = LabelSelector()


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
