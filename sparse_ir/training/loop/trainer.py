"""Training: one loop over steps that can be killed at any moment and resumed bit for bit.

Everything random is a function of (seed, step, process), and so are batch and learning rate. A
checkpoint therefore holds weights, optimizer moments and a few numbers, and nothing is replayed.
The loop runs on one device or on several (accelerate). Each part has a module of its own: the
opening (``training_setup``), the steps before ranking (``adaptation``), ranking steps (``ranking``,
with ``representation`` and ``sparsity``), dev sets (``dev_sets``), saving and resuming
(``checkpoints``), and the end (``final_model``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_ir.storage import files
from sparse_ir.training.configuration.config import TrainConfig
from sparse_ir.training.loop import final_model, optimization, training_setup
from sparse_ir.training.loop.adaptation import Adaptation
from sparse_ir.training.loop.checkpoints import Checkpoints, TrainingParts
from sparse_ir.training.loop.dev_sets import DevEvaluation, DevSet
from sparse_ir.training.loop.final_model import RankingStart
from sparse_ir.training.loop.ranking import Objective, Ranking, WeightedTeacher
from sparse_ir.training.loop.saved_state import TrainingProgress
from sparse_ir.training.loop.sparsity import SparsityControl
from sparse_ir.training.loop.training_log import Log
from sparse_ir.training.sources.training_source import TrainingSource
from sparse_ir.training.teachers.base import Teacher

_WARM_LOSSES = ("bag_of_words_loss", "clm_loss", "mntp_loss")


class Trainer:
    """One training in ``folder``; ``run`` starts it, or resumes it."""

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[TrainingSource],
        folder: Path,
        *,
        teachers: Sequence[tuple[Teacher | None, float]] = (),
        dev: Sequence[DevSet] = (),
    ) -> None:
        self.config = config
        self.folder = folder
        self.setup = training_setup.open_training(config, sources)
        self.student = self.setup.student
        self.query_side = self.setup.query_side
        self.batches = self.setup.batches
        weighted = [WeightedTeacher(teacher, weight) for teacher, weight in teachers]
        progress = TrainingProgress()
        self.parts = TrainingParts(
            objective=Objective(self.setup, weighted),
            sparsity=SparsityControl(self.setup),
            adaptation=Adaptation(self.setup),
            ranking_start=RankingStart(self.setup, folder),
            dev=DevEvaluation(self.setup, dev, progress),
            progress=progress,
        )
        self._ranking = Ranking(self.setup, self.parts.objective, self.parts.sparsity)
        self.checkpoints = Checkpoints(self.setup, folder, self.parts, weighted)

    def run(self, progress: bool = False) -> dict[str, Any]:
        """Train to the last step, or to ``stop_after``, and save the folder ``model``.

        Returns a JSON-able report. ``progress`` shows a bar. Raises ``TrainingError`` for a
        collapse, or for a checkpoint of another configuration.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # one training at a time writes here; its own processes count as one
        lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.is_main_process:
            lock = files.write_lock(self.folder)
        with lock:
            self.checkpoints.resume()
            self._settle_gradient_order()
            first = self.parts.progress.step
            last = self.config.run.stop_after or self.config.run.steps
            log = Log(
                self.folder,
                self.is_main_process,
                first,
                tensorboard=self.config.run.tensorboard,
            )
            bar = tqdm(
                total=last,
                initial=first,
                desc="training",
                unit=" steps",
                disable=None if progress and self.is_main_process else True,
            )
            with log, bar:
                for step in range(first, last):
                    self._take_logged_step(step, log, bar, is_last=step + 1 == last)
            return self._finish()

    def _take_logged_step(self, step: int, log: Log, bar: tqdm, *, is_last: bool) -> None:
        run = self.config.run
        facts = self.take_step(step)
        self.parts.progress.step = step + 1
        is_best = self.parts.dev.evaluate_if_due(
            facts, is_sparse_enough=self.parts.sparsity.is_sparse_enough()
        )
        if self.parts.progress.is_due(run.log_every, run.steps) or "dev" in facts:
            log.write(self.parts.progress.step, facts)
            bar.set_postfix_str(self._describe(facts))
        # The best step gets a checkpoint at once: it is never newer than the newest checkpoint.
        if is_best or is_last or self.parts.progress.is_due(run.save_every, run.steps):
            self.checkpoints.save()
        bar.update()

    def take_step(self, step: int) -> dict[str, float]:
        """Update the weights once; returns what is worth logging."""
        setup = self.setup
        rate = optimization.set_learning_rate(setup.optimizer, self.config, step)
        batch = setup.batches.at(step)
        is_warm = step < setup.ranking_start
        setup.student.set_phase(adapting=is_warm)
        if step == setup.ranking_start:
            self.parts.ranking_start.begin(batch)
        setup.wrapped.train()
        if is_warm:
            facts = self.parts.adaptation.take_step(step, batch)
        else:
            facts = self._ranking.take_step(step, batch)
        self._update_weights()
        self.parts.sparsity.move_biases()
        facts["learning_rate"] = rate
        return facts

    def _update_weights(self) -> None:
        optimizer = self.setup.optimizer
        largest_norm = self.config.optimizer.max_grad_norm
        if largest_norm is not None:
            trained: list[Tensor] = []
            for group in optimizer.param_groups:
                trained += group["params"]
            self.setup.accelerator.clip_grad_norm_(trained, largest_norm)
        optimizer.step()
        if self.setup.query_side is not None:
            self.setup.query_side.clip()
        optimizer.zero_grad(set_to_none=True)

    def _settle_gradient_order(self) -> None:
        """Run one backward pass that changes nothing.

        DistributedDataParallel changes the order in which it sums gradients after its first
        backward pass. Without this one, a resumed training on three processes would differ from one
        that never stopped.
        """
        setup = self.setup
        if setup.accelerator.num_processes == 1:
            return
        setup.wrapped.train()
        torch.manual_seed(0)
        ids = setup.student.tokenize_documents(setup.sample[:1])
        scores_NV = setup.wrapped(ids, scores=True)
        setup.accelerator.backward((scores_NV * 0.0).sum())
        setup.optimizer.zero_grad(set_to_none=True)

    def _finish(self) -> dict[str, Any]:
        """Save the model of the best step by the dev sets, or of the last step without any."""
        progress = self.parts.progress
        if self.parts.dev.lacks_best and progress.step == self.config.run.steps:
            # Dev sets were added or exchanged when no step was left.
            self.parts.dev.evaluate({}, is_sparse_enough=self.parts.sparsity.is_sparse_enough())
            self.checkpoints.save()
        folder = self.folder / "model"
        terms: dict[str, float] = {}
        if self.is_main_process:
            self.checkpoints.load_best()
            terms = final_model.save_model(
                self.setup, progress.step, self.parts.ranking_start, folder
            )
        self.setup.accelerator.wait_for_everyone()
        report: dict[str, Any] = {
            "model": str(folder),
            "steps": progress.step,
            "best_step": progress.best_step,
            "best_dev": progress.best,
        }
        report |= terms
        missed = final_model.report_missed_targets(self.config, terms)
        if missed:
            report["missed_targets"] = missed
        return report

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files of the training."""
        is_main: bool = self.setup.accelerator.is_main_process
        return is_main

    def _describe(self, facts: dict[str, float]) -> str:
        """What stands beside the progress bar: loss, terms of both sides, and dev measures."""
        warm = [facts[name] for name in _WARM_LOSSES if name in facts]
        loss = facts.get("loss", warm[0] if warm else 0.0)
        shown = [f"loss {loss:.4g}"]
        if "documents_terms" in facts:
            shown.append(f"terms {facts['queries_terms']:.0f} / {facts['documents_terms']:.0f}")
        measured = self.parts.dev.describe()
        if measured:
            shown.append(measured)
        return ", ".join(shown)
