"""Is a model sane? Checks before money is spent, each with numbers as evidence and, where one
fails, with a remedy.

Faults are looked for where they show: in what the model does to sixteen questions and their
passages on unlike subjects (or to texts of one's own), in its weight files, and in what its folder
says about prompts. The bounds were set so that models known to work pass; they stand at the top.
Nothing is written.

L tokens of a text, V vocabulary, N texts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse

from sparse_ir.errors import ModelError
from sparse_ir.indexing import quantization
from sparse_ir.models import loading, model_files, tokenization
from sparse_ir.models.checkpoint import Checkpoint, NeuralSide
from sparse_ir.models.encoder import Encoder, NeuralQueryEncoder
from sparse_ir.models.interfaces import QueryEncoder
from sparse_ir.models.pooling import keep_heaviest
from sparse_ir.models.static_queries import StaticQueryEncoder

Severity = Literal["fault", "warning"]
OWN_TEXTS = 32  # of a corpus that the user gives
_COSINE = (0.6, 0.85)  # mean over pairs of unlike texts: warning, fault; and so for all pairs below
_EMPTY = (0.0, 0.25)  # share of texts without any term
_DENSE = (0.2, 0.5)  # share of the vocabulary that a text activates
_SINK = (0.1, 0.2)  # by so much texts are more alike because of the tokens that frame them
_ON = 0.9  # of the texts that do not contain a token activate it
_ON_SHARE = (0.05, 0.3)  # of all weight lies on such tokens
_OWN = (0.75, 0.6)  # how often a token of the text scores above a token of another text
_WORDS = (150, 50)  # of a long text that are read
_QUERY_WORDS = (32, 12)
_ALONE = (0.999, 0.99)  # cosine of a text alone and in a batch
_GAIN = (0.15, 0.25)  # of reciprocal rank by a prompt that is not set
_VANISHED = (0.25, 0.5)  # share of the weights that round to nothing
_FOUND = (0.5, 0.35)  # mean reciprocal rank of 16 passages; chance gives .21
_BITS = 8
_PROMPTS = ("query: ", "passage: ")
_PROMPT_IN_CARD = re.compile(
    r"[\"'`](query: ?|passage: ?|search_query: ?|Instruct: "
    r"?[^\"'`]{0,40})",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Finding:
    """What a check saw: numbers as evidence; ``severity`` None says that all is well."""

    name: str
    severity: Severity | None
    evidence: dict[str, Any]
    remedy: str = ""


@dataclass
class Patient:
    """A loaded model and what several checks want of it, computed once."""

    encoder: Encoder
    query_encoder: QueryEncoder
    passages: list[str]
    questions: list[str]  # one for each passage; none for texts of the user's own
    special: set[int] = field(default_factory=set)  # columns of special tokens

    def __post_init__(self) -> None:
        rules = self.encoder.network.tokenizer
        names = {rules.id_to_token(token_id) for token_id in tokenization.special_token_ids(rules)}
        self.special = {
            column for column, token in enumerate(self.encoder.vocabulary) if token in names
        }

    @functools.cached_property
    def vectors(self) -> sparse.csr_matrix:
        """CSR ``(N, V)`` of the passages, each encoded with others in a batch."""
        return self.encoder.encode(self.passages)

    @functools.cached_property
    def by_token(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each passage the columns of its pooled tokens and their scores ``[L, V]``."""
        return [self.encoder.token_scores(text) for text in self.passages]

    @functools.cached_property
    def own(self) -> list[set[int]]:
        """The columns of each passage's own tokens, special ones left out."""
        return [set(columns.tolist()) - self.special for columns, _ in self.by_token]

    @property
    def side(self) -> NeuralSide:
        return self.encoder.checkpoint.document

    def pool(self, scores_LV: np.ndarray) -> np.ndarray:
        """The vector ``[V]`` of some tokens' scores."""
        if self.side.pooling == "sum":
            return scores_LV.sum(0)
        return self.encoder.activate(scores_LV.max(0))


def _judge(
    name: str, value: float, bounds: tuple[float, float], evidence: dict[str, Any], remedy: str
) -> Finding:
    """A finding by two bounds: (warning, fault), whichever way they rise."""
    warning, fault = bounds
    sign = 1 if fault > warning else -1
    severity: Severity | None = None
    if sign * value > sign * warning:
        severity = "fault" if sign * value > sign * fault else "warning"
    return Finding(name, severity, evidence, remedy if severity else "")


def check_numbers(checkpoint: Checkpoint, allow_pickle: bool = False) -> Finding:
    """NaN and infinite values in any weight file, and matrices that hold nothing but zeros."""
    tensors, values, bad, zero = 0, 0, [], []
    for name, tensor in _tensors_of(checkpoint, allow_pickle):
        tensors, values = tensors + 1, values + tensor.numel()
        if not tensor.is_floating_point():
            continue
        tensor = tensor.float()
        if not bool(torch.isfinite(tensor).all()):
            bad.append(name)
        elif tensor.ndim > 1 and not bool(tensor.any()):
            zero.append(name)
    evidence = {
        "tensors": tensors,
        "values": values,
        "not_finite": len(bad),
        "zero_matrices": len(zero),
        **({"first": (bad or zero)[0]} if bad or zero else {}),
    }
    if bad:
        return Finding(
            "numbers",
            "fault",
            evidence,
            "weights that are no numbers spread to every "
            "vector: take an "
            "earlier checkpoint; train with optimizer.max_grad_norm, or in bfloat16 "
            "instead of float16",
        )
    if zero:
        return Finding(
            "numbers",
            "warning",
            evidence,
            "a matrix of zeros was never trained or "
            "never loaded (an "
            "adapter's B: the adapter changes nothing); save the checkpoint again from "
            "its training",
        )
    return Finding("numbers", None, evidence)


def _tensors_of(checkpoint: Checkpoint, allow_pickle: bool) -> Iterator[tuple[str, torch.Tensor]]:
    folders = [side.folder for side in (checkpoint.document, checkpoint.query)]
    folders += [side.adapter for side in (checkpoint.document,) if side.adapter is not None]
    for folder in dict.fromkeys(folders):
        for path in (
            model_files.weight_files(folder, allow_pickle=allow_pickle)
            if _has_weights(folder)
            else []
        ):
            yield from loading.read_tensors(path)


def _has_weights(folder: Path) -> bool:
    """A static query side may be a JSON file."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def check_activity(patient: Patient) -> Finding:
    """Texts without a term (dying ReLU), and texts with half of the vocabulary."""
    counts, size = patient.vectors.getnnz(1), len(patient.encoder.vocabulary)
    empty, dense = float((counts == 0).mean()), float(counts.mean()) / size
    evidence = {"terms": _round(counts.mean()), "vocabulary": size, "empty_texts": _round(empty)}
    found = _judge(
        "activity",
        empty,
        _EMPTY,
        evidence,
        "no logit is above zero: raise the output bias (a decoder: lower logit_shift), "
        "or adapt the model "
        "with a warm start whose loss sees the saturated logits",
    )
    return (
        found
        if found.severity
        else _judge(
            "activity",
            dense,
            _DENSE,
            evidence,
            "vectors are not sparse: train with a penalty, keep "
            "only the heaviest "
            "terms with top_k, or (a decoder's settings) set centered to true and raise "
            "logit_shift",
        )
    )


def check_collapse(patient: Patient) -> Finding:
    """Texts on unlike subjects that have nearly the same vector."""
    cosines = _cosines(patient.vectors.toarray())
    evidence = {
        "pairs": len(cosines),
        "mean_cosine": _round(cosines.mean()) if len(cosines) else None,
        "largest": _round(cosines.max()) if len(cosines) else None,
    }
    return _judge(
        "collapse",
        float(cosines.mean()) if len(cosines) else 0.0,
        _COSINE,
        evidence,
        "unlike texts look alike to this model: see the findings sink and always_on for "
        "the cause; without "
        "one, the training collapsed (a lower learning rate, a longer ramp of the "
        "penalty)",
    )


def check_sink(patient: Patient) -> Finding:
    """An attention sink that is pooled: special tokens, or else the first one, give all texts the
    same large terms.
    """
    special = any(patient.special & set(columns.tolist()) for columns, _ in patient.by_token)
    whole, rest = [], []
    for columns, scores_LV in patient.by_token:
        sink_L = (
            np.isin(columns, list(patient.special)) if special else np.arange(len(columns)) == 0
        )
        if len(columns) and not sink_L.all():
            whole.append(patient.pool(scores_LV))
            rest.append(patient.pool(scores_LV[~sink_L]))
    before, after = (_mean(_cosines(np.array(vectors))) for vectors in (whole, rest))
    evidence = {
        "position": "special tokens" if special else "first token",
        "mean_cosine": _round(before),
        "without_it": _round(after),
    }
    cure = (
        "put a prompt or a template before the text (document_prompt, document_template), which is "
        "not pooled"
    )
    if special:
        cure = (
            "set bos to false, or pooled to 'text'"
            if patient.side.decoder is not None
            else "train on with a penalty that charges for what is always on (df_flops)"
        )
    return _judge(
        "sink",
        before - after,
        _SINK,
        evidence,
        f"{evidence['position']}: the same is said of every text there, and the pooling "
        f"takes it; {cure}",
    )


def check_always_on(patient: Patient) -> Finding:
    """Tokens that are active in texts which do not contain them: a posting list as long as the
    collection.
    """
    active_NV = patient.vectors.toarray() > 0
    absent_NV = np.ones_like(active_NV)
    for row, own in zip(absent_NV, patient.own, strict=True):
        row[list(own)] = False
    elsewhere_V = (active_NV & absent_NV).sum(0) / np.maximum(absent_NV.sum(0), 1)
    on = np.flatnonzero((elsewhere_V >= _ON) & (absent_NV.sum(0) >= min(8, len(active_NV))))
    weight_V = np.asarray(patient.vectors.sum(0)).ravel()
    share = float(weight_V[on].sum() / max(weight_V.sum(), 1e-9))
    heaviest = on[np.argsort(-weight_V[on], kind="stable")][:5]
    evidence = {
        "tokens": len(on),
        "share_of_weight": _round(share),
        "heaviest": " ".join(patient.encoder.vocabulary[column] for column in heaviest),
    }
    return _judge(
        "always_on",
        share,
        _ON_SHARE,
        evidence,
        "these tokens cost a posting for every "
        "document and tell "
        "none from another: train with df_flops or idf_flops, which charge them more; "
        "the finding sink may "
        "name where they come from",
    )


def check_quantization(patient: Patient) -> Finding:
    """Weights that round to nothing under the rule by which ``index`` would store them, and texts
    left empty.
    """
    static = isinstance(patient.query_encoder, StaticQueryEncoder)
    weights_V = (
        patient.query_encoder.weights
        if isinstance(patient.query_encoder, StaticQueryEncoder)
        else None
    )
    scored = (
        patient.vectors
        if weights_V is None
        else sparse.csr_matrix(patient.vectors.multiply(weights_V[None]))
    )
    scored.eliminate_zeros()
    largest = float(scored.max()) if scored.nnz else 0.0
    rule = quantization.rule_from_range(largest, _BITS, folded=static)
    kept = quantization.quantize(patient.vectors, rule, weights_V)
    gone = kept.num_zeroed / max(scored.nnz, 1)
    emptied = int(((scored.getnnz(1) > 0) & (kept.impacts.getnnz(1) == 0)).sum())
    evidence = {
        "bits": _BITS,
        "largest": _round(largest),
        "median": _round(np.median(scored.data)) if scored.nnz else None,
        "smallest_kept": _round(0.5 / rule.scale),
        "vanished": _round(gone),
        "texts_emptied": emptied,
    }
    return _judge(
        "quantization",
        1.0 if emptied else gone,
        _VANISHED,
        evidence,
        "one outlying weight sets the scale for all: name a scale of your own (index "
        "--scale), or take more "
        "bits (--bits 12); always_on may name the token that is so large",
    )


def check_head(patient: Patient) -> Finding:
    """An output layer that does not know the vocabulary, or that stands in the file twice and
    differently.
    """
    network = patient.encoder.network
    own = _own_token_rate(
        patient.own, [scores_LV.max(0, initial=-np.inf) for _, scores_LV in patient.by_token]
    )
    evidence = {
        "tied": network.output_layer.weight is network.model.get_input_embeddings().weight,
        "own_tokens": _round(own),
    }
    difference = _difference_of_two(patient)
    if difference:
        return Finding(
            "head",
            "fault",
            {**evidence, "difference_of_two": _round(difference)},
            "the configuration ties the output layer to the word embeddings, and the "
            "file holds two that "
            "differ, of which versions of transformers take one or the other: delete "
            "the wrong tensor, or "
            "set tie_word_embeddings to false",
        )
    remedy = "save the checkpoint again with its own output layer, or train it with a warm start"
    if own < _OWN[0] and (scores := _scores_if_tied(patient)) is not None:
        evidence["own_tokens_if_tied"] = _round(tied := _own_token_rate(patient.own, scores))
        if tied > max(own + 0.1, _OWN[0]):
            remedy = (
                "tie it to the word embeddings again (tie_word_embeddings true, without a tensor "
                "of its own)"
            )
    return _judge(
        "head",
        own,
        _OWN,
        evidence,
        "the output layer scores the words of a text "
        "hardly higher than other "
        f"words, as a random one does: {remedy}",
    )


def _own_token_rate(own: Sequence[set[int]], scores: Sequence[np.ndarray]) -> float:
    """How often a token of the text scores above a token of the other texts; equal scores count one
    half.
    """
    everything = set().union(*own)
    rates = []
    for score_V, columns in zip(scores, own, strict=True):
        mine, others = score_V[sorted(columns)], score_V[sorted(everything - columns)]
        if len(mine) and len(others):
            rates.append(((mine[:, None] > others).mean() + (mine[:, None] >= others).mean()) / 2)
    return _mean(np.array(rates))


def _scores_if_tied(patient: Patient) -> list[np.ndarray] | None:
    """Largest scores ``[V]`` of each text with the word embeddings as output layer; None where they
    cannot be it.
    """
    network = patient.encoder.network
    embeddings_VH = network.model.get_input_embeddings().weight
    if (
        embeddings_VH.shape != network.output_layer.weight.shape
        or len(patient.encoder.vocabulary) != network.head.size
    ):
        return None
    found = []
    with torch.inference_mode():
        for tokens in network.tokenize(patient.passages, patient.encoder.fingerprint["prompt"]):
            hidden_BLH, _ = network.forward([tokens])
            found.append((hidden_BLH[0].float() @ embeddings_VH.t().float()).amax(0).cpu().numpy())
    return found


def _difference_of_two(patient: Patient) -> float | None:
    """The largest difference between the two output layers of a file whose configuration says that
    it has one.
    """
    network = patient.encoder.network
    if not network.config.get_text_config().tie_word_embeddings:
        return None
    parent, leaf = network.slot
    names = {module: name for name, module in network.model.named_modules()}
    endings = [
        ".".join(name.split(".")[-2:])
        for name in (
            f"{names[parent]}.{leaf}.weight",
            f"{names[network.model.get_input_embeddings()]}.weight",
        )
    ]
    found: dict[str, torch.Tensor] = {}
    for path in model_files.weight_files(patient.side.folder, allow_pickle=True):
        for name, tensor in loading.read_tensors(path):
            found |= {
                ending: tensor.float()
                for ending in endings
                if f".{name}".endswith(f".{ending.lstrip('.')}")
            }
    if len(found) < 2 or len({tensor.shape for tensor in found.values()}) > 1:
        return None
    one, other = found.values()
    return float((one - other).abs().max())


def check_padding(patient: Patient) -> Finding:
    """A text alone and beside a longer one, padded as here and on the side that the tokenizer
    names.
    """
    encoder, texts = patient.encoder, patient.passages[:4]
    alone = sparse.vstack([encoder.encode([text]) for text in texts]).toarray()
    batch = encoder.encode([*texts, " ".join(texts)]).toarray()[:-1]
    padded = _encode_as_padded(encoder, [*texts, " ".join(texts)])[:-1]
    ours, theirs, token = (
        _row_cosine(alone, batch),
        _row_cosine(alone, padded),
        encoder.network.owner.pad_token,
    )
    evidence = {
        "in_a_batch": _round(ours),
        "tokenizer_pads": encoder.network.owner.padding_side,
        "pad_token": token,
        "as_the_tokenizer_pads": _round(theirs),
    }
    found = _judge(
        "padding",
        ours,
        _ALONE,
        evidence,
        "the network does not heed its attention "
        "mask, so that vectors "
        "depend on the batch: encode one text at a time (tokens_per_batch=1), or take "
        "another network",
    )
    if found.severity:
        return found
    if theirs < _ALONE[0]:
        return Finding(
            "padding",
            "warning",
            evidence,
            "libraries that pad on the left and give "
            "no positions get other "
            "vectors than this one: set padding_side to 'right' in "
            "tokenizer_config.json",
        )
    if token is None:
        return Finding(
            "padding",
            "warning",
            evidence,
            "the tokenizer has no padding token; other "
            "libraries cannot "
            "batch texts: name one in tokenizer_config.json",
        )
    return found


def _encode_as_padded(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """float32 ``(N, V)``: one batch, padded on the tokenizer's side, the network told its mask and
    no positions.
    """
    network = encoder.network
    tokens = network.tokenize(texts, encoder.fingerprint["prompt"])
    width = max(len(text.ids) for text in tokens)
    left = network.owner.padding_side == "left"
    padded = np.full((len(tokens), width), network.owner.pad_token_id or 0, dtype=np.int64)
    mask, pooled = np.zeros_like(padded), []
    for number, text in enumerate(tokens):
        start = width - len(text.ids) if left else 0
        (
            padded[number, start : start + len(text.ids)],
            mask[number, start : start + len(text.ids)],
        ) = text.ids, 1
        pooled.append(start + (np.arange(len(text.ids)) if text.pooled is None else text.pooled))
    with torch.inference_mode():
        hidden_BLH = network.model(
            input_ids=torch.from_numpy(padded).to(network.device),
            attention_mask=torch.from_numpy(mask).to(network.device),
        ).logits
        weights = encoder.weights_of(*loading.select_states(hidden_BLH, pooled, network.scale))
    limits = encoder.fingerprint["top_k"], encoder.fingerprint["min_weight"]
    for row in weights:
        ids, kept = keep_heaviest(np.arange(len(row)), row, *limits)
        row[:] = 0
        row[ids] = kept
    return weights


def check_truncation(patient: Patient) -> Finding:
    """Texts that are cut in silence: how many words of a long document and of a long query are
    read.
    """
    encoder = patient.encoder
    words = " ".join(patient.passages * 8).split()
    read = _words_read(encoder, words)
    query = patient.query_encoder
    asked = (
        _words_read(query.encoder, words)
        if isinstance(query, NeuralQueryEncoder)
        else _static_words_read(query, words)
    )
    evidence = {
        "max_length": encoder.fingerprint["max_length"],
        "network_holds": encoder.network.capacity,
        "words_of_a_document": read,
        "words_of_a_query": asked,
    }
    document = _judge(
        "truncation",
        read,
        _WORDS,
        evidence,
        "the end of an ordinary passage is "
        "never seen: "
        + (
            "this network holds no more; cut documents into passages, or take a network that "
            "holds more"
            if _is_full(encoder)
            else "raise max_length (--max-length, or in the model's folder)"
        ),
    )
    query_finding = _judge(
        "truncation",
        asked,
        _QUERY_WORDS,
        evidence,
        "the end of a long question is never seen: "
        + (
            "this network holds no more"
            if isinstance(query, NeuralQueryEncoder) and _is_full(query.encoder)
            else "raise the query side's max_length"
        ),
    )
    return document if document.severity == "fault" or not query_finding.severity else query_finding


def _is_full(encoder: Encoder) -> bool:
    """Whether texts are cut where the network ends, and not before."""
    capacity = encoder.network.capacity
    return capacity is not None and encoder.fingerprint["max_length"] >= capacity


def _words_read(encoder: Encoder, words: Sequence[str]) -> int:
    """How many of the words are read before the cut, by the tokens that are pooled."""
    network, side = encoder.network, encoder.checkpoint.document
    counts = [
        len(tokens.ids if tokens.pooled is None else tokens.pooled)
        for reader in (network, network.with_side(side, None))
        for tokens in reader.tokenize([" ".join(words)], encoder.fingerprint["prompt"])
    ]
    return len(words) * counts[0] // max(counts[1], 1)


def _static_words_read(query: Any, words: Sequence[str]) -> int:
    tokens = len(query.tokenizer.encode(" ".join(words), add_special_tokens=False).ids)
    limit = query.fingerprint.get("max_length") or tokens
    return len(words) * min(limit, tokens) // max(tokens, 1)


def check_retrieval(patient: Patient) -> Finding:
    """Whether sixteen questions find their passages, as they must whatever the model was trained
    on.
    """
    if not patient.questions:
        return Finding("retrieval", None, {"questions": 0})
    rank = _reciprocal_rank(_queries_of(patient.query_encoder, patient.questions), patient.vectors)
    return _judge(
        "retrieval",
        rank,
        _FOUND,
        {"questions": len(patient.questions), "mean_reciprocal_rank": _round(rank), "chance": 0.21},
        "questions do not find their passages: see the other findings; without one the "
        "model is untrained",
    )


def check_prompts(patient: Patient) -> Finding:
    """Prompts that the folder speaks of and that are not set, and whether retrieval gets better
    with the usual ones.
    """
    checkpoint = patient.encoder.checkpoint
    ours = {"document": checkpoint.document_prompt, "query": checkpoint.query_prompt}
    evidence: dict[str, Any] = {"document_prompt": ours["document"], "query_prompt": ours["query"]}
    try:
        stated = _stated_prompts(checkpoint.folder)
    except ModelError as error:
        return Finding(
            "prompts",
            "fault",
            {**evidence, "reason": str(error)},
            "mend the file, or delete it and set the prompts of the model's card yourself",
        )
    lost = {task: prompt for task, prompt in stated.items() if prompt and ours.get(task) != prompt}
    if lost:
        return Finding(
            "prompts",
            "fault",
            {**evidence, "stated": lost},
            "config_sentence_transformers.json names "
            "prompts with which the model was trained: set document_prompt and "
            "query_prompt to them",
        )
    evidence |= _measure_prompts(patient)
    gain = evidence.get("with_usual_prompts", 0.0) - evidence.get("mean_reciprocal_rank", 0.0)
    found = _judge(
        "prompts",
        gain,
        _GAIN,
        evidence,
        "questions find their passages better with "
        "the prompts "
        f"{_PROMPTS}: set query_prompt and document_prompt, or what the model's card "
        "names",
    )
    if found.severity or any(ours.values()):
        return found
    named = _prompts_in_card(checkpoint.folder)
    if named:
        return Finding(
            "prompts",
            "warning",
            {**evidence, "card_names": named[0]},
            "the card speaks of prompts, and "
            "none is set: if the model was trained with them, set document_prompt and "
            "query_prompt",
        )
    return found


def _measure_prompts(patient: Patient) -> dict[str, Any]:
    query = patient.query_encoder
    if not patient.questions or not isinstance(query, NeuralQueryEncoder):
        return {}
    own = _reciprocal_rank(query.encode_batch(patient.questions), patient.vectors)
    asked = query.encoder.with_prompt(_PROMPTS[0]).encode(patient.questions)
    usual = _reciprocal_rank(
        asked, patient.encoder.with_prompt(_PROMPTS[1]).encode(patient.passages)
    )
    return {"mean_reciprocal_rank": _round(own), "with_usual_prompts": _round(usual)}


def _stated_prompts(folder: Path) -> dict[str, str]:
    """What the layout of sentence-transformers says, which a decoder's own settings may have left
    behind.
    """
    path = folder / "config_sentence_transformers.json"
    stated = model_files.read_object(path, required=False).get("prompts") or {}
    if not isinstance(stated, dict):
        raise ModelError(f"{path}: prompts are no object")
    return {
        task: str(stated.get(name) or "")
        for task, names in (("query", ("query",)), ("document", ("document", "passage")))
        for name in names
        if name in stated
    }


def _prompts_in_card(folder: Path) -> list[str]:
    path = folder / "README.md"
    return (
        _PROMPT_IN_CARD.findall(path.read_text(encoding="utf-8", errors="replace"))
        if path.is_file()
        else []
    )


def _cosines(vectors_NV: np.ndarray) -> np.ndarray:
    """The cosines of all pairs of rows that are not zero."""
    vectors_NV = (
        vectors_NV[np.linalg.norm(vectors_NV, axis=1) > 0] if len(vectors_NV) else vectors_NV
    )
    if len(vectors_NV) < 2:
        return np.empty(0)
    unit_NV = vectors_NV / np.linalg.norm(vectors_NV, axis=1, keepdims=True)
    return (unit_NV @ unit_NV.T)[np.triu_indices(len(unit_NV), 1)]


def _row_cosine(one_NV: np.ndarray, other_NV: np.ndarray) -> float:
    """The smallest cosine of two vectors of the same text; two empty ones are equal."""
    norms = np.linalg.norm(one_NV, axis=1) * np.linalg.norm(other_NV, axis=1)
    both_empty = ~one_NV.any(1) & ~other_NV.any(1)
    return float(
        np.where(both_empty, 1.0, (one_NV * other_NV).sum(1) / np.maximum(norms, 1e-12)).min()
    )


def _queries_of(query_encoder: Any, texts: Sequence[str]) -> sparse.csr_matrix:
    if isinstance(query_encoder, NeuralQueryEncoder):
        return query_encoder.encode_batch(texts)
    rows = [query_encoder.encode(text) for text in texts]
    ends = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    return sparse.csr_matrix(
        (
            np.concatenate([weights for _, weights in rows]),
            np.concatenate([ids for ids, _ in rows]),
            ends,
        ),
        shape=(len(texts), len(query_encoder.vocabulary)),
    )


def _reciprocal_rank(queries_QV: sparse.csr_matrix, documents_QV: sparse.csr_matrix) -> float:
    """Mean reciprocal rank of the document with the query's number; ties count as lost."""
    scores_QD = (queries_QV @ documents_QV.T).toarray()
    own_Q = scores_QD.diagonal()
    return float((1.0 / (scores_QD >= own_Q[:, None]).sum(1)).mean())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _round(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)
