"""The training configuration: plain data from a TOML file, checked to the last key, written back
complete.

Each section of the file is one class here, and each key one field with its default; what a field
means stands beside it. Unknown keys, wrong types and values out of range are refused with the place
and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sparse_ir.errors import ConfigError
from sparse_ir.evaluation import measures
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.training import pairs

VERSION = 1
_LARGEST = 10**9  # of steps, tokens, texts: more is a slip of the keyboard
LARGEST_INTEGER = 2**63 - 1  # TOML has no larger one
QuerySide = Literal["idf", "ones", "learned", "neural"]
Penalty = Literal["none", "flops", "idf_flops", "df_flops", "l1"]


@dataclass(frozen=True)
class ModelSettings:
    """``[model]``: where training starts and what the model is."""

    # folder or hub name: masked language model, sparse encoder, or a backbone without an output
    # layer
    start: str
    revision: str | None = None  # commit of a hub model
    # idf: fixed token weights; ones: presence; learned: token weights that train; neural
    query: QuerySide = "idf"
    idf: str | None = None  # idf.json; without it the IDF of all training documents
    # log(1 + relu), or that logarithm twice (the l0 activation)
    activation: Literal["relu", "log1p_relu"] = "relu"
    max_length: int = 256  # tokens of a document in training
    query_max_length: int = 64  # tokens of a query in training
    # what the saved model states; default: all that the network can read
    saved_max_length: int | None = None
    document_prompt: str = ""
    query_prompt: str = ""
    dropout: float | None = None  # probability inside the network; None: what the model states
    top_k: int | None = None  # terms kept of a document by the saved model
    # of the saved model: float16 halves its size; float8 is float16 with a byte per number of the
    # vocabulary's matrices
    saved_dtype: Literal["float32", "float16", "float8"] = "float32"
    # read a pytorch_model.bin (its weights only) where there is no safetensors file
    allow_pickle: bool = False

    def check(self) -> None:
        if not self.start.strip():
            raise ConfigError("model.start is empty; allowed: a folder or the name of a hub model")
        _at_least("model.max_length", self.max_length, 4)
        _at_least("model.query_max_length", self.query_max_length, 4)
        if self.saved_max_length is not None:
            _at_least("model.saved_max_length", self.saved_max_length, 4)
        if self.top_k is not None:
            _at_least("model.top_k", self.top_k, 1)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(
                f"model.dropout is {self.dropout}; allowed: 0 or more and less than 1"
            )
        if self.idf is not None and self.query not in ("idf", "learned"):
            raise ConfigError(
                f"model.idf is given and model.query is {self.query!r}, which has no use for it"
            )
        if self.query_prompt and self.query != "neural":
            raise ConfigError(
                f"model.query_prompt is {self.query_prompt!r} and model.query is "
                f"{self.query!r}, which "
                "has no use for it"
            )


@dataclass(frozen=True)
class WarmStartSettings:
    """``[warm_start]``: for backbones without an output layer, what it begins with, and the
    bag-of-words objective before ranking (DupMAE's)."""

    steps: int = 0
    learning_rate: float = 5e-4
    # afterwards the output bias is shifted so that a document has so many terms on average
    active_terms: int = 400
    # word embeddings, or the backbone's own vector of each token
    head: Literal["tied", "token_vectors"] = "tied"
    # decoders adapt to their new life by a language-model loss: clm predicts the next token under
    # the causal mask,
    # mntp a masked token from the state before it, without that mask (LLM2Vec, arXiv 2404.05961)
    objective: Literal["bag_of_words", "clm", "mntp"] = "bag_of_words"
    # of the same loss on log(1 + relu(logits)), against dying ReLU (arXiv 2504.10816)
    relu_weight: float = 1.0
    mask_share: float = 0.2  # of the tokens under mntp
    # under mntp; default: the tokenizer's own, else "_" (its byte, the unknown token)
    mask_token: str | None = None
    # clm, mntp: all documents of all sources, whole, joined with the end token between them and cut
    # into sequences of
    # so many tokens, batch.queries of them a step; None: each document of the batch is a sequence,
    # cut at max_length
    packed_length: int | None = None

    def check(self) -> None:
        if self.packed_length is not None:
            _at_least("warm_start.packed_length", self.packed_length, 4)
        _at_least("warm_start.relu_weight", self.relu_weight, 0)
        if not 0 < self.mask_share < 1:
            raise ConfigError(
                f"warm_start.mask_share is {self.mask_share}; allowed: more than 0 and less than 1"
            )
        _at_least("warm_start.steps", self.steps, 0)
        _positive("warm_start.learning_rate", self.learning_rate)
        _at_least("warm_start.active_terms", self.active_terms, 1)
        for names, objectives in (
            (("packed_length", "relu_weight"), ("clm", "mntp")),
            (("mask_share", "mask_token"), ("mntp",)),
        ):
            _check_use(self, names, "warm_start", "objective", objectives)


@dataclass(frozen=True)
class DecoderSection:
    """``[decoder]``: the network is a decoder, and so it reads a text
    (``checkpoint.DecoderSettings`` tells more).

    Prompts, activation and ``top_k`` are those of ``[model]``, whose lengths count everything,
    under echo both copies.
    """

    mode: Literal["causal", "echo", "bidirectional"]
    document_template: str | None = None
    query_template: str | None = None
    pooled: Literal["text", "all"] = "text"
    bos: bool = False
    logit_scale: float | Literal["hidden^-1/4"] = 1.0
    logit_shift: float = 0.0  # where a ReLU begins; with target_terms it moves as output biases do
    # each token's logits less their mean, which a language model leaves to chance
    centered: bool = False
    # logit_shift is set when ranking begins, so that a document has so many terms
    initial_terms: int | None = None

    def check(self) -> None:
        if self.initial_terms is not None:
            _at_least("decoder.initial_terms", self.initial_terms, 1)
        self.settings(ModelSettings(""))

    def settings(self, model: ModelSettings, **changes: Any) -> DecoderSettings:
        """How the saved model reads; raises ``ConfigError``."""
        own = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name != "initial_terms"
        }
        return DecoderSettings(
            **{
                **own,
                "document_prompt": model.document_prompt,
                "query_prompt": model.query_prompt,
                "activation": model.activation,
                "top_k": model.top_k,
                **changes,
            }
        )


@dataclass(frozen=True)
class LoraSettings:
    """``[lora]``: low-rank adapters train, and the decoder itself stays as it is (arXiv 2106.09685,
    through peft).
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    # but the output layer; or the names of layers, with commas between them
    targets: str = "all-linear"
    # how the decoder itself is held
    base: Literal["float32", "bfloat16", "8bit", "4bit"] = "float32"
    # the saved model is the decoder with its adapter merged, and not the adapter alone
    merge: bool = False

    def check(self) -> None:
        _at_least("lora.r", self.r, 1)
        _at_least("lora.alpha", self.alpha, 1)
        if not all(name.strip() for name in self.targets.split(",")):
            raise ConfigError(
                f"lora.targets is {self.targets!r}; allowed: 'all-linear', or names "
                "of layers with "
                "commas between them"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}; allowed: 0 or more and less than 1")


@dataclass(frozen=True)
class DataSettings:
    """``[[data]]``: one source of (query, positive document) pairs."""

    path: str  # BEIR folder, or .jsonl with the texts in it
    name: str | None = None
    split: str = "train"
    negatives: str | None = None  # the file that sparse-ir mine wrote
    # share of the batches; default: the square root of the number of queries
    weight: float | None = None
    limit: int | None = None  # at most so many queries
    allow_missing: bool = False  # judged documents that the corpus lacks are dropped and counted

    @property
    def source_name(self) -> str:
        """The name of the source in batches, log and card."""
        return pairs.name_of(self.path) if self.name is None else self.name

    def check(self) -> None:
        if self.weight is not None:
            _positive("data.weight", self.weight)
        if self.limit is not None:
            _at_least("data.limit", self.limit, 1)


@dataclass(frozen=True)
class BatchSettings:
    """``[batch]``: what one step sees, on all devices together."""

    # positive documents; each comes with up to queries_per_positive of its queries
    queries: int = 32
    negatives: int = 0  # mined negatives for each query
    queries_per_positive: int = 1
    # positives that are drawn together because the first one's negatives name the others
    neighbourhood: int = 1
    in_batch: bool = True  # every document of the batch is a candidate of every query
    # texts whose graph is kept at a time on a device: less memory, one more pass
    micro_batch: int | None = None

    def check(self) -> None:
        _at_least("batch.queries", self.queries, 1)
        _at_least("batch.negatives", self.negatives, 0)
        _at_least("batch.queries_per_positive", self.queries_per_positive, 1)
        _at_least("batch.neighbourhood", self.neighbourhood, 1)
        if self.neighbourhood > self.queries:
            raise ConfigError(
                f"batch.neighbourhood is {self.neighbourhood}; allowed: up to "
                "batch.queries "
                f"({self.queries})"
            )
        if self.micro_batch is not None:
            _at_least("batch.micro_batch", self.micro_batch, 1)
        if self.queries * (self.negatives + 1) < 2 or (not self.in_batch and self.negatives == 0):
            raise ConfigError(
                "batch: a query has no candidate but its positive; raise "
                "batch.queries or "
                "batch.negatives, or set batch.in_batch"
            )


@dataclass(frozen=True)
class LossSettings:
    """``[[loss]]``: a ranking loss; the weighted sum of all is minimised."""

    name: Literal["kl", "info_nce", "margin_mse"]
    weight: float = 1.0
    temperature: float = 1.0

    def check(self) -> None:
        _positive("loss.weight", self.weight)
        _check_use(self, ("temperature",), "loss", "name", ("kl", "info_nce"))
        _positive("loss.temperature", self.temperature)


_NETWORKS = ("dense", "sparse", "cross-encoder", "monot5")


@dataclass(frozen=True)
class TeacherSettings:
    """``[[teacher]]``: whose scores are distilled. ``kind`` "file": the scores that stand in the
    training file.
    """

    kind: Literal["dense", "sparse", "cross-encoder", "monot5", "bm25", "file"]
    model: str | None = None
    revision: str | None = None
    weight: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int | None = None
    k1: float = 0.9
    b: float = 0.4
    allow_pickle: bool = False  # as in [model]
    # of a dense model whose folder states none: cls, mean, max, lasttoken ...
    pooling: str | None = None
    # of a dense model: cosine or dot; default: as its folder states, else cosine
    similarity: str | None = None
    query_prompt: str | None = None  # of a dense model; default: as its folder states
    document_prompt: str | None = None

    def check(self) -> None:
        _positive("teacher.weight", self.weight)
        for names, kinds in (
            (("pooling", "similarity", "query_prompt", "document_prompt"), ("dense",)),
            (("k1", "b"), ("bm25",)),
            (("revision", "dtype", "max_length", "allow_pickle"), _NETWORKS),
        ):
            _check_use(self, names, "teacher", "kind", kinds)
        _at_least("teacher.k1", self.k1, 0)
        if not 0 <= self.b <= 1:
            raise ConfigError(f"teacher.b is {self.b}; allowed: 0 to 1")
        if self.max_length is not None:
            _at_least("teacher.max_length", self.max_length, 4)
        if (self.model is None) != (self.kind not in _NETWORKS):
            raise ConfigError(
                f"teacher of kind {self.kind!r}: model is {self.model!r}; dense, "
                "sparse, cross-encoder "
                "and monot5 teachers need one, bm25 and file take none"
            )


@dataclass(frozen=True)
class EnsembleSettings:
    """``[ensemble]``: scores of the teachers into one target (Geng et al.
    2024, equations 8 and 9).
    """

    scale: float = 30.0  # S, an inverse temperature
    normalization: Literal["minmax", "none"] = "minmax"

    def check(self) -> None:
        _positive("ensemble.scale", self.scale)


@dataclass(frozen=True)
class PenaltySettings:
    """``[documents]`` and ``[queries]``: the sparsity penalty of one side."""

    penalty: Penalty = "flops"
    # lambda (``losses.translate_lambda``: from other code bases); or, instead of it,
    weight: float | None = None
    # the mean number of active terms towards which lambda is controlled, and for documents the
    # output biases too
    target_terms: float | None = None
    # quadratic ramp of lambda; with a target: steps until the target must be reached
    ramp_steps: int = 0
    # the l0 mask: texts with at most so many terms are not penalised; not for l1
    exempt_up_to: int | None = None
    power: Literal[1, 2] = 1  # of the IDF in idf_flops
    alpha: float = 0.1  # of df_flops
    beta: float = 5.0  # of df_flops
    anti_zero: float = 0.0  # weight of 1 / (sum of all weights)^2

    def check(self) -> None:
        if self.penalty != "none" and (self.weight is None) == (self.target_terms is None):
            raise ConfigError(
                "a penalty needs either weight (lambda) or target_terms, and not both"
            )
        for name in ("weight", "anti_zero"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"penalty {name} is {value}; allowed: 0 or more")
        if self.target_terms is not None:
            _positive("target_terms", self.target_terms)
        _at_least("ramp_steps", self.ramp_steps, 0)
        if self.exempt_up_to is not None:
            _at_least("exempt_up_to", self.exempt_up_to, 1)
            if self.target_terms is not None and self.exempt_up_to >= self.target_terms:
                raise ConfigError(
                    f"exempt_up_to is {self.exempt_up_to}; allowed: less than "
                    "target_terms "
                    f"({self.target_terms:g}), for what is exempt is never brought "
                    "down to it"
                )
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha is {self.alpha}; allowed: more than 0 and less than 1")
        _positive("beta", self.beta)
        for names, penalties in (
            (("weight", "target_terms", "ramp_steps"), ("flops", "idf_flops", "df_flops", "l1")),
            (("exempt_up_to",), ("flops", "idf_flops", "df_flops")),
            (("power",), ("idf_flops",)),
            (("alpha", "beta"), ("df_flops",)),
        ):
            _check_use(self, names, "", "penalty", penalties)


@dataclass(frozen=True)
class OptimizerSettings:
    """``[optimizer]``: AdamW."""

    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float | None = None
    query_learning_rate: float | None = None  # of learned token weights; default: learning_rate

    def check(self) -> None:
        _positive("optimizer.learning_rate", self.learning_rate)
        _at_least("optimizer.weight_decay", self.weight_decay, 0)
        if self.query_learning_rate is not None:
            _positive("optimizer.query_learning_rate", self.query_learning_rate)
        _at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        if self.max_grad_norm is not None:
            _positive("optimizer.max_grad_norm", self.max_grad_norm)


@dataclass(frozen=True)
class DevSettings:
    """``[[dev]]``: a small collection that is searched during training; the mean decides which step
    is best.
    """

    path: str
    name: str | None = None
    split: str = "dev"
    measure: str = "nDCG@10"
    queries: int | None = None  # at most so many, the first ones
    # at most so many: all judged ones first, then the first of the corpus
    documents: int | None = None

    def check(self) -> None:
        for name in ("queries", "documents"):
            if getattr(self, name) is not None:
                _at_least(f"dev.{name}", getattr(self, name), 1)
        try:
            known = list(measures.parse_measures(self.measure))
        except ConfigError as error:
            raise ConfigError(f"dev.measure: {error}") from error
        if known != [self.measure]:
            raise ConfigError(
                f"dev.measure is {self.measure!r}; allowed: one measure, spelled {known[0]!r}"
            )


@dataclass(frozen=True)
class RunSettings:
    """``[run]``: how long, how exact, how often."""

    steps: int  # length of the schedules, the warm start's steps included
    seed: int = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    save_every: int = 500
    keep: int = 2  # checkpoints on the disk, without the best one
    evaluate_every: int = 500
    log_every: int = 10
    tensorboard: bool = True
    # the last step to take now; without it, or with a higher one, the run goes on
    stop_after: int | None = None

    def check(self) -> None:
        for name in ("steps", "save_every", "keep", "evaluate_every", "log_every"):
            _at_least(f"run.{name}", getattr(self, name), 1)
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"run.seed is {self.seed}; allowed: 0 to {2**32 - 1}")
        if self.stop_after is not None and not 1 <= self.stop_after <= self.steps:
            raise ConfigError(
                f"run.stop_after is {self.stop_after}; allowed: 1 to run.steps ({self.steps})"
            )


@dataclass(frozen=True)
class BlendSettings:
    """``[blend]``: the saved model as a mean of the trained network and of that with which ranking
    began.

    It loses little on texts like those of training and gains on others (WiSE-FT, arXiv 2109.01903),
    provided that ranking began with a network that works. Output biases are then shifted alike to
    the number of terms.
    """

    start: float = 0.0  # share of the network with which ranking began
    # active terms of a document in the saved model, on a sample; None: what comes out
    terms: int | None = None

    def check(self) -> None:
        if not 0 <= self.start < 1:
            raise ConfigError(f"blend.start is {self.start}; allowed: 0 or more and less than 1")
        if self.terms is not None:
            _at_least("blend.terms", self.terms, 1)


@dataclass(frozen=True)
class CardSettings:
    """``[card]``: what only a person can say in the model card."""

    name: str = "A learned-sparse encoder"
    license: str | None = None
    # name of a source -> origin and licence
    data_notes: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        return


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run as data. ``read_config`` makes it, ``format_config`` writes it back,
    defaults included.
    """

    model: ModelSettings
    data: tuple[DataSettings, ...]
    run: RunSettings
    loss: tuple[LossSettings, ...] = (LossSettings("info_nce"),)
    teacher: tuple[TeacherSettings, ...] = ()
    dev: tuple[DevSettings, ...] = ()
    batch: BatchSettings = BatchSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    documents: PenaltySettings = PenaltySettings("none")
    queries: PenaltySettings = PenaltySettings("none")
    optimizer: OptimizerSettings = OptimizerSettings()
    warm_start: WarmStartSettings = WarmStartSettings()
    blend: BlendSettings = BlendSettings()
    decoder: DecoderSection | None = None
    lora: LoraSettings | None = None
    card: CardSettings = field(default_factory=CardSettings)
    version: int = VERSION

    def check(self) -> None:
        if self.version != VERSION:
            raise ConfigError(f"version is {self.version}; this release reads version {VERSION}")
        if not self.data or not self.loss:
            raise ConfigError("a configuration needs at least one [[data]] and one [[loss]]")
        distilled = sorted({loss.name for loss in self.loss} & {"kl", "margin_mse"})
        if (
            "kl" in distilled
            and self.batch.negatives == 0
            and any(each.kind == "file" for each in self.teacher)
        ):
            raise ConfigError(
                "a teacher of kind 'file' knows a query's own documents only, and "
                "with batch.negatives = "
                "0 that is one, from which kl learns nothing; allowed: at least 1"
            )
        if bool(distilled) != bool(self.teacher):
            raise ConfigError(
                f"losses {distilled or 'without a teacher'} and {len(self.teacher)} "
                "teachers do not fit: "
                "kl and margin_mse need [[teacher]] sections, other losses take none"
            )
        if not self.teacher and self.ensemble != EnsembleSettings():
            raise ConfigError(
                "[ensemble] is of the scores of teachers, and there is no "
                "[[teacher]]; drop the section"
            )
        self._check_queries()
        self._check_steps()
        self._check_terms()
        self._check_dev()
        sources = [each.source_name for each in self.data]
        if unknown := sorted(set(self.card.data_notes) - set(sources)):
            raise ConfigError(
                f"card.data_notes has {unknown[0]!r}; allowed: names of sources "
                f"({', '.join(sources)})"
            )
        self._check_decoder()

    def _check_queries(self) -> None:
        query = self.model.query
        if self.queries != PenaltySettings("none") and query != "neural":
            raise ConfigError(
                f"[queries] penalises query vectors, and model.query = {query!r} "
                "has fixed ones; drop "
                "the section"
            )
        if self.optimizer.query_learning_rate is not None and query != "learned":
            raise ConfigError(
                "optimizer.query_learning_rate is "
                f"{self.optimizer.query_learning_rate} and model.query "
                f"is {query!r}; it is for 'learned' token weights"
            )

    def _check_steps(self) -> None:
        ranking = self.run.steps - self.warm_start.steps
        if ranking < 1:
            raise ConfigError(
                f"warm_start.steps is {self.warm_start.steps} of {self.run.steps} "
                "steps in all; nothing "
                "is left for ranking"
            )
        for name, steps in (
            ("optimizer.warmup_steps", self.optimizer.warmup_steps),
            ("documents.ramp_steps", self.documents.ramp_steps),
            ("queries.ramp_steps", self.queries.ramp_steps),
        ):
            if steps > ranking:
                raise ConfigError(
                    f"{name} is {steps}; allowed: up to the {ranking} steps of ranking"
                )

    def _check_terms(self) -> None:
        top_k = math.inf if self.model.top_k is None else self.model.top_k
        for name, terms in (
            ("documents.target_terms", self.documents.target_terms),
            ("blend.terms", self.blend.terms),
        ):
            if terms is not None and terms > top_k:
                raise ConfigError(
                    f"{name} is {terms:g} and model.top_k is {top_k}, so that "
                    "documents would lose the "
                    "difference when the model is saved; raise top_k, or lower the "
                    "other"
                )

    def _check_dev(self) -> None:
        if self.dev and self.blend != BlendSettings():
            raise ConfigError(
                "[blend] is made of the last step, and [[dev]] would choose "
                "another; drop one of both"
            )
        if not self.dev and self.run.evaluate_every != RunSettings(1).evaluate_every:
            raise ConfigError(
                f"run.evaluate_every is {self.run.evaluate_every}, and there is no "
                "[[dev]] to evaluate "
                "on; drop it, or add one"
            )
        names = [dev.name or Path(dev.path).name for dev in self.dev]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"two [[dev]] sets would be called {twice[0]!r} in the log; give one a name"
            )

    def _check_decoder(self) -> None:
        objective = self.warm_start.objective
        if self.decoder is None:
            if self.lora is not None or objective != "bag_of_words":
                raise ConfigError(
                    "[lora] and the objectives clm and mntp are for decoders; add a "
                    "[decoder] section"
                )
            return
        if self.model.query != "neural":
            raise ConfigError(
                f"model.query is {self.model.query!r}; a decoder reads queries "
                "itself, so it must be "
                "'neural'"
            )
        if self.model.saved_dtype == "float8" or self.warm_start.head != "tied":
            raise ConfigError(
                "saved_dtype float8 and head token_vectors are for masked language models"
            )
        if (objective == "mntp") and self.decoder.mode != "bidirectional":
            raise ConfigError(
                "warm_start.objective is 'mntp' and decoder.mode "
                f"{self.decoder.mode!r}; what stays "
                "causal learns by 'clm'"
            )
        if self.lora is not None and self.blend != BlendSettings():
            raise ConfigError(
                "[blend] is a mean of whole networks, and [lora] trains adapters; drop one of both"
            )
        if self.lora is not None and self.lora.merge and self.lora.base in ("8bit", "4bit"):
            raise ConfigError(
                f"lora.base {self.lora.base!r} cannot be merged; set merge to "
                "false, or base to "
                "'bfloat16'"
            )


def join_names(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _check_use(
    settings: Any, names: tuple[str, ...], section: str, key: str, allowed: tuple[str, ...]
) -> None:
    """Raise for a setting of ``names`` that is not at its default, unless the setting ``key`` has a
    use for it.
    """
    if getattr(settings, key) in allowed:
        return
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if each.name in names and value != each.default:
            raise ConfigError(
                f"{join_names(section, each.name)} is {value!r} and {key} "
                f"{getattr(settings, key)!r}, which "
                f"has no use for it; it is for {', '.join(allowed)}"
            )


def _at_least(name: str, value: float, least: float) -> None:
    if not math.inf > value >= least:  # and not a NaN either
        raise ConfigError(f"{name} is {value}; allowed: {least} or more")
    if isinstance(value, int) and value > _LARGEST:
        raise ConfigError(f"{name} is {value}; allowed: {_LARGEST} at most")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}; allowed: more than 0")
