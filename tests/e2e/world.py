"""A world of a few kilobytes: vocabulary, corpus, a task, and programs run in it."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS = (  # noqa: SIM905 - readable
    "the a man woman dog cat sun rain house road river tree ran fell rose broke opened closed saw "
    "took left was is not and because so of on in it his her red old new cold hot big small never "
    "always quickly again home yes no what cause effect"
).split()
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def make_world(folder: Path) -> Path:
    """vocab.txt, corpus.txt, COPA/ and DeepSpeed's JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", '"', "or"]
    letters = [mark + c for c in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    tokens = dict.fromkeys([*marks, *letters, *WORDS])
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    draw = random.Random(1)

    def sentence(length: int = 7) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(length)).capitalize() + "."

    documents = [" ".join(sentence() for _ in range(4)) for _ in range(60)]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    copa = folder / "COPA"
    copa.mkdir(exist_ok=True)
    for split, number in (("train", 20), ("val", 10), ("test", 6)):
        rows = [
            {
                "premise": sentence(),
                "choice1": sentence(4),
                "choice2": sentence(3),
                "question": draw.choice(("cause", "effect")),
                "label": draw.randrange(2),
                "idx": i,
            }
            for i in range(number)
        ]
        (copa / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed_json()))
    return folder


def deepspeed_json() -> dict:
    """The seed's config_block_tiny6.json but for precision and batch."""
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 100,
        "gradient_clipping": 1.0,
        "fp16": {"enabled": False, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2},
        "optimizer": {
            "type": "Adam",
            "params": {"lr": 0.004, "weight_decay": 0.1, "betas": [0.9, 0.98], "eps": 1e-6},
        },
        "activation_checkpointing": {"partition_activations": False},
        "wall_clock_breakdown": False,
    }


def sizes(world: Path, layers: int = 1) -> list[str]:
    """The flags of this world that every command has."""
    return [
        f"--num-layers={layers}",
        "--hidden-size=16",
        "--num-attention-heads=2",
        "--max-position-embeddings=64",
        "--seq-length=48",
        f"--tokenizer-path={world / 'vocab.txt'}",
        "--make-vocab-size-divisible-by=8",
        "--block-lm",
    ]


def pretraining(world: Path, layers: int = 1) -> list[str]:
    """Flags of a short pretraining run."""
    return [
        *sizes(world, layers),
        "--bert-prob=1.0",
        f"--train-data={world / 'corpus.txt'}",
        "--split=90,5,5",
        f"--cache-dir={world / 'cache'}",
        "--num-workers=0",
        "--eval-iters=2",
        "--log-interval=2",
        "--batch-size=4",
        "--lr=0.004",
        "--custom_no_summary_writer",
        f"--save={world / 'runs'}",
    ]


def finetuning(world: Path, layers: int = 1) -> list[str]:
    """Flags of a short fine-tuning run."""
    return [
        *sizes(world, layers),
        "--finetune",
        "--cloze-eval",
        "--task=COPA",
        f"--data-dir={world / 'COPA'}",
        "--epochs=1",
        "--batch-size=4",
        "--lr=0.001",
        "--log-interval=2",
        "--custom_no_summary_writer",
        f"--save={world / 'runs'}",
    ]


def teacher(checkpoint: Path, layers: int = 2) -> list[str]:
    """The seed's teacher flags."""
    return [
        f"--teacher_load_pretrained={checkpoint}",
        f"--teacher_num_layers={layers}",
        "--teacher_hidden_size=16",
        "--teacher_num_attention_heads=2",
        "--teacher_max_position_embeddings=64",
    ]


def start(*command: str, timeout: float = 180, **environment: str) -> subprocess.CompletedProcess:
    """Run a command from the repository's root; its output is captured."""
    inherited = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return subprocess.run(
        command,
        cwd=ROOT,
        env=inherited | ENVIRONMENT | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def python(program: str, *flags: str) -> subprocess.CompletedProcess:
    """`python distill/PROGRAM.py FLAGS`."""
    return start(sys.executable, f"distill/{program}.py", *flags)


def deepspeed(program: str, *flags: str) -> subprocess.CompletedProcess:
    """The seed's launcher prefix on two CPU processes."""
    launcher = (
        "deepspeed",
        f"--master_port={free_port()}",
        "--include=localhost:0,1",
        "--hostfile=",
    )
    return start(*launcher, f"distill/{program}.py", *flags, LOCAL_SIZE="2")


def torchrun(program: str, *flags: str) -> subprocess.CompletedProcess:
    """Two processes under torch's launcher."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    return start(*launcher, f"distill/{program}.py", *flags)


def forked(processes: int, program: str, *flags: str) -> str:
    """`python distill/PROGRAM.py FLAGS` on some processes, without a launcher; what they told.

    For tests of what programs do. How they are started is tested by `python`, `deepspeed` and
    `torchrun`, and mistakes, too: a launcher ends the others.

    Raises: RankError with all that the processes told, if one fails.
    """
    from tests.e2e.forked import run

    preload = "deepspeed" if "--deepspeed" in flags else "torch"
    options = {"preload": preload, "timeout": 300, "process_group": False}
    return "".join(run_ranks(processes, run, program, flags, free_port(), **options))


def free_port() -> int:
    """One that the system has just given and taken back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def succeeded(done: subprocess.CompletedProcess) -> str:
    """What the program told; fails with all of it if the program did."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr
