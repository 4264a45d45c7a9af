"""Fine-tune a GLM on a task, alone or as the student of a teacher; evaluate it.

python distill/finetune.py --help
torchrun --nproc_per_node 2 distill/finetune.py ...
deepspeed distill/finetune.py --deepspeed --deepspeed_config=config/tasks/... ...
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import RunArgs
    from data_utils.loader import StepLoader
    from distill.engine.launch import Runtime
    from distill.engine.trainer import Plan
    from tasks.base import FinetuneTask

SPLITS = ("train", "val", "test")


def main(argv: Sequence[str] | None = None) -> None:
    """The program. A mistake of the user ends it with one message and exit code 2."""
    from distill.engine.launch import run_program

    run_program(lambda: finetune(sys.argv[1:] if argv is None else argv))


def finetune(argv: Sequence[str]) -> None:
    """From flags to a fine-tuned model and its scores in the run's folder."""
    from config import parse_args
    from distill.combiner import combiner_args
    from distill.registry import method_args

    kinds = {"methods": method_args(argv), "combiners": combiner_args()}
    run = parse_args(argv, program="finetune", **kinds)

    from distill.block_steps import BlockSteps
    from distill.engine.build import build_module, open_run, start, write_summary
    from distill.engine.selection import Selection
    from distill.engine.summary import Summary
    from distill.engine.trainer import Trainer
    from distill.engine.wrap import wrap
    from distill.step import DistillStep, check_needs
    from distill.teacher import build_teachers
    from tasks.block_lm import BlockLM
    from tasks.registry import build_task

    run, runtime, tokenizer = start(run)
    with_blocks = not run.model.no_block_position
    groups = run.finetuning, run.data, tokenizer, run.compat
    task = build_task(*groups, block_position=with_blocks, text=run.text)
    check_needs(run, task.head)
    loaders = load_data(task, run, runtime)
    teachers = build_teachers(run, task, runtime.device, fingerprint=tokenizer.fingerprint)
    engine = wrap(build_module(run, task, teachers, runtime), run, runtime)
    checkpoints, state = open_run(run, runtime, engine, tokenizer)
    selection = Selection(engine, task, loaders, state, run, runtime, checkpoints)
    train = loaders["train"]
    when = plan(run, train)
    step = DistillStep(task, engine, teachers, run, state, total=when.total)
    if run.finetuning.block_lm_ratio > 0:
        step = BlockSteps(step, DistillStep(BlockLM(), engine, (), run, state, total=when.total))
    trainer = Trainer(
        *(engine, step, train, when, state, run, runtime),
        checkpoints=checkpoints,
        summary=Summary(run, runtime, start=state.iteration),
        evaluate=selection.evaluate if loaders["val"] is not None else None,
    )
    first = run.evaluation.custom_first_eval and loaders["val"] is not None
    if first and state.iteration == 0 and trainer.plan.total > 0:
        trainer.evaluate()
    trainer.fit()
    write_summary(argv, trainer, selection.finish())


def load_data(
    task: "FinetuneTask", run: "RunArgs", runtime: "Runtime"
) -> "dict[str, StepLoader | None]":
    """Loaders of "train", "val", "test" of this process. Every split is read and encoded now.

    FileNotFoundError without a training or validation split; None where there is no test split, for
    "val" with --no-validation. A run that trains nothing (--epochs=0) reads no training split: its
    loader has no batches.
    """
    from config import ConfigError
    from distill.engine.build import first_iteration

    start = first_iteration(run)
    wanted = [split for split in SPLITS if split != "val" or not run.finetuning.no_validation]
    found = {
        split: loader(task, split, run, runtime, start) if split in wanted else None
        for split in (wanted if run.train.epochs != 0 else wanted[1:])
    }
    if "train" not in found:
        scored = next((split for split in wanted[1:] if found[split] is not None), None)
        if scored is None:
            raise ConfigError(
                "--epochs=0: there is no split to evaluate; add a test file, or leave out "
                "--no-validation"
            )
        found["train"] = loader(task, scored, run, runtime, start, trains=True)
    return {split: found.get(split) for split in SPLITS}


def loader(
    task: "FinetuneTask",
    split: str,
    run: "RunArgs",
    runtime: "Runtime",
    start: int,
    trains: bool | None = None,
) -> "StepLoader | None":
    """Batches of one split: shuffled epochs from iteration `start` on to train, else one pass.

    `trains`: whether it does, if the split's name does not tell.
    """
    import mpu
    from data_utils.loader import StepLoader
    from data_utils.mixed import AlternatingSampler
    from data_utils.samplers import StepSampler
    from tasks.block_steps import with_blocks

    dataset, collate = task.dataset(split), task.collate
    if dataset is None:
        return None
    ranks = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    if split == "train" if trains is None else trains:
        sampler = StepSampler(
            len(dataset),
            run.train.batch_size,
            run.train.gradient_accumulation_steps,
            *ranks,
            run.train.seed,
            shuffle=True,
            start_iteration=start,
            epochs=run.train.epochs,
            iterations=run.train.train_iters if run.train.epochs is None else None,
        )
        ratio = run.finetuning.block_lm_ratio
        if ratio > 0 and split == "train":
            dataset, collate = with_blocks(task, run.blocks, run.train.seed)
            sampler = AlternatingSampler(sampler, 1 - 1 / (1 + ratio), run.train.seed)
    else:
        size = run.evaluation.eval_batch_size or run.train.batch_size
        sampler = StepSampler(len(dataset), size, 1, *ranks, epochs=1)
    pin = runtime.device.type == "cuda"
    return StepLoader(dataset, collate, sampler, pin_memory=pin)


def plan(run: "RunArgs", train: "StepLoader") -> "Plan":
    """When this run evaluates and saves: at epoch ends, and every --save-interval steps."""
    from distill.engine.trainer import Plan

    epoch, total = train.sampler.steps_per_epoch, train.sampler.stop_iteration
    assert total is not None, "neither epochs nor iterations"
    return Plan(
        total=total,
        log_every=run.train.log_interval,
        eval_every=run.evaluation.eval_epoch * epoch,
        eval_at_end=True,  # the last weights compete too, wherever training ends
        save_every=(run.checkpoint.save_interval, run.checkpoint.save_epoch * epoch),
        save_hours=run.checkpoint.save_interval_time,
        save_at_end=False,
        steps_per_epoch=epoch,
    )


if __name__ == "__main__":
    main()
