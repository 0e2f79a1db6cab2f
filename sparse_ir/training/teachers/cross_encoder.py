"""Cross-encoders: sequence classifiers with one label, run by sentence-transformers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from sparse_ir import extras
from sparse_ir.training.fields import SECTION
from sparse_ir.training.teachers.base import NetworkSettings
from sparse_ir.training.teachers.layouts import check_cross_encoder
from sparse_ir.training.teachers.network_folder import (
    NetworkFolder,
    NetworkOptions,
    describe_network,
)
from sparse_ir.training.teachers.pairwise import PairTeacher

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


class CrossEncoderTeacher(PairTeacher):
    """A sequence classifier with one label; in a pair that is too long the longer text is cut."""

    def __init__(self, model: str | Path, **options: Any) -> None:
        """Describe the model and open its cache; ``options`` are those of ``PairTeacher``.

        Raises ``ModelError`` for a folder that is not a pair scorer with one label, ``ConfigError``
        for an option with a wrong value.
        """
        # scores are logits: a sigmoid would be flat where a teacher is sure
        super().__init__(model, {"kind": "cross-encoder", "activation": "identity"}, **options)

    @functools.cached_property
    def model(self) -> CrossEncoder:
        """The network, in evaluation mode on its device."""
        with extras.importing():
            from sentence_transformers import CrossEncoder
            from sentence_transformers.base.modules import Transformer

        network = self._network
        network.check_complete("AutoModelForSequenceClassification")
        transformer = Transformer(
            str(network.path),
            transformer_task="sequence-classification",
            max_seq_length=network.max_length,
            model_kwargs=network.loading_options(),
        )
        network.check_finite(transformer)
        model: CrossEncoder = CrossEncoder(modules=[transformer], device=network.device)
        model.eval()
        return model

    def _describe(self, folder: Path, options: NetworkOptions) -> NetworkFolder:
        return describe_network(folder, options, stated_length=check_cross_encoder(folder))

    def _score_pairs(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        import torch

        logits_B = self.model.predict(
            pairs,
            batch_size=len(pairs),
            activation_fn=torch.nn.Identity(),
            convert_to_tensor=True,
            show_progress_bar=False,
        ).float()
        scores: np.ndarray = logits_B.cpu().numpy()
        return scores


@dataclass(frozen=True, config=SECTION, kw_only=True)
class CrossEncoderSettings(NetworkSettings):
    """A cross-encoder: one score for each pair."""

    teacher: ClassVar = CrossEncoderTeacher
    kind: Literal["cross-encoder"] = "cross-encoder"
