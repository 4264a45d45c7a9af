"""Interchange: in a second pass states of each sample are replaced by states of the next one.

The next sample is the one after in the micro-batch; the first follows the last. Padding, and
samples that only fill the batch, are no tokens: they neither give nor take.

`draw` says which positions, `Interchange` keeps the first pass's states and edits the second pass,
`Interchanging` is a student that does so (DIITO adds where, and losses). Nothing here waits for a
GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mpu
from config import ArgGroup, ConfigError, flag
from distill.capture import Captured, Hook, Point, to_hook
from distill.context import Clock, LossContext
from distill.student import GLMStudent

CONSECUTIVE, MASKED, RANDOM = "consecutive", "masked", "random"
WAYS = (CONSECUTIVE, MASKED, RANDOM)
STUDENT = -1  # beside the numbers of the teachers


@dataclass(frozen=True, kw_only=True)
class InterchangeArgs(ArgGroup):
    """Flags of the positions."""

    diito_interchange_way: str = flag(CONSECUTIVE, "which positions are swapped", choices=WAYS)
    diito_interchange_prop: float = flag(0.3, "how many (fraction of the shorter sample's tokens)")
    diito_interchange_max_token: int = flag(-1, "at most so many (tokens); -1: no limit")

    def __post_init__(self) -> None:
        part = self.diito_interchange_prop
        if not 0 <= part <= 1:
            raise ConfigError(f"--diito_interchange_prop={part:g}: must be in [0, 1]")


def draw(
    tokens: Tensor,
    candidates: Tensor,
    *,
    way: str,
    proportion: float,
    most: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Bool [b, s] twice -> (where states are put, where they come from), bool [b, s] each.

    Row i of the second one marks positions of sample i + 1, as many as row i of the first:
    `proportion` of the tokens of the shorter of the two, at most `most` (negative: no limit) and
    no more than either has candidates. `way` consecutive: candidates side by side; else any.
    """
    lengths, counts = tokens.sum(1), candidates.sum(1)
    number = (torch.minimum(lengths, lengths.roll(-1)).double() * proportion).floor().long()
    number = number.minimum(counts).minimum(counts.roll(-1))
    if most >= 0:
        number = number.clamp(max=most)
    shape = (2, *candidates.shape)
    chance = torch.rand(shape, generator=generator, dtype=torch.float64).to(candidates.device)
    pick = _side_by_side if way == CONSECUTIVE else _anywhere
    sides = candidates, candidates.roll(-1, 0)
    put, take = (pick(*side, number[:, None]) for side in zip(sides, chance, strict=True))
    return put, take


def _side_by_side(candidates: Tensor, chance: Tensor, number: Tensor) -> Tensor:
    """As many candidates one after the other, from a random one on."""
    room = candidates.sum(1, keepdim=True) - number + 1
    first = (chance[:, :1] * room).long()
    place = candidates.cumsum(1) - 1
    return candidates & (place >= first) & (place < first + number)


def _anywhere(candidates: Tensor, chance: Tensor, number: Tensor) -> Tensor:
    """As many candidates in no order."""
    rank = torch.where(candidates, chance, 2.0).argsort(1).argsort(1)
    return rank < number


class Interchange:
    """States of a first pass, in any number of models, and the edits that swap them in.

    The states keep their gradient; edits write into nothing.
    """

    def __init__(self, put: Tensor, take: Tensor):
        """As `draw` gives them, bool [b, s]: as many positions a row, which go in order."""
        self.put = put[..., None]
        order = (~take).long().argsort(dim=1, stable=True)  # what is taken comes first
        self.source = order.gather(1, (put.cumsum(1) - 1).clamp(min=0))[..., None]
        self.given: dict[int, dict[Point, Tensor]] = {}  # model -> states [b, s, h] by place

    def edits(self, model: int) -> Hook:
        """The hook_op of a model's second pass."""
        states = self.given.get(model, {})
        hook_op = to_hook(states)
        for point, given in states.items():
            level = hook_op
            for name in point.path[:-1]:
                level = level[name]
            level[point.path[-1]] = self._edit(given)
        return hook_op

    def swap(self, given: Tensor, x: Tensor) -> Tensor:
        """x [b, s, h] with states of `given` [b, s, h] in it."""
        following = given.roll(-1, 0)
        following = following.gather(1, self.source.expand_as(following))
        return torch.where(self.put, following.to(x.dtype), x)

    def _edit(self, given: Tensor) -> Callable[..., Tensor]:
        """The model calls it with one keyword, the name of the place."""
        return lambda **state: self.swap(given, *state.values())


class Interchanging(GLMStudent):
    """A student whose second pass swaps what the first one had. A method adds its losses."""

    Args = InterchangeArgs
    _interchange: Interchange | None = None  # from pass 0 to the end of pass 1

    def places(self, t_no: int) -> list[Point]:
        """What is swapped in a teacher, or in the STUDENT."""
        return []

    def draw_masks(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`draw` for this micro-batch; equal on model-parallel ranks."""
        flags, clock = self.args.method, self.clock
        key = (clock.iteration, clock.micro_step, mpu.get_data_parallel_rank())
        return draw(
            tokens,
            targets if flags.diito_interchange_way == MASKED else tokens,
            way=flags.diito_interchange_way,
            proportion=flags.diito_interchange_prop,
            most=flags.diito_interchange_max_token,
            generator=self.generator("masks", *key),
        )

    def begin_pass(self, clock: Clock) -> None:
        """Pass 0 begins anew."""
        super().begin_pass(clock)
        if clock.repeat == 0:
            self._interchange = None

    def student_points(self) -> list[Point]:
        """Pass 0: what pass 1 will swap."""
        return self.teacher_points(STUDENT)

    def teacher_points(self, t_no: int) -> list[Point]:
        """As for the student."""
        return [] if self.clock.repeat else self.places(t_no)

    def get_student_hook_op(self, teacher_models: Sequence[nn.Module] = ()) -> Hook:
        """Pass 1: the swap."""
        return self.get_teacher_hook_op(STUDENT)

    def get_teacher_hook_op(self, t_no: int = 0, teacher_models: Sequence[nn.Module] = ()) -> Hook:
        """As for the student."""
        if not self.clock.repeat or self._interchange is None:
            return {}
        return self._interchange.edits(t_no)

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """No loss. Pass 0: keep the states. Pass 1: forget them, and with them pass 0's graph."""
        if self.clock.repeat == 0 and self.args.distill.forward_repeat_num:
            if self._interchange is None:
                state = student[self.places(STUDENT)[0]]
                self._interchange = Interchange(*self.draw_masks(*_positions(ctx, state)))
                self._keep(STUDENT, student)
            self._keep(ctx.t_no, teacher)
        elif ctx.t_no == len(self.args.teachers) - 1:
            self._interchange = None
        yield from ()

    def _keep(self, model: int, captured: Captured) -> None:
        self._interchange.given[model] = {point: captured[point] for point in self.places(model)}


def _positions(ctx: LossContext, state: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [b, s] twice: tokens (all of the state's positions, if called by hand), and those of

    them with a target or an answer.
    """
    tokens = torch.ones_like(state[..., 0]) if ctx.token_mask is None else ctx.token_mask
    tokens = tokens > 0
    targets = ctx.first_rows("targets", "answers")
    return tokens, tokens if targets is None else tokens & (targets.mask > 0)
