"""The training configuration: one pydantic dataclass for each section of the TOML file.

A field is a key of the section; its type gives the range, and the string below it says what it
means. Checks that need several fields are validators of the section, checks that need several
sections are validators of ``TrainConfig``. ``config_parser`` reads and writes the file.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, StrictInt, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from sparse_ir.errors import ConfigError
from sparse_ir.evaluation import measures
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.training.fields import (
    LARGEST,
    SECTION,
    Count,
    CountOrZero,
    Flag,
    Length,
    NotNegative,
    Number,
    OpenShare,
    Positive,
    ShareBelowOne,
    Text,
    refuse_unused,
)
from sparse_ir.training.objectives.losses import LOSSES, LossSettings
from sparse_ir.training.objectives.penalties import NONE, PenaltySettings
from sparse_ir.training.sources import pairs
from sparse_ir.training.teachers.base import TeacherSettings
from sparse_ir.training.teachers.kinds import TEACHERS

VERSION = 1
_HIDDEN_SCALE = "hidden^-1/4"


def _check_scale(value: Any) -> Any:
    """A positive number or the word for a scale by the hidden size."""
    if value == _HIDDEN_SCALE:
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < LARGEST:
        raise PydanticCustomError(
            "logit_scale", f"Input should be a number above 0 or '{_HIDDEN_SCALE}'"
        )
    return float(value)


if TYPE_CHECKING:
    AnyTeacher = TeacherSettings
else:
    # the kind of a section chooses its class
    AnyTeacher = Annotated[
        functools.reduce(operator.or_, TEACHERS.values()), Field(discriminator="kind")
    ]
LogitScale = Annotated[float | Literal["hidden^-1/4"], PlainValidator(_check_scale)]


@dataclass(frozen=True, config=SECTION)
class ModelSettings:
    """``[model]``: where training starts and what the saved model is."""

    start: Text
    """Folder or hub name of a masked language model, a sparse encoder, or a backbone without an
    output layer."""
    revision: Text | None = None
    """Commit of a hub model."""
    query: Literal["idf", "ones", "learned", "neural"] = "idf"
    """How queries are encoded: fixed IDF weights of tokens, ones for all tokens, learned token
    weights, or the network."""
    idf: Text | None = None
    """An idf.json file; by default the IDF of all training documents."""
    activation: Literal["relu", "log1p_relu"] = "relu"
    """log(1 + relu(x)), or the logarithm taken twice (the l0 activation)."""
    max_length: Length = 256
    """Tokens of a document in training."""
    query_max_length: Length = 64
    """Tokens of a query in training."""
    saved_max_length: Length | None = None
    """Length that the saved model states; by default as many tokens as the network can read."""
    document_prompt: Text = ""
    """Text put before every document."""
    query_prompt: Text = ""
    """Text put before every query of a neural query side."""
    dropout: ShareBelowOne | None = None
    """Dropout probability inside the network; by default what the model states."""
    top_k: Count | None = None
    """Number of terms of a document that the saved model keeps."""
    saved_dtype: Literal["float32", "float16", "float8"] = "float32"
    """Precision of the saved weights. float8 is float16 with one byte per number in the
    vocabulary's matrices."""
    allow_pickle: Flag = False
    """Read the weights in a pytorch_model.bin if there is no safetensors file."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.start.strip():
            raise ConfigError("start is empty but must be a folder or the name of a hub model")
        refuse_unused(self, ("idf",), "query", ("idf", "learned"))
        refuse_unused(self, ("query_prompt",), "query", ("neural",))
        return self


@dataclass(frozen=True, config=SECTION)
class WarmStartSettings:
    """``[warm_start]``: steps before ranking that prepare a network without sparse outputs.

    Masked language models learn DupMAE's bag-of-words objective; decoders adapt by a language-model
    loss.
    """

    steps: CountOrZero = 0
    """Number of steps, counted in run.steps."""
    learning_rate: Positive = 5e-4
    """Learning rate of these steps."""
    active_terms: Count = 400
    """Mean number of terms of a document to which the output bias is shifted afterwards."""
    head: Literal["tied", "token_vectors"] = "tied"
    """Initial output layer of a backbone: its word embeddings, or its own vector of each token."""
    objective: Literal["bag_of_words", "clm", "mntp"] = "bag_of_words"
    """clm predicts the next token under the causal mask; mntp predicts a masked token from the
    state before it, without that mask (LLM2Vec, arXiv 2404.05961)."""
    relu_weight: NotNegative = 1.0
    """Weight of the same loss on log(1 + relu(logits)), against dying ReLUs (arXiv 2504.10816)."""
    mask_share: OpenShare = 0.2
    """Share of the tokens that mntp masks."""
    mask_token: Text | None = None
    """Token that mntp masks with; by default the tokenizer's own, else "_"."""
    packed_length: Length | None = None
    """clm and mntp join all documents with the end token and cut them into sequences of this many
    tokens, batch.queries of them per step. By default each document of a batch is one sequence."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_unused(self, ("packed_length", "relu_weight"), "objective", ("clm", "mntp"))
        refuse_unused(self, ("mask_share", "mask_token"), "objective", ("mntp",))
        return self


@dataclass(frozen=True, config=SECTION)
class DecoderSection:
    """``[decoder]``: the network is a decoder that reads texts as ``DecoderSettings`` describes.

    Prompts, activation and ``top_k`` come from ``[model]``. Its lengths count every token that is
    read, under echo those of both copies.
    """

    mode: Literal["causal", "echo", "bidirectional"]
    """How the attention reads a text."""
    document_template: Text | None = None
    """What is read for a document, with {text} in it."""
    query_template: Text | None = None
    """What is read for a query, with {text} in it."""
    pooled: Literal["text", "all"] = "text"
    """Pool the tokens of the text only, or also those of prompt and template."""
    bos: Flag = False
    """Add the special tokens that the tokenizer adds."""
    logit_scale: LogitScale = 1.0
    """Factor of all logits; "hidden^-1/4" stands for hidden_size ** -0.25."""
    logit_shift: Number = 0.0
    """Where the ReLU begins; with target_terms it moves as output biases do."""
    centered: Flag = False
    """Subtract from each token's logits their mean, which a language model leaves to chance."""
    initial_terms: Count | None = None
    """Set logit_shift when ranking begins so that a document has this many terms on average."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.settings(ModelSettings("any"))
        return self

    def settings(self, model: ModelSettings, **changes: Any) -> DecoderSettings:
        """How the saved model reads; ``changes`` replace single settings.

        Raises:
            ConfigError: The settings contradict each other.
        """
        own = dataclasses.asdict(self)
        del own["initial_terms"]
        shared = {
            "document_prompt": model.document_prompt,
            "query_prompt": model.query_prompt,
            "activation": model.activation,
            "top_k": model.top_k,
        }
        return DecoderSettings(**(own | shared | changes))


@dataclass(frozen=True, config=SECTION)
class LoraSettings:
    """``[lora]``: low-rank adapters are trained and the decoder stays fixed (arXiv 2106.09685)."""

    r: Count = 16
    """Rank of the adapters."""
    alpha: Count = 32
    """Scale of the adapters; their output is multiplied by alpha / r."""
    dropout: ShareBelowOne = 0.0
    """Dropout probability in the adapters."""
    targets: Text = "all-linear"
    """Layers that get an adapter: all linear layers except the output layer, or names separated by
    commas."""
    base: Literal["float32", "bfloat16", "8bit", "4bit"] = "float32"
    """Precision of the fixed decoder."""
    merge: Flag = False
    """Save the decoder with the adapter merged into it instead of the adapter alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(name.strip() for name in self.targets.split(",")):
            raise ConfigError(
                f"targets is {self.targets!r} but must be 'all-linear' or names of layers, "
                "separated by commas"
            )
        if self.merge and self.base in ("8bit", "4bit"):
            raise ConfigError(
                f"base {self.base!r} cannot be merged; set merge to false or base to 'bfloat16'"
            )
        return self


@dataclass(frozen=True, config=SECTION)
class DataSettings:
    """``[[data]]``: one source of (query, positive document) pairs."""

    path: Text
    """BEIR folder, or a JSONL file with the texts in it."""
    name: Text | None = None
    """Name in batches, log and model card; by default the last component of the path."""
    split: Text = "train"
    """Split of the qrels in a BEIR folder."""
    negatives: Text | None = None
    """File that sparse-ir mine wrote."""
    weight: Positive | None = None
    """Relative share of the batches; by default the square root of the number of queries."""
    limit: Count | None = None
    """Use only this many queries."""
    allow_missing: Flag = False
    """Drop and count judged documents that are not in the corpus."""

    @property
    def source_name(self) -> str:
        """The name of the source in batches, log and model card."""
        return pairs.name_of(self.path) if self.name is None else self.name


@dataclass(frozen=True, config=SECTION)
class BatchSettings:
    """``[batch]``: what one step sees, on all devices together."""

    queries: Count = 32
    """Positive documents; each brings up to queries_per_positive of its queries."""
    negatives: CountOrZero = 0
    """Mined negatives of each query."""
    queries_per_positive: Count = 1
    """Largest number of queries of one positive document."""
    neighbourhood: Count = 1
    """Positives that are drawn together because the negatives of the first one name the others."""
    in_batch: Flag = True
    """Every document of the batch is a candidate of every query."""
    micro_batch: Count | None = None
    """Texts whose graph is kept at a time on one device: less memory for one more forward pass."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.neighbourhood > self.queries:
            raise ConfigError(
                f"neighbourhood is {self.neighbourhood} but must be at most batch.queries "
                f"({self.queries})"
            )
        is_alone = self.queries == 1 or not self.in_batch
        if is_alone and self.negatives == 0:
            raise ConfigError(
                "a query has no candidate except its positive; raise queries or negatives, or set "
                "in_batch"
            )
        return self


@dataclass(frozen=True, config=SECTION)
class EnsembleSettings:
    """``[ensemble]``: how scores of teachers become one target (Geng et al. 2024, eq. 8 and 9)."""

    scale: Positive = 30.0
    """S, an inverse temperature."""
    normalization: Literal["minmax", "none"] = "minmax"
    """Scale each teacher's scores of a query to 0..1, or leave them."""


@dataclass(frozen=True, config=SECTION)
class OptimizerSettings:
    """``[optimizer]``: AdamW."""

    learning_rate: Positive = 2e-5
    """Highest learning rate of ranking."""
    weight_decay: NotNegative = 0.01
    """Weight decay of all matrices."""
    warmup_steps: CountOrZero = 0
    """Steps in which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up."""
    max_grad_norm: Positive | None = None
    """Clip gradients to this norm."""
    query_learning_rate: Positive | None = None
    """Learning rate of learned token weights; by default learning_rate."""


@dataclass(frozen=True, config=SECTION)
class DevSettings:
    """``[[dev]]``: a small collection that is searched during training.

    The step with the best mean over all collections is saved.
    """

    path: Text
    """BEIR folder."""
    name: Text | None = None
    """Name in log and model card; by default the last component of the path."""
    split: Text = "dev"
    """Split of the qrels."""
    measure: Text = "nDCG@10"
    """Measure, as ir_measures spells it."""
    queries: Count | None = None
    """Use only this many queries, the first ones."""
    documents: Count | None = None
    """Use only this many documents: all judged ones, then the first of the corpus."""

    @property
    def set_name(self) -> str:
        """The name of the set in log and model card."""
        return self.name or Path(self.path).name

    @field_validator("measure")
    @classmethod
    def _check_measure(cls, measure: str) -> str:
        names = list(measures.parse_measures(measure))
        if names != [measure]:
            raise PydanticCustomError(
                "measure", f"Input should be one measure, spelled {names[0]!r}"
            )
        return measure


@dataclass(frozen=True, config=SECTION)
class RunSettings:
    """``[run]``: length, precision and bookkeeping of a training."""

    steps: Count
    """Length of the schedules, including the steps of the warm start."""
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0
    """Seed of all random choices."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of forward and backward passes."""
    gradient_checkpointing: Flag = False
    """Compute activations again in the backward pass: less memory, more time."""
    save_every: Count = 500
    """Steps between two checkpoints."""
    keep: Count = 2
    """Checkpoints kept on disk, not counting the best one."""
    evaluate_every: Count = 500
    """Steps between two searches of the development sets."""
    log_every: Count = 10
    """Steps between two lines of the log."""
    tensorboard: Flag = True
    """Write a TensorBoard log."""
    stop_after: Count | None = None
    """Last step to take now; without it, or with a later step, the training goes on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stop_after is not None and self.stop_after > self.steps:
            raise ConfigError(
                f"stop_after is {self.stop_after} but must be 1 to run.steps ({self.steps})"
            )
        return self


@dataclass(frozen=True, config=SECTION)
class BlendSettings:
    """``[blend]``: save a mean of the trained network and of the network before ranking.

    The mean loses little on texts like the training data and gains on others (WiSE-FT, arXiv
    2109.01903), if ranking began with a working network. The output biases are then shifted to the
    number of terms.
    """

    start: ShareBelowOne = 0.0
    """Share of the network with which ranking began."""
    terms: Count | None = None
    """Active terms of a document in the saved model, on a sample; by default no shift."""


@dataclass(frozen=True, config=SECTION)
class CardSettings:
    """``[card]``: what only a person can say in the model card."""

    name: Text = "A learned-sparse encoder"
    """Title of the card."""
    license: Text | None = None
    """Licence of the model."""
    data_notes: dict[Text, Text] = field(default_factory=dict)
    """Origin and licence of each source, by its name."""


@dataclass(frozen=True, config=SECTION)
class TrainConfig:
    """A whole training as data.

    ``config_parser.read_config`` makes it from a file; ``config_parser.format_config`` writes it,
    defaults included. An object that contradicts itself raises ``pydantic.ValidationError``.
    """

    model: ModelSettings
    data: tuple[DataSettings, ...]
    run: RunSettings
    loss: tuple[LossSettings, ...] = (LossSettings("info_nce"),)
    teacher: tuple[AnyTeacher, ...] = ()
    dev: tuple[DevSettings, ...] = ()
    batch: BatchSettings = BatchSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    documents: PenaltySettings = PenaltySettings(NONE)
    queries: PenaltySettings = PenaltySettings(NONE)
    optimizer: OptimizerSettings = OptimizerSettings()
    warm_start: WarmStartSettings = WarmStartSettings()
    blend: BlendSettings = BlendSettings()
    decoder: DecoderSection | None = None
    lora: LoraSettings | None = None
    card: CardSettings = field(default_factory=CardSettings)
    version: StrictInt = VERSION

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        if self.version != VERSION:
            raise ConfigError(f"version is {self.version}; this release reads version {VERSION}")
        if not self.data or not self.loss:
            raise ConfigError("a configuration needs at least one [[data]] and one [[loss]]")
        sources = [source.source_name for source in self.data]
        for name in self.card.data_notes:
            if name not in sources:
                raise ConfigError(
                    f"card.data_notes has {name!r} but must name sources ({', '.join(sources)})"
                )
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Self:
        distilling = sorted(name for name, entry in LOSSES.items() if entry.needs_teachers)
        distilled = sorted({loss.name for loss in self.loss} & set(distilling))
        silent = [name for name in distilled if LOSSES[name].skips_single_candidates]
        for teacher in self.teacher:
            is_limited = teacher.scores_own_documents_only and self.batch.negatives == 0
            if silent and is_limited:
                raise ConfigError(
                    f"batch.negatives is 0 but must be at least 1: a teacher of kind "
                    f"{teacher.kind!r} scores only a query's own documents, and {silent[0]} learns "
                    "nothing from a single one"
                )
        if bool(distilled) != bool(self.teacher):
            losses = ", ".join(loss.name for loss in self.loss)
            teachers = ", ".join(teacher.kind for teacher in self.teacher) or "none"
            raise ConfigError(
                f"the losses are {losses} and the teachers {teachers}; {' and '.join(distilling)} "
                "need [[teacher]] sections, other losses must have none"
            )
        if not self.teacher and self.ensemble != EnsembleSettings():
            raise ConfigError(
                "[ensemble] combines scores of teachers, but there is no [[teacher]]; drop it"
            )
        return self

    @model_validator(mode="after")
    def _check_queries(self) -> Self:
        query = self.model.query
        if self.queries != PenaltySettings(NONE) and query != "neural":
            raise ConfigError(
                "[queries] penalises query vectors, but they are fixed with model.query "
                f"{query!r}; drop the section"
            )
        rate = self.optimizer.query_learning_rate
        if rate is not None and query != "learned":
            raise ConfigError(
                f"optimizer.query_learning_rate is {rate}, but model.query is {query!r}; it is for "
                "'learned' token weights"
            )
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        ranking = self.run.steps - self.warm_start.steps
        if ranking < 1:
            raise ConfigError(
                f"warm_start.steps is {self.warm_start.steps} but must be less than run.steps "
                f"({self.run.steps}), so that steps remain for ranking"
            )
        steps = {
            "optimizer.warmup_steps": self.optimizer.warmup_steps,
            "documents.ramp_steps": self.documents.ramp_steps,
            "queries.ramp_steps": self.queries.ramp_steps,
        }
        for name, count in steps.items():
            if count > ranking:
                raise ConfigError(
                    f"{name} is {count} but must be at most the {ranking} steps of ranking"
                )
        return self

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        top_k = self.model.top_k
        numbers = {
            "documents.target_terms": self.documents.target_terms,
            "blend.terms": self.blend.terms,
        }
        for name, terms in numbers.items():
            if top_k is not None and terms is not None and terms > top_k:
                raise ConfigError(
                    f"{name} is {terms:g} but must be at most model.top_k ({top_k}); the saved "
                    "model would drop the other terms of a document"
                )
        return self

    @model_validator(mode="after")
    def _check_dev(self) -> Self:
        if self.dev and self.blend != BlendSettings():
            raise ConfigError(
                "[blend] mixes the network of the last step, but [[dev]] may choose another step; "
                "drop one of them"
            )
        if not self.dev and self.run.evaluate_every != RunSettings(1).evaluate_every:
            raise ConfigError(
                f"run.evaluate_every is {self.run.evaluate_every}, but there is no [[dev]] to "
                "evaluate on; drop it or add one"
            )
        names: set[str] = set()
        for dev in self.dev:
            if dev.set_name in names:
                raise ConfigError(
                    f"two [[dev]] sets would both be called {dev.set_name!r} in the log; give one "
                    "a name"
                )
            names.add(dev.set_name)
        return self

    @model_validator(mode="after")
    def _check_decoder(self) -> Self:
        if self.decoder is None:
            if self.lora is not None or self.warm_start.objective != "bag_of_words":
                raise ConfigError(
                    "[lora] and the warm-start objectives clm and mntp are for decoders; add a "
                    "[decoder] section"
                )
            return self
        if self.model.query != "neural":
            raise ConfigError(
                f"model.query is {self.model.query!r} but must be 'neural' for a decoder, which "
                "encodes queries itself"
            )
        if self.model.saved_dtype == "float8" or self.warm_start.head != "tied":
            raise ConfigError(
                "model.saved_dtype 'float8' and warm_start.head 'token_vectors' are for masked "
                "language models, not for decoders"
            )
        if self.warm_start.objective == "mntp" and self.decoder.mode != "bidirectional":
            raise ConfigError(
                f"warm_start.objective is 'mntp' but must be 'clm' with decoder.mode "
                f"{self.decoder.mode!r}, which stays causal"
            )
        if self.lora is not None and self.blend != BlendSettings():
            raise ConfigError("[blend] mixes whole networks, but [lora] trains adapters; drop one")
        return self
