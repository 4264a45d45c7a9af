"""An agent that chooses teachers for each sample, and learns which choices were good.

    pi = sigmoid(A_1 x + A_2 y) [b, n]      a ~ Bernoulli(pi)      policy: REINFORCE, one step late

x: what is known of the sample, y: the teachers' logits. For `distill/teachers/rl_kd.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu
from config import ArgGroup, ConfigError, RunArgs, flag
from distill.adapters import Adapter
from distill.combiner import Answer, Combination, Combiner
from mpu.layout import Layout
from tasks.base import TaskShape

TINY = 1e-12  # a probability of 0 has a finite logarithm


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
            words = run.model.vocab_size
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
            pi = self._pi(x, y)
        action = (self.draw(pi.shape).to(pi.device) < pi).float()
        self._last = {"x": x, "y": y, "action": action, "real": real}
        return action

    def policy(self, reward: Tensor, *, seed: bool = False) -> Tensor | None:
        """The policy term [] of the last choice, given its reward []; None before the first."""
        if not self._last:
            return None
        pi = self._pi(self._last["x"], self._last["y"])
        return policy_term(pi, self._last["action"], self._last["real"], reward, seed=seed)

    def combiner_state(self) -> dict[str, Any]:
        """The last choice of every data-parallel rank. Collective."""
        own = {name: x.detach().cpu() for name, x in self._last.items()}
        return {"ranks": mpu.gather_objects_from_data_parallel(own)}

    def load_combiner_state(self, values: Mapping[str, Any]) -> None:
        """That of this rank; none if there were other ranks."""
        ranks, device = values["ranks"], self.agent_semantic_mt_loss.weight.device
        own = {}
        if len(ranks) == mpu.get_data_parallel_world_size():
            own = ranks[mpu.get_data_parallel_rank()]
        self._last = {name: x.to(device) for name, x in own.items()}

    def _pi(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.agent_semantic_mt_loss(x) + self.agent_mt_soft(y)).sigmoid()


def policy_term(
    pi: Tensor, action: Tensor, real: Tensor, reward: Tensor, *, seed: bool = False
) -> Tensor:
    """REINFORCE: -reward sum_i mean_b log p(a_bi). pi, action [b, n], real [b], reward [] -> [].

    `seed` (MT): -reward sum_bi p(a_bi).
    """
    p, real = torch.where(action > 0, pi, 1 - pi), real[:, None]
    if seed:
        return -reward * (real * p).sum()
    return -reward * (real * p.clamp(min=TINY).log()).sum() / real.sum().clamp(min=1)


def said(answers: Sequence[Answer], semantic: Tensor | None, width: int) -> Tensor:
    """x [b, width + n]: what a semantic model says (zeros without), and the teachers' losses."""
    hard = torch.stack([answer.hard_loss for answer in answers], 1).detach()
    return torch.cat([widened(hard[:, :0] if semantic is None else semantic, width), hard], 1)


def side_by_side(
    answers: Sequence[Answer], mask: Tensor | None, classes: int, *, padded: bool = False
) -> Tensor:
    """y [b, n c]: the teachers' logits; of language models [b, n v/p], means over positions.

    mask [b, s]: positions that count; `padded` (MT): the others count as zeros.
    """
    rows = []
    for answer in answers:
        logits = answer.logits.detach().float()
        if logits.dim() < 3:
            rows.append(widened(logits, classes))
        elif mask is None:
            rows.append(logits.mean(1))
        else:
            number = mask.size(1) if padded else mask.sum(1, keepdim=True).clamp(min=1)
            rows.append((logits * mask[..., None]).sum(1) / number)
    return torch.cat(rows, 1)


def padded_mask(made: Combination, *, every: bool, labels: bool) -> Tensor | None:
    """The seed's mask [b, s] (MT): none, positions with a label, or targets."""
    if made.context.layout is not Layout.SHARD_LAST or every:
        return None
    return (made.context.labels > 0).float() if labels else made.context.loss_mask


def widened(x: Tensor, width: int) -> Tensor:
    """[b, k] -> [b, width], zeros on the right: a batch whose samples have fewer choices."""
    assert x.size(-1) <= width, f"{x.size(-1)} entries, the agent was built for {width}"
    return F.pad(x, (0, width - x.size(-1)))
