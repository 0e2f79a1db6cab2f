"""Training: one loop over steps, on one device or several (accelerate), that can be killed and goes
on bit for bit.

Everything random is a function of (seed, step, device), and so are batch and learning rate; a
checkpoint therefore holds weights, optimizer moments and a few numbers, and nothing needs
replaying. A step sees the whole batch of all devices: vectors are gathered before any loss, so that
one device x 32, four x 8, and micro-batches give the same loss.

Q queries, D documents of the whole batch, V vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sparse_ir import extras
from sparse_ir.errors import ConfigError, DamagedError, DataError, TrainingError
from sparse_ir.models import loading, static_queries
from sparse_ir.models.idf import compute_idf
from sparse_ir.storage import files
from sparse_ir.training import (
    dev_sets,
    losses,
    penalties,
    saved_state,
    trainable_decoder,
    trainable_encoder,
    warm_start,
)
from sparse_ir.training.batches import Batch, Batches
from sparse_ir.training.config import BlendSettings, PenaltySettings, TrainConfig
from sparse_ir.training.config_parser import config_to_json, format_config
from sparse_ir.training.controller import TOLERANCE, Governor, Guard
from sparse_ir.training.dev_sets import DevSet
from sparse_ir.training.language_model import Packed
from sparse_ir.training.pairs import Source, is_blank
from sparse_ir.training.saved_state import TENSORS, WEIGHTS, Log
from sparse_ir.training.trainable_decoder import DecoderStudent
from sparse_ir.training.trainable_encoder import Start, TokenWeights

_SAVED = {"float32": torch.float32, "float16": torch.float16, "float8": torch.float8_e4m3fn}
_SAMPLE = 8  # documents of each source that show a new output layer what states look like
_FREQUENCY_MEMORY = 0.99
# steps, and texts of the batch that are then read as the saved model would
_READ_EVERY, _READ = 2, 8
# the last batches, and texts of each, on which the saved model's terms are counted
_COUNTED_BATCHES, _COUNTED = 4, 32


class Teacher(Protocol):
    """What training asks of a teacher; ``teachers`` has them. None in its place means the scores of
    the file.
    """

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that decide the scores."""

    def scores(
        self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray
    ) -> np.ndarray:
        """float32 ``[Q, D]``; pairs that are not wanted may be NaN."""


@dataclass
class Progress:
    """What a checkpoint knows besides tensors."""

    step: int = 0
    dev: float | None = None  # the last measure
    best: float | None = None
    best_step: int | None = None


class Trainer:
    """One training run in ``folder``; ``run`` starts it, or goes on with it."""

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[Source],
        folder: Path,
        *,
        teachers: Sequence[tuple[Teacher | None, float]] = (),
        dev: Sequence[DevSet] = (),
    ) -> None:
        with extras.importing():
            import accelerate

        self.config, self.folder, self.dev = config, folder, list(dev)
        self._dev_facts = [
            {"name": each.name, "measure": each.measure, "sha256": files.sha256_of_json(each)}
            for each in dev
        ]
        self._teachers = [teacher for teacher, _ in teachers]
        self._teacher_weights = [weight for _, weight in teachers]
        precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[config.run.precision]
        if precision == "fp16" and not torch.cuda.is_available():
            raise ConfigError(
                "run.precision is 'float16', which needs a GPU; allowed here: "
                "'float32' and 'bfloat16'"
            )
        # else the precision of an earlier run would hold for this one
        accelerate.state.AcceleratorState._reset_state()
        self.accelerator = accelerate.Accelerator(
            mixed_precision=precision, cpu=not torch.cuda.is_available()
        )
        # one without a text would wait for ever
        if (world := self.accelerator.num_processes) > config.batch.queries:
            raise ConfigError(
                f"batch.queries is {config.batch.queries} with {world} processes; "
                "allowed: at least one "
                "for each process"
            )
        torch.manual_seed(config.run.seed)  # a new output layer may be drawn at random
        self._sample = _sample(sources)
        start, self.student = trainable_decoder.open_student(config)
        if start.grown:
            if config.warm_start.head == "token_vectors":
                warm_start.give_token_vectors(self.student, start.grown, self._sample)
            warm_start.switch_off_special_tokens(self.student)
        elif config.warm_start.head == "token_vectors":
            raise ConfigError(
                f"warm_start.head is 'token_vectors' and {config.model.start} has "
                "an output layer of its "
                "own; allowed: 'tied', which leaves it as it is"
            )
        self._new_head = bool(start.grown) and config.warm_start.head == "token_vectors"
        self.batches = make_batches(config, sources)
        self._check_terms()
        self._packed = self._pack(sources)
        self._prepare_queries(start, sources)
        self.fingerprint = self._fingerprint(start)
        self._prepare_optimizer()
        self.governors = {
            "documents": Governor(config.documents),
            "queries": Governor(config.queries),
        }
        self.guard = Guard(self.student.size)
        self.frequency_V = torch.zeros(self.student.size, device=self.accelerator.device)
        self.progress = Progress()
        self._lift = 0.0  # logits by which the output biases move after this step
        self._drops = trainable_encoder.has_dropout(self.student.model)
        # of the network with which ranking began, where it is kept
        self._start_sha256: str | None = None

    def _check_terms(self) -> None:
        config = self.config
        asked = {
            "[documents] target_terms": config.documents.target_terms,
            "blend.terms": config.blend.terms,
            "[queries] target_terms": config.queries.target_terms,
        }
        for name, terms in asked.items():
            if terms is not None and terms > self.student.size:
                raise ConfigError(
                    f"{name} is {terms}; allowed: up to the {self.student.size} "
                    "tokens of this "
                    "vocabulary"
                )

    def _pack(self, sources: Sequence[Source]) -> Packed | None:
        """The documents of all sources as the sequences by which a decoder adapts, where they are
        to be joined.
        """
        length = self.config.warm_start.packed_length
        if length is None or not self.config.warm_start.steps:
            return None
        assert isinstance(self.student, DecoderStudent)
        texts = [text for source in sources for text in source.documents]
        return self.student.pack(texts, length, self.config.run.seed)

    def _prepare_queries(self, start: Start, sources: Sequence[Source]) -> None:
        def texts() -> Iterator[str]:
            for source in sources:
                yield from source.documents

        settings, rules = self.config.model, self.student.rules
        weights = trainable_encoder.choose_query_weights(start, settings, texts, rules)
        self.query_side: TokenWeights | None = None
        if weights is not None:
            self.query_side = TokenWeights(
                self.student, weights, learned=settings.query == "learned"
            )
            self.query_side.to(self.accelerator.device)
        idf = weights if settings.query in ("idf", "learned") else None
        needs_idf = self.config.warm_start.steps or "idf_flops" in (
            self.config.documents.penalty,
            self.config.queries.penalty,
        )
        if idf is None and needs_idf:
            path = settings.idf
            idf = (
                compute_idf(texts(), rules)
                if path is None
                else static_queries.from_idf_json(Path(path), rules, "opensearch").weights
            )
        self.idf_V = (
            None
            if idf is None
            else TokenWeights(self.student, idf, learned=False)
            .weights_V.detach()
            .to(self.accelerator.device)
        )

    def _prepare_optimizer(self) -> None:
        settings = self.config.optimizer
        if self.config.run.gradient_checkpointing:
            loading.checkpoint_activations(self.student.model)
        self.student.to(self.accelerator.device)
        decayed: list[Tensor] = []
        rest: list[Tensor] = []
        for parameter in filter(lambda each: each.requires_grad, self.student.parameters()):
            (decayed if parameter.ndim > 1 else rest).append(parameter)
        groups = [
            {
                "params": decayed,
                "weight_decay": settings.weight_decay,
                "base": settings.learning_rate,
            },
            {"params": rest, "weight_decay": 0.0, "base": settings.learning_rate},
        ]
        if self.query_side is not None and self.query_side.weights_V.requires_grad:
            groups.append(
                {
                    "params": [self.query_side.weights_V],
                    "weight_decay": 0.0,
                    "base": settings.query_learning_rate or settings.learning_rate,
                }
            )
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.student, optimizer)

    def _fingerprint(self, start: Start) -> dict[str, Any]:
        """What must be equal for a checkpoint to be resumed; how often things are logged or saved
        need not be.
        """
        config = config_to_json(self.config)
        for key in (
            "stop_after",
            "save_every",
            "keep",
            "evaluate_every",
            "log_every",
            "tensorboard",
        ):
            config["run"].pop(key, None)
        for key in ("saved_dtype", "allow_pickle"):
            config["model"].pop(key)
        for teacher in config["teacher"]:
            teacher.pop("allow_pickle")
        for key in ("card", "dev", "blend"):
            config.pop(key, None)
        idf = self.config.model.idf
        return {
            "config": config,
            "start": start.fingerprint,
            "data": self.batches.fingerprint,
            "idf_sha256": None if idf is None else files.sha256_of_file(Path(idf)),
            "teachers": [getattr(teacher, "fingerprint", None) for teacher in self._teachers],
        }

    def run(self, progress: bool = False) -> dict[str, Any]:
        """Train to the last step, or to ``stop_after``; save ``model``, and return a JSON-able
        report.

        Raises ``TrainingError`` for a collapse or a checkpoint of another configuration.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        is_main = self.accelerator.is_main_process
        with saved_state.exclusive(self.folder, is_main):
            self._resume()
            self._settle_buckets()
            first, last = self.progress.step, self._last
            with (
                Log(self.folder, is_main, first, tensorboard=self.config.run.tensorboard) as log,
                tqdm(
                    total=last,
                    initial=first,
                    desc="training",
                    unit=" steps",
                    disable=None if progress and is_main else True,
                ) as bar,
            ):
                for step in range(first, last):
                    facts = self._step(step)
                    self.progress.step = step + 1
                    is_best = self._evaluate_if_due(facts)
                    # a resume drops what comes too early
                    if self._is_due(self.config.run.log_every) or "dev" in facts:
                        log.write(self.progress.step, facts)
                        bar.set_postfix_str(_postfix(facts, self.progress, self.dev))
                    if (
                        is_best
                        or self._is_due(self.config.run.save_every)
                        or self.progress.step == last
                    ):
                        self._save_checkpoint()
                    bar.update()
            return self._finish()

    def _settle_buckets(self) -> None:
        """DistributedDataParallel sums gradients in another order after its first backward: let no
        step have that one.

        Else a run of three processes that went on would differ from one that was never stopped.
        """
        if self.accelerator.num_processes == 1:
            return
        self.wrapped.train()
        torch.manual_seed(0)
        scores_NV = self.wrapped(self.student.tokenize_documents(self._sample[:1]), scores=True)
        self.accelerator.backward((scores_NV * 0.0).sum())
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def _last(self) -> int:
        return self.config.run.stop_after or self.config.run.steps

    def _is_due(self, every: int) -> bool:
        """A stop on the way is none of the run's: it changes neither what is logged nor which step
        is best.
        """
        return self.progress.step % every == 0 or self.progress.step == self.config.run.steps

    def _step(self, step: int) -> dict[str, float]:
        """One update of the weights; returns what is worth logging."""
        warm = self.config.warm_start.steps
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = (
                rate if step < warm else rate * group["base"] / self.config.optimizer.learning_rate
            )
        batch = self.batches.at(step)
        self.student.set_phase(adapting=step < warm)
        if step == warm:
            self._begin_ranking(batch)
        self.wrapped.train()
        facts = self._warm_step(step, batch) if step < warm else self._rank_step(step, batch)
        if self.config.optimizer.max_grad_norm is not None:
            trained = [each for group in self.optimizer.param_groups for each in group["params"]]
            self.accelerator.clip_grad_norm_(trained, self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        if self.query_side is not None:
            self.query_side.clip()
        self.optimizer.zero_grad(set_to_none=True)
        self.student.lift(self._lift)
        self._lift = 0.0
        return {**facts, "learning_rate": rate}

    def _warm_step(self, step: int, batch: Batch) -> dict[str, float]:
        if self.config.warm_start.objective != "bag_of_words":
            return self._adapt_step(step, batch)
        assert self.idf_V is not None
        ids = self.student.tokenize_documents(batch.documents)
        pooled_NV, back = self._represent(step, ids, scores=True)
        loss = warm_start.bag_of_words_loss(pooled_NV, ids, self.idf_V)
        loss.backward()
        back()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: the bag-of-words loss is {value}; lower warm_start.learning_rate"
            )
        return {"bag_of_words_loss": value}

    def _adapt_step(self, step: int, batch: Batch) -> dict[str, float]:
        """One step of a decoder's language-model loss, on documents, and of the same on its
        saturated logits.

        The loss is a sum over predicted tokens, so each device and micro-batch adds its part and
        needs no other.
        """
        assert isinstance(self.student, DecoderStudent)
        settings, rank = self.config.warm_start, self.accelerator.process_index
        sequences = self._sequences(self.student, step, batch)
        examples = self.student.make_examples(
            sequences, settings, _seed_of(self.config.run.seed, step)
        )
        total = sum(example.predicted for example in examples)
        own = [
            examples[row]
            for row in np.array_split(np.arange(len(examples)), self.accelerator.num_processes)[
                rank
            ]
        ]
        # who has no example takes part in the sum of gradients with nothing of his own
        share = 1.0 if own else 0.0
        own = own or examples[:1]
        size = self.config.batch.micro_batch or max(len(own), 1)
        chunks = [own[start : start + size] for start in range(0, len(own), size)]
        sums_2 = torch.zeros(2, device=self.accelerator.device)
        for number, chunk in enumerate(chunks):
            torch.manual_seed(_seed_of(self.config.run.seed, step, rank, number))
            last = number == len(chunks) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                parts_2 = self.wrapped(chunk)
                loss = (parts_2[0] + settings.relu_weight * parts_2[1]) / max(total, 1)
                self.accelerator.backward(share * loss * self.accelerator.num_processes)
            sums_2 += share * parts_2.detach()
        if not total:  # texts of one token predict nothing
            return {}
        plain, saturated = (self.accelerator.reduce(sums_2, "sum") / max(total, 1)).tolist()
        if not math.isfinite(plain + saturated):
            raise TrainingError(
                f"step {step}: the language-model loss is {plain}; lower warm_start.learning_rate"
            )
        return {f"{settings.objective}_loss": plain, f"{settings.objective}_relu_loss": saturated}

    def _sequences(self, model: DecoderStudent, step: int, batch: Batch) -> list[np.ndarray]:
        """Token ids by which a decoder adapts: the next packed sequences, or documents of the
        batch, cut to length.
        """
        if self._packed is None:
            return [ids[: self.config.model.max_length] for ids in model.bare_ids(batch.documents)]
        count = self.config.batch.queries
        return [self._packed.at(number) for number in range(step * count, (step + 1) * count)]

    def _begin_ranking(self, batch: Batch) -> None:
        """Where zero lies for the ReLU of a new output layer, or of a decoder, is decided by a
        batch's own logits.
        """
        terms: int | None = self.config.warm_start.active_terms
        if self.config.decoder is not None:
            terms = self.config.decoder.initial_terms
        elif not (self.config.warm_start.steps or self._new_head):
            terms = None
        if terms is not None:
            self.student.set_terms(batch.documents, terms)
        if self.config.blend.start:
            self._keep_start()

    def _keep_start(self) -> None:
        if self.accelerator.is_main_process:
            self._start_sha256 = saved_state.write_start(self.folder, self.student.write_weights)
        self.accelerator.wait_for_everyone()

    def _check_start(self) -> None:
        """That the network with which ranking began is there, long before the last step asks for
        it.
        """
        if self.config.blend.start and self.progress.step > self.config.warm_start.steps:
            saved_state.find_start(self.folder, self._start_sha256)

    def _blend(self) -> float:
        """Make the saved model of ``[blend]``; the weights in training are gone afterwards.

        Returns the active terms of a document of the sample, as the saved model will encode it.
        """
        settings = self.config.blend
        if settings.start:
            start = saved_state.find_start(self.folder, self._start_sha256)
            self.student.blend_with(start, settings.start, self.accelerator.device)
        if settings.terms is not None:
            self.student.set_terms(self._sample, settings.terms, whole=True)
        return self.student.vectors(self._sample).nnz / len(self._sample)

    def _rank_step(self, step: int, batch: Batch) -> dict[str, float]:
        ranking_step = step - self.config.warm_start.steps
        documents_DV, queries_QV, back = self._represent_batch(step, batch)
        if ranking_step % _READ_EVERY == 0:
            self._read_without_dropout(
                ranking_step, batch, documents_DV.detach(), queries_QV.detach()
            )
        scores_QD = queries_QV @ documents_DV.t()
        self.guard.check_number(step, "score", float(scores_QD.detach().sum()))
        parts = self._ranking_losses(batch, scores_QD)
        facts = {name: float(value.detach()) for name, (value, _) in parts.items()}
        loss = torch.stack([weight * value for value, weight in parts.values()]).sum()
        sides = {"documents": documents_DV, "queries": queries_QV}
        for name, weights_NV in sides.items():
            penalty, noted = self._penalty(name, ranking_step, weights_NV)
            loss = loss + penalty
            facts |= noted
        value = float(loss.detach())
        empty = float((documents_DV.detach() > 0).any(1).logical_not().float().mean())
        self.guard.observe(step, value, facts["documents_terms"], empty)
        loss.backward()
        self._scale_query_gradient()
        back()
        for name in sides:
            self.governors[name].observe(ranking_step, facts[f"{name}_terms"])
        return {"loss": value, **facts}

    def _read_without_dropout(
        self, step: int, batch: Batch, documents_DV: Tensor, queries_QV: Tensor
    ) -> None:
        """The penalty sees texts under dropout, and the saved model reads them without: control is
        by the latter.
        """
        target = self.config.documents.target_terms
        if self._drops or target is not None:
            # positives come first, and negatives may be unlike them
            rows = _spread(len(batch.documents), _READ)
            scores_NV = self._scores(
                self.student.tokenize_documents([batch.documents[row] for row in rows])
            )
            empty = self._compare("documents", scores_NV, documents_DV[rows])
            self.guard.note_without_dropout(empty)
            if target is not None:
                needed = self.accelerator.reduce(
                    -trainable_encoder.threshold_of(scores_NV, target), "mean"
                )
                self._lift = self.governors["documents"].lift(step, float(needed))
        if self._drops and self.query_side is None:
            rows = _spread(len(batch.queries), _READ)
            ids = self.student.tokenize_queries([batch.queries[row] for row in rows])
            self._compare("queries", self._scores(ids), queries_QV[rows])

    @torch.no_grad()
    def _scores(self, ids: Sequence[Any]) -> Tensor:
        self.student.eval()
        scores_NV = self.student(ids, scores=True)
        self.student.train()
        return scores_NV

    def _compare(self, name: str, scores_NV: Tensor, weights_NV: Tensor) -> float:
        """The governor learns how dropout changes the number of terms; returns the share of empty
        texts without it.
        """
        terms_N = (scores_NV > 0).sum(1).float()
        found_2 = torch.stack([terms_N.mean(), (terms_N == 0).float().mean()])
        # rounding must not part processes
        without, empty = self.accelerator.reduce(found_2, "mean").tolist()
        self.governors[name].compare(float((weights_NV > 0).sum(1).float().mean()), without)
        return empty

    def _scale_query_gradient(self) -> None:
        """In float16 the optimizer divides all gradients by the scale that only the network's have
        been given.
        """
        scaler = self.accelerator.scaler
        if (
            scaler is not None
            and self.query_side is not None
            and self.query_side.weights_V.grad is not None
        ):
            self.query_side.weights_V.grad *= scaler.get_scale()

    def _ranking_losses(self, batch: Batch, scores_QD: Tensor) -> dict[str, tuple[Tensor, float]]:
        device = scores_QD.device
        positive_Q = torch.from_numpy(batch.positive_Q).to(device)
        allowed_QD = torch.from_numpy(batch.candidates(self.config.batch.in_batch)).to(device)
        target_QD = self._targets(batch, allowed_QD)  # of no use to InfoNCE
        found: dict[str, tuple[Tensor, float]] = {}
        for loss in self.config.loss:
            if loss.name == "info_nce":
                value = losses.info_nce(scores_QD, positive_Q, allowed_QD, loss.temperature)
            elif loss.name == "kl":
                value = losses.kl_divergence(scores_QD, target_QD, allowed_QD, loss.temperature)
            else:
                value = losses.margin_mse(scores_QD, target_QD, positive_Q, allowed_QD)
            # the same loss may stand there twice, at two temperatures, say
            found[loss.name if loss.name not in found else f"{loss.name}_{len(found)}"] = (
                value,
                loss.weight,
            )
        return found

    def _targets(self, batch: Batch, allowed_QD: Tensor) -> Tensor:
        """The ensemble of all teachers' scores for this batch; zeros without any teacher."""
        if not self._teachers:
            return torch.zeros_like(allowed_QD, dtype=torch.float32)
        settings, device = self.config.ensemble, allowed_QD.device
        found = [
            _teacher_scores(teacher, batch, allowed_QD.cpu().numpy()).to(device)
            for teacher in self._teachers
        ]
        return losses.ensemble(
            found,
            self._teacher_weights,
            settings.scale,
            normalization=settings.normalization,
            allowed_QD=allowed_QD,
        )

    def _penalty(self, name: str, step: int, weights_NV: Tensor) -> tuple[Tensor, dict[str, float]]:
        settings: PenaltySettings = getattr(self.config, name)
        terms = self.governors[name].without_dropout(
            float((weights_NV.detach() > 0).sum(1).float().mean())
        )
        value, weight = weights_NV.new_zeros(()), self.governors[name].weight(step)
        if name == "documents":
            active_V = (weights_NV.detach() > 0).float().mean(0)
            self.frequency_V.mul_(_FREQUENCY_MEMORY).add_(active_V, alpha=1 - _FREQUENCY_MEMORY)
        if settings.penalty == "none" and settings.anti_zero == 0:
            return value, {f"{name}_terms": terms}
        if settings.penalty != "none":
            value = self._penalty_value(settings, step, weights_NV)
        noted = {
            f"{name}_terms": terms,
            f"{name}_penalty": float(value.detach()),
            f"{name}_lambda": weight,
        }
        total = weight * value
        if settings.anti_zero:
            total = total + settings.anti_zero / weights_NV.sum().clamp_min(1e-6) ** 2
        return total, noted

    def _penalty_value(self, settings: PenaltySettings, step: int, weights_NV: Tensor) -> Tensor:
        if settings.penalty == "l1":
            return penalties.l1(weights_NV)
        if settings.penalty == "idf_flops":
            assert self.idf_V is not None
            idf_V = torch.where(self.idf_V > 0, self.idf_V, 1.0)  # special tokens have none
            return penalties.idf_flops(
                weights_NV, idf_V, power=settings.power, exempt_up_to=settings.exempt_up_to
            )
        if settings.penalty == "df_flops":
            known = 1 - _FREQUENCY_MEMORY ** (step + 1)  # the running mean began at zero
            return penalties.df_flops(
                weights_NV,
                (self.frequency_V / known).clamp(max=1.0),
                alpha=settings.alpha,
                beta=settings.beta,
                exempt_up_to=settings.exempt_up_to,
            )
        return penalties.flops(weights_NV, exempt_up_to=settings.exempt_up_to)

    def _represent_batch(
        self, step: int, batch: Batch
    ) -> tuple[Tensor, Tensor, Callable[[], None]]:
        """``[D, V]`` and ``[Q, V]``, and the function that sends their
        gradients into the network.
        """
        ids = self.student.tokenize_documents(batch.documents)
        query_ids = self.student.tokenize_queries(batch.queries)
        if self.query_side is not None:
            documents_DV, back = self._represent(step, ids)
            return documents_DV, self.query_side(query_ids), back
        both, back = self._represent(step, [*ids, *query_ids])
        return both[: len(ids)], both[len(ids) :], back

    def _represent(
        self, step: int, ids: Sequence[np.ndarray], scores: bool = False
    ) -> tuple[Tensor, Callable[[], None]]:
        """This device computes its share of the texts; everybody gets all rows, cut off from the
        network.

        The function that comes with them sends the gradient that the loss has left on them into the
        network.

        With micro-batches the graph is not kept: each is computed once more when its gradient is
        known (GradCache, arXiv 2101.06983), with the same random numbers.
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        shares = np.array_split(np.arange(len(ids)), world)
        own = shares[rank]
        size = self.config.batch.micro_batch or max(len(own), 1)
        chunks = [own[i : i + size] for i in range(0, len(own), size)]
        # the largest share: all decide alike
        kept = len(shares[0]) <= size or not self.config.batch.micro_batch

        def compute(number: int, module: torch.nn.Module) -> Tensor:
            torch.manual_seed(_seed_of(self.config.run.seed, step, rank, number))
            return module([ids[row] for row in chunks[number]], scores=scores).float()

        if kept:
            parts = [compute(number, self.wrapped) for number in range(len(chunks))]
        else:
            with torch.no_grad():
                parts = [compute(number, self.wrapped) for number in range(len(chunks))]
        rows = (
            torch.cat(parts)
            if parts
            else torch.zeros((0, self.student.size), device=self.accelerator.device)
        )
        leaf = rows.detach().requires_grad_(True)
        all_rows = self._gather(leaf, [len(share) for share in shares])

        def back() -> None:
            gradient = leaf.grad
            if gradient is None or not chunks:
                return
            start = 0
            for number, chunk in enumerate(chunks):
                last = number == len(chunks) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                    part = parts[number] if kept else compute(number, self.wrapped)
                    # DistributedDataParallel averages over devices; the gradient is the sum of
                    # their shares
                    wanted = gradient[start : start + len(chunk)] * world
                    self.accelerator.backward((part * wanted).sum())
                start += len(chunk)

        return all_rows, back

    def _gather(self, leaf: Tensor, counts: Sequence[int]) -> Tensor:
        """All devices' rows in order; only this device's own carry gradients."""
        if len(counts) == 1:
            return leaf
        rank = self.accelerator.process_index
        padded = torch.zeros((max(counts), leaf.shape[1]), device=leaf.device)
        padded[: len(leaf)] = leaf.detach()
        gathered = self.accelerator.gather(padded).view(len(counts), max(counts), -1)
        parts = [gathered[i, :count] for i, count in enumerate(counts)]
        parts[rank] = leaf
        return torch.cat(parts)

    def _evaluate_if_due(self, facts: dict[str, float]) -> bool:
        """Whether this is the best step so far; it gets a checkpoint, so that what is best is never
        newer than that.
        """
        due = (
            self._is_due(self.config.run.evaluate_every)
            and self.progress.step > self.config.warm_start.steps
        )
        return self._evaluate(facts) if self.dev and due else False

    def _evaluate(self, facts: dict[str, float]) -> bool:
        """Whether this is the best step so far. While nothing was found at all, that is the last
        one.
        """
        from accelerate.utils import broadcast_object_list

        found = {
            f"dev/{dev.name}": dev_sets.evaluate(self.student, self.query_side, dev)
            for dev in self.dev
        }
        found = broadcast_object_list([found])[0]  # rounding must not make processes part ways
        progress = self.progress
        progress.dev = mean = sum(found.values()) / len(found)
        is_last = progress.step == self.config.run.steps
        is_best = (
            (not progress.best or mean > progress.best)
            if self._is_sparse_enough()
            else is_last and progress.best is None
        )
        if is_best:
            progress.best, progress.best_step = mean, progress.step
        facts |= {**found, "dev": mean}
        return is_best

    def _is_sparse_enough(self) -> bool:
        """Dense models measure better: where a number of terms is asked for, a step is best only
        when it has it.
        """
        target, terms = self.config.documents.target_terms, self.governors["documents"].terms
        return target is None or terms is None or terms <= target * (1 + 2 * TOLERANCE)

    def _save_checkpoint(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            tensors = {"frequency": self.frequency_V, **_moments(self.optimizer)}
            if self.query_side is not None:
                tensors["query_weights"] = self.query_side.weights_V.detach()
            if self._packed is not None:
                tensors["packed_starts"] = torch.tensor(self._packed.starts)
            saved_state.write_checkpoint(
                self._checkpoint(self.progress.step),
                self.student.write_weights,
                tensors,
                {
                    "progress": asdict(self.progress),
                    "fingerprint": self.fingerprint,
                    "governors": {
                        name: governor.state() for name, governor in self.governors.items()
                    },
                    "guard": self.guard.state(),
                    "world": self.accelerator.num_processes,
                    "dev": self._dev_facts,
                    "start_sha256": self._start_sha256,
                },
            )
            saved_state.remove_old_checkpoints(self.folder, self.config.run.keep)
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, step: int) -> Path:
        return saved_state.checkpoint_of(self.folder, step)

    def _resume(self) -> None:
        if self.accelerator.is_main_process:
            files.remove_leftovers_in(self.folder)
        found = saved_state.list_checkpoints(self.folder)
        if found:
            self._restore(found[-1])
            self._check_start()
            self._check_best()
        # what may differ between two calls (stop_after, say) is kept up to date
        if self.accelerator.is_main_process:
            with files.atomic_writer(self.folder / "config.toml") as stream:
                stream.write(format_config(self.config))
        self.accelerator.wait_for_everyone()

    def _restore(self, folder: Path) -> None:
        state = saved_state.read_state(folder)
        saved_state.check_same_run(folder, state, self.fingerprint)
        saved_state.check_files(folder, state)
        tensors = self._read_networks(folder)
        self.frequency_V.copy_(tensors["frequency"])
        if self._packed is not None:
            self._packed.starts = tensors["packed_starts"].tolist()
        _restore_moments(self.optimizer, tensors)
        self.progress = Progress(**state["progress"])
        for name, governor in self.governors.items():
            governor.restore(state["governors"][name])
        self.guard.restore(state["guard"])
        self._start_sha256 = state["start_sha256"]
        if state["dev"] != self._dev_facts:  # best at something else
            self.progress.dev = self.progress.best = self.progress.best_step = None

    def _read_networks(self, folder: Path) -> dict[str, Tensor]:
        """Take the weights of both sides from a checkpoint; returns its other tensors too."""
        from safetensors.torch import load_file

        device = self.accelerator.device
        self.student.read_weights(folder / WEIGHTS, device)
        tensors = load_file(folder / TENSORS, device=trainable_encoder.place_of(device))
        if self.query_side is not None:
            with torch.no_grad():
                self.query_side.weights_V.copy_(tensors["query_weights"])
        return tensors

    def _check_best(self) -> None:
        """That the best step's checkpoint is there and whole."""
        step = self.progress.best_step
        if step is None or step == self.progress.step:
            return
        folder = self._checkpoint(step)
        if not folder.is_dir():
            raise DamagedError(
                f"{folder} is missing, the best step so far by the dev sets; put "
                "it back, or begin anew "
                "in another folder"
            )
        saved_state.check_files(folder, saved_state.read_state(folder))

    def _finish(self) -> dict[str, Any]:
        """``model`` is the best step by the dev sets, or the last without any."""
        if (
            self.dev
            and self.progress.best_step is None
            and self.progress.step == self.config.run.steps
        ):
            self._evaluate({})  # dev sets that were added, or exchanged, when no step was left
            self._save_checkpoint()
        progress, target = self.progress, self.folder / "model"
        terms: dict[str, float] = {}
        if self.accelerator.is_main_process:
            if progress.best_step is not None and progress.best_step != progress.step:
                self._check_best()
                self._read_networks(self._checkpoint(progress.best_step))
            terms = self._count_terms()
            if self.config.blend != BlendSettings():
                terms["documents_terms"] = self._blend()
            self.student.save(
                target,
                None if self.query_side is None else self.query_side.numpy(),
                dtype=_SAVED[self.config.model.saved_dtype],
            )
        self.accelerator.wait_for_everyone()
        return {
            "model": str(target),
            "steps": progress.step,
            "best_step": progress.best_step,
            "best_dev": progress.best,
            **terms,
            **self._missed(terms),
        }

    def _count_terms(self) -> dict[str, float]:
        """Mean active terms as the saved model encodes texts of the last batches, cut as in
        training.
        """
        first = max(self.progress.step - _COUNTED_BATCHES, self.config.warm_start.steps)
        batches = [self.batches.at(step) for step in range(first, self.progress.step)]
        if not batches:  # stopped in the warm start
            return {}
        documents = [
            batch.documents[row]
            for batch in batches
            for row in _spread(len(batch.documents), _COUNTED)
        ]
        asked = [
            batch.queries[row] for batch in batches for row in _spread(len(batch.queries), _COUNTED)
        ]
        vectors = self.student.vectors(documents, whole=False)
        if self.query_side is None:
            found = self.student.vectors(asked, neural_queries=True, whole=False).getnnz(1)
        else:
            found = (self.query_side(self.student.tokenize_queries(asked)) > 0).sum(1).cpu().numpy()
        return {
            "documents_terms": float(vectors.getnnz(1).mean()),
            "queries_terms": float(found.mean()),
        }

    def _missed(self, terms: dict[str, float]) -> dict[str, Any]:
        """Which target of active terms was not reached; it is said aloud, too."""
        found = []
        for name in ("documents", "queries"):
            target, reached = getattr(self.config, name).target_terms, terms.get(f"{name}_terms")
            if (
                target is None
                or reached is None
                or (name == "documents" and self.config.blend != BlendSettings())
            ):
                continue
            if abs(reached / target - 1) > TOLERANCE:
                found.append(
                    f"{name}: {reached:.1f} active terms on average, {target:g} were "
                    "asked for; give the run "
                    "more steps after ramp_steps, or a target nearer to this"
                )
        for line in found:
            tqdm.write(f"warning: {line}", file=sys.stderr)
        return {"missed_targets": found} if found else {}


def make_batches(config: TrainConfig, sources: Sequence[Source]) -> Batches:
    """The batches of a run."""
    settings = config.batch
    return Batches(
        sources,
        queries=settings.queries,
        negatives=settings.negatives,
        queries_per_positive=settings.queries_per_positive,
        neighbourhood=settings.neighbourhood,
        seed=config.run.seed,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step, a pure function: the warm start has its own; then warm-up, and the
    schedule to zero.
    """
    settings, warm = config.optimizer, config.warm_start
    if step < warm.steps:
        return warm.learning_rate * min((step + 1) / max(warm.steps / 10, 1), 1.0)
    step, steps = step - warm.steps, config.run.steps - warm.steps
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(steps - settings.warmup_steps, 1)
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - done)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate


def _spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, evenly from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _sample(sources: Sequence[Source]) -> list[str]:
    """Some documents of each source."""
    return [
        text
        for source in sources
        for text in itertools.islice(itertools.filterfalse(is_blank, source.documents), _SAMPLE)
    ]


def _teacher_scores(teacher: Teacher | None, batch: Batch, wanted_QD: np.ndarray) -> Tensor:
    if teacher is not None:
        return torch.from_numpy(teacher.scores(batch.queries, batch.documents, wanted_QD))
    if batch.scores_QD is None:
        raise DataError(
            f"source {batch.source}: its file holds no teacher scores, which kind = 'file' needs"
        )
    return torch.from_numpy(batch.scores_QD)


def _moments(optimizer: Any) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": tensor
        for number, values in state.items()
        for name, tensor in values.items()
    }


def _restore_moments(optimizer: Any, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdigit():  # not of the optimizer
            continue
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _postfix(facts: dict[str, float], progress: Progress, dev: Sequence[DevSet]) -> str:
    """What stands beside the progress bar: loss, sparsity of both sides,
    and the dev sets' measure.
    """
    warm = (facts[name] for name in ("bag_of_words_loss", "clm_loss", "mntp_loss") if name in facts)
    shown = [f"loss {facts.get('loss', next(warm, 0.0)):.4g}"]
    if "documents_terms" in facts:
        shown.append(f"terms {facts['queries_terms']:.0f} / {facts['documents_terms']:.0f}")
    if progress.dev is not None:
        measure = ", ".join(dict.fromkeys(each.measure for each in dev))
        best = "none yet" if progress.best is None else f"{progress.best:.4f}"
        shown.append(f"{measure} {progress.dev:.4f} (best {best})")
    return ", ".join(shown)
