"""Pretrain a GLM, alone or as the student of a teacher.

python distill/pretrain.py --help
torchrun --nproc_per_node 2 distill/pretrain.py ...
deepspeed distill/pretrain.py --deepspeed --deepspeed_config=config/config_block_base.json ...
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from config import RunArgs
    from data_utils.build import Loaders
    from data_utils.loader import StepLoader
    from data_utils.tokenization import Tokenizer
    from distill.engine.checkpoint import Checkpoints
    from distill.engine.launch import Runtime
    from distill.engine.trainer import Plan, Trainer
    from distill.step import DistillStep
    from tasks.base import Task


def main(argv: Sequence[str] | None = None) -> None:
    """The program. A mistake of the user ends it with one message and exit code 2."""
    from distill.engine.launch import run_program

    run_program(lambda: pretrain(sys.argv[1:] if argv is None else argv))


def pretrain(argv: Sequence[str]) -> None:
    """From flags to a trained model in the run's folder."""
    from config import parse_args
    from distill.combiner import combiner_args
    from distill.registry import method_args

    kinds = {"methods": method_args(argv), "combiners": combiner_args()}
    run = parse_args(argv, program="pretrain", **kinds)

    from distill.engine.build import build_module, open_run, start, write_summary
    from distill.engine.summary import Summary
    from distill.engine.trainer import Trainer
    from distill.engine.wrap import wrap
    from distill.step import DistillStep, check_needs
    from distill.teacher import build_teachers

    run, runtime, tokenizer = start(run)
    loaders = load_data(run, runtime, tokenizer)
    task = task_of(run)
    check_needs(run, task.head)
    teachers = build_teachers(run, task, runtime.device, fingerprint=tokenizer.fingerprint)
    engine = wrap(build_module(run, task, teachers, runtime), run, runtime)
    checkpoints, state = open_run(run, runtime, engine, tokenizer)
    step = DistillStep(task, engine, teachers, run, state)
    keep_memories(step, checkpoints)
    trainer = Trainer(
        *(engine, step, loaders.train, plan(run, loaders), state, run, runtime),
        checkpoints=checkpoints,
        summary=Summary(run, runtime, start=state.iteration),
        evaluate=lambda: score(step, loaders.valid, "val"),
    )
    trainer.fit()
    write_summary(argv, trainer, final_scores(trainer, loaders))


def task_of(run: "RunArgs") -> "Task":
    """Blank infilling, or text from left to right."""
    from tasks.block_lm import BlockLM
    from tasks.text import ContinuedText

    return ContinuedText(run.model.mem_length) if run.reads_text else BlockLM()


def keep_memories(step: "DistillStep", checkpoints: "Checkpoints") -> None:
    """What models remember of the text is a part of every checkpoint, and of the one of --load."""
    from distill.engine.checkpoint import tag_folder

    checkpoints.parts.append(step.memories.save)
    if step.run.checkpoint.load is not None:
        step.memories.load(tag_folder(step.run.checkpoint.load), step.student.device)


def load_data(run: "RunArgs", runtime: "Runtime", tokenizer: "Tokenizer") -> "Loaders":
    """The loaders of this process; the first of each machine builds what is not cached."""
    import mpu
    from data_utils.build import build_pretrain_loaders
    from data_utils.build_text import build_text_loaders
    from distill.engine.build import first_iteration
    from tasks.multi_task import build_multi_task

    ranks = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    pin = runtime.device.type == "cuda"
    with_blocks = not run.model.no_block_position
    groups = run.data, run.train, tokenizer, run.compat
    mixture = build_multi_task(*groups, block_position=with_blocks)
    with runtime.local_main_first():
        if run.reads_text:
            return build_text_loaders(
                *(run.data, run.train, tokenizer, *ranks, first_iteration(run)),
                evaluation=run.evaluation,
                pin_memory=pin,
            )
        return build_pretrain_loaders(
            *(run.data, run.blocks, run.train, tokenizer, *ranks, first_iteration(run)),
            evaluation=run.evaluation,
            block_position=with_blocks,
            pin_memory=pin,
            mixture=mixture,
        )


def plan(run: "RunArgs", loaders: "Loaders") -> "Plan":
    """When this run logs, evaluates and saves."""
    from distill.engine.trainer import Plan

    return Plan(
        total=run.train.train_iters,
        log_every=run.train.log_interval,
        eval_every=None if loaders.valid is None else run.evaluation.eval_interval,
        save_every=(run.checkpoint.save_interval,),
        save_hours=run.checkpoint.save_interval_time,
    )


def score(step: "DistillStep", steps: "StepLoader", split: str) -> dict[str, float]:
    """Loss and perplexity of a split, with memories of its own."""
    from distill.engine.evaluate import evaluate

    return evaluate(step.student, step.task, step.memories.over(steps), split=split).metrics


def final_scores(trainer: "Trainer", loaders: "Loaders") -> dict[str, Any]:
    """Loss and perplexity of the trained model on validation and test."""
    found = {}
    if loaders.valid is not None:
        if trainer.scored_at != trainer.state.iteration:
            trainer.evaluate()
        found["val"] = trainer.scores
    if loaders.test is not None:
        found["test"] = score(trainer.step, loaders.test, "test")
    return found


if __name__ == "__main__":
    main()
