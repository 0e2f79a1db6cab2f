"""Training: one loop over steps, on one device or several (accelerate), that can be killed and goes on bit for bit.

Everything random is a function of (seed, step, device), and so are batch and learning rate; a checkpoint therefore
holds weights, optimizer moments and a few numbers, and nothing needs replaying. A step sees the whole batch of all
devices: vectors are gathered before any loss, so that one device x 32, four x 8, and micro-batches give the same loss.

Q queries, D documents of the whole batch, V vocabulary. Next file to read: ``cards``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sparse_ir import data, decoder_student, files, losses, measures, networks, queries, student
from sparse_ir.adaptation import Packed
from sparse_ir.batches import Batch, Batches
from sparse_ir.errors import ConfigError, DamagedError, DataError, TrainingError
from sparse_ir.pairs import Source
from sparse_ir.recipe import PenaltySettings, TrainConfig, config_to_json, format_config
from sparse_ir.sparsity import Governor, Guard

FORMAT = 1
_DEV_DEPTH = 100
_SAVED = {"float32": torch.float32, "float16": torch.float16, "float8": torch.float8_e4m3fn}
_SAMPLE = 8  # documents of each source that show a new output layer what states look like
_START = "start.safetensors"  # the network with which ranking began
_FREQUENCY_MEMORY = 0.99


class Teacher(Protocol):
    """What training asks of a teacher; ``teachers`` has them. None in its place means the scores of the file."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that decide the scores."""

    def scores(self, queries: Sequence[str], documents: Sequence[str], wanted_QD: np.ndarray) -> np.ndarray:
        """float32 ``[Q, D]``; pairs that are not wanted may be NaN."""


class DevSet(NamedTuple):
    """A collection that is searched exactly while training goes on."""

    name: str
    doc_ids: list[str]
    documents: list[str]
    queries: list[data.Query]
    qrels: data.Qrels
    measure: str


@dataclass
class Progress:
    """What a checkpoint knows besides tensors."""

    step: int = 0
    dev: float | None = None  # the last measure
    best: float | None = None
    best_step: int | None = None


class Trainer:
    """One training run in ``folder``; ``run`` starts it, or goes on with it."""

    def __init__(self, config: TrainConfig, sources: Sequence[Source], folder: Path, *,
                 teachers: Sequence[tuple[Teacher | None, float]] = (), dev: Sequence[DevSet] = ()) -> None:
        import accelerate

        self.config, self.folder, self.dev = config, folder, list(dev)
        self._teachers = [teacher for teacher, _ in teachers]
        self._teacher_weights = [weight for _, weight in teachers]
        precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[config.run.precision]
        if precision == "fp16" and not torch.cuda.is_available():
            raise ConfigError("run.precision is 'float16', which needs a GPU; allowed here: 'float32' and 'bfloat16'")
        accelerate.state.AcceleratorState._reset_state()  # else the precision of an earlier run would hold for this one
        self.accelerator = accelerate.Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
        torch.manual_seed(config.run.seed)  # a new output layer may be drawn at random
        self._sample = _sample(sources)
        start, self.student = decoder_student.open_student(config)
        if start.grown:
            if config.warm_start.head == "token_vectors":
                student.give_token_vectors(self.student, start.grown, self._sample)
            student.switch_off_special_tokens(self.student)
        self._new_head = bool(start.grown) and config.warm_start.head == "token_vectors"
        self.batches = Batches(sources, queries=config.batch.queries, negatives=config.batch.negatives,
                               queries_per_positive=config.batch.queries_per_positive,
                               neighbourhood=config.batch.neighbourhood, seed=config.run.seed)
        self._check_targets()
        self._packed = self._pack(sources)
        self._prepare_queries(start, sources)
        self.fingerprint = self._fingerprint(start)
        self._prepare_optimizer()
        self.governors = {"documents": Governor(config.documents), "queries": Governor(config.queries)}
        self.guard = Guard(self.student.size)
        self.frequency_V = torch.zeros(self.student.size, device=self.accelerator.device)
        self.progress = Progress()

    # ------------------------------------------------------------------------------------------ setting up

    def _check_targets(self) -> None:
        for name in ("documents", "queries"):
            target = getattr(self.config, name).target_terms
            if target is not None and target > self.student.size:
                raise ConfigError(f"[{name}] target_terms is {target}; allowed: up to the {self.student.size} tokens "
                                  "of this vocabulary")

    def _pack(self, sources: Sequence[Source]) -> Packed | None:
        """The documents of all sources as the sequences by which a decoder adapts, where they are to be joined."""
        length = self.config.warm_start.packed_length
        if length is None or not self.config.warm_start.steps:
            return None
        assert isinstance(self.student, decoder_student.DecoderStudent)
        texts = [text for source in sources for text in source.documents]
        return self.student.pack(texts, length, self.config.run.seed)

    def _prepare_queries(self, start: student.Start, sources: Sequence[Source]) -> None:
        def texts() -> Iterator[str]:
            for source in sources:
                yield from source.documents

        settings, rules = self.config.model, self.student.rules
        weights = student.choose_query_weights(start, settings, texts, rules)
        self.query_side: student.TokenWeights | None = None
        if weights is not None:
            self.query_side = student.TokenWeights(self.student, weights, learned=settings.query == "learned")
            self.query_side.to(self.accelerator.device)
        idf = weights if settings.query in ("idf", "learned") else None
        needs_idf = self.config.warm_start.steps or "idf_flops" in (self.config.documents.penalty,
                                                                  self.config.queries.penalty)
        if idf is None and needs_idf:
            path = settings.idf
            idf = queries.compute_idf(texts(), rules) if path is None else \
                queries.from_idf_json(Path(path), rules, "opensearch").weights
        self.idf_V = None if idf is None else student.TokenWeights(self.student, idf, learned=False) \
            .weights_V.detach().to(self.accelerator.device)

    def _prepare_optimizer(self) -> None:
        settings = self.config.optimizer
        if self.config.run.gradient_checkpointing:
            networks.checkpoint_activations(self.student.model)
        self.student.to(self.accelerator.device)
        decayed: list[Tensor] = []
        rest: list[Tensor] = []
        for parameter in filter(lambda each: each.requires_grad, self.student.parameters()):
            (decayed if parameter.ndim > 1 else rest).append(parameter)
        groups = [{"params": decayed, "weight_decay": settings.weight_decay, "base": settings.learning_rate},
                  {"params": rest, "weight_decay": 0.0, "base": settings.learning_rate}]
        if self.query_side is not None and self.query_side.weights_V.requires_grad:
            groups.append({"params": [self.query_side.weights_V], "weight_decay": 0.0,
                           "base": settings.query_learning_rate or settings.learning_rate})
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.student, optimizer)

    def _fingerprint(self, start: student.Start) -> dict[str, Any]:
        """What must be equal for a checkpoint to be resumed; how often things are logged or saved need not be."""
        config = config_to_json(self.config)
        for key in ("stop_after", "save_every", "keep", "evaluate_every", "log_every", "tensorboard"):
            config["run"].pop(key, None)
        for key in ("saved_dtype", "allow_pickle"):
            config["model"].pop(key)
        for teacher in config["teacher"]:
            teacher.pop("allow_pickle")
        for key in ("card", "dev", "blend"):
            config.pop(key, None)
        idf = self.config.model.idf
        return {"config": config, "start": start.fingerprint, "data": self.batches.fingerprint,
                "idf_sha256": None if idf is None else files.sha256_of_file(Path(idf)),
                "teachers": [getattr(teacher, "fingerprint", None) for teacher in self._teachers]}

    # ------------------------------------------------------------------------------------------ the loop

    def run(self, progress: bool = False) -> dict[str, Any]:
        """Train to the last step, or to ``stop_after``; save ``model``, and return a JSON-able report.

        Raises ``TrainingError`` for a collapse or a checkpoint of another configuration.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(self.accelerator, self.folder):
            self._resume()
            first, last = self.progress.step, self._last
            shown = progress and self.accelerator.is_main_process
            with _Log(self.folder, self.config, self.accelerator.is_main_process, first) as log, \
                    tqdm(total=last, initial=first, desc="training", unit=" steps",
                         disable=None if shown else True) as bar:
                for step in range(first, last):
                    facts = self._step(step)
                    self.progress.step = step + 1
                    self._evaluate_and_save(facts)
                    if self._is_due(self.config.run.log_every) or "dev" in facts:
                        log.write(self.progress.step, facts)
                        bar.set_postfix_str(_postfix(facts, self.progress, self.dev))
                    bar.update()
            return self._finish()

    @property
    def _last(self) -> int:
        return self.config.run.stop_after or self.config.run.steps

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self._last

    def _step(self, step: int) -> dict[str, float]:
        """One update of the weights; returns what is worth logging."""
        warm = self.config.warm_start.steps
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate if step < warm else rate * group["base"] / self.config.optimizer.learning_rate
        batch = self.batches.at(step)
        self.student.set_phase(adapting=step < warm)
        if step == warm:
            self._begin_ranking(batch)
        self.wrapped.train()
        facts = self._warm_step(step, batch) if step < warm else self._rank_step(step, batch)
        if self.config.optimizer.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.student.lift(self.governors["documents"].lift())
        return {**facts, "learning_rate": rate}

    def _warm_step(self, step: int, batch: Batch) -> dict[str, float]:
        if self.config.warm_start.objective != "bag_of_words":
            return self._adapt_step(step, batch)
        assert self.idf_V is not None
        ids = self.student.tokenize_documents(batch.documents)
        pooled_NV, back = self._represent(step, ids, scores=True)
        loss = student.bag_of_words_loss(pooled_NV, ids, self.idf_V)
        loss.backward()
        back()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"step {step}: the bag-of-words loss is {value}; lower warm_start.learning_rate")
        return {"bag_of_words_loss": value}

    def _adapt_step(self, step: int, batch: Batch) -> dict[str, float]:
        """One step of a decoder's language-model loss, on documents, and of the same on its saturated logits.

        The loss is a sum over predicted tokens, so each device and micro-batch adds its part and needs no other.
        """
        assert isinstance(self.student, decoder_student.DecoderStudent)
        settings, rank = self.config.warm_start, self.accelerator.process_index
        sequences = self._sequences(self.student, step, batch)
        examples = self.student.make_examples(sequences, settings, _seed_of(self.config.run.seed, step))
        total = sum(example.predicted for example in examples)
        own = [examples[row] for row in np.array_split(np.arange(len(examples)), self.accelerator.num_processes)[rank]]
        size = self.config.batch.micro_batch or max(len(own), 1)
        chunks = [own[start : start + size] for start in range(0, len(own), size)]
        sums_2 = torch.zeros(2, device=self.accelerator.device)
        for number, chunk in enumerate(chunks):
            torch.manual_seed(_seed_of(self.config.run.seed, step, rank, number))
            last = number == len(chunks) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                parts_2 = self.wrapped(chunk)
                loss = (parts_2[0] + settings.relu_weight * parts_2[1]) / max(total, 1)
                self.accelerator.backward(loss * self.accelerator.num_processes)
            sums_2 += parts_2.detach()
        plain, saturated = (self.accelerator.reduce(sums_2, "sum") / max(total, 1)).tolist()
        if not math.isfinite(plain + saturated):
            raise TrainingError(f"step {step}: the language-model loss is {plain}; lower warm_start.learning_rate")
        return {f"{settings.objective}_loss": plain, f"{settings.objective}_relu_loss": saturated}

    def _sequences(self, model: decoder_student.DecoderStudent, step: int, batch: Batch) -> list[np.ndarray]:
        """Token ids by which a decoder adapts: the next packed sequences, or documents of the batch, cut to length."""
        if self._packed is None:
            return [ids[: self.config.model.max_length] for ids in model.bare_ids(batch.documents)]
        count = self.config.batch.queries
        return [self._packed.at(number) for number in range(step * count, (step + 1) * count)]

    def _begin_ranking(self, batch: Batch) -> None:
        """Where zero lies for the ReLU of a new output layer, or of a decoder, is decided by a batch's own logits."""
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
            path = self.folder / _START
            with files.naming_disk_errors(path):
                self.student.write_weights(path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        self.accelerator.wait_for_everyone()

    def _blend(self) -> None:
        """The saved model of ``[blend]``; the weights in training are gone afterwards."""
        from safetensors.torch import load_file

        settings, path = self.config.blend, self.folder / _START
        if settings.start and not path.is_file():
            raise TrainingError(f"{path} is missing, the network with which ranking began: it is kept only where "
                                "blend.start was set from the first step on")
        start = load_file(path, device=student.place_of(self.accelerator.device)) if settings.start else {}
        with torch.no_grad():
            for name, tensor in self.student.state_dict().items():
                if name in start and tensor.is_floating_point():
                    tensor.lerp_(start[name], settings.start)
        if settings.terms is not None:
            self.student.set_terms(self._sample, settings.terms, whole=True)

    def _rank_step(self, step: int, batch: Batch) -> dict[str, float]:
        ranking_step = step - self.config.warm_start.steps
        documents_DV, queries_QV, back = self._represent_batch(step, batch)
        scores_QD = queries_QV @ documents_DV.t()
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

    def _scale_query_gradient(self) -> None:
        """In float16 the optimizer divides all gradients by the scale that only the network's have been given."""
        scaler = self.accelerator.scaler
        if scaler is not None and self.query_side is not None and self.query_side.weights_V.grad is not None:
            self.query_side.weights_V.grad *= scaler.get_scale()

    def _ranking_losses(self, batch: Batch, scores_QD: Tensor) -> dict[str, tuple[Tensor, float]]:
        device = scores_QD.device
        positive_Q = torch.from_numpy(batch.positive_Q).to(device)
        allowed_QD = torch.from_numpy(batch.allowed_QD if self.config.batch.in_batch else batch.own_QD).to(device)
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
            found[loss.name if loss.name not in found else f"{loss.name}_{len(found)}"] = (value, loss.weight)
        return found

    def _targets(self, batch: Batch, allowed_QD: Tensor) -> Tensor:
        """The ensemble of all teachers' scores for this batch; zeros without any teacher."""
        if not self._teachers:
            return torch.zeros_like(allowed_QD, dtype=torch.float32)
        settings, device = self.config.ensemble, allowed_QD.device
        found = [_teacher_scores(teacher, batch, allowed_QD.cpu().numpy()).to(device) for teacher in self._teachers]
        return losses.ensemble(found, self._teacher_weights, settings.scale, normalization=settings.normalization,
                               allowed_QD=allowed_QD)

    def _penalty(self, name: str, step: int, weights_NV: Tensor) -> tuple[Tensor, dict[str, float]]:
        settings: PenaltySettings = getattr(self.config, name)
        terms = float((weights_NV.detach() > 0).sum(1).float().mean())
        value, weight = weights_NV.new_zeros(()), self.governors[name].weight(step)
        if name == "documents":
            active_V = (weights_NV.detach() > 0).float().mean(0)
            self.frequency_V.mul_(_FREQUENCY_MEMORY).add_(active_V, alpha=1 - _FREQUENCY_MEMORY)
        if settings.penalty == "none" and settings.anti_zero == 0:
            return value, {f"{name}_terms": terms}
        if settings.penalty != "none":
            value = self._penalty_value(settings, weights_NV)
        noted = {f"{name}_terms": terms, f"{name}_penalty": float(value.detach()), f"{name}_lambda": weight}
        total = weight * value
        if settings.anti_zero:
            total = total + settings.anti_zero / weights_NV.sum().clamp_min(1e-6) ** 2
        return total, noted

    def _penalty_value(self, settings: PenaltySettings, weights_NV: Tensor) -> Tensor:
        if settings.penalty == "l1":
            return losses.l1(weights_NV)
        if settings.penalty == "idf_flops":
            assert self.idf_V is not None
            idf_V = torch.where(self.idf_V > 0, self.idf_V, 1.0)  # special tokens have none
            return losses.idf_flops(weights_NV, idf_V, power=settings.power, exempt_up_to=settings.exempt_up_to)
        if settings.penalty == "df_flops":
            return losses.df_flops(weights_NV, self.frequency_V, alpha=settings.alpha, beta=settings.beta,
                                   exempt_up_to=settings.exempt_up_to)
        return losses.flops(weights_NV, exempt_up_to=settings.exempt_up_to)

    # ------------------------------------------------------------------------------------------ vectors of a batch

    def _represent_batch(self, step: int, batch: Batch) -> tuple[Tensor, Tensor, Callable[[], None]]:
        """``[D, V]`` and ``[Q, V]``, and the function that sends their gradients into the network."""
        ids = self.student.tokenize_documents(batch.documents)
        query_ids = self.student.tokenize_queries(batch.queries)
        if self.query_side is not None:
            documents_DV, back = self._represent(step, ids)
            return documents_DV, self.query_side(query_ids), back
        both, back = self._represent(step, [*ids, *query_ids])
        return both[: len(ids)], both[len(ids) :], back

    def _represent(self, step: int, ids: Sequence[np.ndarray],
                   scores: bool = False) -> tuple[Tensor, Callable[[], None]]:
        """This device computes its share of the texts; everybody gets all rows, cut off from the network.

        The function that comes with them sends the gradient that the loss has left on them into the network.

        With micro-batches the graph is not kept: each is computed once more when its gradient is known (GradCache,
        arXiv 2101.06983), with the same random numbers.
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        shares = np.array_split(np.arange(len(ids)), world)
        own = shares[rank]
        size = self.config.batch.micro_batch or max(len(own), 1)
        chunks = [own[i : i + size] for i in range(0, len(own), size)]
        kept = len(chunks) <= 1

        def compute(number: int, module: torch.nn.Module) -> Tensor:
            torch.manual_seed(_seed_of(self.config.run.seed, step, rank, number))
            return module([ids[row] for row in chunks[number]], scores=scores).float()

        if kept:
            parts = [compute(number, self.wrapped) for number in range(len(chunks))]
        else:
            with torch.no_grad():
                parts = [compute(number, self.wrapped) for number in range(len(chunks))]
        rows = torch.cat(parts) if parts else torch.zeros((0, self.student.size), device=self.accelerator.device)
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
                    # DistributedDataParallel averages over devices; the gradient is the sum of their shares
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

    # ------------------------------------------------------------------------------------------ dev, saving, resuming

    def _evaluate_and_save(self, facts: dict[str, float]) -> None:
        if self.dev and self._is_due(self.config.run.evaluate_every) \
                and self.progress.step > self.config.warm_start.steps:
            facts |= self._evaluate()
        if self._is_due(self.config.run.save_every):
            self._save_checkpoint()

    def _evaluate(self) -> dict[str, float]:
        facts = {f"dev/{dev.name}": evaluate(self.student, self.query_side, dev) for dev in self.dev}
        self.progress.dev = mean = sum(facts.values()) / len(facts)
        if self.progress.best is None or mean > self.progress.best:
            self.progress.best, self.progress.best_step = mean, self.progress.step
            if self.accelerator.is_main_process:
                self._save_model(self.folder / "best")
        return {**facts, "dev": mean}

    def _save_model(self, folder: Path) -> None:
        self.student.save(folder, None if self.query_side is None else self.query_side.numpy(),
                          dtype=_SAVED[self.config.model.saved_dtype])

    def _save_checkpoint(self) -> None:
        from safetensors.torch import save_file

        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            target = self.folder / f"checkpoint-{self.progress.step:07d}"
            with files.building(target) as folder:
                self.student.write_weights(folder / "model.safetensors")
                tensors = {"frequency": self.frequency_V, **_moments(self.optimizer)}
                if self.query_side is not None:
                    tensors["query_weights"] = self.query_side.weights_V.detach()
                if self._packed is not None:
                    tensors["packed_starts"] = torch.tensor(self._packed.starts)
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
                files.write_json(folder / "state.json", {
                    "format": FORMAT, "progress": self.progress.__dict__, "fingerprint": self.fingerprint,
                    "governors": {name: governor.state() for name, governor in self.governors.items()},
                    "guard": self.guard.state(), "world": self.accelerator.num_processes, "dev": self._dev_settings(),
                    "sha256": {name: files.sha256_of_file(folder / name)
                               for name in ("model.safetensors", "state.safetensors")},
                })
            for old in list_checkpoints(self.folder)[: -self.config.run.keep]:
                files.remove_folder(old)
        self.accelerator.wait_for_everyone()

    def _dev_settings(self) -> Any:
        """What the best step so far was best at."""
        return config_to_json(self.config)["dev"]

    def _resume(self) -> None:
        if self.accelerator.is_main_process:
            files.remove_leftovers_in(self.folder)
        found = list_checkpoints(self.folder)
        if found:
            self._restore(found[-1])
        if self.accelerator.is_main_process:  # what may differ between two calls (stop_after, say) is kept up to date
            with files.atomic_writer(self.folder / "config.toml") as stream:
                stream.write(format_config(self.config))
        self.accelerator.wait_for_everyone()

    def _restore(self, folder: Path) -> None:
        from safetensors.torch import load_file

        state = _read_state(folder)
        _check_resumable(folder, state, self.fingerprint)
        self.student.read_weights(folder / "model.safetensors", self.accelerator.device)
        tensors = load_file(folder / "state.safetensors", device=student.place_of(self.accelerator.device))
        self.frequency_V.copy_(tensors.pop("frequency"))
        if self.query_side is not None:
            with torch.no_grad():
                self.query_side.weights_V.copy_(tensors.pop("query_weights"))
        if self._packed is not None:
            self._packed.starts = tensors.pop("packed_starts").tolist()
        _restore_moments(self.optimizer, tensors)
        self.progress = Progress(**state["progress"])
        if state.get("dev", self._dev_settings()) != self._dev_settings():  # best at something else
            self.progress.dev = self.progress.best = self.progress.best_step = None
        for name, governor in self.governors.items():
            governor.restore(state["governors"][name])
        self.guard.restore(state["guard"])

    def _finish(self) -> dict[str, Any]:
        """``model`` is the best step by the dev sets, or the last without any."""
        if self.accelerator.is_main_process:
            target, best = self.folder / "model", self.folder / "best"
            if self.progress.best_step is not None:
                with files.building(target) as folder:
                    shutil.copytree(best, folder, dirs_exist_ok=True)
            else:
                self._blend()
                self._save_model(target)
        self.accelerator.wait_for_everyone()
        reached = self._facts_of(self.progress.best_step or self.progress.step)
        if self.config.blend.start:  # the saved network is another one
            reached["documents_terms"] = self.config.blend.terms
        return {"model": str(self.folder / "model"), "steps": self.progress.step, "best_step": self.progress.best_step,
                "best_dev": self.progress.best, **reached}

    def _facts_of(self, step: int) -> dict[str, float | None]:
        """The active terms that the log has of this step, or of the last one before it."""
        text = (self.folder / "log.jsonl").read_text(encoding="utf-8")
        lines: list[dict[str, float]] = [json.loads(line) for line in text.splitlines()]
        found = max((line for line in lines if line["step"] <= step), key=lambda line: line["step"], default={})
        return {key: found[key] for key in ("documents_terms", "queries_terms") if key in found}


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step, a pure function: the warm start has its own; then warm-up, and the schedule to zero."""
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


def evaluate(model: student.Student, query_side: student.TokenWeights | None, dev: DevSet) -> float:
    """The measure over the dev set by exact search in float32, as the saved model would encode."""
    documents = model.vectors(dev.documents)
    texts = [query.text for query in dev.queries]
    if query_side is None:
        asked = model.vectors(texts, neural_queries=True)
    else:
        import scipy.sparse

        with torch.no_grad():
            asked = scipy.sparse.csr_matrix(query_side(model.tokenize_queries(texts)).cpu().numpy())
    scores = (asked @ documents.T).tocsr()
    run: data.Run = {}
    for query, start, end in zip(dev.queries, scores.indptr[:-1], scores.indptr[1:], strict=True):
        best = np.argsort(-scores.data[start:end], kind="stable")[:_DEV_DEPTH] + start
        run[query.query_id] = data.rank_hits((dev.doc_ids[scores.indices[i]], float(scores.data[i])) for i in best)
    if not any(run.values()):  # a model that is dead finds nothing, which no file of a run could be meant to say
        return 0.0
    return measures.evaluate_run(run, dev.qrels, dev.measure).mean[dev.measure]


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if (path / "state.json").is_file())


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        return files.read_json(folder / "state.json")
    except DamagedError as error:
        raise DamagedError(f"{error}; delete {folder} to go on from the checkpoint before it") from error


def _check_resumable(folder: Path, state: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    if state.get("format") != FORMAT:
        raise TrainingError(f"{folder} has the format {state.get('format')!r}; this release resumes format {FORMAT}")
    before, now = json.loads(json.dumps(state["fingerprint"])), json.loads(json.dumps(fingerprint))
    if before != now:
        place, was, asked = _first_difference(before, now, "")
        raise TrainingError(f"{folder} belongs to another run: {place} was {was!r:.80} and is now {asked!r:.80}; use "
                            "the old configuration, data and models to go on, or another output folder to begin anew")
    for name, expected in state["sha256"].items():
        if not (folder / name).is_file() or files.sha256_of_file(folder / name) != expected:
            raise DamagedError(f"{folder / name} is missing or damaged; delete {folder} to go on from the checkpoint "
                               "before it")


def _first_difference(before: Any, now: Any, place: str) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *now]:
            if before.get(key) != now.get(key):
                return _first_difference(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (one, other) in enumerate(zip(before, now, strict=True)):
            if one != other:
                name = one.get("name", number) if isinstance(one, dict) else number
                return _first_difference(one, other, f"{place}.{name}")
    return place, before, now


def _sample(sources: Sequence[Source]) -> list[str]:
    """Some documents of each source."""
    return [text for source in sources for text in itertools.islice(filter(str.strip, source.documents), _SAMPLE)]


def _teacher_scores(teacher: Teacher | None, batch: Batch, wanted_QD: np.ndarray) -> Tensor:
    if teacher is not None:
        return torch.from_numpy(teacher.scores(batch.queries, batch.documents, wanted_QD))
    if batch.scores_QD is None:
        raise DataError(f"source {batch.source}: its file holds no teacher scores, which kind = 'file' needs")
    return torch.from_numpy(batch.scores_QD)


def _moments(optimizer: Any) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": tensor for number, values in state.items() for name, tensor in values.items()}


def _restore_moments(optimizer: Any, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def _exclusive(accelerator: Any, folder: Path) -> Iterator[None]:
    """Only one run writes to a folder; its own processes count as one."""
    with files.write_lock(folder) if accelerator.is_main_process else contextlib.nullcontext():
        yield


class _Log:
    """``log.jsonl`` and TensorBoard. After a resume, lines behind the checkpoint are dropped and come again."""

    def __init__(self, folder: Path, config: TrainConfig, is_main: bool, first: int) -> None:
        self._path, self._writer, self._is_main = folder / "log.jsonl", None, is_main
        if not is_main:
            return
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        with files.atomic_writer(self._path) as stream:
            stream.writelines(line + "\n" for line in lines if _step_of(line) <= first)
        if config.run.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, facts: dict[str, float]) -> None:
        """One line of numbers."""
        if not self._is_main:
            return
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **facts}) + "\n")
        if self._writer is not None:
            for name, value in facts.items():
                self._writer.add_scalar(name, value, step)


def _step_of(line: str) -> float:
    """The step of a line; a line that a kill cut in half counts as behind everything."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf


def _postfix(facts: dict[str, float], progress: Progress, dev: Sequence[DevSet]) -> str:
    """What stands beside the progress bar: loss, sparsity of both sides, and the dev sets' measure."""
    warm = (facts[name] for name in ("bag_of_words_loss", "clm_loss", "mntp_loss") if name in facts)
    shown = [f"loss {facts.get('loss', next(warm, 0.0)):.4g}"]
    if "documents_terms" in facts:
        shown.append(f"terms {facts['queries_terms']:.0f} / {facts['documents_terms']:.0f}")
    if progress.dev is not None:
        measure = ", ".join(dict.fromkeys(each.measure for each in dev))
        shown.append(f"{measure} {progress.dev:.4f} (best {progress.best:.4f})")
    return ", ".join(shown)


def read_dev_set(path: str, *, name: str | None = None, split: str = "dev", measure: str = "nDCG@10",
                 max_queries: int | None = None, max_documents: int | None = None) -> DevSet:
    """A dev set from a BEIR folder; a smaller corpus keeps all judged documents, then the first of the others."""
    qrels = data.read_qrels(path, split)
    asked = [query for query in data.read_queries(path) if query.query_id in qrels][:max_queries]
    if not asked:
        raise DataError(f"{path}: no query of split {split!r} is in the queries file")
    qrels = {query.query_id: qrels[query.query_id] for query in asked}
    judged = {doc_id for judgements in qrels.values() for doc_id in judgements}
    if max_documents is not None and max_documents < len(judged):
        raise ConfigError(f"dev.documents is {max_documents}, and {path} has {len(judged)} judged documents")
    kept = [document for document in data.read_documents(path) if document.doc_id in judged]
    free = math.inf if max_documents is None else max_documents - len(kept)
    for document in data.read_documents(path):
        if free <= 0:
            break
        if document.doc_id not in judged:
            kept.append(document)
            free -= 1
    return DevSet(name or Path(path).name, [document.doc_id for document in kept],
                  [document.contents for document in kept], asked, qrels, measure)
