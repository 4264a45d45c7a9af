"""BlockSteps: fine-tuning steps, and steps of blank infilling in between (--block-lm-ratio)."""

from collections.abc import Sequence

from data_utils.batch import Batch
from distill.kinds import Counts
from distill.step import DistillStep, StepOutput


class BlockSteps:
    """A step of whichever the micro-batches are; the log tells the two losses apart."""

    def __init__(self, task_step: DistillStep, block_step: DistillStep):
        self.task_step, self.block_step = task_step, block_step
        self.task = task_step.task

    def count(self, micro_batches: Sequence[Batch]) -> Counts:
        """Count the rows of an optimizer step, all of whose micro-batches are of one sort."""
        return self._of(micro_batches[0]).count(micro_batches)

    def __call__(self, batch: Batch, counts: Counts, micro_step: int = 0) -> StepOutput:
        """One micro-batch."""
        step = self._of(batch)
        output = step(batch, counts, micro_step)
        name = "block_lm" if step is self.block_step else "task"
        return StepOutput(output.loss, {f"Train/{name}_loss": output.loss.detach(), **output.terms})

    def remember(self) -> None:
        """Bring what is to be remembered into the state, before a checkpoint."""
        self.task_step.remember()

    def _of(self, batch: Batch) -> DistillStep:
        return self.task_step if batch.kinds is None else self.block_step
