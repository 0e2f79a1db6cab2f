"""Measure what each part of the training recipe is worth, by one short training per variant.

    python scripts/ablate.py --base scripts/recipes/ablation.toml \\
        --collections data/test/cranfield data/test/cisi --output runs/ablation

Each variant changes one thing in the base configuration and keeps its start, data, steps and seed.
Its model is measured zero-shot on the collections by nDCG@10. A paired randomization test compares
the queries with those of the base, with Holm's correction for the number of variants. A killed run
can be repeated: finished variants are kept. ``--only`` selects variants by name.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

from sparse_ir.commands import evaluating, indexing, searching
from sparse_ir.evaluation import significance
from sparse_ir.storage import files
from sparse_ir.training import pipeline
from sparse_ir.training.configuration import config_parser

BASE = "IDF, min-max ensemble"
TEACHERS = {"dense": 0, "bm25": 1}  # places in the base configuration
FORMS, PLAIN = ("IDF in the score", "IDF in the penalty"), "no IDF"


def main() -> None:
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    base = config_parser.config_to_json(config_parser.read_config(arguments.base))
    if arguments.steps:
        base = changed(base, run={"steps": arguments.steps})
    variants = make_variants(base, arguments.terms, arguments.equal)
    unknown = set(arguments.only or []) - set(variants)
    if unknown:
        raise SystemExit(f"unknown variants {sorted(unknown)}; there are: {', '.join(variants)}")
    for name in arguments.only or variants:
        measure(name, variants[name], arguments)
    found = {
        name: json.loads(path_of(name, arguments.output).read_text())
        for name in variants
        if path_of(name, arguments.output).is_file()
    }
    print(f"{as_markdown(found)}\n\n{as_pairs(found)}")
    if arguments.json:
        files.write_json(arguments.json, found)
    if arguments.plot:
        draw(found, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", type=Path, required=True, help="configuration with a dense and a BM25 teacher"
    )
    parser.add_argument(
        "--collections", nargs="+", required=True, help="BEIR folders to measure on"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="the teachers' scores; default: OUTPUT/teachers")
    parser.add_argument(
        "--steps", type=int, help="steps of every training; default: those of the configuration"
    )
    parser.add_argument(
        "--terms", type=float, nargs="+", default=[60.0, 100.0], help="further targets of the curve"
    )
    parser.add_argument(
        "--equal",
        type=float,
        nargs="+",
        default=[60.0, 100.0, 150.0],
        help="numbers of terms at which both forms of IDF-aware FLOPS and plain FLOPS are compared",
    )
    parser.add_argument(
        "--precision", default="float32", help="precision of encoding: float32, bfloat16, int8"
    )
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw nDCG@10 over terms as SVG")
    return parser.parse_args()


def make_variants(
    base: dict[str, Any], terms: list[float], equal: list[float]
) -> dict[str, dict[str, Any]]:
    """Name -> configuration.

    "No IDF" is SPLADE's own form: each query token weighs 1, and FLOPS is plain. The variants called
    "equal" have IDF in the score (form A of Geng et al.), in the penalty (form B), or nowhere. Their
    output biases are shifted at the end, so that documents of a sample have the same mean number of
    terms.
    """
    variants = {
        BASE: base,
        "no IDF": changed(base, model={"query": "ones"}),
        "plain sum of scores": changed(base, ensemble={"normalization": "none", "scale": 1.0}),
        "dense teacher only": {**base, "teacher": [base["teacher"][TEACHERS["dense"]]]},
        "BM25 teacher only": {**base, "teacher": [base["teacher"][TEACHERS["bm25"]]]},
        "no distillation": {
            **{key: value for key, value in base.items() if key != "teacher"},
            "loss": [{"name": "info_nce"}],
        },
    }
    for count in terms:
        variants[f"IDF, {count:.0f} terms"] = changed(base, documents={"target_terms": count})
        variants[f"no IDF, {count:.0f} terms"] = changed(
            base, model={"query": "ones"}, documents={"target_terms": count}
        )
    for count in equal:
        sections = {"documents": {"target_terms": count}, "blend": {"terms": round(count)}}
        aware = {**sections, "documents": {**sections["documents"], "penalty": "idf_flops"}}
        variants[f"{FORMS[0]}, equal {count:.0f}"] = changed(base, **sections)
        variants[f"{FORMS[1]}, equal {count:.0f}"] = changed(base, model={"query": "ones"}, **aware)
        variants[f"{PLAIN}, equal {count:.0f}"] = changed(base, model={"query": "ones"}, **sections)
    return variants


def changed(base: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(base)
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    return config


def path_of(name: str, output: Path) -> Path:
    return output / name.replace(" ", "_").replace(",", "") / "figures.json"


def measure(name: str, config: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Train and evaluate one variant, and keep its figures."""
    path = path_of(name, arguments.output)
    configuration, text = (
        path.parent / "config.toml",
        config_parser.format_config(config_parser.parse_config(config)),
    )
    if configuration.is_file() and configuration.read_text(encoding="utf-8") != text:
        raise SystemExit(
            f"{path.parent} holds a run with another configuration; choose another --output"
        )
    if path.is_file():
        return
    path.parent.mkdir(exist_ok=True)
    with files.atomic_writer(configuration) as stream:
        stream.write(text)
    report = pipeline.train(
        configuration, path.parent / "run", cache=arguments.cache or arguments.output / "teachers"
    )
    figures: dict[str, Any] = {"terms_in_training": report["documents_terms"], "collections": {}}
    for collection in arguments.collections:
        figures["collections"][Path(collection).name] = evaluate(
            report["model"], collection, path.parent, arguments
        )
    files.write_json(
        path, figures
    )  # written whole or not at all, so an existing file is a finished variant


def evaluate(
    model: str, collection: str, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    place, run = folder / Path(collection).name, folder / f"{Path(collection).name}.trec"
    encoded = indexing.encode(model, collection, place / "vectors", precision=arguments.precision)
    indexing.index(place / "vectors", place / "index", fields="sparse")
    searching.search(place / "index", collection, run, hits=100)
    report = evaluating.evaluate(run, collection, measures="nDCG@10", per_query=True)
    return {
        "terms": encoded["mean_terms"],
        "nDCG@10": report["nDCG@10"],
        "per_query": report["per_query"]["nDCG@10"],
    }


def as_markdown(found: dict[str, Any]) -> str:
    """One row per variant; the last columns compare all queries with the base, or the first row."""
    base = BASE if BASE in found else next(iter(found))
    collections = list(found[base]["collections"])
    pooled = {name: pool(figures) for name, figures in found.items()}
    compared = significance.compare(
        pooled[base], {name: values for name, values in pooled.items() if name != base}
    )
    lines = [
        "| variant | terms | " + " | ".join(collections) + " | mean | difference (95 %) | p, "
        "Holm | won, lost |",
        "|---|" + "---:|" * (len(collections) + 5),
    ]
    for name, figures in found.items():
        values = [figures["collections"][collection]["nDCG@10"] for collection in collections]
        cells = [
            name,
            f"{mean_terms(figures):.0f}",
            *(f"{value:.3f}" for value in values),
            f"{mean(values):.3f}",
        ]
        if name in compared:
            row = compared[name]
            cells += [
                f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})",
                f"{row.p_adjusted:.4f}",
                f"{row.wins}, {row.losses}",
            ]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_pairs(found: dict[str, Any]) -> str:
    """IDF-aware against plain FLOPS at each number of terms."""
    chosen = {label: pair for label, pair in find_pairs(found).items() if set(pair) <= set(found)}
    compared = {
        label: significance.compare(pool(found[plain]), {aware: pool(found[aware])})[aware]
        for label, (aware, plain) in chosen.items()
    }
    adjusted = significance.holm([row.p for row in compared.values()])
    lines = [
        "| IDF-aware against plain | terms | difference (95 %) | p | p, Holm | won, lost |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (label, row), p in zip(compared.items(), adjusted, strict=True):
        aware, plain = (mean_terms(found[name]) for name in chosen[label])
        difference = f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
        lines.append(
            f"| {label} | {aware:.0f}, {plain:.0f} | {difference} | {row.p:.4f} | "
            f"{p:.4f} | "
            f"{row.wins}, {row.losses} |"
        )
    return "\n".join(lines)


def find_pairs(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Label -> a variant with IDF and the plain variant of the same size."""
    pairs = {"full": (BASE, "no IDF")} | {
        name.partition(", ")[2]: (name, f"no {name}")
        for name in found
        if name.startswith("IDF, ") and name.endswith(" terms")
    }
    for name in found:
        form, _, size = name.partition(", equal ")
        if form in FORMS:
            pairs[f"{form}, {size} terms"] = (name, f"{PLAIN}, equal {size}")
    return pairs


def pool(figures: dict[str, Any]) -> dict[str, float]:
    return {
        f"{collection}/{query_id}": value
        for collection, measured in figures["collections"].items()
        for query_id, value in measured["per_query"].items()
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def mean_terms(figures: dict[str, Any]) -> float:
    return mean([measured["terms"] for measured in figures["collections"].values()])


def find_curves(found: dict[str, Any]) -> dict[str, list[str]]:
    """Label -> the variants that differ only in their number of terms."""
    curves = {
        f"{label} FLOPS": [
            name
            for name in found
            if name == base or (name.startswith(prefix) and name.endswith(" terms"))
        ]
        for label, base, prefix in (("IDF-aware", BASE, "IDF, "), ("plain", "no IDF", "no IDF, "))
    }
    curves |= {
        f"{form}, at equal terms": [name for name in found if name.startswith(f"{form}, equal ")]
        for form in (*FORMS, PLAIN)
    }
    return {label: names for label, names in curves.items() if names}


def draw(found: dict[str, Any], path: Path) -> None:
    """nDCG@10 over terms per document, both forms of IDF-aware FLOPS and plain FLOPS."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sparse_ir"  # makes the file reproducible
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    for label, names in find_curves(found).items():
        points = sorted(
            (
                mean_terms(found[name]),
                mean([measured["nDCG@10"] for measured in found[name]["collections"].values()]),
            )
            for name in names
        )
        axes.plot(
            *zip(*points, strict=True),
            marker="s" if label.startswith(("plain", PLAIN)) else "o",
            label=label,
        )
    axes.set(xlabel="terms per document", ylabel="mean nDCG@10")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
