"""monoT5: a T5 that answers "true" or "false" (Nogueira et al. 2020, arXiv 2003.06713).

sentence-transformers has no cross-encoder over an encoder-decoder network, so this one is run with
transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass
from tokenizers import Tokenizer

from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import tokenization
from sparse_ir.training.fields import SECTION
from sparse_ir.training.teachers.base import NetworkSettings
from sparse_ir.training.teachers.layouts import check_monot5
from sparse_ir.training.teachers.network_folder import (
    NetworkFolder,
    NetworkOptions,
    describe_network,
)
from sparse_ir.training.teachers.pairwise import PairTeacher

_MAX_LENGTH = 512
_QUESTION = "Relevant:"
_ANSWERS = ("\u2581true", "\u2581false")


class MonoT5Teacher(PairTeacher):
    """A T5 that reads ``Query: q Document: d Relevant:``.

    The score is the logarithm of the probability of "true" against "false" as the first word. In a
    prompt of more than ``max_length`` tokens (512 by default) the document is cut, never the
    question at the end.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        """Describe the model and open its cache; ``options`` are those of ``PairTeacher``.

        Raises:
            ModelError: The folder does not hold a monoT5.
            ConfigError: An option has a wrong value.
        """
        super().__init__(model, {"kind": "monot5"}, **options)

    @functools.cached_property
    def model(self) -> Any:
        """The network, in evaluation mode on its device."""
        import transformers

        network = self._network
        network.check_complete("AutoModelForSeq2SeqLM")
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            network.path, trust_remote_code=False, **network.loading_options()
        )
        network.check_finite(model)
        return model.eval().requires_grad_(False).to(network.device)

    def token_ids(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """The token ids of each prompt."""
        texts = [
            f"Query: {query.strip()} Document: {document.strip()}" for query, document in pairs
        ]
        encodings = self._begin.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids + self._end for encoding in encodings]

    def _describe(self, folder: Path, options: NetworkOptions) -> NetworkFolder:
        check_monot5(folder)
        network = describe_network(folder, options, stated_length=_MAX_LENGTH)
        tokenizer: Tokenizer = network.tokenizer
        self._end: list[int] = tokenizer.encode(_QUESTION).ids
        limit = network.max_length or _MAX_LENGTH
        if limit <= len(self._end):
            raise ConfigError(f"max_length is {limit} but must be more than {len(self._end)}")
        self._begin = tokenization.cut_at(tokenizer, limit - len(self._end))
        self._answers = [tokenizer.token_to_id(word) for word in _ANSWERS]
        if None in self._answers:
            raise ModelError(
                f"{folder}: its vocabulary lacks tokens for 'true' and 'false', monoT5's answers"
            )
        return network

    def _score_pairs(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        device = self._network.device
        rows = [torch.tensor(ids) for ids in self.token_ids(pairs)]
        padding = self.model.config.pad_token_id or 0
        inputs_BL = pad_sequence(rows, batch_first=True, padding_value=padding)
        mask_BL = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        start_B1 = torch.full((len(pairs), 1), self.model.config.decoder_start_token_id)
        with torch.inference_mode():
            logits_BLV = self.model(
                input_ids=inputs_BL.to(device),
                attention_mask=mask_BL.to(device),
                decoder_input_ids=start_B1.to(device),
            ).logits
        answers_BA = logits_BLV[:, 0, self._answers].float().log_softmax(dim=1)
        scores: np.ndarray = answers_BA[:, 0].cpu().numpy()
        return scores


@dataclass(frozen=True, config=SECTION, kw_only=True)
class MonoT5Settings(NetworkSettings):
    """monoT5: one score for each pair."""

    teacher: ClassVar = MonoT5Teacher
    kind: Literal["monot5"] = "monot5"
