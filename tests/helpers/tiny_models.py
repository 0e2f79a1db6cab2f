"""Random masked language models, two layers and 32 wide, with tokenizers trained on a few
sentences.

Nothing is downloaded: a configuration, a seed and ``SENTENCES`` give the same model on every
machine. Weights are drawn wide (``initializer_range`` 0.3) and the output bias is shifted, so that
vectors are sparse as SPLADE's are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "modernbert")
WIDTH = 32
MAX_LENGTH = 48

SENTENCES = (
    "The river floods the lower valley every spring after the snow has melted.",
    "A vaccine against the virus was tested on four hundred volunteers last winter.",
    "Interest rates rose again, and the market for new houses slowed down.",
    "What is the capital city of France, and how many people live there?",
    "Bees carry pollen from one flower to the next while they look for nectar.",
    "The court ruled that the contract was void because nobody had signed it.",
    "Steel bridges expand in summer heat; engineers leave gaps for that reason.",
    "She plays the violin in an orchestra and teaches children on Saturdays.",
    "How do I reset the password of my router without losing the settings?",
    "Old maps show an island that no sailor has ever been able to find.",
    "Proteins fold into shapes that decide which molecules can bind to them.",
    "Trains between the two cities leave every hour, but not on holidays.",
    "Does drinking coffee in the evening change how deeply people sleep?",
    "Farmers rotate beans and wheat so that the soil keeps its nitrogen.",
    "The telescope recorded a faint signal from a galaxy near the horizon.",
    "Memory errors in the kernel were fixed by a patch of seven lines.",
)

TEXTS = (
    *SENTENCES[:6],
    "flower",
    "",
    "a valley of bees, and of bees",
    " ".join(SENTENCES[6:]),
    "an unseen wörd: Ω≈ç√ 日本 zyzzyva 12345",
)


def build(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    extra_outputs: int = 0,
    unused_tokens: int = 0,
) -> Path:
    """Save a random masked LM of the family with its tokenizer, in the plain layout; returns
    ``folder``.

    ``extra_outputs`` makes the head wider than the tokenizer, as vocabularies padded to a multiple
    of 64 are. ``unused_tokens`` makes both wider, by tokens that no text holds.
    """
    tokenizer = _TOKENIZERS[family]()
    width = len(tokenizer) + extra_outputs + unused_tokens
    model = _random_model(family, width, tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_unused_tokens(folder, unused_tokens)
    return folder


def add_unused_tokens(folder: Path, count: int) -> None:
    """Write tokens that no text holds into the vocabulary of a WordPiece or BPE tokenizer."""
    if count == 0:
        return
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = rules["model"]["vocab"]
    start = len(vocabulary)
    for token_id in range(start, start + count):
        vocabulary[f"<unused {token_id}>"] = token_id
    path.write_text(json.dumps(rules), encoding="utf-8")


def build_backbone(source: Path, folder: Path) -> Path:
    """The network of ``source`` without its output layer."""
    transformers.AutoModel.from_pretrained(source).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def build_cross_encoder(source: Path, folder: Path) -> Path:
    """A pair scorer with one label, its head drawn at random once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=1
        )
        model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def build_monot5(folder: Path) -> Path:
    """A random T5 with T5's kind of tokenizer, in which "true" and "false" are tokens."""
    tokenizer = _t5_tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        initializer_factor=3.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _random_model(family: str, vocabulary_size: int, tokenizer: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = _CONFIGS[family](vocabulary_size, tokenizer)
        model = transformers.AutoModelForMaskedLM.from_config(config).eval()
        bias = model.get_output_embeddings().bias
        with torch.no_grad():
            bias.copy_(torch.randn(vocabulary_size) * 0.5 - 4.0)
    return model


def _wordpiece() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # the trainer numbers them by chance
    letters = sorted(set(_train_word_pieces(0, special)) - set(special))
    tokenizer = _empty_word_pieces(_train_word_pieces(300, [*special, *letters]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _train_word_pieces(size: int, first_tokens: list[str]) -> dict[str, int]:
    tokenizer = _empty_word_pieces({})
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=first_tokens, show_progress=False
        ),
    )
    return tokenizer.get_vocab()


def _empty_word_pieces(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _byte_level_bpe() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _roberta_style(tokenizer)


def _unigram() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return _roberta_style(tokenizer)


def _t5_tokenizer() -> Any:
    """Unigram pieces behind a mark for each space, as T5 has them, with "true" and "false" among
    them.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    answers = ["Query: is it true or false? Document: true, false, true. Relevant: false"] * 20
    tokenizer.train_from_iterator(
        [*SENTENCES, *answers],
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _roberta_style(tokenizer: Tokenizer) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def _bert_config(vocabulary_size: int, tokenizer: Any) -> Any:
    return transformers.BertConfig(
        vocab_size=vocabulary_size,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=64,
        **_SMALL,
    )


def _distilbert_config(vocabulary_size: int, tokenizer: Any) -> Any:
    return transformers.DistilBertConfig(
        vocab_size=vocabulary_size,
        dim=WIDTH,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )


def _roberta_config(vocabulary_size: int, tokenizer: Any) -> Any:
    return transformers.RobertaConfig(
        vocab_size=vocabulary_size,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=66,
        type_vocab_size=1,
        **_SMALL,
    )


def _xlm_roberta_config(vocabulary_size: int, tokenizer: Any) -> Any:
    return transformers.XLMRobertaConfig(
        vocab_size=vocabulary_size,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=66,
        type_vocab_size=1,
        **_SMALL,
    )


def _modernbert_config(vocabulary_size: int, tokenizer: Any) -> Any:
    return transformers.ModernBertConfig(
        vocab_size=vocabulary_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        cls_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        max_position_embeddings=64,
        local_attention=8,
        **_SMALL,
    )


_SMALL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bert": _wordpiece,
    "distilbert": _wordpiece,
    "roberta": _byte_level_bpe,
    "xlm-roberta": _unigram,
    "modernbert": _byte_level_bpe,
}
_CONFIGS: dict[str, Callable[[int, Any], Any]] = {
    "bert": _bert_config,
    "distilbert": _distilbert_config,
    "roberta": _roberta_config,
    "xlm-roberta": _xlm_roberta_config,
    "modernbert": _modernbert_config,
}
