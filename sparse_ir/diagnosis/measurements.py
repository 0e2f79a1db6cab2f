"""The measurements behind the checks: each function yields evidence and quantities to judge.

A model encodes sixteen questions and their passages on different subjects, or texts of the user.
Nothing is written.

Dimensions: L tokens of a text, V vocabulary, N texts, Q questions, D documents, B batch, H hidden.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from sparse_ir.diagnosis.checks import USUAL_PROMPTS, Measured
from sparse_ir.diagnosis.examined_model import (
    ExaminedModel,
    mean,
    mean_reciprocal_rank,
    pairwise_cosines,
    smallest_row_cosine,
)
from sparse_ir.errors import ModelError
from sparse_ir.indexing import quantization
from sparse_ir.models import loading, model_files
from sparse_ir.models.batching import encode_queries, pad
from sparse_ir.models.checkpoint import Checkpoint
from sparse_ir.models.encoder import Encoder, NeuralQueryEncoder
from sparse_ir.models.pooling import keep_heaviest, select_states
from sparse_ir.models.static_queries import StaticQueryEncoder

_OWN_TOKENS_OF_A_SOUND_HEAD = 0.75
_ACTIVE_SHARE = 0.9  # of the texts without a token activate it: it is always on
_BITS = 8  # of the impacts that index makes by default
_PROMPT_IN_CARD = re.compile(
    r"[\"'`](query: ?|passage: ?|search_query: ?|Instruct: ?[^\"'`]{0,40})", re.IGNORECASE
)


def measure_numbers(checkpoint: Checkpoint, allow_pickle: bool = False) -> Measured:
    """NaN and infinite values in the weight files, and matrices that hold zeros only."""
    evidence: dict[str, Any] = {"tensors": 0, "values": 0}
    not_finite = []
    zero = []
    for name, tensor in _read_weights(checkpoint, allow_pickle):
        evidence["tensors"] += 1
        evidence["values"] += tensor.numel()
        if not tensor.is_floating_point():
            continue
        values = tensor.float()
        if not bool(torch.isfinite(values).all()):
            not_finite.append(name)
        elif values.ndim > 1 and not bool(values.any()):
            zero.append(name)
    counts = {"not_finite": len(not_finite), "zero_matrices": len(zero)}
    evidence |= counts
    if not_finite or zero:
        evidence["first"] = (not_finite or zero)[0]
    return Measured(evidence, counts)


def _read_weights(checkpoint: Checkpoint, allow_pickle: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of all weights of both sides and of an adapter."""
    folders = [checkpoint.document.folder, checkpoint.query.folder]
    if checkpoint.document.adapter is not None:
        folders.append(checkpoint.document.adapter)
    for folder in dict.fromkeys(folders):
        has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        if not has_weights:  # a static query side may be a JSON file
            continue
        for path in model_files.weight_files(folder, allow_pickle=allow_pickle):
            yield from loading.read_tensors(path)


def measure_activity(examined: ExaminedModel) -> Measured:
    """Texts without a term (dying ReLU), and texts that activate much of the vocabulary."""
    counts_N = examined.vectors.getnnz(1)
    size = len(examined.encoder.vocabulary)
    empty = float((counts_N == 0).mean())
    evidence = {
        "terms": _round(counts_N.mean()),
        "vocabulary": size,
        "empty_texts": _round(empty),
    }
    return Measured(evidence, {"empty": empty, "density": float(counts_N.mean()) / size})


def measure_collapse(examined: ExaminedModel) -> Measured:
    """Similarity of the vectors of texts on different subjects."""
    cosines = pairwise_cosines(examined.vectors.toarray())
    evidence: dict[str, Any] = {"pairs": len(cosines), "mean_cosine": None, "largest": None}
    if len(cosines):
        evidence["mean_cosine"] = _round(cosines.mean())
        evidence["largest"] = _round(cosines.max())
    return Measured(evidence, {"mean_cosine": mean(cosines)})


def measure_sink(examined: ExaminedModel) -> Measured:
    """A pooled attention sink: special tokens, or else the first token, dominate all vectors."""
    special = examined.special_columns
    has_special = any(special & set(columns.tolist()) for columns, _ in examined.token_scores)
    whole = []
    rest = []
    for columns, scores_LV in examined.token_scores:
        sink_L = np.arange(len(columns)) == 0
        if has_special:
            sink_L = np.isin(columns, list(special))
        if len(columns) and not sink_L.all():
            whole.append(examined.pool(scores_LV))
            rest.append(examined.pool(scores_LV[~sink_L]))
    before = mean(pairwise_cosines(np.array(whole)))
    after = mean(pairwise_cosines(np.array(rest)))
    position = "special tokens" if has_special else "first token"
    evidence = {
        "position": position,
        "mean_cosine": _round(before),
        "without_it": _round(after),
    }
    cure = (
        "put a prompt or a template before the text (document_prompt, document_template), which is "
        "not pooled"
    )
    if has_special:
        cure = examined.side.family.remedy_for_special_tokens
    return Measured(evidence, {"share": before - after}, {"position": position, "cure": cure})


def measure_always_on(examined: ExaminedModel) -> Measured:
    """Tokens active in texts that do not contain them: posting lists as long as the collection."""
    active_NV = examined.vectors.toarray() > 0
    absent_NV = np.ones_like(active_NV)
    for row_V, own in zip(absent_NV, examined.own_columns, strict=True):
        row_V[list(own)] = False
    absent_V = absent_NV.sum(0)
    active_share_V = (active_NV & absent_NV).sum(0) / np.maximum(absent_V, 1)
    enough_V = absent_V >= min(8, len(active_NV))
    always_on = np.flatnonzero((active_share_V >= _ACTIVE_SHARE) & enough_V)
    weight_V = np.asarray(examined.vectors.sum(0)).ravel()
    share = float(weight_V[always_on].sum() / max(weight_V.sum(), 1e-9))
    heaviest = always_on[np.argsort(-weight_V[always_on], kind="stable")][:5]
    evidence = {
        "tokens": len(always_on),
        "share_of_weight": _round(share),
        "heaviest": " ".join(examined.encoder.vocabulary[column] for column in heaviest),
    }
    return Measured(evidence, {"share": share})


def measure_quantization(examined: ExaminedModel) -> Measured:
    """Weights that round to 0 under the rule that ``index`` would choose, and texts left empty."""
    vectors = examined.vectors
    weights_V = None
    scored = vectors
    if isinstance(examined.query_encoder, StaticQueryEncoder):
        weights_V = examined.query_encoder.weights
        scored = sparse.csr_matrix(vectors.multiply(weights_V[None]))
    scored.eliminate_zeros()
    largest = float(scored.max()) if scored.nnz else 0.0
    rule = quantization.rule_from_range(largest, _BITS, folded=weights_V is not None)
    quantized = quantization.quantize(vectors, rule, weights_V)
    vanished = quantized.num_zeroed / max(scored.nnz, 1)
    emptied = int(((scored.getnnz(1) > 0) & (quantized.impacts.getnnz(1) == 0)).sum())
    evidence = {
        "bits": _BITS,
        "largest": _round(largest),
        "median": _round(np.median(scored.data)) if scored.nnz else None,
        "smallest_kept": _round(0.5 / rule.scale),
        "vanished": _round(vanished),
        "texts_emptied": emptied,
    }
    return Measured(evidence, {"texts_emptied": float(emptied), "vanished": vanished})


def measure_head(examined: ExaminedModel) -> Measured:
    """An output layer that does not know the vocabulary, or that is stored twice and differs."""
    network = examined.encoder.network
    scores = [scores_LV.max(0, initial=-np.inf) for _, scores_LV in examined.token_scores]
    own = _own_token_rate(examined.own_columns, scores)
    evidence: dict[str, Any] = {
        "tied": network.output_layer.weight is network.model.get_input_embeddings().weight,
        "own_tokens": _round(own),
    }
    difference = _difference_of_stored_layers(examined)
    if difference:
        evidence["difference_of_two"] = _round(difference)
        return Measured(evidence, {"difference_of_two": difference})
    cure = "save the checkpoint again with its own output layer, or train it with a warm start"
    tied_scores = None
    if own < _OWN_TOKENS_OF_A_SOUND_HEAD:
        tied_scores = _scores_if_tied(examined)
    if tied_scores is not None:
        tied = _own_token_rate(examined.own_columns, tied_scores)
        evidence["own_tokens_if_tied"] = _round(tied)
        if tied > max(own + 0.1, _OWN_TOKENS_OF_A_SOUND_HEAD):
            cure = (
                "tie it to the word embeddings again (tie_word_embeddings true, without a tensor "
                "of its own)"
            )
    return Measured(evidence, {"own_tokens": own}, {"cure": cure})


def _own_token_rate(own_columns: Sequence[set[int]], scores: Sequence[np.ndarray]) -> float:
    """How often a token of the text scores above a token of other texts; ties count one half."""
    all_columns = set().union(*own_columns)
    rates = []
    for score_V, columns in zip(scores, own_columns, strict=True):
        own = score_V[sorted(columns)]
        others = score_V[sorted(all_columns - columns)]
        if len(own) and len(others):
            above = (own[:, None] > others).mean()
            not_below = (own[:, None] >= others).mean()
            rates.append((above + not_below) / 2)
    return mean(np.array(rates))


def _scores_if_tied(examined: ExaminedModel) -> list[np.ndarray] | None:
    """Largest scores ``[V]`` of each text with the word embeddings as output layer.

    None if the shapes do not allow it.
    """
    encoder = examined.encoder
    network = encoder.network
    embeddings_VH = network.model.get_input_embeddings().weight
    if embeddings_VH.shape != network.output_layer.weight.shape:
        return None
    if len(encoder.vocabulary) != len(embeddings_VH):
        return None
    scores = []
    with torch.inference_mode():
        for tokens in encoder.tokenize(examined.passages):
            hidden_BLH, _ = network.pooled_states([tokens])
            scores_LV = hidden_BLH[0].float() @ embeddings_VH.t().float()
            scores.append(scores_LV.amax(0).cpu().numpy())
    return scores


def _difference_of_stored_layers(examined: ExaminedModel) -> float | None:
    """The largest difference between two stored output layers that the configuration ties.

    None if they are not tied, or if the files hold one.
    """
    network = examined.encoder.network
    if not network.config.get_text_config().tie_word_embeddings:
        return None
    parent, leaf = network.slot
    names = {module: name for name, module in network.model.named_modules()}
    embeddings = network.model.get_input_embeddings()
    endings = []
    for name in (f"{names[parent]}.{leaf}.weight", f"{names[embeddings]}.weight"):
        # a file may leave out the first parts of a name
        endings.append("." + ".".join(name.split(".")[-2:]).lstrip("."))
    layers: dict[str, torch.Tensor] = {}
    for path in model_files.weight_files(examined.side.folder, allow_pickle=True):
        for name, tensor in loading.read_tensors(path):
            for ending in endings:
                if f".{name}".endswith(ending):
                    layers[ending] = tensor.float()
    if len(layers) < 2:
        return None
    first, second = layers.values()
    if first.shape != second.shape:
        return None
    return float((first - second).abs().max())


def measure_padding(examined: ExaminedModel) -> Measured:
    """A text alone and next to a longer one, padded by this package and as the tokenizer states."""
    encoder = examined.encoder
    tokenizer = encoder.network.hf_tokenizer
    texts = examined.passages[:4]
    batch = [*texts, " ".join(texts)]
    alone = sparse.vstack([encoder.encode([text]) for text in texts]).toarray()
    in_a_batch = smallest_row_cosine(alone, encoder.encode(batch).toarray()[:-1])
    as_tokenizer_pads = smallest_row_cosine(alone, _encode_as_tokenizer_pads(encoder, batch)[:-1])
    evidence = {
        "in_a_batch": _round(in_a_batch),
        "tokenizer_pads": tokenizer.padding_side,
        "pad_token": tokenizer.pad_token,
        "as_the_tokenizer_pads": _round(as_tokenizer_pads),
    }
    values = {
        "in_a_batch": in_a_batch,
        "as_the_tokenizer_pads": as_tokenizer_pads,
        "missing_pad_tokens": float(tokenizer.pad_token is None),
    }
    return Measured(evidence, values)


def _encode_as_tokenizer_pads(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """float32 ``(N, V)``: one batch, padded on the tokenizer's side, without position ids."""
    network = encoder.network
    tokens = encoder.tokenize(texts)
    left = network.hf_tokenizer.padding_side == "left"
    ids = [text.ids for text in tokens]
    ids_BL, lengths = pad(ids, network.pad_token_id, left=left)
    mask_BL, _ = pad(list(map(np.ones_like, ids)), 0, left=left)
    starts = ids_BL.shape[1] - lengths if left else np.zeros_like(lengths)
    pooled = [start + text.pooled_positions for start, text in zip(starts, tokens, strict=True)]
    with torch.inference_mode():
        hidden_BLH = network.model(
            input_ids=torch.from_numpy(ids_BL).to(network.device),
            attention_mask=torch.from_numpy(mask_BL).to(network.device),
        ).logits
        states_BPH, counts = select_states(hidden_BLH, pooled)
        weights_NV = encoder.weights_of(states_BPH * network.transform.state_scale, counts)
    top_k = encoder.fingerprint["top_k"]
    min_weight = encoder.fingerprint["min_weight"]
    for row_V in weights_NV:
        columns, kept = keep_heaviest(np.arange(len(row_V)), row_V, top_k, min_weight)
        row_V[:] = 0
        row_V[columns] = kept
    return weights_NV


def measure_truncation(examined: ExaminedModel) -> Measured:
    """How many words of a long document and of a long query are read."""
    encoder = examined.encoder
    query_encoder: Any = examined.query_encoder
    words = " ".join(examined.passages * 8).split()
    document_words = _words_read(encoder, words)
    document_cure = "raise max_length (--max-length, or in the model's folder)"
    if _fills_network(encoder):
        document_cure = (
            "this network cannot read more; split documents into passages, or take a network that "
            "reads more"
        )
    query_cure = "raise the max_length of the query side"
    if isinstance(query_encoder, NeuralQueryEncoder):
        query_words = _words_read(query_encoder.encoder, words)
        if _fills_network(query_encoder.encoder):
            query_cure = "this network cannot read more"
    else:
        text = " ".join(words)
        tokens = len(query_encoder.tokenizer.encode(text, add_special_tokens=False).ids)
        limit = query_encoder.fingerprint.get("max_length") or tokens
        query_words = len(words) * min(limit, tokens) // max(tokens, 1)
    values = {"words_of_a_document": document_words, "words_of_a_query": query_words}
    evidence = {
        "max_length": encoder.fingerprint["max_length"],
        "network_holds": encoder.network.capacity,
    }
    cures = {"document_cure": document_cure, "query_cure": query_cure}
    return Measured(
        evidence | values, {name: float(count) for name, count in values.items()}, cures
    )


def _fills_network(encoder: Encoder) -> bool:
    """Whether the network itself limits the length of texts."""
    capacity = encoder.network.capacity
    return capacity is not None and encoder.fingerprint["max_length"] >= capacity


def _words_read(encoder: Encoder, words: Sequence[str]) -> int:
    """How many of the words are read before the cut, estimated from the pooled tokens."""
    text = " ".join(words)
    read = len(encoder.tokenize([text])[0].pooled_ids)
    whole = len(encoder.tokenize([text], whole=True)[0].pooled_ids)
    return len(words) * read // max(whole, 1)


def measure_retrieval(examined: ExaminedModel) -> Measured:
    """How well questions find their passages, which any trained model can do."""
    if not examined.questions:
        return Measured({"questions": 0}, {})
    queries = encode_queries(examined.query_encoder, examined.questions)
    rank = mean_reciprocal_rank(queries, examined.vectors)
    evidence = {
        "questions": len(examined.questions),
        "mean_reciprocal_rank": _round(rank),
        "chance": 0.21,
    }
    return Measured(evidence, {"mean_reciprocal_rank": rank})


def measure_prompts(examined: ExaminedModel) -> Measured:
    """Prompts that the folder mentions and that are not set, and the gain by the usual ones."""
    checkpoint = examined.encoder.checkpoint
    prompts = {"document": checkpoint.document_prompt, "query": checkpoint.query_prompt}
    evidence: dict[str, Any] = {
        "document_prompt": checkpoint.document_prompt,
        "query_prompt": checkpoint.query_prompt,
    }
    try:
        stated = _stated_prompts(checkpoint.folder)
    except ModelError as error:
        evidence["reason"] = str(error)
        return Measured(evidence, {"unreadable": 1.0})
    ignored = {}
    for task, prompt in stated.items():
        if prompt and prompts[task] != prompt:
            ignored[task] = prompt
    if ignored:
        evidence["stated"] = ignored
        return Measured(evidence, {"ignored": float(len(ignored))})
    ranks = _rank_with_prompts(examined)
    evidence |= ranks
    values = {}
    if ranks:
        values["gain"] = ranks["with_usual_prompts"] - ranks["mean_reciprocal_rank"]
    card = checkpoint.folder / "README.md"
    named = []
    if card.is_file():
        named = _PROMPT_IN_CARD.findall(card.read_text(encoding="utf-8", errors="replace"))
    if named and not any(prompts.values()):
        values["named_in_card"] = float(len(named))
        evidence["card_names"] = named[0]
    return Measured(evidence, values, {"usual_prompts": str(USUAL_PROMPTS)})


def _rank_with_prompts(examined: ExaminedModel) -> dict[str, float]:
    """Mean reciprocal rank without and with the usual prompts; empty for static queries."""
    query_encoder = examined.query_encoder
    if not examined.questions or not isinstance(query_encoder, NeuralQueryEncoder):
        return {}
    query_prompt, document_prompt = USUAL_PROMPTS
    own = query_encoder.encode_batch(examined.questions)
    prompted = query_encoder.encoder.with_prompt(query_prompt).encode(examined.questions)
    documents = examined.encoder.with_prompt(document_prompt).encode(examined.passages)
    return {
        "mean_reciprocal_rank": round(mean_reciprocal_rank(own, examined.vectors), 4),
        "with_usual_prompts": round(mean_reciprocal_rank(prompted, documents), 4),
    }


def _stated_prompts(folder: Path) -> dict[str, str]:
    """The prompts in config_sentence_transformers.json: query, document -> prompt."""
    path = folder / "config_sentence_transformers.json"
    stated = model_files.read_object(path, required=False).get("prompts") or {}
    if not isinstance(stated, dict):
        raise ModelError(f"{path}: prompts is {stated!r}; it must be an object")
    prompts = {}
    for name, task in (("query", "query"), ("document", "document"), ("passage", "document")):
        if name in stated:
            prompts[task] = str(stated[name] or "")
    return prompts


def _round(value: Any) -> float:
    return round(float(value), 4)


MEASUREMENTS: dict[str, Callable[[ExaminedModel], Measured]] = {
    "head": measure_head,
    "activity": measure_activity,
    "collapse": measure_collapse,
    "sink": measure_sink,
    "always_on": measure_always_on,
    "truncation": measure_truncation,
    "padding": measure_padding,
    "prompts": measure_prompts,
    "quantization": measure_quantization,
    "retrieval": measure_retrieval,
}
