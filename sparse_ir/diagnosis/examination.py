"""The examination: all checks over one model, and its report."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparse_ir.diagnosis.checks import (
    Finding,
    Patient,
    check_activity,
    check_always_on,
    check_collapse,
    check_head,
    check_numbers,
    check_padding,
    check_prompts,
    check_quantization,
    check_retrieval,
    check_sink,
    check_truncation,
)
from sparse_ir.errors import ConfigError, DataError, ModelError
from sparse_ir.models import loading
from sparse_ir.models.checkpoint import Checkpoint, find_folder, open_checkpoint
from sparse_ir.models.encoder import Encoder

_SAY_HOW = (
    'a decoder: say how it reads a text in a file like {"format": 1, "mode": "causal"} '
    "(README), and give it "
    "with --decoder, or put it into the model's folder as sparse_ir.json"
)


def examine(
    model: str,
    *,
    texts: Sequence[str] | None = None,
    progress: bool = False,
    revision: str | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The report: ``healthy`` (no fault), the number of faults and warnings, the findings, and all
    that was measured.

    ``texts`` take the place of the built-in passages; ``options`` are those of ``Encoder.load``. A
    model that is there but cannot be loaded is a fault. Raises ``ModelError`` when there is none,
    ``ConfigError`` for an option and ``DataError`` for fewer than four texts that are not empty.
    """
    folder, _ = find_folder(model, revision)
    pairs = _read_probes()
    passages = (
        [text for text in texts if text.strip()]
        if texts is not None
        else [pair["passage"] for pair in pairs]
    )
    if len(set(passages)) < 4:
        raise DataError(
            f"{len(set(passages))} different texts are too few to compare; give at least 4"
        )
    found: list[Finding] = []
    kind = "unknown"
    try:
        checkpoint = open_checkpoint(
            model, revision=revision, allow_pickle=allow_pickle, decoder=options.get("decoder")
        )
        kind = (
            "decoder, settings missing"
            if _says_nothing(folder) and not options.get("decoder")
            else _kind_of(checkpoint)
        )
        found.append(check_numbers(checkpoint, allow_pickle))
        if found[0].severity != "fault":  # nothing can be said about what is computed from NaN
            encoder = Encoder.load(model, revision=revision, allow_pickle=allow_pickle, **options)
            patient = Patient(
                encoder,
                encoder.query_encoder(),
                passages,
                [] if texts is not None else [pair["question"] for pair in pairs],
            )
            found += [
                check(patient)
                for check in tqdm(
                    CHECKS, desc="examining", unit=" checks", disable=None if progress else True
                )
            ]
    except (ModelError, ConfigError) as error:
        unsaid = "decoder=..." in str(error) and _says_nothing(folder)
        found.append(
            Finding(
                "loading", "fault", {"reason": str(error)}, _SAY_HOW if unsaid else "see the reason"
            )
        )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        found.append(
            Finding(
                "loading",
                "fault",
                {"reason": f"{type(error).__name__}: {error}"},
                "this network, or what its files say, is of a kind that nobody foresaw here",
            )
        )
    return _report(kind, found)


def _says_nothing(folder: Path) -> bool:
    """Whether this is a decoder or an adapter, and nothing in its folder
    says how it reads a text.
    """
    return not (folder / "sparse_ir.json").is_file() and (
        loading.is_decoder(folder) or (folder / "adapter_config.json").is_file()
    )


def _read_probes() -> list[dict[str, str]]:
    text = (
        importlib.resources.files("sparse_ir")
        .joinpath("resources/probes.jsonl")
        .read_text(encoding="utf-8")
    )
    return [json.loads(line) for line in text.splitlines()]


def _kind_of(checkpoint: Checkpoint) -> str:
    decoder = checkpoint.document.decoder
    return "masked language model" if decoder is None else f"decoder, {decoder.mode}"


def _report(kind: str, found: Sequence[Finding]) -> dict[str, Any]:
    counts = {
        severity: sum(finding.severity == severity for finding in found)
        for severity in ("fault", "warning")
    }
    listed = [
        {
            "name": finding.name,
            "severity": finding.severity,
            "evidence": finding.evidence,
            "remedy": finding.remedy,
        }
        for severity in counts
        for finding in found
        if finding.severity == severity
    ]
    return {
        "kind": kind,
        "healthy": counts["fault"] == 0,
        "faults": counts["fault"],
        "warnings": counts["warning"],
        "findings": listed,
        "measured": {finding.name: finding.evidence for finding in found},
    }


CHECKS: tuple[Callable[[Patient], Finding], ...] = (
    check_head,
    check_activity,
    check_collapse,
    check_sink,
    check_always_on,
    check_truncation,
    check_padding,
    check_prompts,
    check_quantization,
    check_retrieval,
)
