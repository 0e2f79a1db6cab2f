"""Bi-encoders as teachers: one vector a text, cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sparse_ir.errors import DamagedError, DataError, ModelError
from sparse_ir.training.teachers import layouts, networks
from sparse_ir.training.teachers.cache import (
    Cache,
    Computed,
    Prepared,
    Progress,
    Stored,
    key_of,
    prepare_both,
)
from sparse_ir.training.teachers.layouts import (
    Dtype,
    Pooling,
    Role,
    Similarity,
    package_versions,
    role_of,
    shorten,
)
from sparse_ir.training.teachers.networks import Network

_VECTORS_PER_PUT = 4096


class DenseTeacher:
    """A bi-encoder with one vector for each text: a sentence-transformers folder, or a plain
    transformers one.
    """

    in_batch = True

    def __init__(
        self,
        model: str | Path,
        *,
        name: str | None = None,
        revision: str | None = None,
        cache: Path | None = None,
        device: str | None = None,
        dtype: Dtype = "float32",
        max_length: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        pooling: Pooling | None = None,
        similarity: Similarity | None = None,
        tokens_per_batch: int | None = None,
        allow_pickle: bool = False,
    ) -> None:
        """Describe the model and open its cache; the network is loaded when a text is not in the
        cache.

        * ``cache``: the folder of the cache files; None keeps vectors in memory. They are float16
            in either case, and
          scores come from these, so that a score does not depend on where its vectors come from.
        * ``pooling``: for a plain transformers folder, which states none; ``similarity``: default
            as the folder
          states, else cosine. Prompts and ``max_length`` (tokens, special ones included): default
              as the folder states.

        Raises ``ModelError`` for a folder that cannot be used, ``ConfigError`` for an option.
        """
        folder, commit = layouts.resolve(model, revision, allow_pickle)
        layout = layouts.read_dense_layout(folder, pooling)
        self.name = name or (folder.name if commit is None else str(model))
        self._prompts: dict[Role, str] = {
            "query": layout.prompt("query") if query_prompt is None else query_prompt,
            "document": layout.prompt("document") if document_prompt is None else document_prompt,
        }
        self._poolings, self._normalize = layout.poolings, layout.normalize
        self._similarity = layouts.check_option(
            "similarity", similarity or layout.similarity, get_args(Similarity)
        )
        layouts.check_prompts(layout, self._prompts)
        self._network = Network(
            folder=layout.transformer,
            classes="AutoModel",
            dtype=dtype,
            device=networks.choose_device(device),
            max_length=max_length,
            stated_length=layout.max_length,
            lowercase=layout.lowercase,
            tokens_per_batch=tokens_per_batch,
            allow_pickle=allow_pickle,
        )
        self.dimension = self._network.hidden_size * len(self._poolings)
        self.fingerprint: dict[str, Any] = {
            "kind": "dense",
            "name": self.name,
            "revision": commit,
            **self._network.provenance,
            "pooling": list(self._poolings),
            "normalize": self._normalize,
            "prompts": dict(self._prompts),
            "stored_dtype": "float16",
            "dimension": self.dimension,
        }
        self._stored = Stored(
            Cache(cache, self.name, "dense", self.fingerprint, package_versions()), self._compute
        )
        self.fingerprint["similarity"] = self._similarity  # decides scores, not vectors

    @property
    def forward_passes(self) -> int:
        """Texts that went through the network since this teacher was made."""
        return self._stored.forward_passes

    @property
    def cache(self) -> Cache:
        """Where the vectors are kept."""
        return self._stored.cache

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``: cosine or dot product of all pairs; ``wanted_QD`` is not needed and
        not read.
        """
        vectors = [self.vectors(queries, "query"), self.vectors(documents, "document")]
        if self._similarity == "cosine":
            vectors = [
                v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in vectors
            ]
        return vectors[0] @ vectors[1].T

    def vectors(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """float32 ``[N, dimension]`` of the texts (float16 values), from the cache where they are
        there.
        """
        keys = self.keys(texts, role)
        found = self._stored.fetch(keys, texts, role)
        if any(len(value) != 2 * self.dimension for value in found.values()):
            raise DamagedError(
                f"{self.cache.path}: a vector has not {self.dimension} dimensions; delete the file"
            )
        joined = b"".join(found[key] for key in keys)
        return (
            np.frombuffer(joined, dtype="<f2").reshape(len(keys), self.dimension).astype(np.float32)
        )

    def keys(self, texts: Sequence[str], role: Role) -> list[bytes]:
        """The cache key of each text; the role matters only where the prompts differ."""
        same = self._prompts["query"] == self._prompts["document"]
        return [key_of(text, "" if same else role) for text in texts]

    def put_vectors(
        self, texts: Sequence[str], vectors: np.ndarray, role: Role = "document"
    ) -> None:
        """Store vectors of this model that were computed elsewhere: ``[N, dimension]``, one for
        each text.

        Nothing can prove that they are this model's; a text that is in the cache keeps its vector.
        Raises ``DataError`` for a wrong shape or a value that is not finite in float16.
        """
        if vectors.shape != (len(texts), self.dimension):
            raise DataError(
                f"vectors have the shape {vectors.shape}; allowed: ({len(texts)}, {self.dimension})"
            )
        for start in range(0, len(texts), _VECTORS_PER_PUT):
            part = texts[start : start + _VECTORS_PER_PUT]
            blobs = _half_precision(
                vectors[start : start + len(part)], part, DataError, "the vectors given"
            )
            self.cache.put(zip(self.keys(part, role), blobs, strict=True))

    def prepare(
        self, queries: Sequence[str], documents: Sequence[str], progress: Progress | None = None
    ) -> Prepared:
        """Fill the cache; ``progress(n)``: n more texts are there."""
        return prepare_both(self._stored, self.keys, queries, documents, progress)

    def _compute(self, texts: Sequence[str], role: str) -> Iterator[Computed]:
        import torch

        prompt = self._prompts[role_of(role)]
        for positions, hidden_BLH, lengths in self._network.run([prompt + text for text in texts]):
            pooled = torch.cat(
                [networks.pool(hidden_BLH.float(), lengths, mode) for mode in self._poolings], dim=1
            )
            if self._normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
            batch = [texts[position] for position in positions]
            yield positions, _half_precision(pooled.cpu().numpy(), batch, ModelError, self.name)


def _half_precision(
    vectors: np.ndarray, texts: Sequence[str], error: type[Exception], name: str
) -> list[bytes]:
    with np.errstate(over="ignore"):
        halves = vectors.astype("<f2")
    finite = np.isfinite(halves).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = vectors[row][~np.isfinite(halves[row])][0]
        raise error(
            f"{name}: the vector of {shorten(texts[row])} holds {value}; allowed: finite "
            "numbers up to 65504"
        )
    return [half.tobytes() for half in halves]
