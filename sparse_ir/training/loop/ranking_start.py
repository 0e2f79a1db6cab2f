"""The network with which ranking begins: its number of terms, and its copy for ``[blend]``."""

from __future__ import annotations

from pathlib import Path

from sparse_ir.training.loop import saved_state
from sparse_ir.training.loop.training_setup import TrainingSetup
from sparse_ir.training.sources.batches import TrainingBatch


class RankingStart:
    """Prepares the network for ranking; ``sha256`` of the copy is its only state."""

    def __init__(self, setup: TrainingSetup, folder: Path) -> None:
        self._setup = setup
        self._folder = folder
        self.sha256: str | None = None  # None: no copy was kept

    def begin(self, batch: TrainingBatch) -> None:
        """Set the number of active terms by a batch's own logits, and keep a copy for a blend."""
        config = self._setup.config
        terms = None  # None keeps the biases as they are
        if config.decoder is not None:
            terms = config.decoder.initial_terms
        elif config.warm_start.steps or self._setup.has_new_head:
            terms = config.warm_start.active_terms
        if terms is not None:
            self._setup.student.set_terms(batch.documents, terms)
        if config.blend.start:
            if self._setup.accelerator.is_main_process:
                write = self._setup.student.write_weights
                self.sha256 = saved_state.write_start(self._folder, write)
            self._setup.accelerator.wait_for_everyone()

    def check(self, step: int) -> None:
        """Raise, long before the last step needs it, when a blend lacks its copy.

        Raises ``TrainingError`` when it was never written, ``DamagedError`` when it has changed.
        """
        config = self._setup.config
        if config.blend.start and step > config.warm_start.steps:
            saved_state.find_start(self._folder, self.sha256)

    def blend(self) -> float:
        """Turn the network into the saved model of ``[blend]``; the trained weights are lost.

        Returns the mean active terms of the sample documents, as the saved model encodes them.
        """
        setup = self._setup
        settings = setup.config.blend
        if settings.start:
            copy = saved_state.find_start(self._folder, self.sha256)
            setup.student.blend_with(copy, settings.start, setup.accelerator.device)
        if settings.terms is not None:
            setup.student.set_terms(setup.sample, settings.terms, whole=True)
        return float(setup.student.vectors(setup.sample).nnz / len(setup.sample))
