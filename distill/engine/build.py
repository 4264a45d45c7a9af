"""What the two programs share: start, vocabulary, model, resuming, the summary at the end."""

import dataclasses
import json
import logging
import resource
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mpu
from config import ConfigError, RunArgs
from config.recompute import recomputation
from config.saved import changes, run_folder
from config.vocabulary import builds_map, with_vocabulary
from data_utils.build_tokenizer import build_tokenizer
from data_utils.tokenization import Tokenizer
from distill.context import TrainState
from distill.engine import files
from distill.engine.checkpoint import (
    Checkpoints,
    check_sources,
    load_weights,
    read_config,
    resolve,
    saved_state,
    tag_folder,
)
from distill.engine.deepspeed_engine import check_zero
from distill.engine.launch import Runtime, launch
from distill.engine.resuming import check_resumable, kind_of
from distill.engine.run_dir import SUMMARY, check_run_dir, keep_vocabulary, open_run_dir
from distill.engine.trainer import Trainer
from distill.engine.weights import whole_shape
from distill.engine.wrap import Engine
from distill.engine.zero3 import cut_while_built
from distill.limits import check_layout
from distill.live import EmptyGLM, add_live_teachers, check_empty, restore_combiner
from distill.prompts import find_glm, freeze_glm, start_prompts
from distill.step import check_method
from distill.student import GLMStudent, build_student
from distill.teacher import Teacher
from distill.vocabulary import build_map, load_ranking
from distill.warm_start import check_warm_start, warm_start
from model.build import add_head, build_model
from model.transformer import ParallelTransformer
from tasks.base import Task

log = logging.getLogger(__name__)


def with_commands(run: RunArgs, tokenizer: Tokenizer) -> RunArgs:
    """The run that notes which tokens its samples brought into the vocabulary."""
    sentinels = sum(name.startswith("MASK") for name in tokenizer.commands) - 1
    words = dataclasses.replace(
        run.tokenizer, block_mask="dBLOCK" in tokenizer.commands, num_sentinels=sentinels
    )
    return dataclasses.replace(run, tokenizer=words)


def start(run: RunArgs) -> tuple[RunArgs, Runtime, Tokenizer]:
    """Processes, tokenizer and the run with its vocabulary, after every check that is cheap."""
    check_warm_start(run)
    check_run_dir(run)
    runtime = launch(run)
    check_zero(run, runtime)
    tokenizer = build_tokenizer(run.tokenizer, run.blocks, run.model.max_position_embeddings)
    check_sources(run, tokenizer.fingerprint)
    check_resumed(run)
    if run.checkpoint.load is not None:
        folder = tag_folder(run.checkpoint.load, what="--load")
        check_resumable(folder, read_config(folder) or {}, kind_of(run))
    if builds_map(run):
        load_ranking(run, tokenizer)
    return with_commands(with_vocabulary(run, tokenizer), tokenizer), runtime, tokenizer


def build_module(
    run: RunArgs, task: Task, teachers: Sequence[Teacher] = (), runtime: Runtime | None = None
) -> nn.Module:
    """The student (or the GLM alone) under the task's head, with the weights it starts from:

    those of --load-pretrained, or a new vocabulary map; over them those of a teacher, if
    --student_truncate_tn says so, and in its combiner those of --mt_model_load. Teachers that are
    trained become a part of it. With a `runtime` ZeRO-3 cuts layers as they are built.
    ConfigError: the method cannot work with this head, or has no loss.
    """
    head, seed = task.head, run.train.seed
    if run.teachers and run.multi_teacher.student_use_empty_glm:
        model: nn.Module = EmptyGLM(run.model, head)
    else:
        with cut_while_built(run, runtime):
            model = build_model(run.model, head, seed=seed)
    student = build_student(model, run, task.shape)
    if isinstance(student, GLMStudent):
        check_empty(student, run)
        check_method(student, head, run)
        check_layout(student, run)
    module = add_head(student, head, run.model, seed=seed)
    own = load_start(run, module)
    if builds_map(run):
        build_map(module, teachers, run)
    keep_inputs(module, run)
    warm_start(module, teachers, run)
    if run.finetuning.prompt_init and not own:
        start_prompts(module, head, seed)
    if run.finetuning.freeze_transformer and run.train.epochs != 0:
        freeze_glm(module, run)
    restore_combiner(student, run)
    add_live_teachers(student, teachers)
    return module


def load_start(run: RunArgs, module: nn.Module) -> bool:
    """The weights of --load-pretrained; whether they have continuous prompts of their own."""
    if run.checkpoint.load_pretrained is None or run.checkpoint.load is not None:
        return run.checkpoint.load is not None
    glm = find_glm(module)
    prompts = None if glm is None else glm.prompt_spell
    before = None if prompts is None else prompts.spell_embeddings.weight.clone()
    load_weights(run.checkpoint.load_pretrained, module, what="--load-pretrained")
    return prompts is not None and not torch.equal(before, prompts.spell_embeddings.weight)


def keep_inputs(module: nn.Module, run: RunArgs) -> None:
    """Tell every stack of layers where the inputs of its recomputed chunks stay."""
    asked = recomputation(run)
    for part in module.modules():
        if isinstance(part, ParallelTransformer):
            part.keep = mpu.Keep(asked.partition, asked.on_cpu)


def first_iteration(run: RunArgs) -> int:
    """The iteration at which this run begins: 0, or that of the checkpoint of --load."""
    if run.checkpoint.load is None:
        return 0
    folder, tag = resolve(run.checkpoint.load, what="--load")
    if not tag.isdigit():
        raise ConfigError(
            f"--load={run.checkpoint.load}: {tag!r} holds weights only and cannot be resumed; "
            f"use --load-pretrained={folder / tag}"
        )
    return int(tag)


def check_resumed(run: RunArgs) -> None:
    """ConfigError if nothing is left to do after --load; a warning with what is not as before."""
    iteration, path = first_iteration(run), run.checkpoint.load
    if path is None:
        return
    by_epochs = run.program == "finetune" and run.train.epochs is not None
    flag, wanted, done, unit = "--train-iters", run.train.train_iters, iteration, "iterations"
    if by_epochs:
        flag, wanted, unit = "--epochs", run.train.epochs, "epochs"
        done = (saved_state(path) or {}).get("epoch", 0)
    if wanted < done or (wanted == done and _told_of(path) >= iteration):
        how = ""
        if run.program == "finetune":
            how = f", or evaluate with --load-pretrained={path} --epochs=0"
        raise ConfigError(
            f"{flag}={wanted}: the run in {path} already has {done} {unit}; give more{how}"
        )
    changed = changes(run, read_config(tag_folder(path)) or {})
    if changed:
        log.warning("--load=%s: other settings than before: %s", path, "; ".join(changed))


def _told_of(path: str) -> int:
    """The iteration at which a run has ended with its summary; -1 if it has not."""
    file = run_folder(path) / SUMMARY
    if not file.is_file():
        return -1
    return json.loads(file.read_text(encoding="utf-8")).get("iterations", -1)


def open_run(
    run: RunArgs, runtime: Runtime, engine: Engine, tokenizer: Tokenizer
) -> tuple[Checkpoints, TrainState]:
    """The run's folder, and the state: new, or with weights and optimizer that of --load."""
    open_run_dir(run, runtime)
    checkpoints = Checkpoints(run, runtime, tokenizer.fingerprint)
    keep_vocabulary(run, runtime)
    checkpoints.write_config()
    state = TrainState()
    if run.checkpoint.load is not None:
        state.load_state_dict(checkpoints.resume(engine, run.checkpoint.load))
    return checkpoints, state


def write_summary(argv: Sequence[str], trainer: Trainer, results: dict[str, Any]) -> None:
    """One line to the log and summary.json into the run's folder."""
    run, runtime, state = trainer.run, trainer.runtime, trainer.state
    rate = state.tokens / state.seconds if state.seconds else 0.0
    content = {
        "program": run.program,
        "experiment": run.train.experiment_name,
        "command": shlex.join(["python", f"distill/{run.program}.py", *argv]),
        "processes": runtime.world_size,
        "engine": trainer.engine.kind,
        "iterations": state.iteration,
        "train_seconds": state.seconds,
        "samples": state.samples,
        "tokens": state.tokens,
        "tokens_per_second": rate,
        "skipped_steps": state.skipped_steps,
        "parameters": count_parameters(trainer.engine.module),
        "peak_memory_bytes": peak_memory(runtime.device),
        "weights": _weights(runtime.run_dir),
        **results,
    }
    if runtime.is_main and runtime.run_dir is not None:
        files.write_json(runtime.run_dir / SUMMARY, content)
    log.info(
        "done: %d iterations in %.1f s, %d tokens (%.0f tokens/s), %d updates skipped%s",
        *(state.iteration, state.seconds, state.tokens, rate, state.skipped_steps),
        f"; {runtime.run_dir}" if runtime.run_dir else "",
    )
    trainer.summary.close()


def _weights(run_dir: Path | None) -> str | None:
    """The folder of the run's weights, if it kept any."""
    try:
        return None if run_dir is None else str(tag_folder(run_dir, prefer_best=True))
    except FileNotFoundError:
        return None


def count_parameters(module: nn.Module) -> int:
    """Parameters of the whole module, the shards of all model-parallel ranks together."""
    sharded = replicated = 0
    for parameter in module.parameters():
        if mpu.partition_of(parameter) is None:
            replicated += whole_shape(parameter).numel()
        else:
            sharded += whole_shape(parameter).numel()
    return replicated + sharded * mpu.get_model_parallel_world_size()


def peak_memory(device: torch.device) -> int:
    """Most memory this process has held (bytes): of the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
