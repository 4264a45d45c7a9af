"""How a run is trained: length, batch, optimizer, precision, files, processes."""

from dataclasses import dataclass

from config.group import ArgGroup, flag


@dataclass(frozen=True, kw_only=True)
class TrainArgs(ArgGroup):
    """Length and batch of a run. Under --deepspeed_config the JSON's batch values win."""

    title, sep = "training", "-"
    experiment_name: str = flag("gpt-345M", "folder below --save; {time} becomes the start time")
    batch_size: int = flag(4, "micro-batch of one data-parallel rank (samples)")
    gradient_accumulation_steps: int = flag(1, "micro-batches in one optimizer step")
    epochs: int | None = flag(None, "passes over a task's training set; 0: evaluate only")
    train_iters: int = flag(0, "optimizer steps (iterations)")
    clip_grad: float = flag(1.0, "largest gradient norm; 0: no clipping")
    seed: int = flag(1234, "of weights, order, spans and dropout")
    log_interval: int = flag(100, "steps between two log lines (iterations)")
    summary_dir: str = flag("", "TensorBoard folder; default: inside the run's folder")
    max_bad_steps: int = flag(10, "stop after so many skipped updates in a row (NaN, infinite)")
    custom_no_summary_writer: bool = flag(
        False, "no TensorBoard files", name="--custom_no_summary_writer"
    )
    resume_dataloader: bool = flag(False, "kept for the seed's commands: resuming is always exact")


@dataclass(frozen=True, kw_only=True)
class OptimizerArgs(ArgGroup):
    """The optimizer and the learning-rate schedule (in optimizer steps)."""

    title, sep = "optimizer", "-"
    optimizer: str = flag(
        "adam",
        "adam: AdamW; adafactor: less memory, rates relative to each parameter's size",
        choices=("adam", "adafactor"),
    )
    lr: float = flag(1e-4, "peak learning rate")
    weight_decay: float = flag(0.01, "decoupled; not on biases and LayerNorm")
    adam_beta1: float = flag(0.9, "first moment")
    adam_beta2: float = flag(0.999, "second moment")
    adam_eps: float = flag(1e-8, "epsilon")
    lr_decay_style: str = flag(
        "linear", "after the warm-up", choices=("constant", "linear", "cosine", "exponential")
    )
    lr_decay_iters: int | None = flag(None, "length of the schedule (iterations); default: the run")
    lr_decay_ratio: float = flag(0.1, "final rate (fraction of the peak)")
    warmup: float = flag(0.01, "warm-up (fraction of the schedule)")
    switch_linear: bool = flag(
        False, "with --load: warm up again to the rate reached, then linear over the steps left"
    )


@dataclass(frozen=True, kw_only=True)
class PrecisionArgs(ArgGroup):
    """Number format of the student's forward and backward pass."""

    title, sep = "precision", "-"
    fp16: bool = flag(False, "half precision with loss scaling; GPU only")
    bf16: bool = flag(False, "bfloat16; CPU and GPU")
    loss_scale: float | None = flag(None, "static loss scale; default: dynamic")


@dataclass(frozen=True, kw_only=True)
class CheckpointArgs(ArgGroup):
    """Where weights come from and go to."""

    title, sep = "checkpoints", "-"
    save: str | None = flag(None, "output folder; the run writes <save>/<experiment-name>")
    save_interval: int = flag(5000, "steps between two checkpoints (iterations)")
    save_epoch: int = flag(1, "epochs between two checkpoints of a fine-tuning run")
    new_save_directory: bool = flag(False, "a resumed run does not go on in the folder of --load")
    load: str | None = flag(
        None, "resume this run exactly: weights, optimizer, position in the data"
    )
    load_pretrained: str | None = flag(None, "start from these weights only")
    no_save_optim: bool = flag(False, "checkpoints without optimizer state: cannot be resumed")
    overwrite: bool = flag(False, "the output folder may hold an earlier run; it is removed")
    save_interval_time: float = flag(
        0.0, "hours between two checkpoints", name="--save_interval_time"
    )
    custom_no_save_checkpoint: bool = flag(
        False, "write no checkpoint at all", name="--custom_no_save_checkpoint"
    )
    ft_final_save: bool = flag(
        False, "also keep the last weights of fine-tuning", name="--ft_final_save"
    )


@dataclass(frozen=True, kw_only=True)
class ParallelArgs(ArgGroup):
    """Processes. `model parallel` means tensor parallel everywhere."""

    title, sep = "parallelism", "-"
    model_parallel_size: int = flag(1, "processes that share one model")
    distributed_backend: str | None = flag(
        None, "default: NCCL on GPU, gloo on CPU", choices=("nccl", "gloo")
    )
    local_rank: int | None = flag(None, "set by the launcher", name="--local_rank")
    deepspeed: bool = flag(False, "train with DeepSpeed")
    deepspeed_config: str | None = flag(
        None, "DeepSpeed's JSON; its values win", name="--deepspeed_config"
    )
    deepspeed_activation_checkpointing: bool = flag(
        False, "the JSON's block activation_checkpointing says where recomputed inputs are kept"
    )
    zero_stage: int = flag(0, "ZeRO stage, with --args_to_ds_config", name="--zero_stage")
    cpu_offload: bool = flag(False, "optimizer state in host memory", name="--cpu_offload")
    args_to_ds_config: bool = flag(
        False, "the command line wins over DeepSpeed's JSON", name="--args_to_ds_config"
    )


@dataclass(frozen=True, kw_only=True)
class EvalArgs(ArgGroup):
    """Evaluation during and after training."""

    title, sep = "evaluation", "-"
    eval_batch_size: int | None = flag(None, "micro-batch (samples); default: --batch-size")
    eval_iters: int = flag(100, "batches of one evaluation while pretraining")
    eval_interval: int = flag(1000, "steps between two evaluations (iterations)")
    eval_epoch: int = flag(1, "epochs between two evaluations of a task")
    custom_first_eval: bool = flag(
        False, "evaluate before training; it may be the best", name="--custom_first_eval"
    )
    custom_tmp_result: str | None = flag(
        None, "also write the scores to this file", name="--custom_tmp_result"
    )
