"""Compare training speed and memory with sentence-transformers' SparseEncoderTrainer.

    python scripts/bench_train.py --batch 32 --max-length 256 --steps 8 --rounds 3

Both train siamese SPLADE (InfoNCE within the batch and FLOPS on both sides) or, with ``--queries
idf``, inference-free queries. Each run is a fresh process that trains on the same batch at every
step, so the losses can be compared step by step. Systems take turns. A step lasts from the end of
the step before to its own end, tokenizing included; the first two steps are not counted. Dropout is
off. Memory is the peak of the process, and what training adds to the loaded model. Without
``--model``, the masked language model of ``bench_encode.py`` is made.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_encode import build_model, read_texts, resident_mib

PEER = "sentence-transformers"
OURS = "sparse_ir"
LAMBDA = {"documents": 3e-3, "queries": 5e-3}
QUERY_WORDS = 12
UNCOUNTED = 2


def main() -> None:
    arguments = parse_arguments()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    if arguments.run:
        print(json.dumps(run_one(arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model is None:
            arguments.model = build_model(Path(scratch) / "base", read_texts(arguments), arguments)
            arguments.model = as_sparse_encoder(arguments.model, Path(scratch) / "model", arguments)
        result = compare(arguments)
    print(as_markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--documents", type=Path, help="corpus file; default: text of the standard library"
    )
    parser.add_argument("--model", help="folder of a sparse encoder; default: a model made here")
    parser.add_argument("--queries", choices=("neural", "idf"), default="neural")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--micro-batch", type=int, help="our micro-batch: texts whose graph is kept at a time"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--run", choices=(PEER, OURS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps <= UNCOUNTED:
        parser.error(
            f"--steps is {arguments.steps}; the first {UNCOUNTED} are not counted, so "
            "allowed: "
            f"{UNCOUNTED + 1} or more"
        )
    arguments.texts = max(arguments.batch, 64)
    return arguments


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """All systems in turn, a fresh process for each run."""
    runs: dict[str, list[dict[str, Any]]] = {PEER: [], OURS: []}
    for number in range(arguments.rounds):
        for name in (PEER, OURS) if number % 2 == 0 else (OURS, PEER):
            runs[name].append(run_in_new_process(name, arguments))
    rows = [row_of(name, runs) for name in runs]
    settings = (
        "queries",
        "batch",
        "max_length",
        "steps",
        "rounds",
        "threads",
        "device",
        "precision",
        "micro_batch",
    )
    return {**{name: getattr(arguments, name) for name in settings}, "systems": rows}


def run_in_new_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--run", name, "--model", str(arguments.model)]
    for option in (
        "documents",
        "queries",
        "batch",
        "max_length",
        "steps",
        "threads",
        "device",
        "precision",
        "micro_batch",
    ):
        if getattr(arguments, option) is not None:
            command += ["--" + option.replace("_", "-"), str(getattr(arguments, option))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def row_of(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def seconds(system: str) -> float:
        return statistics.median(second for run in runs[system] for second in run["seconds"])

    def middle(system: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[system])

    return {
        "system": name,
        "steps_per_second": 1 / seconds(name),
        "speedup": seconds(PEER) / seconds(name),
        **{key: middle(name, key) for key in ("peak_mib", "growth_mib")},
        "peak_share": middle(name, "peak_mib") / middle(PEER, "peak_mib"),
        "growth_share": middle(name, "growth_mib") / middle(PEER, "growth_mib"),
        "losses": runs[name][0]["losses"],
        "seconds": [run["seconds"] for run in runs[name]],
    }


def run_one(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train for some steps in this process; returns seconds, losses and memory."""
    import torch

    torch.set_num_threads(arguments.threads)
    texts = read_texts(arguments)[: arguments.batch]
    pairs = [
        {
            "anchor": " ".join(text.split()[:QUERY_WORDS]),
            "positive": " ".join(text.split()[QUERY_WORDS:]),
        }
        for text in texts
    ]
    with tempfile.TemporaryDirectory() as scratch:
        prepare = prepare_peer if arguments.run == PEER else prepare_ours
        clock: list[float] = []
        train = prepare(pairs, Path(scratch), clock, arguments)
        before = start_of_memory(arguments.device)
        step_losses = train()
        peak = peak_of_memory(arguments.device)
    seconds = [end - start for start, end in itertools.pairwise(clock)]
    return {
        "seconds": seconds[UNCOUNTED - 1 :],
        "losses": step_losses,
        "peak_mib": peak,
        "growth_mib": peak - before,
    }


def start_of_memory(device: str) -> float:
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which loading has set
    return resident_mib("VmRSS")


def peak_of_memory(device: str) -> float:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resident_mib("VmHWM")


def prepare_peer(
    pairs: list[dict[str, str]], folder: Path, clock: list[float], arguments: argparse.Namespace
) -> Any:
    """The peer's trainer on one batch, as its documentation builds it."""
    import datasets
    import transformers
    from sentence_transformers import (
        SparseEncoder,
        SparseEncoderTrainer,
        SparseEncoderTrainingArguments,
    )
    from sentence_transformers.sparse_encoder import losses

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(time.perf_counter())

    model = SparseEncoder(str(arguments.model), device=arguments.device)
    for module in model.modules():
        if hasattr(module, "max_seq_length"):
            module.max_seq_length = arguments.max_length
    static = arguments.queries == "idf"
    loss = losses.SpladeLoss(
        model,
        loss=losses.SparseMultipleNegativesRankingLoss(model),
        document_regularizer_weight=LAMBDA["documents"],
        query_regularizer_weight=None if static else LAMBDA["queries"],
    )
    settings = SparseEncoderTrainingArguments(
        output_dir=str(folder),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=2e-5,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=arguments.device == "cpu",
        bf16=arguments.precision == "bfloat16",
        dataloader_pin_memory=False,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        **({"router_mapping": {"anchor": "query", "positive": "document"}} if static else {}),
    )
    trainer = SparseEncoderTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_list(pairs),
        loss=loss,
        callbacks=[Clock()],
    )
    trainer.remove_callback(transformers.PrinterCallback)

    def train() -> list[float]:
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    return train


def prepare_ours(
    pairs: list[dict[str, str]], folder: Path, clock: list[float], arguments: argparse.Namespace
) -> Any:
    """Our trainer on one batch."""
    from sparse_ir.training import pipeline
    from sparse_ir.training.configuration import config_parser
    from sparse_ir.training.configuration.config import VERSION
    from sparse_ir.training.loop.trainer import Trainer

    class Clocked(Trainer):
        def take_step(self, step: int) -> dict[str, float]:
            facts = super().take_step(step)
            clock.append(time.perf_counter())
            return facts

    path = folder / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps({"query": pair["anchor"], "positive": pair["positive"]}) + "\n"
            for pair in pairs
        )
    )
    ramp = max(arguments.steps // 3, 1)  # the peer's own schedule
    sides = {
        name: {"penalty": "flops", "weight": weight, "ramp_steps": ramp}
        for name, weight in LAMBDA.items()
    }
    if arguments.queries == "idf":
        sides["queries"] = {"penalty": "none"}
    config = config_parser.parse_config(
        {
            "version": VERSION,
            "model": {
                "start": str(arguments.model),
                "query": arguments.queries,
                "max_length": arguments.max_length,
                "query_max_length": arguments.max_length,
            },
            "data": [{"path": str(path)}],
            "batch": {
                "queries": arguments.batch,
                **({"micro_batch": arguments.micro_batch} if arguments.micro_batch else {}),
            },
            "loss": [{"name": "info_nce"}],
            **sides,
            "optimizer": {"learning_rate": 2e-5, "schedule": "constant", "max_grad_norm": 1.0},
            "run": {
                "steps": arguments.steps,
                "precision": arguments.precision,
                "log_every": 1,
                "tensorboard": False,
                "save_every": arguments.steps,
            },
        }
    )
    trainer = Clocked(config, pipeline.read_sources(config), folder / "run")

    def train() -> list[float]:
        trainer.run()
        lines = (folder / "run" / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    return train


def as_sparse_encoder(model: str, folder: Path, arguments: argparse.Namespace) -> str:
    """The masked LM in the layout that both read: siamese, or a router with
    static query weights.
    """
    from sparse_ir.models import idf
    from sparse_ir.models.encoder import Encoder

    without_dropout(Path(model) / "config.json")
    encoder = Encoder.load(model, device="cpu")
    weights = None
    if arguments.queries == "idf":
        from sparse_ir.models.encoder import load_tokenizer

        weights = idf.compute_idf(read_texts(arguments), load_tokenizer(model))
    encoder.save(folder, query_weights=weights)
    return str(folder)


def without_dropout(path: Path) -> None:
    """Switch dropout off, so that the losses can be compared."""
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        (
            f"{result['batch']} pairs a step, documents of at most {result['max_length']} tokens, "
            f"{result['queries']} "
            f"queries, {result['precision']}, {result['device']}, {result['threads']} threads, "
            f"{result['rounds']} rounds "
            f"of {result['steps']} steps in turn."
        ),
        "",
        (
            "| system | steps/s | speed-up | peak MiB | share | growth MiB | share | loss of the "
            "first and last step |"
        ),
        "|---|" + "---:|" * 7,
    ]
    for row in result["systems"]:
        lines.append(
            f"| {row['system']} | {row['steps_per_second']:.3f} | {row['speedup']:.2f} | "
            f"{row['peak_mib']:.0f} "
            f"| {row['peak_share']:.2f} | {row['growth_mib']:.0f} | {row['growth_share']:.2f} "
            f"| {row['losses'][0]:.4f}, {row['losses'][-1]:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
