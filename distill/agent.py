"""An agent that chooses teachers for each sample, and learns which choices were good.

    pi = sigmoid(A_1 x + A_2 y) [b, n]      a ~ Bernoulli(pi)      policy: REINFORCE, one step late

x: what is known of the sample, y: the teachers' logits. For `distill/teachers/rl_kd.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu
from config import ArgGroup, ConfigError, RunArgs, flag
from distill.adapters import Adapter
from distill.combiner import Answer, Combination, Combiner
from distill.lazy_logits import over_rows
from distill.rows import Rows
from mpu.layout import Layout
from tasks.base import TaskShape


@dataclass(frozen=True, kw_only=True)
class RLKDArgs(ArgGroup):
    """Flags of RL-KD, its agent and reward."""

    title = "several teachers: rl_kd"
    rl_kd_wo_loss_mask: bool = flag(False, "language models: the agent sees every position")
    rl_kd_only_mask_pad: bool = flag(False, "language models: the agent sees all tokens")
    rl_kd_only_avg: bool = flag(False, "average the teachers, train no agent (first stage)")
    rl_kd_wo_hard: bool = flag(False, "do not add the hard loss here")
    rl_kd_reward: int = flag(1, "1: minus the student's hard loss; 2: and minus the teachers'")
    rl_kd_semantic_model: int | None = flag(None, "teacher that only tells the agent of samples")
    rl_kd_semantic_model_dim: int | None = flag(None, "its width; default: that teacher's")
    rl_kd_alpha: float = flag(0.5, "weight of all but the hard loss, which has the rest")

    def __post_init__(self) -> None:
        problems = []
        if self.rl_kd_reward not in (1, 2):
            problems.append(f"--rl_kd_reward={self.rl_kd_reward}: must be 1 or 2")
        if not 0 <= self.rl_kd_alpha <= 1:
            problems.append(f"--rl_kd_alpha={self.rl_kd_alpha:g}: must be between 0 and 1")
        if problems:
            raise ConfigError(problems)

    def width(self, run: RunArgs) -> int:
        """Width of what the semantic model says."""
        if self.rl_kd_semantic_model_dim is not None:
            return self.rl_kd_semantic_model_dim
        return run.teachers[self.rl_kd_semantic_model].hidden_size


class ShardedAgent(nn.Module):
    """A linear layer over n vocabularies side by side, each cut over the model-parallel ranks.

    weight [m, n v/p]: the shard of [m, n v] with n blocks; bias [m], whole.
    """

    def __init__(self, blocks: int, width: int, outputs: int, *, seed: tuple[int | str, ...]):
        super().__init__()
        whole = Adapter(blocks * width, outputs, seed=seed)
        rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
        partition = mpu.Partition(1, stride=blocks)
        shard = mpu.split(whole.weight.detach(), partition, rank, size)
        self.weight = nn.Parameter(shard.clone())
        mpu.set_partition(self.weight, partition)
        self.bias = nn.Parameter(whole.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """[b, n v/p] -> [b, m], the same on every rank."""
        with torch.autocast(x.device.type, enabled=False):
            part = F.linear(x.float(), self.weight.float())
            return mpu.reduce_from_model_parallel_region(part) + self.bias.float()


class Choosing(Combiner):
    """A combiner with such an agent."""

    def __init__(self, run: RunArgs, args: ArgGroup, shape: TaskShape, *, number: int, width: int):
        """`number` n of teachers to choose from, `width` of x; y has n classes (or words) wide."""
        super().__init__(run, args, shape)
        seed = (run.train.seed, type(self).__name__)
        self.agent_semantic_mt_loss = Adapter(width, number, seed=(*seed, "x"))
        if shape.classes:
            self.agent_mt_soft = Adapter(number * shape.classes, number, seed=(*seed, "y"))
        else:
            words = run.model.logit_size
            self.agent_mt_soft = ShardedAgent(number, words, number, seed=(*seed, "y"))
        self._last: dict[str, Tensor] = {}  # what the agent saw and chose a micro-batch ago

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers; a teacher is chosen where its probability is larger."""
        clock, rank = self.clock, mpu.get_data_parallel_rank()
        words = (clock.iteration, clock.micro_step, clock.repeat, rank)
        return torch.rand(shape, generator=self.generator(*words))

    def choose(self, x: Tensor, y: Tensor, real: Tensor) -> Tensor:
        """1 for each chosen teacher of each sample, [b, n]; kept until the next micro-batch.

        real [b]: 0 for a sample that only fills the batch.
        """
        with torch.no_grad():
            pi = self._scores(x, y).sigmoid()
        action = (self.draw(pi.shape).to(pi.device) < pi).float()
        self._last = {"x": x, "y": y, "action": action, "real": real}
        return action

    def policy(self, reward: Tensor, *, seed: bool = False) -> Tensor | None:
        """The policy term [] of the last choice, given its reward []; None before the first."""
        if not self._last:
            return None
        scores = self._scores(self._last["x"], self._last["y"])
        return policy_term(scores, self._last["action"], self._last["real"], reward, seed=seed)

    def combiner_state(self) -> dict[str, Any]:
        """The last choice of every data-parallel rank, its logits whole. Collective."""
        own = {name: x.detach() for name, x in self._last.items()}
        if own and not self.shape.classes:
            y = own["y"].unflatten(1, (own["action"].size(1), -1))
            own["y"] = mpu.gather_from_model_parallel_region(y).flatten(1)
        own = {name: x.cpu() for name, x in own.items()}
        return {"ranks": mpu.gather_objects_from_data_parallel(own)}

    def load_combiner_state(self, values: Mapping[str, Any]) -> None:
        """That of this rank; none if there were other ranks."""
        ranks, device = values["ranks"], self.agent_semantic_mt_loss.weight.device
        own: dict[str, Tensor] = {}
        if len(ranks) == mpu.get_data_parallel_world_size():
            own = dict(ranks[mpu.get_data_parallel_rank()])
        if own and not self.shape.classes:
            rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
            own["y"] = mpu.split(own["y"], mpu.partition_of(self.agent_mt_soft.weight), rank, size)
        self._last = {name: x.to(device) for name, x in own.items()}

    def _scores(self, x: Tensor, y: Tensor) -> Tensor:
        return self.agent_semantic_mt_loss(x) + self.agent_mt_soft(y)


def policy_term(
    scores: Tensor, action: Tensor, real: Tensor, reward: Tensor, *, seed: bool = False
) -> Tensor:
    """REINFORCE: -reward sum_i mean_b log p(a_bi).

    scores [b, n], before the sigmoid; action [b, n], real [b], reward [] -> []
    `seed` (MT): -reward sum_bi p(a_bi).
    """
    scores, real = torch.where(action > 0, scores, -scores), real[:, None]
    if seed:
        return -reward * (real * scores.sigmoid()).sum()
    return -reward * (real * F.logsigmoid(scores)).sum() / real.sum().clamp(min=1)


def said(
    answers: Sequence[Answer], made: Combination, semantic: Tensor | None, width: int
) -> Tensor:
    """x [b, width + n]: what a semantic model says, zeros without, and the teachers' hard losses.

    semantic [b, c, h], side by side, 0 for choices that only fill the batch; or [b, 1, h].
    """
    hard, real = torch.stack([a.hard_loss for a in answers], 1).detach(), made.context.class_mask
    if semantic is None:
        semantic = hard[:, :0, None]
    elif real is not None and semantic.size(1) == real.size(1):
        semantic = semantic * real[..., None]
    return torch.cat([widened(semantic.flatten(1), width), hard], 1)


def side_by_side(
    answers: Sequence[Answer], made: Combination, classes: int, *, rows: str
) -> Tensor:
    """y [b, n c]: the teachers' logits, 0 for choices that only fill the batch.

    Of language models [b, n v/p]: means over these rows.
    """
    ctx = made.context
    found, parts = ctx.first_rows(rows), []
    for answer in answers:
        if ctx.layout is not Layout.SHARD_LAST:
            real = 1 if ctx.class_mask is None else ctx.class_mask
            parts.append(widened(answer.logits.detach().float() * real, classes))
        else:
            parts.append(_over_rows(answer, partial(_means, found)))
    return torch.cat(parts, 1)


def _over_rows(answer: Answer, function: Callable[[Tensor], Tensor]) -> Tensor:
    """[b, s, v/p] -> [b, v/p] of a language model's logits, without gradient, fp32."""
    with torch.no_grad():
        return over_rows(answer.lazy_logits, function)


def _means(rows: Rows | None, x: Tensor) -> Tensor:
    """Of these rows of each sample: [b, s, ...] or, of the picked ones, [n, ...] -> [b, ...]."""
    if rows is None:
        return x.mean(1)
    return rows.of_samples(rows.pick(x) if x.dim() == 3 else x)


def padded_side_by_side(
    answers: Sequence[Answer], made: Combination, classes: int, *, every: bool, labels: bool
) -> Tensor:
    """The seed's y (MT): masked positions count as zeros, choices that fill the batch as real."""
    mask, parts = padded_mask(made, every=every, labels=labels), []
    for answer in answers:
        if made.context.layout is Layout.SHARD_LAST:
            parts.append(_over_rows(answer, partial(_padded_means, mask)))
        else:
            parts.append(widened(answer.logits.detach().float(), classes))
    return torch.cat(parts, 1)


def _padded_means(mask: Tensor | None, x: Tensor) -> Tensor:
    return (x if mask is None else x * mask[..., None]).mean(1)


def padded_mask(made: Combination, *, every: bool, labels: bool) -> Tensor | None:
    """The seed's mask [b, s] (MT): none, positions with a label, or targets."""
    if made.context.layout is not Layout.SHARD_LAST or every:
        return None
    return (made.context.labels > 0).float() if labels else made.context.loss_mask


def widened(x: Tensor, width: int) -> Tensor:
    """[b, k] -> [b, width], zeros on the right: a batch whose samples have fewer choices."""
    assert x.size(-1) <= width, f"{x.size(-1)} entries, the agent was built for {width}"
    return F.pad(x, (0, width - x.size(-1)))
