"""A network's folder: what it says about itself, read without loading the weights.

The provenance of a folder decides the cache file, so that a teacher whose values are all cached
never loads its network. Loading itself is the work of sentence-transformers and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tokenizers import Tokenizer

from sparse_ir.errors import ConfigError, ModelError, first_line
from sparse_ir.models import model_files, tokenization
from sparse_ir.training.teachers.layouts import check_option

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16"]
# families whose position table begins behind the padding token
_POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
    "roberta",
    "xlm-roberta",
}


@dataclass(frozen=True)
class NetworkOptions:
    """How a teacher runs its network.

    ``max_length`` counts tokens, special ones included; None means what the folder states.
    ``batch_size`` counts texts or pairs of one forward pass; None means 32 on a CPU and 128 on an
    accelerator. ``allow_pickle`` reads the weights of a ``pytorch_model.bin``.
    """

    device: str | None = None
    dtype: Dtype = "float32"
    max_length: int | None = None
    batch_size: int | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class NetworkFolder:
    """A transformers folder and the options for running it, checked and described."""

    path: Path
    device: str
    dtype: Dtype
    max_length: int | None
    batch_size: int
    hidden_size: int
    tokenizer: Tokenizer
    provenance: dict[str, Any]  # JSON-able facts that decide every output
    is_pickled: bool

    def loading_options(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained`` of transformers."""
        import torch

        return {"dtype": getattr(torch, self.dtype), "use_safetensors": not self.is_pickled}

    def check_finite(self, model: torch.nn.Module) -> None:
        """Raise ``ModelError`` if a weight is NaN or infinite."""
        from sparse_ir.models import loading

        loading.check_finite(self.path, model)

    def check_complete(self, class_name: str, unused: str | None = None) -> None:
        """Raise ``ModelError`` if weights are missing, which transformers would draw at random.

        Args:
            class_name: The class of transformers that loads the folder.
            unused: Prefix of weights that the teacher does not use.
        """
        import transformers

        from sparse_ir.models import loading

        try:
            _, report = getattr(transformers, class_name).from_pretrained(
                self.path,
                trust_remote_code=False,
                output_loading_info=True,
                device_map="meta",
                **self.loading_options(),
            )
        except loading.LOADING_ERRORS as error:
            raise ModelError(
                f"{self.path} cannot be loaded by {class_name} ({first_line(error)})"
            ) from error
        missing = sorted(report["missing_keys"])
        if unused is not None:
            missing = [name for name in missing if not name.startswith(unused)]
        if missing:
            raise ModelError(
                f"{self.path} lacks weights ({', '.join(missing[:4])}), which would be random"
            )


def describe_network(
    folder: Path,
    options: NetworkOptions,
    *,
    stated_length: int | None = None,
    lowercase: bool = False,
) -> NetworkFolder:
    """Read configuration and tokenizer and hash all files.

    Args:
        folder: A transformers folder.
        options: How to run it.
        stated_length: Tokens that another file of the model states.
        lowercase: Whether the tokenizer lowers every text first.

    Raises:
        ModelError: The folder holds no network or no weights.
        ConfigError: An option has a value that the network does not support.
    """
    config = model_files.read_config(folder)
    check_option("dtype", options.dtype, get_args(Dtype))
    device = choose_device(options.device)
    batch_size = options.batch_size
    if batch_size is None:
        batch_size = 32 if device == "cpu" else 128
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size} but must be at least 1")
    owner = tokenization.load_hf_tokenizer(folder)
    if stated_length is None:
        stated_length = tokenization.stated_length(owner)
    max_length = _choose_length(config, stated_length, options.max_length)
    tokenizer = tokenization.cut_at(tokenization.rules_of(owner, lowercase), max_length)
    weights = model_files.weight_files(folder, allow_pickle=options.allow_pickle)
    return NetworkFolder(
        path=folder,
        device=device,
        dtype=options.dtype,
        max_length=max_length,
        batch_size=batch_size,
        hidden_size=int(config.get("hidden_size") or config.get("dim") or config.get("d_model", 0)),
        tokenizer=tokenizer,
        provenance={
            "files_sha256": model_files.files_hash(folder, allow_pickle=options.allow_pickle),
            "tokenizer_sha256": tokenization.tokenizer_hash(tokenizer),
            "max_length": max_length,
            "dtype": options.dtype,
        },
        is_pickled=weights[0].suffix != ".safetensors",
    )


def choose_device(device: str | None) -> str:
    """``device``, or by default the accelerator if there is one, else the CPU."""
    import torch

    has_cuda = torch.cuda.is_available()
    if device is None:
        return "cuda" if has_cuda else "cpu"
    if device.startswith("cuda") and not has_cuda:
        raise ConfigError(f"device is {device!r} but must be 'cpu': torch finds no CUDA device")
    return device


def _choose_length(config: Mapping[str, Any], stated: int | None, chosen: int | None) -> int | None:
    """Tokens of a text: ``chosen``, else what is stated, never more than there are positions."""
    capacity = config.get("max_position_embeddings")
    if capacity and config["model_type"] in _POSITIONS_AFTER_PADDING:
        capacity -= config.get("pad_token_id", 1) + 1
    if chosen is None:
        limits = [limit for limit in (stated, capacity) if limit and limit > 0]
        return min(limits, default=None)
    if chosen < 1 or (capacity and 0 < capacity < chosen):
        highest = capacity or "any number"
        raise ConfigError(f"max_length is {chosen} but must be 1 to {highest}")
    return chosen
