"""Cross-encoders and monoT5 as teachers: one score a pair, cached."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparse_ir.errors import DataError, ModelError
from sparse_ir.training.teachers import layouts, networks
from sparse_ir.training.teachers.cache import (
    Cache,
    Computed,
    Prepared,
    Progress,
    Stored,
    key_of,
    key_of_pair,
)
from sparse_ir.training.teachers.layouts import Dtype, package_versions, shorten
from sparse_ir.training.teachers.networks import MonoT5, Network

_PAIRS_AT_ONCE = 100_000


class PairTeacher:
    """A network that reads query and document together: one score for a pair, and only for pairs
    asked for.
    """

    in_batch = False

    def __init__(
        self,
        model: str | Path,
        build: Callable[..., Network],
        facts: dict[str, Any],
        *,
        name: str | None = None,
        revision: str | None = None,
        cache: Path | None = None,
        device: str | None = None,
        dtype: Dtype = "float32",
        max_length: int | None = None,
        tokens_per_batch: int | None = None,
        allow_pickle: bool = False,
    ) -> None:
        """Describe the model and open its cache; the network is loaded when a pair is not in the
        cache.

        ``build`` checks a folder and describes its network; ``facts`` decide the scores besides it.
        ``max_length`` is that of the pair; other options as for ``DenseTeacher``. Raises
        ``ModelError`` for a model of another kind, ``ConfigError`` for an option.
        """
        folder, commit = layouts.resolve(model, revision, allow_pickle)
        self._network = build(
            folder=folder,
            dtype=dtype,
            device=networks.choose_device(device),
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            allow_pickle=allow_pickle,
        )
        self.name = name or (folder.name if commit is None else str(model))
        self.fingerprint: dict[str, Any] = {
            "name": self.name,
            **self._network.provenance,
            **facts,
            "revision": commit,
        }
        self._stored = Stored(
            Cache(cache, self.name, "pairs", self.fingerprint, package_versions()), self._compute
        )

    @property
    def forward_passes(self) -> int:
        """Pairs that went through the network since this teacher was made."""
        return self._stored.forward_passes

    @property
    def cache(self) -> Cache:
        """Where the scores are kept."""
        return self._stored.cache

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``: scores of the pairs that ``wanted_QD`` (bool, default all) asks for,
        NaN elsewhere.
        """
        shape = len(queries), len(documents)
        wanted = np.ones(shape, dtype=bool) if wanted_QD is None else np.asarray(wanted_QD)
        if wanted.shape != shape or wanted.dtype != bool:
            raise DataError(
                f"wanted_QD is {wanted.dtype} of the shape {wanted.shape}; allowed: bool of {shape}"
            )
        places = np.argwhere(wanted).tolist()
        pairs = [(queries[q], documents[d]) for q, d in places]
        keys = self.keys(pairs)
        found = self._stored.fetch(keys, pairs, "")
        result = np.full(shape, np.nan, dtype=np.float32)
        result[wanted] = np.frombuffer(b"".join(found[key] for key in keys), dtype="<f4")
        return result

    def keys(self, pairs: Iterable[tuple[str, str]]) -> list[bytes]:
        """The cache key of each (query, document) pair."""
        hashed = functools.lru_cache(maxsize=100_000)(key_of)
        return [
            key_of_pair(hashed(query, "query"), hashed(document, "document"))
            for query, document in pairs
        ]

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: Progress | None = None
    ) -> Prepared:
        """Fill the cache for ALL pairs of the texts; see ``prepare_pairs`` for those that training
        needs.
        """
        return self.prepare_pairs(itertools.product(queries, documents), progress)

    def prepare_pairs(
        self, pairs: Iterable[tuple[str, str]], progress: Progress | None = None
    ) -> Prepared:
        """Fill the cache for these (query, document) pairs, many at a time; ``progress(n)``: n more
        pairs are there.
        """
        texts = passes = 0
        remaining = iter(pairs)
        while listed := list(itertools.islice(remaining, _PAIRS_AT_ONCE)):
            done = self._stored.fill(self.keys(listed), listed, "", progress)
            texts, passes = texts + done.texts, passes + done.forward_passes
        return Prepared(texts, passes)

    def _compute(self, pairs: Sequence[tuple[str, str]], role: str) -> Iterator[Computed]:
        for positions, outputs_B1, _ in self._network.run(pairs):
            values = self._scores_of(outputs_B1.float())[:, 0].cpu().numpy().astype("<f4")
            for position, value in zip(positions, values, strict=True):
                if not np.isfinite(value):
                    query, document = pairs[position]
                    raise ModelError(
                        f"{self.name} gives the score {value} to the query "
                        f"{shorten(query)} with the "
                        f"document {shorten(document)}; allowed: a finite number"
                    )
            yield positions, [value.tobytes() for value in values]

    def _scores_of(self, outputs_B1: Any) -> Any:
        return outputs_B1


class CrossEncoderTeacher(PairTeacher):
    """A sequence classifier with one label; of a pair that is too long the longer text is cut
    first.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        activation: Literal["identity", "sigmoid"] = "identity",
        **options: Any,
    ) -> None:
        """``activation``: distillation wants the logit as it is, because a sigmoid is flat where a
        teacher is sure; ``"sigmoid"`` gives values in 0..1. ``options`` as for ``PairTeacher``."""
        self._activation = layouts.check_option("activation", activation, ("identity", "sigmoid"))
        super().__init__(
            model, _cross_encoder, {"kind": "cross-encoder", "activation": activation}, **options
        )

    def _scores_of(self, outputs_B1: Any) -> Any:
        return outputs_B1 if self._activation == "identity" else outputs_B1.sigmoid()


def _cross_encoder(folder: Path, **options: Any) -> Network:
    layouts.check_cross_encoder(folder)
    return Network(
        folder=folder,
        classes="AutoModelForSequenceClassification",
        lowercase=False,
        stated_length=layouts.stated_length(folder),
        **options,
    )


class MonoT5Teacher(PairTeacher):
    """monoT5: a T5 that says "true" or "false"; the score is the logarithm of the probability of
    "true".
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        """``options`` as for ``PairTeacher``; ``max_length`` (default 512) is that of the whole
        prompt, see ``towers.MonoT5``."""
        super().__init__(model, _monot5, {"kind": "monot5"}, **options)


def _monot5(folder: Path, **options: Any) -> Network:
    layouts.check_monot5(folder)
    return MonoT5(folder=folder, **options)
