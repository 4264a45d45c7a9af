"""Combiners of several teachers. Importing this package registers them."""

from config import RunArgs
from distill.combiner import Combiner, chosen_combiner
from distill.teachers import average as average
from distill.teachers import mixmt as mixmt
from distill.teachers import mt_bert as mt_bert
from distill.teachers import rl_kd as rl_kd
from distill.teachers import uncertainty as uncertainty
from tasks.base import TaskShape


def build_combiner(run: RunArgs, shape: TaskShape) -> Combiner:
    """What --multi_teacher_model asks for; the average without it, and for a single teacher."""
    cls, args = chosen_combiner(run)
    return cls(run, args, shape)
