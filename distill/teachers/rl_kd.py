"""RL-KD (Yuan et al., 2021, arXiv 2012.06048): an agent chooses the teachers of each sample.

    pi_bi = sigmoid(A_1 x_b + A_2 y_b)_i,      a_bi ~ Bernoulli(pi_bi)
    loss  = alpha (mean_bi a_bi (pre_bi + inter_bi) + policy) + (1 - alpha) hard
    policy = -reward' sum_i mean_b log p(a'_bi),     log p(a) = a log pi + (1 - a) log(1 - pi)

x_b: what a semantic model says of the sample (its output at position 0, of every choice) and the
teachers' hard losses on it; y_b: the teachers' logits side by side (of a language model their mean
over target positions; --rl_kd_only_mask_pad or --rl_kd_wo_loss_mask: over all tokens). a', pi': of
the micro-batch before, whose choice the student has learned from when reward' is taken: minus its
hard loss now (--rl_kd_reward=2: minus the teachers' mean hard loss as well). alpha: --rl_kd_alpha.

--rl_kd_semantic_model is the number of the teacher that only serves as semantic model; without one
the agent sees zeros of width --rl_kd_semantic_model_dim. --rl_kd_only_avg (the published first
stage) averages the teachers and trains no agent. --rl_kd_wo_hard leaves the hard loss out.

Not as in the paper: the reward comes after each step, not after an epoch, and has no baseline.

Not as in the seed (--compat=MT): its policy term is the gradient of pi, not of log pi, and a sum
over the batch; its second reward takes the last teacher's loss; padded choices are seen.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from config import ArgGroup, RunArgs
from distill import needs
from distill.agent import Choosing, RLKDArgs, padded_side_by_side, said, side_by_side
from distill.capture import Captured, Point, output
from distill.combiner import Answer, Combination, TaskShape, register_combiner
from distill.context import Clock
from model.build import HeadSpec


@register_combiner("rl_kd", "RL_KD")
class RLKD(Choosing):
    """See the module."""

    Args = RLKDArgs

    def __init__(self, run: RunArgs, args: ArgGroup, shape: TaskShape):
        number = sum(t_no != args.rl_kd_semantic_model for t_no in range(len(run.teachers)))
        self.width = args.width(run) * shape.rows  # of what the semantic model says of a sample
        super().__init__(run, args, shape, number=number, width=self.width + number)
        self._semantic: Tensor | None = None

    @classmethod
    def problems(cls, run: RunArgs, args: ArgGroup, head: HeadSpec) -> Iterator[str]:
        """A semantic model that exists, or a width for none; others to choose from, that run."""
        number, teachers = args.rl_kd_semantic_model, len(run.teachers)
        if number is None and args.rl_kd_semantic_model_dim is None:
            yield (
                "--rl_kd_semantic_model: missing; give the number of the teacher that tells the "
                "agent of samples, or --rl_kd_semantic_model_dim for an agent without one"
            )
        elif number is not None and not 0 <= number < teachers:
            yield f"--rl_kd_semantic_model={number}: there are teachers 0 to {teachers - 1}"
        elif number is not None and args.width(run) != run.teachers[number].hidden_size:
            yield (
                f"--rl_kd_semantic_model_dim={args.width(run)}: teacher {number} has width "
                f"{run.teachers[number].hidden_size}; leave it out"
            )
        if number == 0 and teachers == 1:
            yield "--rl_kd_semantic_model=0: is the only teacher; give others to learn from"
        if not args.rl_kd_only_avg:
            yield from needs.teacher_forward("rl_kd", run)
        yield from needs.hard_once("rl_kd", run, not args.rl_kd_wo_hard)

    @classmethod
    def learns_from(cls, args: ArgGroup, t_no: int) -> bool:
        """Not from the semantic model."""
        return t_no != args.rl_kd_semantic_model

    @property
    def needs_teacher_loss(self) -> bool:
        """For what the agent sees, and the second reward."""
        return not self.args.rl_kd_only_avg

    @property
    def needs_all_logits(self) -> bool:
        """If the agent sees the logits of every position."""
        every = self.args.rl_kd_wo_loss_mask or self.args.rl_kd_only_mask_pad
        return not self.args.rl_kd_only_avg and (every or "MT" in self.run.compat)

    @property
    def per_sample(self) -> tuple[bool, bool]:
        """Both, where samples choose."""
        return not self.args.rl_kd_only_avg, not self.args.rl_kd_only_avg

    def compares(self, t_no: int) -> bool:
        """All teachers but the semantic model."""
        return self.learns_from(self.args, t_no)

    def runs(self, t_no: int) -> bool:
        """The semantic model only if there is an agent to tell."""
        return self.compares(t_no) or not self.args.rl_kd_only_avg

    def teacher_points(self, t_no: int) -> list[Point]:
        """The semantic model's output."""
        return [] if self.compares(t_no) else [output()]

    def begin_pass(self, clock: Clock) -> None:
        """Forget what the semantic model said of the pass before."""
        super().begin_pass(clock)
        self._semantic = None

    def see(self, t_no: int, captured: Captured, num_samples: int) -> None:
        """What the semantic model says: its output at position 0, the choices side by side."""
        self._semantic = captured[output()][:, 0].detach().unflatten(0, (num_samples, -1))

    def total(
        self, losses: Sequence[Tensor | float], answers: Sequence[Answer], made: Combination
    ) -> Tensor | float:
        """alpha (KD + policy) + (1 - alpha) hard."""
        alpha = self.args.rl_kd_alpha
        if self.args.rl_kd_only_avg:
            rest = sum(losses, start=0.0) / len(losses)
        else:
            like = torch.zeros_like(answers[0].hard_loss)
            rest = self._chosen(torch.stack([like + x for x in losses], 1), answers, made)
        if self.args.rl_kd_wo_hard:
            return alpha * rest
        hard = (1 - alpha) * made.hard_loss
        made.log("multi_teacher_model/hard_loss", hard)
        return alpha * rest + hard

    def _chosen(self, losses: Tensor, answers: Sequence[Answer], made: Combination) -> Tensor:
        """Losses [b, n] of the chosen teachers, [], and the policy term of the choice before."""
        args, seed = self.args, "MT" in self.run.compat
        real = torch.ones_like(losses[:, 0]) if made.real is None else made.real
        every, tokens = args.rl_kd_wo_loss_mask, args.rl_kd_only_mask_pad
        reward = -made.hard_loss.detach()
        if args.rl_kd_reward == 2:
            hard = [(a.hard_loss.detach() * real).sum() / real.sum().clamp(min=1) for a in answers]
            reward = reward - (hard[-1] if seed else sum(hard) / len(hard))
        policy = self.policy(reward, seed=seed)
        if seed:
            see, view = padded_side_by_side, {"every": every, "labels": tokens}
        else:
            see, view = side_by_side, {"rows": "tokens" if every or tokens else "targets"}
        soft = see(answers, made, self.shape.classes, **view)
        action = self.choose(said(answers, made, self._semantic, self.width), soft, real)
        if policy is None:
            return (action * losses).mean()
        made.log("multi_teacher_model/rl_loss", policy)
        return (action * losses).mean() + policy
