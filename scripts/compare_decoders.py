"""Causal, echo and bidirectional side by side: one small decoder from scratch, the whole road three times.

    python scripts/compare_decoders.py --train data/train/nq-mix data/train/msmarco-sample \\
        --collections data/test/nq-utd data/test/cisi data/test/cranfield --output runs/decoders

A byte-level BPE tokenizer and a random decoder are made, the decoder becomes a language model on the documents of the
pairs (the loss of ``[warm_start] objective = "clm"``), and from there each mode trains for the same number of steps on
the same batches: adaptation (mntp without the mask, else clm), then InfoNCE with FLOPS towards ``--terms``. Then build,
search and evaluate. Everything resumes: run it again after a kill. The model is far too small to be good.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from sparse_ir import data, runs, verbs

MODES = ("causal", "echo", "bidirectional")
SPECIAL = ["<pad>", "<s>", "</s>", "<mask>"]


def main() -> None:
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    start = arguments.output / "start"
    if not (start / "config.json").is_file():
        make_decoder(start, arguments)
    language_model = start
    if arguments.language_steps:
        language_model = train(arguments.output / "language-model", make_config(start, "causal", arguments, "language"))
    found: dict[str, Any] = {}
    for mode in MODES:
        folder = arguments.output / mode
        began = time.perf_counter()
        trained = train(folder, make_config(language_model, mode, arguments, "ranking"))
        found[mode] = {"training_seconds": round(time.perf_counter() - began), **measure(trained, folder, arguments)}
        print(as_markdown(found, arguments.collections), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, help="BEIR folders with pairs")
    parser.add_argument("--collections", nargs="+", required=True, help="BEIR folders to measure on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    for name, default in (("layers", 4), ("width", 256), ("vocabulary", 8192), ("length", 96), ("batch", 16),
                          ("language-steps", 600), ("adaptation-steps", 60), ("ranking-steps", 300), ("terms", 120)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def documents_of(folders: list[str]) -> Iterator[str]:
    for folder in folders:
        yield from (document.contents for document in data.read_documents(folder))


def make_decoder(folder: Path, arguments: argparse.Namespace) -> None:
    """A random Llama with tied output layer, and a tokenizer trained on the documents."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(documents_of(arguments.train), trainers.BpeTrainer(
        vocab_size=arguments.vocabulary, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    owner = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>",
        padding_side="right", model_input_names=["input_ids", "attention_mask"])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
        vocab_size=len(owner), hidden_size=arguments.width, num_hidden_layers=arguments.layers,
        num_attention_heads=max(arguments.width // 64, 1), intermediate_size=3 * arguments.width,
        max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    owner.save_pretrained(folder)
    model.save_pretrained(folder)


def make_config(start: Path, mode: str, arguments: argparse.Namespace, stage: str) -> dict[str, Any]:
    """The run of a stage; the language model is an adaptation and nothing else."""
    warm = arguments.language_steps if stage == "language" else arguments.adaptation_steps
    steps = warm + (1 if stage == "language" else arguments.ranking_steps)
    copies = 2 if mode == "echo" else 1
    frame = 12 if mode == "echo" else 0  # tokens of the echo's template
    return {
        "version": 1,
        "model": {"start": str(start), "query": "neural", "dropout": 0.0,
                  "max_length": copies * arguments.length + frame, "query_max_length": copies * 32 + frame,
                  "saved_max_length": 2 * copies * arguments.length + frame},
        "decoder": {"mode": mode, "logit_scale": "hidden^-1/4", "initial_terms": 4 * arguments.terms},
        "data": [{"path": path} for path in arguments.train],
        "batch": {"queries": arguments.batch},
        "loss": [{"name": "info_nce"}],
        "documents": {"penalty": "flops", "target_terms": float(arguments.terms), "ramp_steps": steps // 2},
        "optimizer": {"learning_rate": 5e-4, "warmup_steps": 20, "max_grad_norm": 1.0},
        "warm_start": {"steps": warm, "learning_rate": 1e-3 if stage == "language" else 5e-4,
                       "objective": "mntp" if mode == "bidirectional" else "clm"},
        "run": {"steps": steps, "seed": 1, "save_every": 50, "log_every": 10, "tensorboard": False,
                **({"stop_after": warm} if stage == "language" else {})},
    }


def train(folder: Path, config: dict[str, Any]) -> Path:
    path = folder.with_suffix(".toml")
    path.write_text(tomli_w.dumps(config), encoding="utf-8")
    runs.train(path, folder, progress=True)
    return folder / "model"


def measure(model: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """nDCG@10 on each collection, terms of documents and documents per second."""
    found: dict[str, Any] = {}
    encoding = []
    for collection in arguments.collections:
        name = Path(collection).name
        index = folder / "indexes" / name
        run = folder / f"{name}.trec"
        encoded = verbs.encode(str(model), collection, folder / "vectors" / name)
        encoding.append((encoded["documents"], encoded["seconds"], encoded["mean_terms"]))
        verbs.index(folder / "vectors" / name, index)
        verbs.search(index, collection, run)
        found[name] = verbs.evaluate(run, collection, measures="nDCG@10")["nDCG@10"]
    documents = sum(count for count, _, _ in encoding)
    found["terms"] = sum(count * terms for count, _, terms in encoding) / documents
    found["documents_per_second"] = documents / sum(seconds for _, seconds, _ in encoding)
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    found["steps"] = json.loads(lines[-1])["step"]
    return found


def as_markdown(found: dict[str, Any], collections: list[str]) -> str:
    names = [Path(collection).name for collection in collections]
    lines = [f"| mode | {' | '.join(names)} | mean | terms |", "|---|" + "---:|" * (len(names) + 2)]
    for mode, row in found.items():
        values = [row[name] for name in names]
        lines.append(f"| {mode} | {' | '.join(f'{value:.3f}' for value in values)} | {sum(values) / len(values):.3f} | "
                     f"{row['terms']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
