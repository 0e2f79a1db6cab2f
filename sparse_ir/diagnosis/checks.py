"""The table of checks: what each one measures, its limits, and the remedy.

A measurement (``diagnosis.measurements``) yields the quantities of one check, and the rules of the
check judge them. The limits were set so that models known to work pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Severity = Literal["fault", "warning"]
USUAL_PROMPTS = ("query: ", "passage: ")


class Rule(NamedTuple):
    """One row of the table."""

    check: str  # rules of one check share a measurement and lead to one finding
    quantity: str
    measures: str
    remedy: str  # {names} are filled in by the measurement
    warning: float | None = None
    fault: float | None = None
    is_lower_worse: bool = False

    def judge(self, value: float) -> Severity | None:
        """The severity of a value; None if it is within the limits."""
        if self._is_beyond(value, self.fault):
            return "fault"
        if self._is_beyond(value, self.warning):
            return "warning"
        return None

    def _is_beyond(self, value: float, limit: float | None) -> bool:
        if limit is None:
            return False
        return value < limit if self.is_lower_worse else value > limit


class Measured(NamedTuple):
    """What a measurement found out about a model."""

    evidence: dict[str, Any]  # for the report
    values: Mapping[str, float]  # quantity -> value; a missing quantity is not judged
    details: Mapping[str, str] = MappingProxyType({})  # fills in the remedies


class Finding(NamedTuple):
    """The result of a check; ``severity`` is None if all is well."""

    name: str
    severity: Severity | None
    evidence: dict[str, Any]
    remedy: str = ""


RULES = (
    Rule(
        check="numbers",
        quantity="not_finite",
        measures="tensors with NaN or infinite values",
        fault=0,
        remedy="Such weights spread to every vector. Take an earlier checkpoint, or train with "
        "optimizer.max_grad_norm, or in bfloat16 instead of float16.",
    ),
    Rule(
        check="numbers",
        quantity="zero_matrices",
        measures="weight matrices of zeros only",
        warning=0,
        remedy="Such a matrix was never trained or never loaded (in an adapter, a zero B changes "
        "nothing). Save the checkpoint again from its training.",
    ),
    Rule(
        check="head",
        quantity="difference_of_two",
        measures="largest difference between two stored output layers that should be tied",
        fault=0,
        remedy="The configuration ties the output layer to the word embeddings, but the file holds "
        "two different tensors, and versions of transformers differ in which one they load. Delete "
        "the wrong tensor, or set tie_word_embeddings to false.",
    ),
    Rule(
        check="head",
        quantity="own_tokens",
        measures="how often a token of a text scores above a token of another text",
        warning=0.75,
        fault=0.6,
        is_lower_worse=True,
        remedy="The output layer scores the words of a text hardly higher than other words, as a "
        "random one does: {cure}.",
    ),
    Rule(
        check="activity",
        quantity="empty",
        measures="share of texts without any term",
        warning=0.0,
        fault=0.25,
        remedy="No logit is above zero: raise the output bias (of a decoder: lower logit_shift), "
        "or adapt the model with a warm start whose loss sees the saturated logits.",
    ),
    Rule(
        check="activity",
        quantity="density",
        measures="share of the vocabulary that a text activates",
        warning=0.2,
        fault=0.5,
        remedy="Vectors are not sparse: train with a penalty, keep only the heaviest terms with "
        "top_k, or (settings of a decoder) set centered to true and raise logit_shift.",
    ),
    Rule(
        check="collapse",
        quantity="mean_cosine",
        measures="mean cosine of texts on different subjects",
        warning=0.6,
        fault=0.85,
        remedy="The model hardly distinguishes texts. The findings sink and always_on name "
        "possible causes; without one, the training collapsed (try a lower learning rate or a "
        "longer ramp of the penalty).",
    ),
    Rule(
        check="sink",
        quantity="share",
        measures="how much more similar texts are because of the tokens that frame them",
        warning=0.1,
        fault=0.2,
        remedy="At the {position}, every text gets the same large terms, and they are pooled: "
        "{cure}.",
    ),
    Rule(
        check="always_on",
        quantity="share",
        measures="share of the weight on tokens that nearly all texts activate without having them",
        warning=0.05,
        fault=0.3,
        remedy="These tokens cost a posting for every document and do not distinguish documents: "
        "train with df_flops or idf_flops, which penalize them more. The finding sink may name "
        "their cause.",
    ),
    Rule(
        check="truncation",
        quantity="words_of_a_document",
        measures="words of a long document that are read",
        warning=150,
        fault=50,
        is_lower_worse=True,
        remedy="The end of an ordinary passage is never seen: {document_cure}.",
    ),
    Rule(
        check="truncation",
        quantity="words_of_a_query",
        measures="words of a long query that are read",
        warning=32,
        fault=12,
        is_lower_worse=True,
        remedy="The end of a long question is never seen: {query_cure}.",
    ),
    Rule(
        check="padding",
        quantity="in_a_batch",
        measures="smallest cosine of a text alone and in a batch",
        warning=0.999,
        fault=0.99,
        is_lower_worse=True,
        remedy="The network ignores its attention mask, so vectors depend on the batch: encode one "
        "text at a time (tokens_per_batch=1), or take another network.",
    ),
    Rule(
        check="padding",
        quantity="as_the_tokenizer_pads",
        measures="smallest cosine of a text alone and in a batch padded on the tokenizer's side",
        warning=0.999,
        is_lower_worse=True,
        remedy="Libraries that pad on the left without position ids compute other vectors than "
        "this one: set padding_side to 'right' in tokenizer_config.json.",
    ),
    Rule(
        check="padding",
        quantity="missing_pad_tokens",
        measures="1 if the tokenizer has no padding token",
        warning=0,
        remedy="The tokenizer has no padding token, so other libraries cannot batch texts: set one "
        "in tokenizer_config.json.",
    ),
    Rule(
        check="prompts",
        quantity="unreadable",
        measures="1 if config_sentence_transformers.json cannot be read",
        fault=0,
        remedy="Repair the file, or delete it and set the prompts of the model card yourself.",
    ),
    Rule(
        check="prompts",
        quantity="ignored",
        measures="prompts that config_sentence_transformers.json states and that are not set",
        fault=0,
        remedy="config_sentence_transformers.json names the prompts that the model was trained "
        "with: set document_prompt and query_prompt to them.",
    ),
    Rule(
        check="prompts",
        quantity="gain",
        measures="gain of mean reciprocal rank by the usual prompts",
        warning=0.15,
        fault=0.25,
        remedy="Questions find their passages better with the prompts {usual_prompts}: set "
        "query_prompt and document_prompt to them, or to those of the model card.",
    ),
    Rule(
        check="prompts",
        quantity="named_in_card",
        measures="prompts that the model card mentions while none is set",
        warning=0,
        remedy="The model card mentions prompts, but none is set: if the model was trained with "
        "them, set document_prompt and query_prompt.",
    ),
    Rule(
        check="quantization",
        quantity="texts_emptied",
        measures="texts whose impacts all round to 0",
        fault=0,
        remedy="One outlying weight sets the scale of all: choose a scale (index --scale), or take "
        "more bits (--bits 12). The finding always_on may name the token.",
    ),
    Rule(
        check="quantization",
        quantity="vanished",
        measures="share of the weights that round to 0",
        warning=0.25,
        fault=0.5,
        remedy="One outlying weight sets the scale of all: choose a scale (index --scale), or take "
        "more bits (--bits 12). The finding always_on may name the token.",
    ),
    Rule(
        check="retrieval",
        quantity="mean_reciprocal_rank",
        measures="mean reciprocal rank of the passages of 16 questions; chance gives .21",
        warning=0.5,
        fault=0.35,
        is_lower_worse=True,
        remedy="Questions do not find their passages. See the other findings; without one, the "
        "model is untrained.",
    ),
)


def judge(check: str, measured: Measured, rules: Sequence[Rule] = RULES) -> Finding:
    """The finding of a check: by its first rule that says fault, or else warning."""
    finding = Finding(check, None, measured.evidence)
    for rule in rules:
        if rule.check != check or rule.quantity not in measured.values:
            continue
        severity = rule.judge(measured.values[rule.quantity])
        if severity == "fault" or (severity == "warning" and finding.severity is None):
            remedy = rule.remedy.format(**measured.details)
            finding = Finding(check, severity, measured.evidence, remedy)
        if severity == "fault":
            break
    return finding
