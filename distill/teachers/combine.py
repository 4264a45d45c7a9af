"""From the losses of all teachers to the student's loss. One teacher takes this path, too."""

from collections.abc import Sequence

from torch import Tensor


def average(losses: Sequence[Tensor]) -> Tensor:
    """Mean over teachers of the student's loss against each: [] or [b] each -> the same."""
    return sum(losses[1:], start=losses[0]) / len(losses) if len(losses) > 1 else losses[0]
