"""The examination: all checks of one model, and their report."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparse_ir.console import progress_bar
from sparse_ir.diagnosis.checks import Finding, judge
from sparse_ir.diagnosis.examined_model import ExaminedModel
from sparse_ir.diagnosis.measurements import MEASUREMENTS, measure_numbers
from sparse_ir.errors import ConfigError, DataError, ModelError
from sparse_ir.models import loading
from sparse_ir.models.checkpoint import find_folder, open_checkpoint
from sparse_ir.models.encoder import Encoder
from sparse_ir.reports import ExaminationReport, FindingReport

MAX_USER_TEXTS = 32
_MIN_TEXTS = 4
_SETTINGS_REMEDY = (
    "This is a decoder: describe how it reads a text in a file such as "
    '{"format": 1, "mode": "causal"}, and pass it with --decoder, or put it into the model\'s '
    "folder as sparse_ir.json."
)
_UNSUPPORTED_REMEDY = "Unsupported architecture or configuration; please report it."
# What a network raises whose files or architecture nobody has tried; a defect of this package in a
# measurement looks the same and is reported as a fault too.
_UNEXPECTED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def examine(
    model: str,
    *,
    texts: Sequence[str] | None = None,
    progress: bool = False,
    revision: str | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> ExaminationReport:
    """Examine a model and report findings with evidence and remedies.

    ``texts`` replace the built-in passages; ``options`` are those of ``Encoder.load``. A model that
    exists but cannot be loaded is a fault. Raises ``ModelError`` if there is no model,
    ``ConfigError`` for an option, and ``DataError`` for fewer than four different texts.
    """
    folder, _ = find_folder(model, revision)
    passages, questions = _choose_texts(texts)
    findings: list[Finding] = []
    kind = "unknown"
    try:
        checkpoint = open_checkpoint(
            model, revision=revision, allow_pickle=allow_pickle, decoder=options.get("decoder")
        )
        kind = checkpoint.document.family.kind
        if _lacks_settings(folder) and not options.get("decoder"):
            kind = "decoder, settings missing"
        findings.append(judge("numbers", measure_numbers(checkpoint, allow_pickle)))
        if findings[0].severity != "fault":  # what is computed from NaN says nothing
            encoder = Encoder.load(model, revision=revision, allow_pickle=allow_pickle, **options)
            examined = ExaminedModel(encoder, encoder.query_encoder(), passages, questions)
            findings.extend(_measure(examined, progress))
    except (ModelError, ConfigError) as error:
        remedy = "See the reason."
        if "decoder=..." in str(error) and _lacks_settings(folder):
            remedy = _SETTINGS_REMEDY
        findings.append(Finding("loading", "fault", {"reason": str(error)}, remedy))
    except _UNEXPECTED as error:
        reason = f"{type(error).__name__}: {error}"
        findings.append(Finding("loading", "fault", {"reason": reason}, _UNSUPPORTED_REMEDY))
    return _report(kind, findings)


def _choose_texts(texts: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Passages and their questions; texts of the user have no questions."""
    if texts is None:
        probes = read_probes()
        return [probe["passage"] for probe in probes], [probe["question"] for probe in probes]
    passages = [text for text in texts if text.strip()]
    different = len(set(passages))
    if different < _MIN_TEXTS:
        raise DataError(f"{different} different texts given; there must be at least {_MIN_TEXTS}")
    return passages, []


def read_probes() -> list[dict[str, str]]:
    """The built-in questions, each with its passage."""
    path = importlib.resources.files("sparse_ir").joinpath("resources/probes.jsonl")
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def _lacks_settings(folder: Path) -> bool:
    """Whether this is a decoder or an adapter without a file that says how to read it."""
    if (folder / "sparse_ir.json").is_file():
        return False
    return loading.is_decoder(folder) or (folder / "adapter_config.json").is_file()


def _measure(examined: ExaminedModel, progress: bool) -> Iterator[Finding]:
    """The findings of all checks of a loaded model."""
    with progress_bar(len(MEASUREMENTS), progress, desc="examining", unit=" checks") as bar:
        for name, measure in MEASUREMENTS.items():
            yield judge(name, measure(examined))
            bar.update()


def _report(kind: str, findings: Sequence[Finding]) -> ExaminationReport:
    """Faults first, then warnings; the evidence of every check."""
    listed: dict[str, list[FindingReport]] = {"fault": [], "warning": []}
    measured = {}
    for finding in findings:
        measured[finding.name] = finding.evidence
        if finding.severity is not None:
            listed[finding.severity].append(
                {
                    "name": finding.name,
                    "severity": finding.severity,
                    "evidence": finding.evidence,
                    "remedy": finding.remedy,
                }
            )
    return {
        "kind": kind,
        "healthy": not listed["fault"],
        "faults": len(listed["fault"]),
        "warnings": len(listed["warning"]),
        "findings": listed["fault"] + listed["warning"],
        "measured": measured,
    }
