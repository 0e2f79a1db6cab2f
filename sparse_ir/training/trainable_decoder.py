"""A decoder in training: read by its template, pooled where the text stands, whole or through LoRA
adapters.

Everything that is particular to decoders in encoding (``decoders``) holds here too: echo, the
causal mask, scale and shift of the logits. An output layer of a decoder has no bias to be lowered,
so the shift takes its place.

B texts, L tokens, T tokens that predict, H hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_ir import errors
from sparse_ir.errors import ConfigError
from sparse_ir.models import (
    adapters,
    attention,
    checkpoint,
    checkpoint_writer,
    decoders,
    loading,
    model_files,
    tokenization,
)
from sparse_ir.models.checkpoint import NeuralSide
from sparse_ir.models.decoder_settings import DecoderSettings
from sparse_ir.models.decoders import Reader
from sparse_ir.models.loading import Bend
from sparse_ir.models.pooling import pool_with_gradient
from sparse_ir.models.tokenization import Tokens
from sparse_ir.training import language_model
from sparse_ir.training.config import LoraSettings, TrainConfig, WarmStartSettings
from sparse_ir.training.language_model import Example, Packed
from sparse_ir.training.trainable_encoder import (
    Start,
    Student,
    groups_of,
    set_dropout,
    start_network,
)

_DEFAULT_LENGTH = 512
_INACTIVE = -1e4  # the score of every term in a text of which nothing is pooled
_BLANK = "_"  # what stands for a mask where a tokenizer has none


@dataclass(frozen=True)
class DecoderStart(Start):
    """Where the training of a decoder begins."""

    reading: DecoderSettings
    bend: Bend
    config: Any  # of the network, as it was before attention and logits were switched


def open_student(config: TrainConfig) -> tuple[Start, Student]:
    """The start of a run and its model: a decoder where there is a ``[decoder]``, else a masked
    language model.
    """
    if config.decoder is None:
        start = start_network(config.model)
        return start, Student(start, config.model)
    begun = start_decoder(config)
    return begun, DecoderStudent(begun, config)


def start_decoder(config: TrainConfig) -> DecoderStart:
    """The decoder that ``model.start`` names, its attention switched; an adapter there is merged.

    Raises ``ModelError`` for what is no decoder, or cannot be read in the mode that is asked for.
    """
    assert config.decoder is not None
    pickled = config.model.allow_pickle
    folder, commit = checkpoint.find_folder(
        config.model.start, config.model.revision, allow_pickle=pickled
    )
    reading = config.decoder.settings(config.model)
    side = checkpoint.read_layout(folder, decoder=reading, allow_pickle=pickled).document
    if side.adapter is not None and config.lora is not None:
        raise ConfigError(
            f"{side.adapter} is an adapter, and an adapter to it could not name its "
            "base; merge it first "
            "(Encoder.save), or train without [lora]"
        )
    owner = tokenization.load_owner(side.tokenizer_folder)
    model = adapters.load_decoder(side, pickled, **_options(config.lora))
    rules = tokenization.cut_at(tokenization.rules_of(owner, side.lowercase), None)
    before = copy.deepcopy(model.config)
    bend = loading.straighten(model, rules, side.folder)
    attention.set_attention(model, rules, reading, side.folder)
    model.config.use_cache = False
    set_dropout(model, config.model.dropout)
    fingerprint = {
        "start": Path(config.model.start).name if commit is None else config.model.start,
        "revision": commit,
        "files_sha256": checkpoint.side_hash(side, allow_pickle=pickled),
        "output_layer_is_new": False,
    }
    return DecoderStart(model, owner, side, [], None, fingerprint, reading, bend, before)


def _options(lora: LoraSettings | None) -> dict[str, Any]:
    if lora is None or lora.base == "float32":
        return {"dtype": torch.float32}
    if lora.base == "bfloat16":
        return {"dtype": torch.bfloat16}
    bits = {"8bit": 8, "4bit": 4}[lora.base]
    return {
        "dtype": torch.bfloat16,
        **adapters.quantization(bits, "cuda" if torch.cuda.is_available() else "cpu"),
    }


class DecoderStudent(Student):
    """The decoder with gradients. Texts are ``Tokens``; examples of a language model may be given
    in their place.
    """

    shift: Tensor

    def __init__(self, start: DecoderStart, config: TrainConfig) -> None:
        self._lora, self._bend, self._config = config.lora, start.bend, start.config
        super().__init__(start, config.model)
        settings = config.model
        length = settings.saved_max_length or min(
            self.saved_max_length or _DEFAULT_LENGTH, _DEFAULT_LENGTH
        )
        self.saved_max_length = length
        self.reading = dataclasses.replace(
            start.reading, max_length=length, temperature=config.loss[0].temperature
        )
        self._rules = self.rules
        self._readers = {
            name: Reader(
                self._rules, self.reading, self.reading.template(task), limit, f"model.{key}"
            )
            for name, task, key, limit in (
                ("document", "document", "max_length", settings.max_length),
                ("whole", "document", "saved_max_length", length),
                ("query", "query", "query_max_length", settings.query_max_length),
                ("whole query", "query", "saved_max_length", length),
            )
        }
        for read in (self.tokenize_documents, self.tokenize_queries):
            read(["a"])  # prompts and templates that leave no room for a text are told at once
            read(["a"], whole=True)
        hidden_size = start.config.get_text_config().hidden_size
        self._scale = decoders.scale_of(self.reading, hidden_size)
        self.register_buffer("shift", torch.tensor(float(self.reading.logit_shift)))
        self._base_name = (
            config.model.start if start.fingerprint["revision"] else str(self.side.folder)
        )
        if config.warm_start.steps and config.warm_start.objective == "mntp":
            self._mask_id(config.warm_start.mask_token)  # and so is a mask that is none
        self._adapts_causally = config.warm_start.objective == "clm"

    def _prepare_weights(self) -> None:
        """All weights, or those of new adapters."""
        if self._lora is None:
            self.model.requires_grad_(True)
            self.output_layer.requires_grad_(True)
            return
        from transformers.pytorch_utils import Conv1D

        self.output_layer.requires_grad_(False)
        targets, peft = self._lora.targets, adapters.import_peft()
        config = peft.LoraConfig(
            r=self._lora.r,
            lora_alpha=self._lora.alpha,
            lora_dropout=self._lora.dropout,
            task_type="CAUSAL_LM",
            # as GPT-2 has them
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in self.model.modules()),
            target_modules=targets
            if targets == "all-linear"
            else [name.strip() for name in targets.split(",")],
        )
        try:
            with adapters.quiet_peft():
                self.model = peft.get_peft_model(self.model, config)
        except ValueError as error:
            raise ConfigError(
                f"lora.targets is {targets!r}, which this network cannot take "
                f"({errors.first_line(error)}); allowed: all-linear, or names of "
                "its linear layers, "
                "the output layer excepted"
            ) from error

    def tokenize_documents(self, texts: Sequence[str], *, whole: bool = False) -> list[Tokens]:  # type: ignore[override]
        """Tokens by the template, cut for training, or with ``whole`` as the saved model reads
        them.
        """
        return self._read("whole" if whole else "document", texts, self.reading.document_prompt)

    def tokenize_queries(self, texts: Sequence[str], *, whole: bool = False) -> list[Tokens]:  # type: ignore[override]
        """Tokens by the template of queries, cut as those of documents are."""
        return self._read("whole query" if whole else "query", texts, self.reading.query_prompt)

    def _read(self, name: str, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """A text of no token at all is a padding token that is not pooled."""
        nothing = Tokens(np.array([self.owner.pad_token_id or 0]), np.empty(0, dtype=np.int64))
        return [
            tokens if len(tokens.ids) else nothing
            for tokens in self._readers[name].read(texts, prompt)
        ]

    def length_of(self, text: Any) -> int:
        """Tokens of one text, prompt and template included."""
        return len(text.ids)

    def bare_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int64) of whole documents: nothing but the text, and BOS where it is on."""
        found = self._rules.encode_batch_fast(list(texts), add_special_tokens=self.reading.bos)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in found]

    def make_examples(
        self, sequences: Sequence[np.ndarray], settings: WarmStartSettings, seed: int
    ) -> list[Example]:
        """Sequences of token ids as examples of the objective."""
        if settings.objective == "clm":
            return language_model.next_tokens(sequences)
        return language_model.masked_next_tokens(
            sequences, self._mask_id(settings.mask_token), settings.mask_share, seed
        )

    def pack(self, texts: Sequence[str], length: int, seed: int) -> Packed:
        """The documents joined to sequences of ``length`` tokens; ``ConfigError`` when the network
        cannot take them.
        """
        limit = loading.capacity_of(self.base)
        if limit is not None and length > limit:
            raise ConfigError(
                f"warm_start.packed_length is {length}; this network reads at most {limit} tokens"
            )
        if self.owner.eos_token_id is None:
            raise ConfigError(
                "warm_start.packed_length joins documents by the end token, and "
                "the tokenizer of "
                f"{self.side.tokenizer_folder} has none; name its eos_token in "
                "tokenizer_config.json"
            )
        return Packed(texts, self.bare_ids, length, self.owner.eos_token_id, seed)

    def _mask_id(self, name: str | None) -> int:
        """The token that is named; else the tokenizer's mask token; else ``_``, or what stands
        there for it.

        A vocabulary without ``_`` has its byte or an unknown token.
        """
        token = self.owner.mask_token if name is None else name
        found = self._rules.token_to_id(_BLANK if token is None else token)
        if found is None and token is None:
            found = next(reversed(self._rules.encode(_BLANK, add_special_tokens=False).ids), None)
        if found is None:
            unset = f"is not set, the tokenizer names no mask token, and {_BLANK!r} is"
            what = unset if token is None else f"{token!r} is"
            raise ConfigError(
                f"warm_start.mask_token {what} no token of this vocabulary; name one that is rare"
            )
        return int(found)

    def forward(self, ids: Sequence[Any], scores: bool = False) -> Tensor:
        """Weights or scores ``[N, V]`` of ``Tokens``; of ``Example`` the two sums of
        ``adaptation.cross_entropies``.
        """
        if ids and isinstance(ids[0], Example):
            return self._language_loss(ids)
        return super().forward(ids, scores)

    def _pool(self, ids: Sequence[Any]) -> Tensor:
        hidden_BLH, _ = self._states([text.ids for text in ids])
        pooled_BLH, lengths = loading.select_states(
            hidden_BLH, [text.pooled for text in ids], self._scale * self._bend.scale
        )
        if pooled_BLH.shape[1] == 0:
            return hidden_BLH.new_full((len(ids), self.size), _INACTIVE, dtype=torch.float32)
        weight_VH, bias_V = self._output()
        bias_V = bias_V * (self._scale * self._bend.scale)
        found_BV = self._soften(
            pool_with_gradient(pooled_BLH, weight_VH, bias_V, lengths), self._scale
        )
        empty_B = torch.from_numpy(lengths == 0).to(found_BV.device)
        return (found_BV - self.shift).masked_fill(empty_B[:, None], _INACTIVE)

    def _output(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the logits that are pooled."""
        weight_VH, bias_V = self.output_layer.weight, self._bias_V
        return decoders.center(weight_VH, bias_V) if self.reading.centered else (weight_VH, bias_V)

    @property
    def _bias_V(self) -> Tensor:
        bias_V = self.output_layer.bias
        return torch.zeros(self.size, device=self.shift.device) if bias_V is None else bias_V

    def _soften(self, logits: Tensor, scale: float) -> Tensor:
        return Bend(1.0, None if self._bend.cap is None else self._bend.cap * scale).apply(logits)

    def _language_loss(self, examples: Sequence[Example]) -> Tensor:
        lengths = [len(example.ids) for example in examples]
        order = np.argsort([-length for length in lengths], kind="stable")
        total_2 = torch.zeros(2, device=self.shift.device)
        for group in groups_of(order, lengths, self.shift.device):
            chosen = [examples[row] for row in group]
            hidden_BLH, _ = self._states([example.ids for example in chosen])
            targets = np.full(hidden_BLH.shape[:2], -100, dtype=np.int64)
            for row, example in zip(targets, chosen, strict=True):
                row[: len(example.targets)] = example.targets
            targets_BL = torch.from_numpy(targets).to(hidden_BLH.device)
            real_BL = targets_BL >= 0
            total_2 = total_2 + language_model.cross_entropies(
                hidden_BLH[real_BL], targets_BL[real_BL], self._score
            )
        return total_2

    def _score(self, hidden_TH: Tensor) -> tuple[Tensor, Tensor]:
        """The language model's logits and the scores that are pooled, both ``[T, V]``."""
        weight_VH = self.output_layer.weight.to(hidden_TH.dtype)
        raw_TV = (hidden_TH @ weight_VH.t()).float() + self._bias_V
        logits_TV = self._soften(raw_TV * self._bend.scale, 1.0)
        if not self.reading.centered:
            return logits_TV, logits_TV * self._scale - self.shift
        raw_TV = raw_TV - raw_TV.mean(1, keepdim=True)
        return logits_TV, self._soften(raw_TV * self._bend.scale, 1.0) * self._scale - self.shift

    @torch.no_grad()
    def _lower(self, logits: float) -> None:
        self.shift += logits

    def lift(self, logits: float) -> None:
        """Lower the shift by so much."""
        if logits:
            self._lower(-logits)

    def set_phase(self, adapting: bool) -> None:
        """A bidirectional decoder that adapts by ``clm`` is causal until ranking begins."""
        if self.reading.mode == "bidirectional":
            self.base.config.get_text_config().is_causal = adapting and self._adapts_causally

    @property
    def base(self) -> Any:
        """The network of transformers, with its adapters where there are some."""
        return self.model if self._lora is None else self.model.base_model.model

    def tensors(self) -> dict[str, Tensor]:
        """What training changes; with adapters nothing of the decoder itself."""
        if self._lora is None:
            return super().tensors()
        named = {
            name: parameter.detach()
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }
        return {**named, "shift": self.shift}

    def save(
        self, folder: Path, query_weights: np.ndarray | None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the decoder with its ``sparse_ir.json``; under LoRA the adapter, its base named, or
        both merged.
        """
        settings = dataclasses.replace(self.reading, logit_shift=float(self.shift))
        if self._lora is None:
            self._save_whole(folder, settings, dtype)
        elif not self._lora.merge:
            self._save_adapter(folder, settings)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                self._save_adapter(Path(scratch) / "adapter", settings)
                side = NeuralSide(self.side.folder, adapter=Path(scratch) / "adapter")
                merged = adapters.load_decoder(
                    side, self.settings.allow_pickle, **_options(self._lora)
                )
                checkpoint_writer.write_causal_lm(folder, merged, self.owner, settings, dtype)

    def _save_whole(self, folder: Path, settings: DecoderSettings, dtype: torch.dtype) -> None:
        parent, name = self.slot
        passed, config = getattr(parent, name), self.model.config
        setattr(parent, name, self.output_layer)
        self.model.config = self._config
        try:
            checkpoint_writer.write_causal_lm(folder, self.model, self.owner, settings, dtype)
        finally:
            setattr(parent, name, passed)
            self.model.config = config

    def _save_adapter(self, folder: Path, settings: DecoderSettings) -> None:
        found = model_files.weights_hash(self.side.folder, allow_pickle=self.settings.allow_pickle)
        adapters.save_adapter(
            self.model,
            folder,
            base=self._base_name,
            tokenizer=self.owner,
            settings=settings,
            base_sha256=found,
        )
