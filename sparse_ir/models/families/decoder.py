"""Decoders, and LoRA adapters to them, read by templates as ``sparse_ir.json`` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from sparse_ir.errors import ConfigError, ModelError
from sparse_ir.models import checkpoint_writer, tokenization
from sparse_ir.models.decoder_settings import (
    Activation,
    DecoderSettings,
    Pooling,
    read_decoder_settings,
)
from sparse_ir.models.families.base import (
    BasePrecision,
    Checkpoint,
    Family,
    FolderRequest,
    Layout,
    NeuralSide,
    OpenedLogits,
    SaveRequest,
    StaticSide,
    Vocabulary,
)
from sparse_ir.models.families.transformer_config import check_reading, refuse_options
from sparse_ir.models.model_files import (
    ADAPTER_FILE,
    DECODER_FILE,
    first_module_path,
    is_sparse_encoder,
    read_config,
    read_object,
    resolve_folder,
    weights_hash,
)
from sparse_ir.models.reading import TemplateReader, TextReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparse_ir.models.encoder_options import EncoderOptions

_ALL_LOGITS = {"text": {"logits_to_keep": 0}}


@dataclass(frozen=True)
class Decoder(Family):
    """A decoder with the settings that say how it reads a text."""

    settings: DecoderSettings

    transformer_task = "text-generation"

    @property
    def kind(self) -> str:
        """What reports call such a model."""
        return f"decoder, {self.settings.mode}"

    @property
    def remedy_for_special_tokens(self) -> str:
        """What helps when special tokens give all texts the same terms."""
        return "set bos to false, or pooled to 'text'"

    @property
    def forward_options(self) -> Mapping[str, bool]:
        """No cache, because nothing is generated."""
        return {"use_cache": False}

    @classmethod
    def read_folder(cls, request: FolderRequest) -> Checkpoint | None:
        """Describe a folder with ``sparse_ir.json``, an adapter, or settings of the user."""
        folder = request.folder
        if request.decoder is not None:
            settings = _complete(folder, request.decoder)
        else:
            stored = read_decoder_settings(folder)
            if stored is None:
                _refuse_silent_adapter(folder)
                return None
            settings = stored
        return _describe(request, settings)

    @classmethod
    def from_transformer_config(
        cls, path: Path, config: Mapping[str, Any], pooling: Pooling, activation: Activation
    ) -> Decoder:
        """Read the settings of sentence-transformers, which pools what its tokenizer gives."""
        if config.get("module_output_name") != "token_embeddings":
            raise ModelError(
                f"{path}: transformer_task is 'text-generation', so module_output_name must be "
                f"'token_embeddings', not {config.get('module_output_name')!r}"
            )
        check_reading(path, config)
        options = config.get("processing_kwargs") or {}
        _check_processing(path, options)
        refuse_options(path, config, [])
        bos = options["text"].get("add_special_tokens", True)
        return cls(DecoderSettings(pooled="all", bos=bos, pooling=pooling, activation=activation))

    def fingerprint(self, side: NeuralSide) -> dict[str, Any]:
        """The settings and the template of this side."""
        return {"decoder": asdict(self.settings), "template": side.template}

    def make_reader(
        self,
        tokenizer: Tokenizer,
        side: NeuralSide,
        max_length: int | None,
        limit_name: str = "max_length",
    ) -> TextReader:
        """Return a reader by the template of the side."""
        return TemplateReader(tokenizer, self.settings, side.template, max_length, limit_name)

    def vocabulary(self, tokenizer: Tokenizer, size: int) -> Vocabulary:
        """Return one column per token, or per folded term."""
        if not self.settings.fold_tokens:
            return super().vocabulary(tokenizer, size)
        names, term_of_token = tokenization.fold_vocabulary(tokenizer, size)
        return Vocabulary(names, term_of_token)

    def load(self, side: NeuralSide, options: EncoderOptions) -> PreTrainedModel:
        """Load the network in its final type, because it is large.

        Its rotary tables must stay in float32, which a later conversion would round.
        """
        from sparse_ir.models import adapters, encoder_options

        bits = encoder_options.BITS.get(options.precision)
        dtype = options.trunk_dtype
        if bits is None:
            model = adapters.load_decoder(side, options.allow_pickle, dtype=dtype)
            return model.to(device=options.device)
        quantization = adapters.quantization(bits, options.device)
        return adapters.load_decoder(side, options.allow_pickle, dtype=dtype, **quantization)

    def place(self, model: PreTrainedModel, options: EncoderOptions) -> None:
        """Do nothing; ``load`` has placed the network."""

    def load_for_training(
        self, side: NeuralSide, *, allow_pickle: bool, base: BasePrecision
    ) -> tuple[PreTrainedModel, list[str]]:
        """Load the network in the precision ``base``."""
        import torch

        from sparse_ir.models import adapters, encoder_options

        if base == "float32":
            return adapters.load_decoder(side, allow_pickle, dtype=torch.float32), []
        options: dict[str, Any] = {"dtype": torch.bfloat16}
        bits = encoder_options.BITS.get(base)
        if bits is not None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            options |= adapters.quantization(bits, device)
        return adapters.load_decoder(side, allow_pickle, **options), []

    def open_logits(
        self, model: PreTrainedModel, tokenizer: Tokenizer, side: NeuralSide
    ) -> OpenedLogits:
        """Switch the attention to the mode, and off what the network does to its logits."""
        import copy

        from sparse_ir.models import attention, loading
        from sparse_ir.models.logits import LogitTransform

        config = copy.deepcopy(model.config)
        network = loading.disable_output_scaling(model, tokenizer, side.folder)
        attention.set_attention(model, tokenizer, self.settings, side.folder)
        scale = self.settings.scale_for(config.get_text_config().hidden_size)
        transform = LogitTransform(scale, network, self.settings.centered)
        return OpenedLogits(config, transform, self.settings.logit_shift)

    def choose_layout(
        self, layout: Layout | None, *, weights_given: bool, weights_stored: bool
    ) -> Layout:
        """Return "causal-lm", the only layout that can say how a decoder reads a text."""
        if layout not in (None, "causal-lm") or weights_given:
            raise ConfigError(
                "a decoder must be saved in the layout 'causal-lm' without query_weights: other "
                "layouts cannot say how it reads a text"
            )
        return "causal-lm"

    def save(self, folder: Path, request: SaveRequest) -> None:
        """Write the network and ``sparse_ir.json``."""
        prompts = request.prompts or {}
        settings = replace(
            self.settings,
            document_prompt=prompts.get("document", ""),
            query_prompt=prompts.get("query", ""),
            top_k=request.top_k,
            max_length=request.max_length or self.settings.max_length,
        )
        checkpoint_writer.write_causal_lm(
            folder, request.model, request.hf_tokenizer, settings, request.dtype
        )


def _refuse_silent_adapter(folder: Path) -> None:
    if not (folder / ADAPTER_FILE).is_file():
        return
    config = read_object(folder / ADAPTER_FILE, required=True)
    mapping = config.get("auto_mapping")
    base = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else ""
    if base.endswith("ForMaskedLM"):
        raise ModelError(
            f"{folder} is an adapter to a masked language model ({base}), which is not supported; "
            "merge it into its base (merge_and_unload of peft) and save the whole model"
        )
    raise ModelError(
        f"{folder} is an adapter, and nothing says how its decoder reads a text (causal, "
        f"echo, bidirectional ...); give decoder=..., or put {DECODER_FILE} beside "
        f"{ADAPTER_FILE}"
    )


def _complete(folder: Path, settings: DecoderSettings) -> DecoderSettings:
    """Fill in prompts and top_k of a user's settings from a folder of sentence-transformers."""
    if not (folder / "modules.json").is_file():
        return settings
    place = folder / first_module_path(folder)
    config = read_object(place / "sentence_bert_config.json", required=False)
    if is_sparse_encoder(folder) and config.get("transformer_task") != "text-generation":
        raise ModelError(
            f"{folder} is a sparse encoder by its modules.json, not a decoder; drop decoder=... "
            "(--decoder)"
        )
    stated = read_object(folder / "config_sentence_transformers.json", required=False)
    prompts = stated.get("prompts") or {}
    return replace(
        settings,
        document_prompt=settings.document_prompt or prompts.get("document") or "",
        query_prompt=settings.query_prompt or prompts.get("query") or "",
        top_k=settings.top_k or stated.get("max_active_dims"),
    )


def _describe(request: FolderRequest, settings: DecoderSettings) -> Checkpoint:
    """Describe a decoder, or an adapter together with its base model."""
    place = request.folder
    if (place / "modules.json").is_file():
        place = place / first_module_path(place)
    adapter = None
    base = place
    if (place / ADAPTER_FILE).is_file():
        adapter = place
        base = _find_base(place, request.allow_pickle)
    read_config(base)
    document = NeuralSide(
        base,
        Decoder(settings),
        settings.pooling,
        settings.activation,
        settings.max_length,
        template=settings.template("document"),
        adapter=adapter,
    )
    query: NeuralSide | StaticSide = replace(document, template=settings.template("query"))
    if request.idf_path is not None:
        query = StaticSide(document.tokenizer_folder, request.idf_path)
    return Checkpoint(
        request.name,
        request.folder,
        request.revision,
        "causal-lm",
        document=document,
        query=query,
        document_prompt=settings.document_prompt,
        query_prompt=settings.query_prompt,
        top_k=settings.top_k,
        idf_path=request.idf_path,
        prompts={"document": settings.document_prompt, "query": settings.query_prompt},
    )


def _find_base(folder: Path, allow_pickle: bool) -> Path:
    """Return the folder of the base model that an adapter names.

    It is looked for beside the adapter, at the path itself, and on the hub. Raises ``ModelError``
    when it is missing or has other weights than those that the adapter was trained on.
    """
    path = folder / ADAPTER_FILE
    config = read_object(path, required=True)
    stated = config.get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated:
        raise ModelError(
            f"{path} names no base_model_name_or_path, the model that the adapter belongs to"
        )
    places = [str(place) for place in (folder / stated, Path(stated)) if place.is_dir()]
    try:
        if places:
            base, _ = resolve_folder(places[0], None, allow_pickle)
        else:
            base, _ = resolve_folder(stated, config.get("revision"), allow_pickle)
    except ModelError as error:
        raise ModelError(
            f"{path}: the base model cannot be found ({error}); base_model_name_or_path must be "
            "its place"
        ) from error
    expected = read_object(folder / DECODER_FILE, required=False).get("base_sha256")
    if expected is not None and expected != weights_hash(base, allow_pickle=allow_pickle):
        raise ModelError(
            f"{folder} was trained on other weights than those in {base}; give the base model of "
            f"its training, or drop base_sha256 from {DECODER_FILE} if you mean this one"
        )
    return base


def _check_processing(path: Path, options: Mapping[str, Any]) -> None:
    """Raise ``ModelError`` unless all logits of a text are kept."""
    text = options.get("text") or {}
    if not isinstance(text, dict) or text.get("logits_to_keep", 1) != 0:
        raise ModelError(
            f"{path}: without processing_kwargs {_ALL_LOGITS} the decoder pools the last token "
            "only, which is not supported"
        )
    unknown = (set(options) - {"text"}) | (set(text) - {"logits_to_keep", "add_special_tokens"})
    if unknown or not isinstance(text.get("add_special_tokens", True), bool):
        raise ModelError(
            f"{path}: processing_kwargs is {options}; for a decoder it must hold logits_to_keep 0 "
            "and add_special_tokens (true or false) of text"
        )
