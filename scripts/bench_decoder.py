"""Measure what a decoder costs in encoding and in a training step, or estimate it on paper.

    python scripts/bench_decoder.py --size 1b --mode bidirectional --device cuda
    python scripts/bench_decoder.py --estimate

The decoder is randomly initialised. The table has documents and tokens per second of encoding, and
of a training step with LoRA on all linear layers (InfoNCE and FLOPS on ``--batch`` pairs), each the
best of ``--rounds``, and the peak memory of the GPU or of the process. ``--estimate`` measures
nothing: ``estimate`` explains its arithmetic for LoRA and for training the whole network, and it
assumes that several GPUs scale ideally. Sizes are those of Llama 3.2 1B and Llama 3.1 8B, and
smaller ones.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparse_ir.models import loading
from sparse_ir.models.encoder import Encoder
from sparse_ir.training.configuration import config_parser
from sparse_ir.training.encoders import trainable_decoder
from sparse_ir.training.objectives import losses, penalties


class Size(NamedTuple):
    """The dimensions of a Llama."""

    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    vocabulary: int
    tied: bool


SIZES = {
    "tiny": Size(2, 64, 128, 2, 2, 2_048, True),
    "25m": Size(6, 384, 1_024, 6, 2, 32_000, True),
    "1b": Size(16, 2_048, 8_192, 32, 8, 128_256, True),
    "8b": Size(32, 4_096, 14_336, 32, 8, 128_256, False),
}
PEAK = 312e12  # bfloat16 operations a second of an A100
USE = 0.4  # of it; an assumption
LORA = 16


def main() -> None:
    arguments = parse_arguments()
    if arguments.estimate:
        found: dict[str, Any] = {
            f"{size}, {'LoRA' if lora else 'whole'}, {gpus} GPU": estimate(SIZES[size], gpus, lora)
            for size in ("1b", "8b")
            for lora in (True, False)
            for gpus in (1, 8)
        }
    else:
        found = measure(arguments)
    print(as_markdown(found))
    if arguments.estimate:
        print(
            "\nMemory is that of each GPU: a network is not divided. Hours on several GPUs are "
            "those on one, divided "
            "by their number: ideal scaling, without any communication."
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="25m")
    parser.add_argument(
        "--mode", choices=("causal", "echo", "bidirectional"), default="bidirectional"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--tokens", type=int, default=192, help="tokens of a text; echo counts both copies"
    )
    parser.add_argument("--texts", type=int, default=32, help="documents to encode")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a training step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--estimate", action="store_true", help="print the estimate and measure nothing"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def parameters(size: Size) -> tuple[int, int]:
    """Parameters of the network without its adapters, and of LoRA adapters of rank 16 on all linear
    layers.
    """
    keys = size.groups * size.width // size.heads
    shapes = [
        (size.width, size.width),
        (size.width, keys),
        (size.width, keys),
        (size.width, size.width),
        (size.width, size.inner),
        (size.width, size.inner),
        (size.inner, size.width),
    ]
    layers = size.layers * sum(one * other for one, other in shapes)
    tables = size.vocabulary * size.width * (1 if size.tied else 2)
    return layers + tables, size.layers * LORA * sum(one + other for one, other in shapes)


def estimate(
    size: Size,
    gpus: int,
    lora: bool = True,
    queries: int = 32,
    candidates: int = 16,
    tokens: int = 192,
    steps: int = 15_717,
    micro_batch: int = 32,
) -> dict[str, float]:
    """Memory of a GPU and hours of one epoch of MS MARCO (CSPLADE's contrastive stage), on paper.

    * weights: with LoRA 2 bytes a parameter (bfloat16, frozen). The whole network: 16 (float32,
        gradient, two moments)
      and 2 for its copy in bfloat16 under autocast. Adapters: 16 bytes each.
    * activations under gradient checkpointing: a state of 2 x width bytes for each layer and token
        of a micro-batch,
      and one layer at work, 34 x width bytes a token (Korthikanti et al., arXiv 2205.05198).
    * vectors: 4 bytes x vocabulary for each text of the whole batch, four times over (rows,
        gathered rows, gradient,
      penalty); the pooling works in blocks and adds 0.5 GB at most.
    * operations: 2 a parameter and token for a forward pass. Micro-batches cost one without
        gradient, then
      checkpointing two forward passes and a backward one, of the same size where frozen weights get
          no gradient, of
      twice that otherwise: 8 with LoRA, 10 without.
    * hours = operations / (GPUs x 312e12 x 0.4): ideal scaling. Attention (a few percent at 192
        tokens), communication
      and the loading of data are left out.
    """
    network, adapters = parameters(size)
    trained = adapters if lora else 0
    texts = queries * (candidates + 1)
    work = micro_batch * tokens
    parts = {
        "weights_gb": (2 if lora else 18) * network / 1e9,
        "adapters_gb": 16 * trained / 1e9,
        "activations_gb": work * size.width * (2 * size.layers + 34) / 1e9,
        "vectors_gb": 4 * 4 * texts * size.vocabulary / 1e9 + 0.5,
    }
    operations = (
        (8 if lora else 10) * network * steps * (queries * candidates * tokens + queries * 32)
    )
    return {
        "parameters_m": network / 1e6,
        "trained_m": (trained or network) / 1e6,
        **parts,
        "memory_gb": sum(parts.values()),
        "hours_an_epoch": operations / (gpus * PEAK * USE) / 3600,
    }


def make_model(folder: Path, size: Size) -> None:
    """A random Llama with a tokenizer of made-up words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {
        f"w{i}": i for i in range(4, size.vocabulary)
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        intermediate_size=size.inner,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        tie_word_embeddings=size.tied,
        max_position_embeddings=4_096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    size = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as scratch:
        make_model(Path(scratch), size)
        config = config_parser.parse_config(
            {
                "model": {
                    "start": scratch,
                    "query": "neural",
                    "max_length": arguments.tokens,
                    "query_max_length": arguments.tokens,
                    "saved_max_length": arguments.tokens,
                },
                "decoder": {"mode": arguments.mode, "logit_scale": "hidden^-1/4"},
                "lora": {"r": LORA, "base": arguments.precision},
                "data": [{"path": "-"}],
                "run": {"steps": 2},
            }
        )
        words = (arguments.tokens - 12) // 2 if arguments.mode == "echo" else arguments.tokens
        texts = [
            " ".join(
                f"w{4 + (97 * row + 31 * place) % (size.vocabulary - 4)}" for place in range(words)
            )
            for row in range(max(arguments.texts, 2 * arguments.batch))
        ]
        settings = config.decoder.settings(config.model, logit_shift=1.0)  # type: ignore[union-attr]
        encode = Encoder.load(
            scratch,
            decoder=settings,
            precision=arguments.precision,
            device=arguments.device,
            max_length=arguments.tokens,
        ).encode
        found = {
            "encode": timed(lambda: encode(texts[: arguments.texts]), arguments, arguments.texts)
        }
        student = trainable_decoder.open_trainable(config)[1].to(arguments.device)
        found["train step"] = timed(
            lambda: step(student, texts, arguments), arguments, 2 * arguments.batch
        )
    return found


def step(student: Any, texts: list[str], arguments: argparse.Namespace) -> None:
    """Forward, InfoNCE with FLOPS, backward; the optimizer's part is small under LoRA."""
    loading.checkpoint_activations(student.model)
    student.train()
    size = arguments.batch
    vectors = student(student.tokenize_documents(texts[: 2 * size]))
    queries, documents = vectors[:size], vectors[size:]
    allowed = torch.ones((size, size), dtype=torch.bool, device=vectors.device)
    loss = losses.info_nce(
        queries @ documents.t(), torch.arange(size, device=vectors.device), allowed, 1.0
    )
    (loss + 1e-3 * penalties.flops(documents)).backward()
    student.zero_grad(set_to_none=True)


def timed(work: Callable[[], Any], arguments: argparse.Namespace, texts: int) -> dict[str, float]:
    """The best of several rounds after one warm-up round."""
    on_gpu = arguments.device.startswith("cuda")
    work()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "texts_per_second": texts / min(seconds),
        "tokens_per_second": texts * arguments.tokens / min(seconds),
        "peak_mib": peak / 2**20,
    }


def as_markdown(found: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(found.values())))
    lines = [
        f"| | {' | '.join(name.replace('_', ' ') for name in columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    lines += [
        f"| {name} | {' | '.join(f'{row[column]:,.1f}' for column in columns)} |"
        for name, row in found.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
