"""Pretrain a GLM, alone or as the student of a teacher.

python distill/pretrain.py --help
torchrun --nproc_per_node 2 distill/pretrain.py ...
deepspeed distill/pretrain.py --deepspeed --deepspeed_config=config/config_block_base.json ...
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_utils.build import Loaders
    from distill.engine.trainer import Trainer


def main(argv: Sequence[str] | None = None) -> None:
    """The program. A mistake of the user ends it with one message and exit code 2."""
    from distill.engine.launch import run_program

    run_program(lambda: pretrain(sys.argv[1:] if argv is None else argv))


def pretrain(argv: Sequence[str]) -> None:
    """From flags to a trained model in the run's folder."""
    from config import parse_args
    from distill.registry import method_args

    run = parse_args(argv, program="pretrain", methods=method_args())

    import mpu
    from data_utils.build import build_pretrain_loaders, build_tokenizer
    from distill.engine.build import (
        build_module,
        first_iteration,
        resume,
        with_vocabulary,
        write_summary,
    )
    from distill.engine.checkpoint import Checkpoints, check_sources
    from distill.engine.launch import launch
    from distill.engine.run_dir import check_run_dir, open_run_dir
    from distill.engine.summary import Summary
    from distill.engine.trainer import Plan, Trainer
    from distill.engine.wrap import wrap
    from distill.step import DistillStep
    from distill.teacher import build_teachers
    from tasks.block_lm import BlockLM

    check_run_dir(run)
    runtime = launch(run)
    tokenizer = build_tokenizer(run.tokenizer, run.blocks)
    run = with_vocabulary(run, tokenizer)
    check_sources(run, tokenizer.fingerprint)
    with runtime.local_main_first():
        loaders = build_pretrain_loaders(
            run.data,
            run.blocks,
            run.train,
            tokenizer,
            mpu.get_data_parallel_rank(),
            mpu.get_data_parallel_world_size(),
            first_iteration(run),
            evaluation=run.evaluation,
            pin_memory=runtime.device.type == "cuda",
        )
    task = BlockLM()
    teachers = build_teachers(run, task, runtime.device, fingerprint=tokenizer.fingerprint)
    engine = wrap(build_module(run, task.head), run, runtime)
    open_run_dir(run, runtime)
    checkpoints = Checkpoints(run, runtime, tokenizer.fingerprint)
    checkpoints.write_config()
    state = resume(run, engine, checkpoints)
    trainer = Trainer(
        engine,
        DistillStep(task, engine, teachers, run, state),
        loaders.train,
        Plan(
            total=run.train.train_iters,
            log_every=run.train.log_interval,
            eval_every=run.evaluation.eval_interval,
            save_every=(run.checkpoint.save_interval,),
            save_hours=run.checkpoint.save_interval_time,
        ),
        state,
        run,
        runtime,
        checkpoints=checkpoints,
        summary=Summary(run, runtime, start=state.iteration),
        evaluate=validation(engine, task, loaders),
    )
    trainer.fit()
    write_summary(argv, run, runtime, engine, state, final_scores(trainer, task, loaders))
    trainer.summary.close()


def validation(engine: Any, task: Any, loaders: "Loaders") -> Any:
    """A function that scores the validation batches; None without any."""
    from distill.engine.evaluate import evaluate

    if loaders.valid is None:
        return None
    return lambda: evaluate(engine, task, loaders.valid, split="val").metrics


def final_scores(trainer: "Trainer", task: Any, loaders: "Loaders") -> dict[str, Any]:
    """Loss and perplexity of the trained model on validation and test."""
    from distill.engine.evaluate import evaluate

    if loaders.valid is not None and trainer.scored_at != trainer.state.iteration:
        trainer.evaluate()
    found = {"val": trainer.scores}
    if loaders.test is not None:
        found["test"] = evaluate(trainer.engine, task, loaders.test, split="test").metrics
    return found


if __name__ == "__main__":
    main()
