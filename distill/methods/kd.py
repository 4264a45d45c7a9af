"""KD (Hinton et al., 2015, arXiv 1503.02531): match the teacher's soft labels, no layers.

    loss = soft_rate T^2 CE(softmax(z_T / T), softmax(z_S / T)) + hard_rate CE(label, z_S)

z [b, c] of choices, or [b, s, v/p] of a language model. All switches are the base class's
(`distill/soft_labels.py`): --distill_ft_soft --distill_ft_hard --distill_temperature=10.

PD (Turc et al., 2019, arXiv 1908.08962) is a recipe of it: pretrain the student alone, then
fine-tune with --distill_ft_soft at temperature 1 and without hard labels.

Not as in the paper: soft and hard loss have weight 1 each unless --distill_soft_rate and
--distill_hard_rate say otherwise.

When: a baseline for everything else; of the teacher only its answers are needed.
"""

from distill.registry import register
from distill.student import GLMStudent


@register("kd", "KD")
class KD(GLMStudent):
    """The base class under a name."""
