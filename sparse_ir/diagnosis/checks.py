"""The table of checks, ``resources/checks.toml``, and the findings that it leads to."""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Severity = Literal["fault", "warning"]
USUAL_PROMPTS = ("query: ", "passage: ")


class Rule(NamedTuple):
    """One row of the table."""

    check: str  # rules of one check share a measurement and lead to one finding
    quantity: str
    measures: str
    remedy: str  # {names} are filled in by the measurement
    warning: float | None = None
    fault: float | None = None
    is_lower_worse: bool = False

    def judge(self, value: float) -> Severity | None:
        """The severity of a value; None if it is within the limits."""
        if self._is_beyond(value, self.fault):
            return "fault"
        if self._is_beyond(value, self.warning):
            return "warning"
        return None

    def _is_beyond(self, value: float, limit: float | None) -> bool:
        if limit is None:
            return False
        return value < limit if self.is_lower_worse else value > limit


class Measured(NamedTuple):
    """What a measurement found out about a model."""

    evidence: dict[str, Any]  # for the report
    values: Mapping[str, float]  # quantity -> value; a missing quantity is not judged
    details: Mapping[str, str] = MappingProxyType({})  # fills in the remedies


class Finding(NamedTuple):
    """The result of a check; ``severity`` is None if all is well."""

    name: str
    severity: Severity | None
    evidence: dict[str, Any]
    remedy: str = ""


_TABLE = importlib.resources.files("sparse_ir") / "resources" / "checks.toml"
RULES = tuple(Rule(**rule) for rule in tomllib.loads(_TABLE.read_text("utf-8"))["rules"])


def judge(check: str, measured: Measured, rules: Sequence[Rule] = RULES) -> Finding:
    """The finding of a check: by its first rule that says fault, or else warning."""
    finding = Finding(check, None, measured.evidence)
    for rule in rules:
        if rule.check != check or rule.quantity not in measured.values:
            continue
        severity = rule.judge(measured.values[rule.quantity])
        if severity == "fault" or (severity == "warning" and finding.severity is None):
            remedy = rule.remedy.format(**measured.details)
            finding = Finding(check, severity, measured.evidence, remedy)
        if severity == "fault":
            break
    return finding
