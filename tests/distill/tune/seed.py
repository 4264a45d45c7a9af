"""Command lines of the seed's auto_tune, and jobs of them under a clock and ports of our own."""

import datetime
import itertools
import shlex

from distill.tune.seed_args import read
from distill.tune.seed_plan import Clock, Job, jobs_of

START = datetime.datetime(2023, 1, 13, 11, 0, 15, 505218)
#: The task-specific stages of GLMD, with vocabulary compression and a narrow embedding.
GLMD = """--py_file=distill/finetune.py --gpus=2,3 --model=block_tiny6
    --model_path=checkpoints/distill/glmd --task_t_load=base
    --tasks=record,copa,wsc,rte,boolq,wic,cb,multirc,wsc_generative
    --student_model=logitsdistil --distill_temperature=15 --map_vocab_size=0.5
    --distill_logit_mask_map --unmap_vocab_output --logitsdistil_mask_pad --compress_word_emb=384
    --del_checkpoint_activations --again_1__distill_ft_soft --again_1__distill_temperature=1
    --again_1__logitsdistil_wo_inter --seed=1759
    --ds_train_micro_batch_size_per_gpu="16;16;32;16;16;16;32;16;32"
    --ds_gradient_accumulation_steps=2 --rate_ds_train_micro_batch_size_per_gpu=0.25
    --rate_ds_gradient_accumulation_steps=1"""
PLAIN = """--py_file=distill/finetune.py --gpus=2 --model=block_tiny6
    --model_path=/data/distill12-6.384 --hidden-size=384
    --tasks=copa,wsc_generative,cb,rte,boolq,wic,wsc,multirc,record"""


def jobs(text: str) -> list[Job]:
    """The jobs of a command line; ports count up from 20000."""
    ports = itertools.count(20000)
    return jobs_of(read(shlex.split(text)), Clock(lambda: START), lambda: next(ports))


def flags(text: str, job: int = 0, stage: int = 0) -> dict:
    """Flags of one command."""
    return dict(jobs(text)[job].stages[stage].command.flags)
