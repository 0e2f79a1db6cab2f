"""The model card: what a trained model is and how it was trained, as README.md in its folder.

All prose is in the template ``resources/model_card.md.jinja``; this module checks the numbers,
removes paths of this machine and escapes every text that is not Markdown already. All content comes
from the configuration and the trainer's report; nothing is estimated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from sparse_ir.errors import DataError, ModelError
from sparse_ir.models import decoder_settings
from sparse_ir.models.model_files import is_sparse_encoder
from sparse_ir.storage import files
from sparse_ir.training import markdown
from sparse_ir.training.configuration.config import BlendSettings, TrainConfig
from sparse_ir.training.configuration.config_parser import format_config
from sparse_ir.training.markdown import Markdown, number
from sparse_ir.training.objectives import losses, penalties
from sparse_ir.training.objectives.penalties import PenaltySettings
from sparse_ir.training.teachers.base import NetworkSettings

_NOT_STATED = "not stated"


class _SourceRow(NamedTuple):
    """A line of the table of training data."""

    name: str
    queries: int
    documents: int
    share: float  # of the batches, 0 to 1
    note: str


class _Outcome(NamedTuple):
    """What the trainer reports, checked."""

    steps: int
    terms: dict[str, float | None]  # side -> mean number of active terms
    missed_targets: list[str]
    best_dev: float | None
    best_step: int | None
    dev: dict[str, float]


def write_card(folder: Path, config: TrainConfig, **facts: Any) -> None:
    """Write ``README.md`` into the folder of a saved model, atomically.

    ``facts`` are the other arguments of ``format_card``. Raises ``ModelError`` if ``folder`` holds
    no saved model.
    """
    if not is_sparse_encoder(folder) and decoder_settings.read_decoder_settings(folder) is None:
        raise ModelError(f"{folder} holds no saved SparseEncoder (modules.json) to describe")
    text = format_card(config, **facts)
    with files.atomic_writer(folder / "README.md") as stream:
        stream.write(text)


def format_card(
    config: TrainConfig,
    *,
    sources: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    command: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    """The text of a card; the same arguments give the same text.

    Args:
        config: Configuration of the training.
        sources: One row for each source, as ``Batches.describe()`` returns them.
        report: The trainer's report. ``steps``, ``best_step``, ``best_dev``, ``documents_terms``,
            ``queries_terms``, ``missed_targets`` and ``dev`` are shown if they are there.
        command: The command line; its paths are cut to their last components.
        versions: Package name -> version.

    Raises:
        DataError: A row lacks its name or a count, or a number is NaN or infinite.
    """
    rows = _check_sources(config, sources)
    other_notes = dict(config.card.data_notes)
    for row in rows:
        other_notes.pop(row.name, None)
    sides = _sides(config)
    shown_command = f"{_NOT_STATED.capitalize()}."
    if command is not None:
        shown_command = markdown.fence(markdown.hide_paths_of_command(command), "bash")
    return _template().render(
        front_matter=Markdown(_front_matter(config)),
        config=config,
        model=config.model,
        decoder=config.decoder,
        run=config.run,
        batch=config.batch,
        warm=config.warm_start,
        optimizer=config.optimizer,
        blend=config.blend,
        is_neural=config.model.query == "neural",
        is_blended=config.blend != BlendSettings(),
        sources=rows,
        other_notes=other_notes,
        outcome=_check_report(config, report),
        losses=map(Markdown, map(losses.describe, config.loss)),
        teachers=[
            Markdown(f"{teacher.sentence()}; weight {number(teacher.weight)}")
            for teacher in config.teacher
        ],
        penalties={
            side: Markdown(penalties.describe(settings)) for side, settings in sides.items()
        },
        versions=versions or {},
        command=shown_command,
        configuration=markdown.fence(format_config(_without_paths(config)).rstrip("\n"), "toml"),
    )


@functools.cache
def _template() -> jinja2.Template:
    """The template; every value in it is escaped unless it is ``Markdown``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparse_ir", "resources"),
        finalize=markdown.escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the card is Markdown, and ``escape`` covers HTML in it
    )
    environment.filters |= {
        "code": markdown.code,
        "count": "{:,}".format,
        "hide_folder": markdown.hide_folder,
        "hide_path": markdown.hide_path,
        "number": number,
    }
    return environment.get_template("model_card.md.jinja")


def _front_matter(config: TrainConfig) -> str:
    from huggingface_hub import ModelCardData

    tags = ["sparse-encoder", "sparse", "splade"]
    if config.model.query != "neural":
        tags += ["asymmetric", "inference-free"]
    start = config.model.start
    is_public = markdown.hide_path(start) == start and not Path(start).exists()
    facts = ModelCardData(
        license=config.card.license,
        library_name="sentence-transformers",
        tags=tags,
        pipeline_tag="feature-extraction",
        base_model=start if is_public else None,
    )
    yaml: str = facts.to_yaml()
    return yaml.rstrip()


def _sides(config: TrainConfig) -> dict[str, PenaltySettings]:
    """The sides that the network encodes, with their penalties."""
    sides = {"documents": config.documents}
    if config.model.query == "neural":
        sides["queries"] = config.queries
    return sides


def _check_sources(config: TrainConfig, sources: Sequence[Mapping[str, Any]]) -> list[_SourceRow]:
    rows = []
    for position, source in enumerate(sources):
        place = f"sources[{position}]"
        if source.get("name") is None:
            raise DataError(f"{place}.name is missing")
        name = str(source["name"])
        numbers = {key: _finite(source, key, place) for key in ("queries", "documents", "share")}
        note = config.card.data_notes.get(name, _NOT_STATED)
        rows.append(_SourceRow(name, **numbers, note=note))
    return rows


def _check_report(config: TrainConfig, report: Mapping[str, Any]) -> _Outcome:
    numbers: dict[str, Any] = {}
    for key in ("steps", "best_dev", "documents_terms", "queries_terms"):
        if report.get(key) is not None:
            numbers[key] = _finite(report, key, "report")
    if "best_dev" in numbers:
        numbers["best_step"] = _finite(report, "best_step", "report")
    dev = report.get("dev") or {}
    return _Outcome(
        steps=numbers.get("steps", config.run.steps),
        terms={side: numbers.get(f"{side}_terms") for side in _sides(config)},
        missed_targets=list(report.get("missed_targets", ())),
        best_dev=numbers.get("best_dev"),
        best_step=numbers.get("best_step"),
        dev={str(name): _finite(dev, name, "report.dev") for name in dev},
    )


def _without_paths(config: TrainConfig) -> TrainConfig:
    """The configuration with every path cut to its last component."""
    model = dataclasses.replace(
        config.model,
        start=markdown.hide_path(config.model.start),
        idf=None if config.model.idf is None else markdown.last_component(config.model.idf),
    )
    data = []
    for source in config.data:
        negatives = source.negatives
        if negatives is not None:
            negatives = markdown.last_component(negatives)
        path = markdown.last_component(source.path)
        data.append(dataclasses.replace(source, path=path, negatives=negatives))
    teachers = []
    for teacher in config.teacher:
        if isinstance(teacher, NetworkSettings):
            teacher = dataclasses.replace(teacher, model=markdown.hide_path(teacher.model))
        teachers.append(teacher)
    dev = [dataclasses.replace(each, path=markdown.hide_path(each.path)) for each in config.dev]
    return dataclasses.replace(
        config, model=model, data=tuple(data), teacher=tuple(teachers), dev=tuple(dev)
    )


def _finite(row: Mapping[str, Any], key: str, place: str) -> Any:
    value = row.get(key)
    if value is None:
        raise DataError(f"{place}.{key} is missing")
    if isinstance(value, (bool, str)) or not math.isfinite(value):
        raise DataError(f"{place}.{key} is {value!r} but must be a finite number")
    return value.item() if hasattr(value, "item") else value
