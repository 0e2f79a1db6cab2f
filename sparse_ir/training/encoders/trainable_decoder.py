"""A decoder in training: read by its template, trained whole or through LoRA adapters.

The forward pass is that of every encoder (``models.network.SparseNetwork``). Added here are the
shift, which takes the place of the output bias that most decoders do not have, the language-model
losses by which a decoder adapts, and adapters.

B texts, L tokens, T tokens that predict, V vocabulary.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from sparse_ir import errors
from sparse_ir.errors import ConfigError
from sparse_ir.models import adapters, model_files
from sparse_ir.models.batching import pad
from sparse_ir.models.decoder_settings import DecoderSettings, Task
from sparse_ir.models.families.base import Family, NeuralSide
from sparse_ir.models.families.decoder import Decoder
from sparse_ir.models.reading import TextReader
from sparse_ir.models.tokenization import Tokens
from sparse_ir.training.configuration.config import LoraSettings, TrainConfig, WarmStartSettings
from sparse_ir.training.encoders import language_model
from sparse_ir.training.encoders.language_model import NOTHING, Example, Packed
from sparse_ir.training.encoders.trainable_encoder import Start, TrainableEncoder, start_network
from sparse_ir.training.sources.training_source import pick

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DEFAULT_LENGTH = 512
_BLANK = "_"  # masks a token where a tokenizer has no mask token


def open_trainable(config: TrainConfig) -> tuple[Start, TrainableEncoder]:
    """Load the network of a configuration and make it trainable."""
    start = start_network(config)
    make = _TRAINABLE.get(type(start.side.family), TrainableEncoder)
    return start, make(start, config)


class TrainableDecoder(TrainableEncoder):
    """A decoder with gradients, which also computes the losses of a language model."""

    shift: Tensor

    def __init__(self, start: Start, config: TrainConfig) -> None:
        super().__init__(start, config)
        self.register_buffer("shift", torch.tensor(float(self.reading.logit_shift)))
        self._base_name = str(self.side.folder)
        if start.fingerprint["revision"]:
            self._base_name = config.model.start
        self._adapts_causally = config.warm_start.objective == "clm"
        if config.warm_start.steps and config.warm_start.objective == "mntp":
            self._mask_id(config.warm_start.mask_token)  # finds a name that is not a token

    @property
    def reading(self) -> DecoderSettings:
        """How the saved model reads a text; its shift is that of the start."""
        family = self.side.family
        assert isinstance(family, Decoder)
        return family.settings

    def _choose_saved_length(self) -> int:
        capacity = self.network.capacity or _DEFAULT_LENGTH
        return self.settings.saved_max_length or min(capacity, _DEFAULT_LENGTH)

    def _trained_side(self, side: NeuralSide) -> NeuralSide:
        family = side.family
        assert isinstance(family, Decoder)
        settings = replace(
            family.settings,
            max_length=self._choose_saved_length(),
            temperature=self.config.loss[0].temperature,
        )
        return replace(super()._trained_side(side), family=Decoder(settings))

    def _side_of(self, task: Task) -> NeuralSide:
        return replace(self.side, template=self.reading.template(task))

    def _prepare_weights(self) -> None:
        """Switch on the gradients of all weights, or add adapters whose weights train."""
        lora = self.config.lora
        if lora is None:
            self.model.requires_grad_(True)
            self.output_layer.requires_grad_(True)
            return
        self.output_layer.requires_grad_(False)
        self.model = _add_adapters(self.model, lora)
        self.network.model = self.model

    def _read(self, reader: TextReader, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """Read texts; one without any token becomes a padding token that is not pooled."""
        padding = np.array([self.network.pad_token_id])
        nothing = Tokens(padding, np.empty(0, dtype=np.int64))
        return [tokens if len(tokens.ids) else nothing for tokens in reader.read(texts, prompt)]

    @property
    def score_shift(self) -> Tensor:
        """What is subtracted from scores."""
        return self.shift

    def bare_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids (int64) of whole documents: the text, and BOS where it is on."""
        encodings = self.rules.encode_batch_fast(list(texts), add_special_tokens=self.reading.bos)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def make_examples(
        self, sequences: Sequence[np.ndarray], settings: WarmStartSettings, seed: int
    ) -> list[Example]:
        """Make examples of the objective from sequences of token ids."""
        if settings.objective == "clm":
            return language_model.next_tokens(sequences)
        mask_id = self._mask_id(settings.mask_token)
        return language_model.masked_next_tokens(sequences, mask_id, settings.mask_share, seed)

    def pack(self, texts: Sequence[str], length: int, seed: int) -> Packed:
        """Join documents to sequences of ``length`` tokens.

        Raises ``ConfigError`` when the network cannot read such sequences.
        """
        capacity = self.network.capacity
        if capacity is not None and length > capacity:
            raise ConfigError(
                f"warm_start.packed_length is {length}; for this network it must be at most "
                f"{capacity}"
            )
        end_id = self.hf_tokenizer.eos_token_id
        if end_id is None:
            raise ConfigError(
                "warm_start.packed_length joins documents by the end token, and the tokenizer of "
                f"{self.side.tokenizer_folder} has none; name its eos_token in "
                "tokenizer_config.json"
            )
        return Packed(texts, self.bare_ids, length, end_id, seed)

    def _mask_id(self, name: str | None) -> int:
        """Return the id of the token that masks others.

        It is the named token, else the tokenizer's mask token, else ``_``. A vocabulary without
        ``_`` has a byte or an unknown token for it.
        """
        token = self.hf_tokenizer.mask_token if name is None else name
        token_id = self.rules.token_to_id(_BLANK if token is None else token)
        if token_id is None and token is None:
            blank = self.rules.encode(_BLANK, add_special_tokens=False).ids
            token_id = blank[-1] if blank else None
        if token_id is not None:
            return int(token_id)
        if token is not None:
            raise ConfigError(
                f"warm_start.mask_token {token!r} is not a token of this vocabulary; it must be a "
                "rare token"
            )
        raise ConfigError(
            "warm_start.mask_token is not set, and the tokenizer has neither a mask token nor "
            f"{_BLANK!r}; it must be a rare token"
        )

    def forward(self, tokens: Sequence[Tokens | Example], scores: bool = False) -> Tensor:
        """Return weights or scores ``[N, V]`` of ``Tokens``.

        For examples of a language model, return the two sums of ``language_model.cross_entropies``.
        """
        if tokens and isinstance(tokens[0], Example):
            return self._language_loss(cast("Sequence[Example]", tokens))
        return super().forward(cast("Sequence[Tokens]", tokens), scores)

    def _language_loss(self, examples: Sequence[Example]) -> Tensor:
        total_2 = torch.zeros(2, device=self.shift.device)
        for group in self.groups(np.array([len(example.ids) for example in examples])):
            chosen = pick(examples, group)
            hidden_BLH, _ = self.network.hidden_states([example.ids for example in chosen])
            targets, _ = pad([example.targets for example in chosen], NOTHING)
            targets_BL = torch.from_numpy(targets).to(hidden_BLH.device)
            predicting_BL = targets_BL >= 0
            total_2 = total_2 + language_model.cross_entropies(
                hidden_BLH[predicting_BL],
                targets_BL[predicting_BL],
                functools.partial(self.network.token_scores, shift=self.shift),
            )
        return total_2

    @torch.no_grad()
    def _lower(self, scores: float) -> None:
        self.shift += scores

    def lift(self, scores: float) -> None:
        """Raise all scores by lowering the shift."""
        if scores:
            self._lower(-scores)

    def set_phase(self, adapting: bool) -> None:
        """Make a bidirectional decoder causal while it adapts by ``clm``."""
        if self.reading.mode == "bidirectional":
            config = self.base.config.get_text_config()
            config.is_causal = adapting and self._adapts_causally

    @property
    def base(self) -> PreTrainedModel:
        """The network of transformers, with its adapters if there are any."""
        return self.model if self.config.lora is None else self.model.base_model.model

    def tensors(self) -> dict[str, Tensor]:
        """Return what training changes; with adapters nothing of the decoder itself."""
        if self.config.lora is None:
            return super().tensors()
        tensors = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                tensors[name] = parameter.detach()
        tensors["shift"] = self.shift
        return tensors

    def save(
        self, folder: Path, query_weights: np.ndarray | None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the decoder with its ``sparse_ir.json``.

        With adapters that is the adapter, which names its base, or both merged.
        """
        lora = self.config.lora
        settings = replace(self.reading, logit_shift=float(self.shift))
        side = replace(self.side, family=Decoder(settings))
        if lora is None:
            self._save_whole(folder, side, query_weights, dtype)
        elif lora.merge:
            self._save_merged(folder, side, lora, dtype)
        else:
            self._save_adapter(folder, settings)

    def _save_merged(
        self, folder: Path, side: NeuralSide, lora: LoraSettings, dtype: torch.dtype
    ) -> None:
        """Merge the stored adapter into a freshly loaded base, and write the sum."""
        family = side.family
        assert isinstance(family, Decoder)
        with tempfile.TemporaryDirectory() as scratch:
            adapter = Path(scratch) / "adapter"
            self._save_adapter(adapter, family.settings)
            model, _ = family.load_for_training(
                replace(side, adapter=adapter),
                allow_pickle=self.settings.allow_pickle,
                base=lora.base,
            )
            family.save(folder, self._save_request(model, side, None, dtype))

    def _save_adapter(self, folder: Path, settings: DecoderSettings) -> None:
        base_hash = model_files.weights_hash(
            self.side.folder, allow_pickle=self.settings.allow_pickle
        )
        adapters.save_adapter(
            self.model,
            folder,
            base=self._base_name,
            hf_tokenizer=self.hf_tokenizer,
            settings=settings,
            base_sha256=base_hash,
        )


def _add_adapters(model: PreTrainedModel, lora: LoraSettings) -> PreTrainedModel:
    """Wrap a network in LoRA adapters; raises ``ConfigError`` for layers that it does not have."""
    from transformers.pytorch_utils import Conv1D

    peft = adapters.import_peft()
    targets: str | list[str] = lora.targets
    if lora.targets != "all-linear":
        targets = [name.strip() for name in lora.targets.split(",")]
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
        # GPT-2's layers are transposed
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        target_modules=targets,
    )
    try:
        with adapters.quiet_peft():
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"lora.targets is {lora.targets!r}, which this network cannot take "
            f"({errors.first_line(error)}); it must be all-linear, or names of its linear layers "
            "without the output layer"
        ) from error


_TRAINABLE: dict[type[Family], type[TrainableEncoder]] = {Decoder: TrainableDecoder}
