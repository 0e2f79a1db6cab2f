"""The leaderboard: measured rows as one table of effectiveness, significance and efficiency, in six
formats.

``make_board`` turns rows into plain data, the ``format_*`` functions turn that into text, and the
verb ``leaderboard`` writes it all. Published figures stand in a table of their own. It measures
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from sparse_ir.benchmark import averages, published_figures
from sparse_ir.benchmark.published_figures import DEFAULT
from sparse_ir.benchmark.results import COLUMNS, Row
from sparse_ir.data.datasets import BEIR_13, SIZES, has_published_size
from sparse_ir.errors import ConfigError, DataError
from sparse_ir.evaluation import significance

Measure = Literal["nDCG@10", "R@100", "R@1000", "MRR@10"]
Board = dict[str, Any]
LEVEL = 0.05  # adjusted p-values below it are marked
SAMPLES = 20_000  # of the randomization test
_GROUP = "cqadupstack"
_SAME_DATA = (
    "corpus_sha256",
    "queries_sha256",
    "qrels_sha256",
    "remove_identical",
    "relevance_level",
)
LATENCIES = ("p50_ms", "p95_ms", "p99_ms")
EFFICIENCY = (
    "query_terms",
    "document_terms",
    "flops",
    "index_megabytes",
    "documents_per_second",
    *LATENCIES,
)
COMPARISON = (
    "low",
    "high",
    "delta",
    "delta_low",
    "delta_high",
    "p",
    "p_adjusted",
    "wins",
    "ties",
    "losses",
)
PROVENANCE = ("model", "revision", "hash", "run_sha256", "commit", "date", "processor", "command")


def make_board(
    found: Sequence[Row],
    *,
    baseline: str = "bm25",
    measure: Measure = "nDCG@10",
    published: str = DEFAULT,
) -> Board:
    """Everything that the tables and the page show, as JSON-able data; systems by their mean, the
    best first.

    ``mean`` is over the data sets that all systems have (``common``): each set counts alike,
    however many queries it has, also in the interval and in the test. A measure that looks deeper
    than a run goes is None. Raises ``ConfigError`` for a baseline without a row, ``DataError`` for
    two rows of one data set that were measured on different data, and for a run that is not as deep
    as ``measure`` looks.
    """
    grid: dict[str, dict[str, Row]] = {}
    for row in merge_forums(found):
        grid.setdefault(row.dataset, {})[row.system] = row
    systems = {system: row.result["system"] for of in grid.values() for system, row in of.items()}
    if baseline not in systems:
        raise ConfigError(
            f"the baseline {baseline!r} has no row, allowed: {', '.join(sorted(systems))}"
        )
    datasets = {name: _describe_dataset(list(of.values())) for name, of in grid.items()}
    _check_depths(grid, measure)
    common = [name for name, of in grid.items() if len(of) == len(systems)]
    cells = {name: _make_cells(of, found, measure, baseline) for name, of in grid.items()}
    means = _make_means({name: grid[name] for name in common}, cells, measure, baseline)
    entries = [
        {
            "name": system,
            "kind": facts["kind"],
            "mean": means.get(system),
            "datasets": {name: of[system] for name, of in cells.items() if system in of},
        }
        for system, facts in sorted(systems.items())
    ]
    entries.sort(key=lambda entry: -entry["mean"][measure] if entry["mean"] else 0.0)
    whole = [name for name, facts in datasets.items() if is_whole(name, facts)]
    board = {
        "measure": measure,
        "baseline": baseline,
        "datasets": datasets,
        "common": common,
        "systems": entries,
        "published": _place_published(published, measure, whole, common),
        "not_shown": [
            f"{row.dataset}/{row.system}"
            for row in found
            if row.dataset not in grid and row.system not in grid[_GROUP]
        ],
    }
    return {**board, "notes": _describe(board)}


def merge_forums(found: Sequence[Row]) -> list[Row]:
    """The rows with CQADupStack's forums as one data set, as soon as one system has all twelve;
    until then singly.
    """
    merged = averages.merge_groups(found)
    return merged if any(row.dataset == _GROUP for row in merged) else list(found)


def _describe_dataset(of: Sequence[Row]) -> dict[str, Any]:
    first, *others = (row.result["dataset"] for row in of)
    for row, facts in zip(of[1:], others, strict=True):
        if changed := [key for key in _SAME_DATA if facts[key] != first[key]]:
            raise DataError(
                f"rows {row.dataset}/{of[0].system} and {row.dataset}/{row.system} "
                "were measured on "
                f"different data ({', '.join(changed)}); make one of them again"
            )
    return {key: first[key] for key in ("split", "documents", "queries", "judgements")}


def _check_depths(grid: Mapping[str, Mapping[str, Row]], measure: str) -> None:
    for row in (row for of in grid.values() for row in of.values()):
        if row.shown_measures[measure] is None:
            raise DataError(
                f"row {row.dataset}/{row.system} has "
                f"{row.result['run']['hits_per_query']} hits per query, "
                f"allowed: as many as {measure} looks at; make the row again, or "
                "order by another measure"
            )


def _make_cells(
    of: Mapping[str, Row], found: Sequence[Row], measure: str, baseline: str
) -> dict[str, dict[str, Any]]:
    compared = _compare([_strata(of, measure)], baseline)
    return {
        system: {
            **row.shown_measures,
            **compared[system],
            "efficiency": _efficiency(row, timing := _timing(row, found)),
            "provenance": _provenance(row, timing),
        }
        for system, row in of.items()
    }


def _timing(row: Row, found: Sequence[Row]) -> dict[str, Any]:
    """What a clock measured; of a row put together from others, the means over these."""
    parts = [
        other
        for other in found
        if other.system == row.system
        and other.dataset in {facts["name"] for facts in row.parts.values()}
    ]
    latencies = [part.timing.get("search_latency_ms") or {} for part in parts]
    rates = [
        (part.result["dataset"]["documents"], part.timing.get("encode_documents_per_second"))
        for part in parts
    ]
    return {
        "documents_per_second": _join_rates(rates),
        **{
            key: _mean([latency.get(key.removesuffix("_ms")) for latency in latencies])
            for key in LATENCIES
        },
        "processor": _only([part.timing.get("hardware", {}).get("processor") for part in parts]),
        "date": max((part.timing.get("date") or "" for part in parts), default="") or None,
    }


def _efficiency(row: Row, timing: Mapping[str, Any]) -> dict[str, Any]:
    counted = row.result["efficiency"]
    found = {
        "query_terms": counted["mean_query_terms"],
        "document_terms": counted["mean_document_terms"],
        "flops": counted["flops"],
        "index_megabytes": counted["index_bytes"] / 1e6,
        **timing,
    }
    return {key: found[key] for key in EFFICIENCY}


def _provenance(row: Row, timing: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        **row.result,
        **row.result["system"],
        "run_sha256": row.result["run"].get("sha256"),
        **timing,
    }
    return {key: found.get(key) for key in PROVENANCE}


def _make_means(
    grid: Mapping[str, Mapping[str, Row]],
    cells: Mapping[str, Mapping[str, dict[str, Any]]],
    measure: str,
    baseline: str,
) -> dict[str, dict[str, Any]]:
    """System -> its cell over all data sets of ``grid``, in which every system stands; nothing for
    no data set.
    """
    if not grid:
        return {}
    systems = next(iter(grid.values()))
    compared = _compare([_strata(of, measure) for of in grid.values()], baseline)
    means = {}
    for system in systems:
        parts = [cells[name][system] for name in grid]
        efficiency = {key: _mean([part["efficiency"][key] for part in parts]) for key in EFFICIENCY}
        efficiency["index_megabytes"] = sum(part["efficiency"]["index_megabytes"] for part in parts)
        efficiency["documents_per_second"] = _join_rates(
            [
                (
                    of[system].result["dataset"]["documents"],
                    cells[name][system]["efficiency"]["documents_per_second"],
                )
                for name, of in grid.items()
            ]
        )
        means[system] = {
            **{column: _mean([part[column] for part in parts]) for column in COLUMNS},
            **compared[system],
            "efficiency": efficiency,
        }
    return means


def _strata(of: Mapping[str, Row], measure: str) -> list[dict[str, dict[str, float]]]:
    """A data set as parts whose means count alike, each system -> query_id -> value: a forum each,
    or the whole set.
    """
    return [
        {
            system: {
                query_id: value
                for query_id, value in row.per_query[measure].items()
                if query_id.startswith(prefix)
            }
            for system, row in of.items()
        }
        for prefix in next(iter(of.values())).parts
    ]


def _compare(
    datasets: Sequence[Sequence[Mapping[str, Mapping[str, float]]]], baseline: str
) -> dict[str, dict[str, Any]]:
    """System -> interval of its mean over data sets, and its comparison with the baseline (None for
    that one itself).

    ``datasets`` as ``_strata`` gives them: each data set counts alike, and in it each part.
    """
    parts = [part for strata in datasets for part in strata]
    shares = [1 / (len(datasets) * len(strata)) for strata in datasets for _ in strata]
    pooled = {system: _pool([part[system] for part in parts], shares) for system in parts[0]}
    others = {
        system: values
        for system, values in pooled.items()
        if system != baseline and baseline in pooled
    }
    found = significance.compare(pooled[baseline], others, samples=SAMPLES) if others else {}
    compared = {}
    for system in pooled:
        low, high = _interval([list(part[system].values()) for part in parts], shares)
        compared[system] = {**dict.fromkeys(COMPARISON), "low": low, "high": high}
        if system in found:
            result = found[system]
            delta_low, delta_high = _interval(
                [
                    [value - part[baseline][query_id] for query_id, value in part[system].items()]
                    for part in parts
                ],
                shares,
            )
            compared[system] |= {
                "delta": result.difference,
                "delta_low": delta_low,
                "delta_high": delta_high,
                "p": result.p,
                "p_adjusted": result.p_adjusted,
                "wins": result.wins,
                "ties": result.ties,
                "losses": result.losses,
            }
    return compared


def _pool(values: Sequence[Mapping[str, float]], shares: Sequence[float]) -> dict[str, float]:
    """All queries of several parts, weighted so that their plain mean is the sum of the parts'
    means times shares.
    """
    total = sum(map(len, values))
    return {
        f"{number}/{query_id}": value * (total * share / len(of))
        for number, (of, share) in enumerate(zip(values, shares, strict=True))
        for query_id, value in of.items()
    }


def _interval(values: Sequence[Sequence[float]], shares: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the sum of several parts' means, each times its share.

    The parts are given, only their queries are drawn: so each value counts by its distance from the
    mean of its part, weighted as in ``_pool``, and the variance of the mean of all is that of
    drawing within each part.
    """
    total = sum(map(len, values))
    means = [math.fsum(of) / len(of) for of in values]
    middle = math.fsum(mean * share for mean, share in zip(means, shares, strict=True))
    return significance.bootstrap_interval(
        [
            middle + (value - mean) * (total * share / len(of))
            for of, mean, share in zip(values, means, shares, strict=True)
            for value in of
        ]
    )


def is_whole(name: str, facts: Mapping[str, Any]) -> bool:
    return has_published_size(name, facts["documents"], facts["queries"])


def _place_published(
    names: str, measure: str, datasets: list[str], common: list[str]
) -> list[dict[str, Any]]:
    """Published figures of this measure, on our data sets only; a mean only over exactly the sets
    of our own mean.

    ``datasets`` are those of ours that have the names and the sizes of published ones.
    """
    stated = ["beir-13"] if set(common) == set(BEIR_13) <= set(datasets) else []
    found = []
    for record in published_figures.select(names, [*datasets, *stated]):
        if record.measure == measure:
            values = dict(record.values)
            mean = values.pop("beir-13", None)
            if common and set(common) <= set(values):
                mean = _mean([values[name] for name in common])
            found.append({**record._asdict(), "values": values, "mean": mean})
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None when one value is missing, or all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _join_rates(rates: Sequence[tuple[int, float | None]]) -> float | None:
    """Documents per second over several corpora: all documents over all seconds."""
    if not rates or any(not rate for _, rate in rates):
        return None
    return sum(documents for documents, _ in rates) / sum(
        documents / rate for documents, rate in rates if rate
    )


def _only(values: Iterable[str | None]) -> str | None:
    """All different values, in one text."""
    return "; ".join(sorted({value for value in values if value})) or None


def _describe(board: Board) -> list[str]:
    """How to read the figures, in sentences."""
    where = ", ".join(board["common"]) or "none: no data set has all systems"
    cells = [cell for entry in board["systems"] for cell in entry["datasets"].values()]
    machines = _only(cell["provenance"]["processor"] for cell in cells)
    notes = [
        f"Means are over the data sets that all systems have ({where}), each counting alike.",
        (
            "95 %: bootstrap interval over queries. p: paired randomization test against "
            f"{board['baseline']}, corrected "
            f"after Holm over the systems; ▲ and ▼ mark p < {LEVEL:g}."
        ),
        (
            "Terms and FLOPS are means over queries and documents; MB is the size of the Lucene "
            "indexes; docs/s is the "
            "speed of encoding; latency is from text to hits, on one thread (machine: "
            f"{machines or 'not recorded'})."
        ),
    ]
    if any(cell[column] is None for cell in cells for column in COLUMNS):
        notes.append(
            "–: some runs have fewer hits per query than this measure looks at, and are "
            "not compared by it."
        )
    for name in (name for name, facts in board["datasets"].items() if not is_whole(name, facts)):
        documents, queries = SIZES[name]
        notes.append(
            f"No published figures and no file of MTEB for {name}: it is not the "
            f"published set of {documents} "
            f"documents and {queries} queries."
        )
    if board["published"]:
        notes.append(
            "Published figures are from other people's systems, data and settings: "
            "primary was read in the "
            "source, secondary in a digest or quotation of it."
        )
    return notes
