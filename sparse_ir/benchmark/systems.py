"""The systems that the suite measures, and the names of their rows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sparse_ir.engines.lucene.bm25 import Bm25
from sparse_ir.errors import ConfigError
from sparse_ir.models.options import DEFAULT_MODEL, LEXICAL_MODEL

# reference systems; the second one differs from Anserini's parameters
BM25_SYSTEMS = {"bm25": Bm25(), "bm25-multifield": Bm25(title=1.0)}
IMPACT = "impact"  # the kind of every neural system
HYBRID = "hybrid"  # the kind of a neural system with BM25 beside it
_WITH_BM25 = "+bm25"  # at the end of a model's name
NO_BASELINES = "none"


class System(NamedTuple):
    """What a row is about."""

    name: str  # of the row
    kind: str  # impact (neural), hybrid, lexical, or one of BM25_SYSTEMS
    model: str

    @property
    def is_neural(self) -> bool:
        """Whether a network encodes its documents."""
        return self.kind in (IMPACT, HYBRID)

    @property
    def specification(self) -> str:
        """What ``read_system`` reads as this system, but for its name."""
        return self.model + _WITH_BM25 if self.kind == HYBRID else self.model

    @property
    def is_bm25(self) -> bool:
        """Whether it is one of the reference systems."""
        return self.kind in BM25_SYSTEMS


def read_systems(model: str, baselines: str) -> list[System]:
    """The systems of two comma-separated lists, each once.

    Raises ``ConfigError`` for two systems of one name, for an unknown baseline, and if there is no
    system at all.
    """
    references = [] if baselines == NO_BASELINES else _split(baselines)
    for name in references:
        if name not in BM25_SYSTEMS and name != LEXICAL_MODEL:
            raise ConfigError(
                f"baseline {name!r} is unknown; it must be one of {', '.join(BM25_SYSTEMS)}, "
                f"{LEXICAL_MODEL}, or {NO_BASELINES} alone"
            )
    texts = [*_split(model), *references]
    systems: dict[str, System] = {}
    for system in map(read_system, texts):
        if systems.setdefault(system.name, system) != system:
            raise ConfigError(
                f"two systems would be called {system.name!r}; name one of them with NAME=MODEL"
            )
    if not systems:
        raise ConfigError("no system is named; name a model, or baselines")
    return list(systems.values())


def _split(names: str) -> list[str]:
    return list(filter(None, map(str.strip, names.split(","))))


def read_system(text: str) -> System:
    """The system of ``MODEL`` or ``NAME=MODEL``; ``MODEL+bm25`` has BM25 beside it, in one index.

    Without a name of its own, a hub model keeps its owner (``OWNER--MODEL``), and a folder is
    called by its last part.
    """
    name, separator, model = text.partition("=")
    if not separator:
        name = ""
        model = text
    if model.endswith(_WITH_BM25) and not Path(model).exists():
        beside = read_system(model.removesuffix(_WITH_BM25))
        if beside.kind != IMPACT:
            raise ConfigError(f"BM25 can stand beside a neural model, not beside {beside.model!r}")
        return System(name or beside.name + _WITH_BM25, HYBRID, beside.model)
    if model == DEFAULT_MODEL:
        return System(name or model, IMPACT, model)
    if model in BM25_SYSTEMS or model == LEXICAL_MODEL:
        return System(name or model, model, model)
    own_name = model.replace("/", "--")
    if Path(model).exists():
        own_name = Path(model).resolve().name
    return System(name or own_name, IMPACT, model)
