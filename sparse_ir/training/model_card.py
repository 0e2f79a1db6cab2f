"""The model card: what a trained model is and how it came to be, as a README.md in its folder.

Everything in it is taken from the configuration, the trainer's report and the rows of a
measurement; nothing is estimated. Texts of users are escaped, and of a local path only the last
component is shown.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_ir.errors import DataError, ModelError
from sparse_ir.models import checkpoint, decoder_settings
from sparse_ir.storage import files
from sparse_ir.training.config import (
    BlendSettings,
    LossSettings,
    PenaltySettings,
    TeacherSettings,
    TrainConfig,
)
from sparse_ir.training.config_parser import format_config

MEASURED_COLUMNS = ("collection", "nDCG@10", "R@100", "terms per document")
_NOT_STATED = "not stated"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATH_START = re.compile(r"[/~]|\.\.?[/\\]|[A-Za-z]:[/\\]")
_FILE_ENDING = re.compile(r"\.(toml|jsonl?|gz|tsv|py|sh|txt)$")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|#&~$]|(?<!\w)_|_(?!\w)")
_SHELL_SIGNS = {"&&", "||", "|", ";", ">", "<", "2>&1", "&"}
_KIND = (
    "A learned-sparse encoder for retrieval: a text becomes weights of the tokens of the "
    "vocabulary, and the "
    "score of a document is the dot product with the query."
)
_QUERY_SIDES = {
    "idf": "Queries need no network: a query is the set of its tokens, each weighing its IDF.",
    "ones": "Queries need no network: a query is the set of its tokens, each weighing 1.",
    "learned": "Queries need no network: a query is the set of its tokens, each with a weight "
    "learned in training.",
    "neural": "Queries pass the same network as documents.",
}
_LOSSES = {
    "kl": "KL divergence from the teachers' distribution over the candidates of a query to the "
    "model's",
    "info_nce": "InfoNCE, the cross-entropy of the positive among the candidates of a query",
    "margin_mse": "MarginMSE, the squared difference between the teachers' margins (positive "
    "minus other candidate) "
    "and the model's",
}
_PENALTIES = {
    "flops": "FLOPS: the sum over all tokens of the squared mean weight in the batch",
    "idf_flops": "IDF-aware FLOPS: the sum over all tokens of the squared mean weight divided by "
    "the token's IDF",
    "df_flops": "DF-FLOPS: FLOPS in which a token counts the more, the more documents it is "
    "active in",
    "l1": "L1: the mean sum of a text's weights",
}
_SCHEDULES = {
    "linear": "linear decay to 0",
    "cosine": "cosine decay to 0",
    "constant": "a constant rate",
}
_USE = """\
With sparse_ir (package `sparse-ir-toolkit`), where `my_model` is this folder or its name on the hub,
and `my_corpus` a BEIR folder:

```bash
sparse-ir build --model my_model --input my_corpus --output indexes/my_index
sparse-ir search --index indexes/my_index --queries my_corpus --output my_run.trec
```

```python
import sparse_ir

sparse_ir.build(model="my_model", input="my_corpus", output="indexes/my_index")
with sparse_ir.Index("indexes/my_index") as index:
    hits = index.search("how do I wait for several threads", k=10)
    print(hits.doc_ids, hits.scores)
```"""
_USE_ELSEWHERE = """

With sentence-transformers (5.4 or newer):

```python
from sentence_transformers import SparseEncoder

model = SparseEncoder("my_model")
queries = model.encode_query(["how do I wait for several threads"])
documents = model.encode_document(["A thread ends when its function returns; join() waits for that."])
print(model.similarity(queries, documents))
```"""


def write_card(
    folder: Path,
    config: TrainConfig,
    *,
    sources: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    measured: Sequence[Mapping[str, Any]] = (),
    command: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write ``README.md`` into the folder of a saved model; an older one is replaced as a whole.

    ``sources`` are the rows of ``Batches.describe()``; ``report`` is the trainer's, of which
    ``steps``, ``best_step``, ``best_dev``, ``documents_terms``, ``queries_terms``,
    ``missed_targets`` and ``dev`` (name -> value) are shown where they are there. ``measured``: one
    row for each collection with the keys of ``MEASURED_COLUMNS``, of which all but the first may
    lack, and further ones, which become further columns. Same arguments, same bytes.

    Raises:
        ModelError: ``folder`` holds no SparseEncoder.
        DataError: a row lacks its name or a count, or a number is NaN or infinite.
    """
    folder = Path(folder)
    if (
        not checkpoint.is_sparse_encoder(folder)
        and decoder_settings.read_decoder_settings(folder) is None
    ):
        raise ModelError(
            f"{folder} holds no saved SparseEncoder (modules.json); a card belongs to one"
        )
    text = format_card(
        config,
        sources=sources,
        report=report,
        measured=measured,
        command=command,
        versions=versions,
    )
    with files.atomic_writer(folder / "README.md") as stream:
        stream.write(text)


def add_measured(folder: Path, measured: Sequence[Mapping[str, Any]]) -> None:
    """Put the measured rows into a card that stands there; all else in it stays as it is.

    Raises ``DataError`` when the folder has no card of this module, or as ``write_card``.
    """
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, heading, rest = text.partition("\n## Measured\n\n")
    if not heading:
        raise DataError(
            f"{path} is no card with a section Measured; allowed: what write_card wrote"
        )
    _, next_heading, after = rest.partition("\n\n## ")
    with files.atomic_writer(path) as stream:
        stream.write(before + heading + _describe_measured(measured) + next_heading + after)


def format_card(
    config: TrainConfig,
    *,
    sources: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    measured: Sequence[Mapping[str, Any]] = (),
    command: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    """The text that ``write_card`` writes."""
    sections = {
        "": _describe_model(config),
        "Use": _USE + ("" if config.decoder is not None else _USE_ELSEWHERE),
        "Training data": _describe_data(config, sources),
        "Training": _describe_training(config, report),
        "Sparsity": _describe_sparsity(config, report),
        "Development sets": _describe_dev(config, report),
        "Measured": _describe_measured(measured),
        "Versions": _bullets(
            f"{_escape(name)}: {_escape(version)}" for name, version in (versions or {}).items()
        ),
        "Command": _describe_command(command),
        "Configuration": "Every setting, defaults included; of local paths only the last "
        "component.\n\n" + _fence(format_config(_without_paths(config)).rstrip("\n"), "toml"),
    }
    body = [f"## {title}\n\n{text}" if title else text for title, text in sections.items()]
    return "\n\n".join([_front_matter(config), f"# {_escape(config.card.name)}", *body]) + "\n"


def _front_matter(config: TrainConfig) -> str:
    from huggingface_hub import ModelCardData

    tags = ["sparse-encoder", "sparse", "splade"]
    if config.model.query != "neural":
        tags += ["asymmetric", "inference-free"]
    start = config.model.start
    is_public = _shown(start) == start and not Path(start).exists()
    facts = ModelCardData(
        license=config.card.license,
        library_name="sentence-transformers",
        tags=tags,
        pipeline_tag="feature-extraction",
        base_model=start if is_public else None,
    )
    return f"---\n{facts.to_yaml().rstrip()}\n---"


def _network(config: TrainConfig) -> str:
    if config.decoder is None:
        return "a masked language model"
    lora = (
        ""
        if config.lora is None
        else f" with LoRA adapters of rank {config.lora.r} on {config.lora.targets}"
    )
    return f"a decoder read in mode {config.decoder.mode}{lora}"


def _describe_model(config: TrainConfig) -> str:
    model = config.model
    formula = "log(1 + relu(x))" if model.activation == "relu" else "log(1 + log(1 + relu(x)))"
    facts = [
        (
            f"Documents pass {_network(config)} with SPLADE max pooling: a token weighs {formula} "
            "of "
            "its top logit."
        ),
        _QUERY_SIDES[model.query],
        f"Training started from {_code(_shown(model.start))}"
        + (f", revision {_code(model.revision)}." if model.revision else "."),
        f"Length in training: {model.max_length} tokens of a document, {model.query_max_length} "
        "of a query."
        + (
            f" The saved model reads {model.saved_max_length} tokens."
            if model.saved_max_length
            else ""
        ),
    ]
    if model.top_k is not None:
        others = (
            ""
            if model.query == "neural"
            else "; sentence-transformers cuts queries to as many, too"
        )
        facts.append(
            f"The saved model keeps at most {model.top_k} terms of a document, the "
            f"heaviest{others}."
        )
    facts += [
        f"Prompt before every {side}: {_code(prompt)}"
        for side, prompt in (("document", model.document_prompt), ("query", model.query_prompt))
        if prompt
    ]
    facts.append(f"License: {_escape(config.card.license or _NOT_STATED)}.")
    return f"{_KIND}\n\n{_bullets(facts)}"


def _describe_data(config: TrainConfig, sources: Sequence[Mapping[str, Any]]) -> str:
    notes = dict(config.card.data_notes)
    rows = []
    for number, source in enumerate(sources):
        name = str(_take(source, "name", f"sources[{number}]"))
        counts = [
            f"{_finite(source, key, f'sources[{number}]'):,}" for key in ("queries", "documents")
        ]
        share = _finite(source, "share", f"sources[{number}]")
        rows.append([_named(name), *counts, f"{100 * share:.1f} %", notes.pop(name, _NOT_STATED)])
    if not rows:
        return f"{_NOT_STATED.capitalize()}."
    table = _table(
        ["source", "queries", "documents", "share of batches", "origin and licence"], rows
    )
    others = [f"{_escape(name)}: {_escape(note)}" for name, note in notes.items()]
    return "\n\n".join([table, *([_bullets(others)] if others else [])])


def _describe_training(config: TrainConfig, report: Mapping[str, Any]) -> str:
    run, batch = config.run, config.batch
    steps = run.steps if report.get("steps") is None else _finite(report, "steps", "report")
    facts = [
        f"Steps: {steps:,} of {run.steps:,}; seed {run.seed}; {run.precision}.",
        f"Batch: {batch.queries} positive documents, up to {batch.queries_per_positive} queries "
        "for each, "
        f"{batch.negatives} mined negatives for each query, {batch.neighbourhood} positives drawn "
        "together as "
        "neighbours; candidates of a query are "
        + ("all documents of the batch." if batch.in_batch else "its own positive and negatives."),
        *_warm_start(config),
        *(f"Loss: {_describe_loss(loss)}." for loss in config.loss),
        *(f"Teacher: {_describe_teacher(teacher)}." for teacher in config.teacher),
        *_ensemble(config),
        *(
            f"Penalty on {side}: {_describe_penalty(settings)}."
            for side, settings in _sides(config)
        ),
        f"Optimizer: {_describe_optimizer(config)}.",
        *_blend(config),
    ]
    return _bullets(facts)


def _blend(config: TrainConfig) -> list[str]:
    found = []
    if config.blend.start:
        found.append(
            "Saved: the mean of the trained network and of that with which ranking "
            "began, the latter with "
            f"the share {_number(config.blend.start)} (WiSE-FT)."
        )
    if config.blend.terms is not None:
        found.append(
            f"Output biases were then shifted to {config.blend.terms} active terms a "
            "document on a sample."
        )
    return found


def _warm_start(config: TrainConfig) -> list[str]:
    warm = config.warm_start
    begun = (
        [
            (
                "The output layer began with the backbone's own vector of each token read alone, "
                "and with "
                f"{warm.active_terms} active terms a document."
            )
        ]
        if warm.head == "token_vectors"
        else []
    )
    if not warm.steps:
        return begun
    if warm.objective != "bag_of_words":
        kind = {
            "clm": "next-token prediction (clm)",
            "mntp": "masked next-token prediction (mntp)",
        }[warm.objective]
        packed = (
            f" on documents joined to sequences of {warm.packed_length:,} tokens"
            if warm.packed_length
            else ""
        )
        return [
            (
                f"Adaptation: {warm.steps:,} of these steps of {kind}{packed}, and with weight "
                f"{_number(warm.relu_weight)} the same loss on log(1 + relu(logits)), "
                f"learning rate {_number(warm.learning_rate)}."
            )
        ]
    return [
        *begun,
        (
            f"Warm start: {warm.steps:,} of these steps with a bag-of-words objective "
            "(DupMAE), learning rate "
            f"{_number(warm.learning_rate)}; ranking began with {warm.active_terms} active terms "
            "a document."
        ),
    ]


def _describe_loss(loss: LossSettings) -> str:
    shown = f"{_LOSSES[loss.name]}; weight {_number(loss.weight)}"
    return (
        shown if loss.name == "margin_mse" else f"{shown}, temperature {_number(loss.temperature)}"
    )


def _describe_teacher(teacher: TeacherSettings) -> str:
    if teacher.kind == "file":
        shown = "the scores that stand in the training file"
    elif teacher.kind == "bm25":
        shown = f"BM25 with k1 {_number(teacher.k1)} and b {_number(teacher.b)}"
    else:
        shown = f"the {teacher.kind} model {_code(_shown(teacher.model or ''))} in {teacher.dtype}"
        shown += f", revision {_code(teacher.revision)}" if teacher.revision else ""
        shown += f", {teacher.max_length} tokens" if teacher.max_length else ""
    return f"{shown}; weight {_number(teacher.weight)}"


def _ensemble(config: TrainConfig) -> list[str]:
    if not config.teacher:
        return []
    scaled = (
        "scaled to 0..1 for each query (min-max)"
        if config.ensemble.normalization == "minmax"
        else "as they are"
    )
    return [
        (
            f"Target: the teachers' scores {scaled}, their weighted mean, times "
            f"{_number(config.ensemble.scale)}."
        )
    ]


def _sides(config: TrainConfig) -> list[tuple[str, PenaltySettings]]:
    sides = [("documents", config.documents)]
    return sides if config.model.query != "neural" else [*sides, ("queries", config.queries)]


def _describe_penalty(settings: PenaltySettings) -> str:
    parts = ["none"]
    if settings.penalty != "none":
        parts = [_PENALTIES[settings.penalty]]
        if settings.target_terms is not None:
            parts.append(f"lambda controlled towards {_number(settings.target_terms)} active terms")
            ramp = "to be reached within {} steps"
        else:
            parts.append(f"lambda {_number(settings.weight or 0.0)}")
            ramp = "quadratic ramp over {} steps"
        parts += [ramp.format(f"{settings.ramp_steps:,}")] if settings.ramp_steps else []
    if settings.penalty == "idf_flops":
        parts.append(f"power {settings.power} of the IDF")
    if settings.penalty == "df_flops":
        parts.append(f"alpha {_number(settings.alpha)}, beta {_number(settings.beta)}")
    if settings.exempt_up_to is not None and settings.penalty != "none":
        parts.append(f"texts of at most {settings.exempt_up_to} terms exempt (l0 mask)")
    if settings.anti_zero:
        parts.append(f"plus {_number(settings.anti_zero)} times the anti-zero loss")
    return "; ".join(parts)


def _describe_optimizer(config: TrainConfig) -> str:
    chosen = config.optimizer
    parts = [
        f"AdamW with learning rate {_number(chosen.learning_rate)}",
        f"{chosen.warmup_steps:,} warm-up steps",
        _SCHEDULES[chosen.schedule],
        f"weight decay {_number(chosen.weight_decay)}",
    ]
    if config.model.query == "learned" and chosen.query_learning_rate is not None:
        parts.append(f"query weights with {_number(chosen.query_learning_rate)}")
    clipped = chosen.max_grad_norm
    parts.append(
        "no gradient clipping"
        if clipped is None
        else f"gradients clipped to a norm of {_number(clipped)}"
    )
    return ", ".join(parts)


def _describe_sparsity(config: TrainConfig, report: Mapping[str, Any]) -> str:
    facts = []
    for side, settings in _sides(config):
        key = f"{side}_terms"
        if report.get(key) is None:
            facts.append(f"Active terms of {side}: {_NOT_STATED}.")
            continue
        aimed = (
            ""
            if settings.target_terms is None
            else f" (asked for: {_number(settings.target_terms)})"
        )
        if side == "documents" and config.blend != BlendSettings():
            aimed = " over a sample of the training documents, after the blend"
        facts.append(
            f"Active terms of {side}: {_finite(report, key, 'report'):.1f} on average{aimed}."
        )
    return _bullets(
        [*facts, *(f"Target missed: {missed}." for missed in report.get("missed_targets", ()))]
    )


def _describe_dev(config: TrainConfig, report: Mapping[str, Any]) -> str:
    if report.get("best_dev") is None:
        return "Nothing was measured during training; the model is that of the last step."
    sets = ", ".join(
        f"{_escape(_named(dev.name or Path(dev.path).name))} ({_escape(dev.measure)})"
        for dev in config.dev
    )
    facts = [
        (
            f"Best mean over {sets or 'the development sets'}: "
            f"{_finite(report, 'best_dev', 'report'):.4f}, "
            f"after step {_finite(report, 'best_step', 'report'):,}. This is the model that was "
            "saved."
        )
    ]
    single = report.get("dev") or {}
    facts += [
        f"{_escape(_named(str(name)))}: {_finite(single, name, 'report.dev'):.4f}"
        for name in single
    ]
    return _bullets(facts)


def _describe_measured(measured: Sequence[Mapping[str, Any]]) -> str:
    if not measured:
        return "Nothing was measured."
    keys = [key for key in MEASURED_COLUMNS if any(key in row for row in measured)]
    keys += [
        key for key in dict.fromkeys(key for row in measured for key in row) if key not in keys
    ]
    rows = []
    for number, row in enumerate(measured):
        _take(row, "collection", f"measured[{number}]")
        rows.append([_format_cell(row, key, f"measured[{number}]") for key in keys])
    return _table(keys, rows)


def _format_cell(row: Mapping[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, (str, bool)):
        return _named(str(value))
    number = _finite(row, key, place)
    if key == "terms per document":
        return f"{number:.1f}"
    return f"{number:,}" if isinstance(number, int) else f"{number:.4f}"


def _describe_command(command: str | None) -> str:
    if command is None:
        return f"{_NOT_STATED.capitalize()}."
    try:
        words = shlex.split(command)
    # an open quote: cut it at spaces then, for it must not be shown as it stands
    except ValueError:
        words = command.split()
    return _fence(" ".join(_show_word(word) for word in words), "bash")


def _show_word(word: str) -> str:
    if word in _SHELL_SIGNS:
        return word
    option, equals, value = word.partition("=")
    return (
        shlex.quote(option + equals + _shown(value))
        if equals and "/" not in option
        else shlex.quote(_shown(word))
    )


def _shown(name: str) -> str:
    """What a model or a word of a command may show: a hub name as it is, of a path the last
    component.
    """
    if "/" not in name and not _PATH_START.match(name):
        return name
    is_hub_name = (
        _HUB_NAME.fullmatch(name) and not _FILE_ENDING.search(name) and not Path(name).exists()
    )
    return name if is_hub_name else _last(name)


def _named(name: str) -> str:
    """The name of a collection: any text, unless it begins as paths do."""
    return _last(name) if _PATH_START.match(name) else name


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _without_paths(config: TrainConfig) -> TrainConfig:
    model = dataclasses.replace(
        config.model,
        start=_shown(config.model.start),
        idf=None if config.model.idf is None else _last(config.model.idf),
    )
    sources = tuple(
        dataclasses.replace(
            entry,
            path=_last(entry.path),
            negatives=None if entry.negatives is None else _last(entry.negatives),
        )
        for entry in config.data
    )
    teachers = tuple(
        dataclasses.replace(entry, model=None if entry.model is None else _shown(entry.model))
        for entry in config.teacher
    )
    dev = tuple(dataclasses.replace(entry, path=_shown(entry.path)) for entry in config.dev)
    return dataclasses.replace(config, model=model, data=sources, teacher=teachers, dev=dev)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    shown = [
        cells if number == 1 else [_escape(cell) for cell in cells]
        for number, cells in enumerate(lines)
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in shown)


def _bullets(facts: Iterable[str]) -> str:
    return "\n".join(f"- {fact}" for fact in facts) or f"{_NOT_STATED.capitalize()}."


def _escape(text: str) -> str:
    """One line of plain text in which Markdown and HTML find nothing to do."""
    return _MARKDOWN.sub(lambda found: "\\" + found.group(), " ".join(text.split()))


def _code(text: str) -> str:
    """A code span, delimited by more backticks than the text holds in a row."""
    text = " ".join(text.split())
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _fence(text: str, language: str) -> str:
    ticks = "`" * max(_longest_run(text) + 1, 3)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _number(value: float) -> str:
    return f"{value:.10g}"


def _take(row: Mapping[str, Any], key: Any, place: str) -> Any:
    if row.get(key) is None:
        raise DataError(f"{place}.{key} is missing")
    return row[key]


def _finite(row: Mapping[str, Any], key: Any, place: str) -> Any:
    value = _take(row, key, place)
    if isinstance(value, (bool, str)) or not math.isfinite(value):
        raise DataError(f"{place}.{key} is {value!r}; allowed: a finite number")
    return value.item() if hasattr(value, "item") else value
