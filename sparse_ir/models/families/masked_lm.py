"""Masked language models: BERT and its kin, which read a text as it is and pool every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from sparse_ir.errors import ConfigError
from sparse_ir.models import checkpoint_writer
from sparse_ir.models.decoder_settings import Activation, Pooling
from sparse_ir.models.families.base import (
    BasePrecision,
    Family,
    Layout,
    NeuralSide,
    OpenedLogits,
    SaveRequest,
)
from sparse_ir.models.families.transformer_config import check_reading, refuse_options
from sparse_ir.models.reading import PlainReader, TextReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparse_ir.models.encoder_options import EncoderOptions

_LAYOUTS = ("sparse-encoder", "router", "masked-lm")


@dataclass(frozen=True)
class MaskedLanguageModel(Family):
    """A masked language model, which has no settings of its own."""

    transformer_task = "fill-mask"

    @property
    def kind(self) -> str:
        """What reports call such a model."""
        return "masked language model"

    @property
    def remedy_for_special_tokens(self) -> str:
        """What helps when special tokens give all texts the same terms."""
        return "continue training with a penalty on tokens that are always active (df_flops)"

    @classmethod
    def from_transformer_config(
        cls, path: Path, config: Mapping[str, Any], pooling: Pooling, activation: Activation
    ) -> MaskedLanguageModel:
        """Read the settings of sentence-transformers; raises ``ModelError``."""
        check_reading(path, config)
        refuse_options(path, config, ["processing_kwargs"])
        return cls()

    def fingerprint(self, side: NeuralSide) -> dict[str, Any]:
        """Nothing beyond what every family states."""
        return {}

    def make_reader(
        self,
        tokenizer: Tokenizer,
        side: NeuralSide,
        max_length: int | None,
        limit_name: str = "max_length",
    ) -> TextReader:
        """Return a reader of plain texts."""
        return PlainReader(tokenizer, max_length)

    def load(self, side: NeuralSide, options: EncoderOptions) -> PreTrainedModel:
        """Load the network in float32, in which its output layer is taken off."""
        from sparse_ir.models import encoder_options, loading

        if options.precision in encoder_options.BITS:
            raise ConfigError(
                f"precision {options.precision!r} is for decoders; for a masked language model it "
                "must be 'int8', 'bfloat16' or 'float32'"
            )
        return loading.load_masked_lm(side.folder, options.allow_pickle)

    def place(self, model: PreTrainedModel, options: EncoderOptions) -> None:
        """Round the network to its final type."""
        model.to(device=options.device, dtype=options.trunk_dtype)

    def load_for_training(
        self, side: NeuralSide, *, allow_pickle: bool, base: BasePrecision
    ) -> tuple[PreTrainedModel, list[str]]:
        """Load the network; one without an output layer gets a new one."""
        from sparse_ir.models import loading

        return loading.load_or_grow_masked_lm(side.folder, allow_pickle)

    def open_logits(
        self, model: PreTrainedModel, tokenizer: Tokenizer, side: NeuralSide
    ) -> OpenedLogits:
        """Leave the network as it is."""
        from sparse_ir.models.logits import LogitTransform

        return OpenedLogits(model.config, LogitTransform(), 0.0)

    def choose_layout(
        self, layout: Layout | None, *, weights_given: bool, weights_stored: bool
    ) -> Layout:
        """Return "router" when there are token weights for queries, else "sparse-encoder"."""
        has_weights = weights_given or weights_stored
        if layout is None:
            return "router" if has_weights else "sparse-encoder"
        if layout not in _LAYOUTS:
            raise ConfigError(
                f"a masked language model cannot be saved in the layout {layout!r}; it must be "
                f"{', '.join(_LAYOUTS)}"
            )
        if layout == "router" and not has_weights:
            raise ConfigError("the layout 'router' needs query_weights, one per token")
        return layout

    def save(self, folder: Path, request: SaveRequest) -> None:
        """Write one of the layouts "sparse-encoder", "router" and "masked-lm"."""
        if request.layout == "masked-lm":
            checkpoint_writer.write_masked_lm(
                folder, request.model, request.hf_tokenizer, max_length=request.max_length
            )
            return
        checkpoint_writer.write_sparse_encoder(
            folder,
            request.model,
            request.hf_tokenizer,
            pooling=request.side.pooling,
            activation=request.side.activation,
            max_length=request.max_length,
            prompts=request.prompts,
            top_k=request.top_k,
            query_weights=request.query_weights,
            dtype=request.dtype,
        )
