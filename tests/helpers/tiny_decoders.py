"""Random decoders, two layers and 32 wide, with byte-level and sentencepiece-like tokenizers
trained on the spot.

Nothing is downloaded: a configuration, a seed and the sentences of ``tiny_models`` give the same
model everywhere. The families differ in what matters to an encoder: positions (rotary, learned,
learned with an offset), attention (grouped, sliding), logits (plain, with bias, capped, scaled),
tied and untied output layers, and BOS or none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_models
import torch
import transformers
from tiny_models import SENTENCES
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "gpt2", "opt", "phi", "granite")
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
POSITIONS = 256
STRANGE = ["\n\n", "\t", "▁▁", "\u2028", "\u3000x", "\u241b", "a b", "\x1c", "\x85", "<0x0A"]

TEXTS = (
    *SENTENCES[:5],
    "flower",
    "a valley of bees, and of bees",
    " ".join(SENTENCES[6:8]),
    "an unseen wörd: Ω≈ç√ 日本 🙂\n\tzyzzyva 12345",
)


def build(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    tokenizer: str | None = None,
    extra_outputs: int = 0,
    unused_tokens: int = 0,
    **changes: Any,
) -> Path:
    """Save a random decoder of the family with its tokenizer and nothing else; returns ``folder``.

    ``extra_outputs`` and ``unused_tokens`` are those of ``tiny_models.build``.
    """
    owner = TOKENIZERS[tokenizer or _TOKENIZER_OF[family]]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = make_config(family, len(owner) + extra_outputs + unused_tokens, **changes)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    owner.save_pretrained(folder)
    tiny_models.add_unused_tokens(folder, unused_tokens)
    return folder


def make_config(family: str, vocabulary_size: int, **changes: Any) -> Any:
    """The configuration of a family."""
    classes, options = _CONFIGS[family]
    return classes(vocab_size=vocabulary_size, **{**options, **changes})


def byte_level(bos: bool) -> Any:
    """Like the tokenizer of GPT-2; with ``bos`` like that of Llama 3, which
    puts BOS before a text.
    """
    tokenizer = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _owner(tokenizer, bos)


def byte_fallback_bpe() -> Any:
    """Like the tokenizer of Llama 2 and Mistral: sentencepiece's BPE, unknown characters as bytes,
    BOS.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = _sentencepiece_decoder()
    # words apart in training, as sentencepiece keeps them
    split = Tokenizer(models.BPE(unk_token="<unk>"))
    split.normalizer, split.pre_tokenizer = (
        tokenizer.normalizer,
        pre_tokenizers.Split("▁", "merged_with_next"),
    )
    split.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    rules, trained = json.loads(tokenizer.to_str()), json.loads(split.to_str())
    rules["added_tokens"] = trained["added_tokens"]
    rules["model"].update(vocab=trained["model"]["vocab"], merges=trained["model"]["merges"])
    for piece in _byte_pieces():
        rules["model"]["vocab"][piece] = len(rules["model"]["vocab"])
    return _owner(Tokenizer.from_str(json.dumps(rules)), bos=True)


def byte_fallback_unigram() -> Any:
    """Like the tokenizer of Gemma, with a Unigram model and white space that its makers added as
    tokens.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(
            vocab_size=260, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
    )
    rules = json.loads(tokenizer.to_str())
    rules["model"]["vocab"] += [[piece, -30.0] for piece in _byte_pieces()]
    rules["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    tokenizer.decoder = _sentencepiece_decoder(strip=False)
    tokenizer.add_tokens(STRANGE)
    return _owner(tokenizer, bos=True)


def _byte_pieces() -> list[str]:
    return [f"<0x{number:02X}>" for number in range(256)]


def _sentencepiece_decoder(strip: bool = True) -> Any:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _owner(tokenizer: Tokenizer, bos: bool) -> Any:
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=10**30,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def measure_growth(prepare: str, work: str, **environment: str) -> tuple[float, str]:
    """MiB by which the peak of a fresh process's memory rises in ``work`` over what it holds after
    ``prepare``.

    Both are code; ``SENTENCES`` and ``torch``, on one thread, are there. Also what the code
    printed.
    """
    code = "\n".join(
        [
            _MEASURED.format(tests=str(Path(__file__).parent)),
            prepare,
            "before = mib('VmRSS')",
            "Path('/proc/self/clear_refs').write_text('5')",
            work,
            "print(mib('VmHWM') - before)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    *printed, growth = done.stdout.split("\n")[:-1]
    return float(growth), "\n".join(printed)


_MEASURED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import tiny_models
from tiny_models import SENTENCES

def mib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))
"""
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
    **_ENDS,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 8}
_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {**_GROUPED, "tie_word_embeddings": False}),
    "mistral": (transformers.MistralConfig, {**_GROUPED, "sliding_window": 16}),
    "qwen3": (transformers.Qwen3Config, {**_GROUPED, "tie_word_embeddings": True}),
    "gemma2": (
        transformers.Gemma2Config,
        {**_GROUPED, "final_logit_softcapping": 5.0, "sliding_window": 16},
    ),
    "gpt2": (
        transformers.GPT2Config,
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": POSITIONS,
            "initializer_range": 0.3,
            **_ENDS,
        },
    ),
    "opt": (
        transformers.OPTConfig,
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": POSITIONS,
            "init_std": 0.3,
            **_ENDS,
        },
    ),
    "phi": (transformers.PhiConfig, _SMALL),
    "granite": (transformers.GraniteConfig, {**_GROUPED, "logits_scaling": 2.0}),
    # not bidirectional: a mask of its own, and no attention at all in its first layer
    "gpt_neo": (
        transformers.GPTNeoConfig,
        {
            "hidden_size": 32,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 4,
            "max_position_embeddings": POSITIONS,
            **_ENDS,
        },
    ),
    "mpt": (
        transformers.MptConfig,
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": POSITIONS, **_ENDS},
    ),
    "lfm2": (transformers.Lfm2Config, {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
}
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: byte_level(bos=False),
    "byte-level with BOS": lambda: byte_level(bos=True),
    "byte-fallback BPE": byte_fallback_bpe,
    "byte-fallback Unigram": byte_fallback_unigram,
}
_TOKENIZER_OF = {
    "llama": "byte-level with BOS",
    "mistral": "byte-fallback BPE",
    "qwen3": "byte-level",
    "gemma2": "byte-fallback Unigram",
    "gpt2": "byte-level",
    "opt": "byte-level with BOS",
    "phi": "byte-level",
    "granite": "byte-level",
    "gpt_neo": "byte-level",
    "lfm2": "byte-level",
    "mpt": "byte-level",
}


def center(model, logits):
    """Less the mean over the vocabulary, which is taken before a cap."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    raw = logits if cap is None else torch.atanh(logits / cap) * cap
    raw = raw - raw.mean(-1, keepdim=True)
    return raw if cap is None else torch.tanh(raw / cap) * cap
