"""Dense teachers: bi-encoders of sentence-transformers with one cached vector for each text."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
from pydantic.dataclasses import dataclass

from sparse_ir import extras
from sparse_ir.errors import DamagedError, ModelError
from sparse_ir.models import model_files
from sparse_ir.training.fields import SECTION, Text
from sparse_ir.training.teachers.base import Computed, NetworkSettings, TextTeacher, shorten
from sparse_ir.training.teachers.layouts import (
    DensePooling,
    Similarity,
    TextRole,
    check_option,
    read_dense_layout,
)
from sparse_ir.training.teachers.network_folder import NetworkOptions, describe_network

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class DenseTeacher(TextTeacher):
    """A bi-encoder: a folder of sentence-transformers, or a plain one of transformers.

    Vectors are cached as float16, and scores are computed from these, so that a score does not
    depend on whether its vectors were cached.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        cache: Path | None = None,
        pooling: DensePooling | None = None,
        similarity: Similarity | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        **options: Any,
    ) -> None:
        """Describe the model and open its cache; a text without a cached vector loads the network.

        Args:
            model: Folder or hub name.
            revision: Commit of a hub model.
            cache: Folder of the cache files; None keeps the vectors in memory.
            pooling, similarity, query_prompt, document_prompt: As in ``DenseSettings``.
            options: Fields of ``NetworkOptions``.

        Raises:
            ModelError: The folder cannot be used.
            ConfigError: An option has a wrong value.
        """
        network_options = NetworkOptions(**options)
        folder, commit = model_files.resolve_folder(model, revision, network_options.allow_pickle)
        self._layout = read_dense_layout(folder, pooling)
        self.name = folder.name if commit is None else str(model)
        self._prompts: dict[TextRole, str] = {
            "query": self._layout.prompt("query") if query_prompt is None else query_prompt,
            "document": (
                self._layout.prompt("document") if document_prompt is None else document_prompt
            ),
        }
        self._similarity = similarity or self._layout.similarity
        check_option("similarity", self._similarity, get_args(Similarity))
        self._network = describe_network(
            self._layout.transformer,
            network_options,
            stated_length=self._layout.max_length,
            lowercase=self._layout.lowercase,
        )
        self.dimension = self._network.hidden_size * len(self._layout.poolings)
        facts = {"kind": "dense", "name": self.name, "revision": commit} | self._network.provenance
        facts |= {
            "pooling": list(self._layout.poolings),
            "normalize": self._layout.normalize,
            "prompts": dict(self._prompts),
            "stored_dtype": "float16",
            "dimension": self.dimension,
        }
        if not self._layout.include_prompt and any(self._prompts.values()):
            facts["include_prompt"] = False
        self._open_cache(cache, "dense", facts)
        # the similarity decides scores, but not the cached vectors
        self.fingerprint = facts | {"similarity": self._similarity}

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``: cosine or dot product of all pairs; ``wanted_QD`` is ignored."""
        query_QH = self.vectors(queries, "query")
        document_DH = self.vectors(documents, "document")
        if self._similarity == "cosine":
            query_QH = _normalized(query_QH)
            document_DH = _normalized(document_DH)
        scores_QD: np.ndarray = query_QH @ document_DH.T
        return scores_QD

    def vectors(self, texts: Sequence[str], role: TextRole) -> np.ndarray:
        """float32 ``[N, dimension]`` of the texts, with float16 values.

        Raises:
            DamagedError: A cached vector has another dimension.
            ModelError: A vector holds a number that float16 cannot hold.
        """
        values = self._fetch(self.keys(texts, role), texts, role)
        if not set(map(len, values)) <= {2 * self.dimension}:
            raise DamagedError(
                f"{self.cache.path}: a vector does not have {self.dimension} dimensions; delete "
                "the file"
            )
        halves = np.frombuffer(b"".join(values), dtype="<f2")
        return halves.reshape(len(texts), self.dimension).astype(np.float32)

    def keys(self, texts: Sequence[str], role: str) -> list[bytes]:
        """The cache key of each text; the role matters only if the prompts differ."""
        is_asymmetric = self._prompts["query"] != self._prompts["document"]
        return super().keys(texts, role if is_asymmetric else "")

    @functools.cached_property
    def model(self) -> SentenceTransformer:
        """The network with its pooling, in evaluation mode on its device."""
        with extras.importing():
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.base.modules import Transformer
            from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

        network = self._network
        network.check_complete("AutoModel", unused="pooler.")  # its output is not used
        transformer = Transformer(
            str(network.path),
            max_seq_length=network.max_length,
            do_lower_case=self._layout.lowercase,
            model_kwargs=network.loading_options(),
        )
        network.check_finite(transformer)
        # poolings add up many numbers, for which bfloat16 is too coarse
        transformer.register_forward_hook(_widen)
        modules: list[Any] = [
            transformer,
            Pooling(
                network.hidden_size,
                self._layout.poolings,
                include_prompt=self._layout.include_prompt,
            ),
        ]
        if self._layout.normalize:
            modules.append(Normalize())
        return SentenceTransformer(modules=modules, device=network.device).eval()

    def _compute(self, texts: Sequence[str], role: str) -> Iterator[Computed]:
        prompt = self._prompts["query" if role == "query" else "document"]
        size = self._network.batch_size
        for start in range(0, len(texts), size):
            batch = list(texts[start : start + size])
            vectors = self.model.encode(
                batch, prompt=prompt or None, batch_size=size, show_progress_bar=False
            )
            yield range(start, start + len(batch)), _half_precision(vectors, batch, self.name)


def _widen(module: Any, inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Token embeddings in float32, whatever the network computes in."""
    features["token_embeddings"] = features["token_embeddings"].float()
    return features


def _normalized(vectors_NH: np.ndarray) -> np.ndarray:
    lengths_N1 = np.linalg.norm(vectors_NH, axis=1, keepdims=True)
    unit_NH: np.ndarray = vectors_NH / np.maximum(lengths_N1, 1e-12)
    return unit_NH


def _half_precision(vectors: np.ndarray, texts: Sequence[str], name: str) -> list[bytes]:
    """The vectors as float16; raises ``ModelError`` for a number that float16 cannot hold."""
    with np.errstate(over="ignore"):
        halves = vectors.astype("<f2")
    finite = np.isfinite(halves).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = vectors[row][~np.isfinite(halves[row])][0]
        raise ModelError(
            f"{name}: the vector of {shorten(texts[row])} holds {value} but must hold finite "
            "numbers up to 65504"
        )
    return [half.tobytes() for half in halves]


@dataclass(frozen=True, config=SECTION, kw_only=True)
class DenseSettings(NetworkSettings):
    """A bi-encoder: one vector for each text."""

    teacher: ClassVar = DenseTeacher
    kind: Literal["dense"] = "dense"
    pooling: DensePooling | None = None
    """Pooling of a model whose folder states none."""
    similarity: Similarity | None = None
    """Similarity of two vectors; by default what the folder states, else cosine."""
    query_prompt: Text | None = None
    """Text before every query; by default what the folder states."""
    document_prompt: Text | None = None
    """Text before every document; by default what the folder states."""
