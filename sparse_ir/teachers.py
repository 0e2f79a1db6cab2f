"""Teachers: scores of (query, document) pairs by dense, sparse and cross-encoders and by BM25, computed once.

What a network has computed goes into a cache with its provenance (``score_cache``): vectors of bi-encoders, scores of
cross-encoders. With everything in the cache, no network is loaded at all. Combining teachers is the work of ``losses``.

Q queries, D documents, N texts, V vocabulary. Next file to read: ``losses``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from scipy import sparse
from tqdm import tqdm

from sparse_ir import towers
from sparse_ir.bm25 import Bm25Teacher, stack_rows
from sparse_ir.errors import ConfigError, DamagedError, DataError, ModelError
from sparse_ir.pairs import Source
from sparse_ir.score_cache import Cache, Computed, Prepared, Progress, Stored, key_of, key_of_pair
from sparse_ir.towers import Dtype, Pooling, Role, Similarity

__all__ = [
    "Bm25Teacher", "CrossEncoderTeacher", "DenseTeacher", "MonoT5Teacher", "Prepared", "SparseTeacher", "Teacher",
    "prepare_teachers", "score_matrix",
]

_VECTORS_PER_PUT = 4096
_TEXTS_PER_SPARSE_WINDOW = 256
_PAIRS_AT_ONCE = 100_000
_SHOWN = 80  # characters of a text in a message


class Teacher(Protocol):
    """What the trainer asks of a teacher."""

    @property
    def name(self) -> str:
        """A short name, with which that of the cache file begins."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that decide the scores."""

    @property
    def in_batch(self) -> bool:
        """Whether all pairs of a batch are cheap; if not, only wanted pairs are scored."""

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``; NaN where a teacher that is not ``in_batch`` was not asked."""

    def prepare(self, queries: Sequence[str], documents: Sequence[str], progress: Progress | None = None) -> Prepared:
        """Compute and keep what ``scores`` will need for these texts."""


# ------------------------------------------------------------------------------------------------ many teachers


def score_matrix(
    teachers: Sequence[Teacher], queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
) -> list[np.ndarray]:
    """One float32 ``[Q, D]`` for each teacher; NaN where a teacher that is not ``in_batch`` was not asked."""
    return [teacher.scores(queries, documents, wanted_QD) for teacher in teachers]


def prepare_teachers(
    teachers: Sequence[Teacher], sources: Sequence[Source], pairs: Callable[[], Iterable[tuple[str, str]]],
    progress: bool = False,
) -> dict[str, Any]:
    """Fill the caches for all texts of the sources; a JSON-able report of the work.

    A teacher that is not ``in_batch`` scores the (query, document) ``pairs`` that it will be asked for, and no other.
    The report has for each teacher its name and fingerprint, the distinct texts of each source summed (or the pairs,
    distinct among each 100,000), how many of them needed the network (``forward_passes``), how many did not
    (``cache_hits``), and seconds. ``progress`` shows a bar.
    """
    return {"teachers": [_prepare_teacher(teacher, sources, pairs, progress) for teacher in teachers]}


def _prepare_teacher(
    teacher: Teacher, sources: Sequence[Source], pairs: Callable[[], Iterable[tuple[str, str]]], progress: bool
) -> dict[str, Any]:
    start = time.perf_counter()
    if isinstance(teacher, PairTeacher):
        with _bar(f"{teacher.name}: batches", " pairs", progress) as bar:
            done = [teacher.prepare_pairs(pairs(), bar.update)]
    else:
        done = []
        for source in sources:
            with _bar(f"{teacher.name}: {source.name}", " texts", progress) as bar:
                done.append(teacher.prepare(source.queries, source.documents, bar.update))
    texts, passes = (sum(numbers) for numbers in zip((0, 0), *done, strict=True))
    return {"name": teacher.name, "fingerprint": teacher.fingerprint, "texts": texts, "forward_passes": passes,
            "cache_hits": texts - passes, "seconds": round(time.perf_counter() - start, 3)}


def _bar(what: str, unit: str, progress: bool) -> tqdm:
    return tqdm(desc=what, unit=unit, disable=None if progress else True, dynamic_ncols=True)


# ------------------------------------------------------------------------------------------------ dense


class DenseTeacher:
    """A bi-encoder with one vector for each text: a sentence-transformers folder, or a plain transformers one."""

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
        """Describe the model and open its cache; the network is loaded when a text is not in the cache.

        * ``cache``: the folder of the cache files; None keeps vectors in memory. They are float16 in either case, and
          scores come from these, so that a score does not depend on where its vectors come from.
        * ``pooling``: for a plain transformers folder, which states none; ``similarity``: default as the folder
          states, else cosine. Prompts and ``max_length`` (tokens, special ones included): default as the folder states.

        Raises ``ModelError`` for a folder that cannot be used, ``ConfigError`` for an option.
        """
        folder, commit = towers.resolve(model, revision, allow_pickle)
        layout = towers.read_dense_layout(folder, pooling)
        self.name = name or (folder.name if commit is None else str(model))
        self._prompts: dict[Role, str] = {
            "query": layout.prompt("query") if query_prompt is None else query_prompt,
            "document": layout.prompt("document") if document_prompt is None else document_prompt,
        }
        self._poolings, self._normalize = layout.poolings, layout.normalize
        self._similarity = towers.check_option("similarity", similarity or layout.similarity, get_args(Similarity))
        towers.check_prompts(layout, self._prompts)
        self._network = towers.Network(
            folder=layout.transformer, classes="AutoModel", dtype=dtype, device=towers.choose_device(device),
            max_length=max_length, stated_length=layout.max_length, lowercase=layout.lowercase,
            tokens_per_batch=tokens_per_batch, allow_pickle=allow_pickle,
        )
        self.dimension = self._network.hidden_size * len(self._poolings)
        self.fingerprint: dict[str, Any] = {
            "kind": "dense", "name": self.name, "revision": commit, **self._network.provenance,
            "pooling": list(self._poolings), "normalize": self._normalize, "prompts": dict(self._prompts),
            "stored_dtype": "float16", "dimension": self.dimension,
        }
        self._stored = Stored(Cache(cache, self.name, "dense", self.fingerprint, _versions()), self._compute)
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
        """float32 ``[Q, D]``: cosine or dot product of all pairs; ``wanted_QD`` is not needed and not read."""
        vectors = [self.vectors(queries, "query"), self.vectors(documents, "document")]
        if self._similarity == "cosine":
            vectors = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in vectors]
        return vectors[0] @ vectors[1].T

    def vectors(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """float32 ``[N, dimension]`` of the texts (float16 values), from the cache where they are there."""
        keys = self.keys(texts, role)
        found = self._stored.fetch(keys, texts, role)
        if any(len(value) != 2 * self.dimension for value in found.values()):
            raise DamagedError(f"{self.cache.path}: a vector has not {self.dimension} dimensions; delete the file")
        joined = b"".join(found[key] for key in keys)
        return np.frombuffer(joined, dtype="<f2").reshape(len(keys), self.dimension).astype(np.float32)

    def keys(self, texts: Sequence[str], role: Role) -> list[bytes]:
        """The cache key of each text; the role matters only where the prompts differ."""
        same = self._prompts["query"] == self._prompts["document"]
        return [key_of(text, "" if same else role) for text in texts]

    def put_vectors(self, texts: Sequence[str], vectors: np.ndarray, role: Role = "document") -> None:
        """Store vectors of this model that were computed elsewhere: ``[N, dimension]``, one for each text.

        Nothing can prove that they are this model's; a text that is in the cache keeps its vector. Raises ``DataError``
        for a wrong shape or a value that is not finite in float16.
        """
        if vectors.shape != (len(texts), self.dimension):
            raise DataError(f"vectors have the shape {vectors.shape}; allowed: ({len(texts)}, {self.dimension})")
        for start in range(0, len(texts), _VECTORS_PER_PUT):
            part = texts[start : start + _VECTORS_PER_PUT]
            blobs = _half_precision(vectors[start : start + len(part)], part, DataError, "the vectors given")
            self.cache.put(zip(self.keys(part, role), blobs, strict=True))

    def prepare(self, queries: Sequence[str], documents: Sequence[str], progress: Progress | None = None) -> Prepared:
        """Fill the cache; ``progress(n)``: n more texts are there."""
        return _prepare_both(self._stored, self.keys, queries, documents, progress)

    def _compute(self, texts: Sequence[str], role: str) -> Iterator[Computed]:
        import torch

        prompt = self._prompts[_role(role)]
        for positions, hidden_BLH, lengths in self._network.run([prompt + text for text in texts]):
            pooled = torch.cat([towers.pool(hidden_BLH.float(), lengths, mode) for mode in self._poolings], dim=1)
            if self._normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
            batch = [texts[position] for position in positions]
            yield positions, _half_precision(pooled.cpu().numpy(), batch, ModelError, self.name)


# ------------------------------------------------------------------------------------------------ sparse


class SparseTeacher:
    """A learned-sparse encoder with its own query side; scores are dot products."""

    in_batch = True

    def __init__(self, model: Any, *, name: str | None = None, cache: Path | None = None, **options: Any) -> None:
        """``model``: a folder or hub name for ``Encoder.load`` (with its ``options``), or a document encoder object.

        ``cache``: the folder of the cache files; None keeps vectors in memory while the teacher lives.
        Raises what ``Encoder.load`` raises.
        """
        if isinstance(model, str | Path):
            from sparse_ir.encoder import Encoder

            model = Encoder.load(model, **options)
        elif options:
            raise ConfigError(f"{', '.join(options)}: options belong to a folder or hub name, not to an encoder object")
        self._sides = {"document": model, "query": model.query_encoder()}
        self._width = max(len(side.vocabulary) for side in self._sides.values())
        self.name: str = name or str(model.fingerprint.get("name") or model.fingerprint["kind"])
        self.fingerprint: dict[str, Any] = {
            "kind": "sparse", "name": self.name,
            "document": model.fingerprint, "query": self._sides["query"].fingerprint,
        }
        self._stored = Stored(Cache(cache, self.name, "sparse", self.fingerprint, _versions()), self._compute)

    @property
    def forward_passes(self) -> int:
        """Texts that were encoded since this teacher was made."""
        return self._stored.forward_passes

    @property
    def cache(self) -> Cache:
        """Where the vectors are kept."""
        return self._stored.cache

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 ``[Q, D]``: dot products of all pairs; ``wanted_QD`` is not needed and not read."""
        return (self.vectors(queries, "query") @ self.vectors(documents, "document").T).toarray()

    def vectors(self, texts: Sequence[str], role: Role) -> sparse.csr_matrix:
        """CSR float32 ``[N, V]`` of the texts, from the cache where they are there."""
        keys = self.keys(texts, role)
        found = self._stored.fetch(keys, texts, role)
        return stack_rows([_unpack_row(found[key]) for key in keys], self._width)

    def keys(self, texts: Sequence[str], role: Role) -> list[bytes]:
        """The cache key of each text."""
        return [key_of(text, role) for text in texts]

    def prepare(self, queries: Sequence[str], documents: Sequence[str], progress: Progress | None = None) -> Prepared:
        """Fill the cache; ``progress(n)``: n more texts are there."""
        return _prepare_both(self._stored, self.keys, queries, documents, progress)

    def _compute(self, texts: Sequence[str], role: str) -> Iterator[Computed]:
        for start in range(0, len(texts), _TEXTS_PER_SPARSE_WINDOW):
            part = texts[start : start + _TEXTS_PER_SPARSE_WINDOW]
            matrix = self._encode(part, _role(role))
            rows = [(matrix.indices[a:b], matrix.data[a:b]) for a, b in itertools.pairwise(matrix.indptr)]
            for text, (_, weights) in zip(part, rows, strict=True):
                if not np.isfinite(weights).all():
                    raise ModelError(f"{self.name} gives a weight that is not finite to {_show(text)}")
            yield range(start, start + len(part)), [_pack_row(*row) for row in rows]

    def _encode(self, texts: Sequence[str], role: Role) -> sparse.csr_matrix:
        side = self._sides[role]
        if role == "document":
            return side.encode(texts)
        if hasattr(side, "encode_batch"):
            return side.encode_batch(texts)
        return stack_rows([side.encode(text) for text in texts], self._width)


# ------------------------------------------------------------------------------------------------ pairs


class PairTeacher:
    """A network that reads query and document together: one score for a pair, and only for pairs asked for."""

    in_batch = False

    def __init__(
        self,
        model: str | Path,
        build: Callable[..., towers.Network],
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
        """Describe the model and open its cache; the network is loaded when a pair is not in the cache.

        ``build`` checks a folder and describes its network; ``facts`` decide the scores besides it. ``max_length`` is
        that of the pair; other options as for ``DenseTeacher``. Raises ``ModelError`` for a model of another kind,
        ``ConfigError`` for an option.
        """
        folder, commit = towers.resolve(model, revision, allow_pickle)
        self._network = build(folder=folder, dtype=dtype, device=towers.choose_device(device), max_length=max_length,
                              tokens_per_batch=tokens_per_batch, allow_pickle=allow_pickle)
        self.name = name or (folder.name if commit is None else str(model))
        self.fingerprint: dict[str, Any] = {"name": self.name, **self._network.provenance, **facts, "revision": commit}
        self._stored = Stored(Cache(cache, self.name, "pairs", self.fingerprint, _versions()), self._compute)

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
        """float32 ``[Q, D]``: scores of the pairs that ``wanted_QD`` (bool, default all) asks for, NaN elsewhere."""
        shape = len(queries), len(documents)
        wanted = np.ones(shape, dtype=bool) if wanted_QD is None else np.asarray(wanted_QD)
        if wanted.shape != shape or wanted.dtype != bool:
            raise DataError(f"wanted_QD is {wanted.dtype} of the shape {wanted.shape}; allowed: bool of {shape}")
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
        return [key_of_pair(hashed(query, "query"), hashed(document, "document")) for query, document in pairs]

    def prepare(self, queries: Sequence[str], documents: Sequence[str], progress: Progress | None = None) -> Prepared:
        """Fill the cache for ALL pairs of the texts; see ``prepare_pairs`` for those that training needs."""
        return self.prepare_pairs(itertools.product(queries, documents), progress)

    def prepare_pairs(self, pairs: Iterable[tuple[str, str]], progress: Progress | None = None) -> Prepared:
        """Fill the cache for these (query, document) pairs, many at a time; ``progress(n)``: n more pairs are there."""
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
                    raise ModelError(f"{self.name} gives the score {value} to the query {_show(query)} with the "
                                     f"document {_show(document)}; allowed: a finite number")
            yield positions, [value.tobytes() for value in values]

    def _scores_of(self, outputs_B1: Any) -> Any:
        return outputs_B1


class CrossEncoderTeacher(PairTeacher):
    """A sequence classifier with one label; of a pair that is too long the longer text is cut first."""

    def __init__(self, model: str | Path, *, activation: Literal["identity", "sigmoid"] = "identity",
                 **options: Any) -> None:
        """``activation``: distillation wants the logit as it is, because a sigmoid is flat where a teacher is sure;
        ``"sigmoid"`` gives values in 0..1. ``options`` as for ``PairTeacher``."""
        self._activation = towers.check_option("activation", activation, ("identity", "sigmoid"))
        super().__init__(model, _cross_encoder, {"kind": "cross-encoder", "activation": activation}, **options)

    def _scores_of(self, outputs_B1: Any) -> Any:
        return outputs_B1 if self._activation == "identity" else outputs_B1.sigmoid()


def _cross_encoder(folder: Path, **options: Any) -> towers.Network:
    towers.check_cross_encoder(folder)
    return towers.Network(folder=folder, classes="AutoModelForSequenceClassification", lowercase=False,
                          stated_length=towers.stated_length(folder), **options)


class MonoT5Teacher(PairTeacher):
    """monoT5: a T5 that says "true" or "false"; the score is the logarithm of the probability of "true"."""

    def __init__(self, model: str | Path, **options: Any) -> None:
        """``options`` as for ``PairTeacher``; ``max_length`` (default 512) is that of the whole prompt, see
        ``towers.MonoT5``."""
        super().__init__(model, _monot5, {"kind": "monot5"}, **options)


def _monot5(folder: Path, **options: Any) -> towers.Network:
    towers.check_monot5(folder)
    return towers.MonoT5(folder=folder, **options)


# ------------------------------------------------------------------------------------------------ computing once


def _prepare_both(
    stored: Stored, keys: Callable[[Sequence[str], Role], list[bytes]], queries: Sequence[str],
    documents: Sequence[str], progress: Progress | None,
) -> Prepared:
    first = stored.fill(keys(queries, "query"), queries, "query", progress)
    second = stored.fill(keys(documents, "document"), documents, "document", progress)
    return Prepared(first.texts + second.texts, first.forward_passes + second.forward_passes)


def _role(name: str) -> Role:
    return "query" if name == "query" else "document"


def _versions() -> dict[str, str]:
    """Information for the cache file: libraries do not decide a score beyond rounding."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}


def _half_precision(vectors: np.ndarray, texts: Sequence[str], error: type[Exception], name: str) -> list[bytes]:
    with np.errstate(over="ignore"):
        halves = vectors.astype("<f2")
    finite = np.isfinite(halves).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = vectors[row][~np.isfinite(halves[row])][0]
        raise error(f"{name}: the vector of {_show(texts[row])} holds {value}; allowed: finite numbers up to 65504")
    return [half.tobytes() for half in halves]


def _pack_row(token_ids: np.ndarray, weights: np.ndarray) -> bytes:
    return token_ids.astype("<i4").tobytes() + weights.astype("<f4").tobytes()


def _unpack_row(value: bytes) -> tuple[np.ndarray, np.ndarray]:
    half = len(value) // 2
    return np.frombuffer(value[:half], dtype="<i4"), np.frombuffer(value[half:], dtype="<f4")


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")

