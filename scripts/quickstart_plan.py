"""What the quick start does: its sizes, and the command line of every step.

Only public commands: each is what a user types at the repository's root.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

DATA = Path("data") / "demo"
#: Text to pretrain on. The task gives its training sentences only: never validation or test.
CORPUS = ("demo", f"{DATA}/SST-2/train.jsonl")
TASK = f"{DATA}/SST-2"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """All numbers that cost time. Student and teacher differ in depth only."""

    vocabulary: int = 4000  # words
    hidden: int = 128
    heads: int = 4
    teacher_layers: int = 4
    student_layers: int = 2
    seq_length: int = 64  # tokens
    batch: int = 32  # samples
    teacher_steps: int = 800
    student_steps: int = 250
    lr: float = 2e-3
    ft_batch: int = 16  # samples
    teacher_lr: float = 2e-4
    ft_lr: float = 5e-4  # of students: best on validation of 2e-4 and 5e-4, distilled or not
    stage_1_lr: float = 1e-3  # GLMD's logits loss is one of all positions: small at the answer
    teacher_epochs: int = 5
    stage_1_epochs: int = 2  # of GLMD's first stage, without labels
    epochs: int = 3  # of a student's fine-tuning run, and of GLMD's second stage
    seeds: tuple[int, ...] = (1, 2, 3)
    teacher_seeds: tuple[int, ...] = (1,)


FULL = Sizes()
SMOKE = replace(
    FULL, vocabulary=2000, hidden=32, heads=2, teacher_layers=2, student_layers=1, batch=8,
    teacher_steps=4, student_steps=4, teacher_epochs=1, stage_1_epochs=1, epochs=1,
    ft_batch=64, seeds=(1,),
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command, and the steps that must have ended before it."""

    name: str
    about: str
    command: tuple[str, ...]  # after the interpreter
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of the report: runs of one kind, one for each seed."""

    title: str
    runs: tuple[str, ...]  # fine-tuning runs whose scores are reported
    pretraining: str  # the model's own
    before: tuple[str, ...]  # all that comes before fine-tuning, in order, to be shown
    epochs: str  # of fine-tuning
    first_stages: tuple[str, ...] = ()  # in the order of `runs`


class Plan:
    """The steps of the quick start below one output folder."""

    def __init__(self, sizes: Sizes, out: Path):
        self.sizes, self.out, self.steps = sizes, out, []
        self._tokenizer()
        self._pretraining()
        self.rows = self._fine_tuning()

    def folder(self, name: str) -> str:
        """Where a run writes."""
        return f"{self.out}/{name}"

    def _add(self, name: str, about: str, command: list[str], *needs: str) -> str:
        self.steps.append(Step(name, about, tuple(command), needs))
        return name

    def _tokenizer(self) -> None:
        command = ["scripts/train_tokenizer.py", "--train-data", *CORPUS, "--text-key=sentence"]
        command += [f"--vocab-size={self.sizes.vocabulary}", f"--output={self.folder('vocab.txt')}"]
        command += ["--overwrite"]
        self._add("tokenizer", "train a WordPiece vocabulary", command)

    def _pretraining(self) -> None:
        s = self.sizes
        self._pretrain("teacher", "pretrain the teacher", s.teacher_layers, s.teacher_steps)
        self._pretrain("plain", "pretrain the student alone", s.student_layers, s.student_steps)
        self._pretrain(
            "distilled", "pretrain the student with GLMD", s.student_layers, s.student_steps,
            *self._glmd(), *self._teacher("teacher"), needs=("teacher",),
        )  # fmt: skip

    def _pretrain(
        self,
        name: str,
        about: str,
        layers: int,
        steps: int,
        *more: str,
        needs: tuple[str, ...] = (),
    ) -> None:
        s = self.sizes
        command = [
            "distill/pretrain.py", *self._common(name, seed=1),
            f"--num-layers={layers}", f"--hidden-size={s.hidden}",
            f"--num-attention-heads={s.heads}", f"--max-position-embeddings={s.seq_length}",
            "--train-data", *CORPUS, "--text-key=sentence", "--split=100,1,1",
            f"--cache-dir={self.folder('cache')}", "--num-workers=0", "--bert-prob=1.0",
            f"--train-iters={steps}", f"--batch-size={s.batch}", f"--lr={s.lr}",
            "--lr-decay-style=cosine", "--lr-decay-ratio=0.05", "--warmup=0.05",
            "--adam-beta2=0.98", "--adam-eps=1e-6",
            "--attention-dropout=0", "--hidden-dropout=0",
            f"--eval-interval={steps}", "--eval-iters=10", f"--save-interval={steps}", *more,
        ]  # fmt: skip
        self._add(name, about, command, "tokenizer", *needs)

    def _fine_tuning(self) -> list[Row]:
        s = self.sizes
        teacher = tuple(self._finetune_plainly("teacher", s.teacher_epochs, s.teacher_seeds))
        # The longest chain first: both stages of GLMD.
        first, second = zip(*(self._finetune_glmd(seed) for seed in s.seeds), strict=True)
        plain, longer, distilled = (
            tuple(self._finetune_plainly(start, epochs, s.seeds))
            for start, epochs in (
                ("plain", s.epochs),
                ("plain", s.stage_1_epochs + s.epochs),
                ("distilled", s.epochs),
            )
        )
        student = "student, distilled in pretraining"
        before = (*self._before("distilled"), self._tuned_teacher)
        stages, both = f"{s.stage_1_epochs} + {s.epochs}", str(s.stage_1_epochs + s.epochs)
        return [
            Row("teacher", teacher, "teacher", ("teacher",), str(s.teacher_epochs)),
            Row("student, undistilled", plain, "plain", ("plain",), str(s.epochs)),
            Row("student, undistilled, longer", longer, "plain", ("plain",), both),
            Row(student, distilled, "distilled", self._before("distilled"), str(s.epochs)),
            Row(f"{student} and in fine-tuning", second, "distilled", before, stages, first),
        ]

    @staticmethod
    def _before(start: str) -> tuple[str, ...]:
        return ("teacher", "distilled") if start == "distilled" else (start,)

    @property
    def _tuned_teacher(self) -> str:
        """The teacher of both GLMD stages: the first seed's, chosen before any score is known."""
        return f"teacher-sst2-{self.sizes.teacher_seeds[0]}"

    def _finetune_plainly(self, start: str, epochs: int, seeds: tuple[int, ...]) -> Iterator[str]:
        for seed in seeds:
            longer = start == "plain" and epochs > self.sizes.epochs
            name = f"{start}{'-long' if longer else ''}-sst2-{seed}"
            about = f"fine-tune: {start}, {epochs} epochs, seed {seed}"
            lr = self.sizes.teacher_lr if start == "teacher" else self.sizes.ft_lr
            yield self._add(name, about, self._finetune(name, seed, epochs, start, lr), start)

    def _finetune_glmd(self, seed: int) -> tuple[str, str]:
        s, teacher = self.sizes, self._tuned_teacher
        first, second = f"glmd-1-sst2-{seed}", f"glmd-2-sst2-{seed}"
        command = self._finetune(first, seed, s.stage_1_epochs, "distilled", s.stage_1_lr)
        command += [*self._glmd(), *self._teacher(teacher)]
        about = f"fine-tune: GLMD stage 1, seed {seed}"
        self._add(first, about, command, "distilled", teacher)
        command = self._finetune(second, seed, s.epochs, first, s.ft_lr)
        command += ["--student_model=logitsdistil", "--distill_ft_soft", "--logitsdistil_wo_inter"]
        command += self._teacher(teacher)
        about = f"fine-tune: GLMD stage 2, seed {seed}"
        self._add(second, about, command, first)
        return first, second

    def _finetune(self, name: str, seed: int, epochs: int, start: str, lr: float) -> list[str]:
        s = self.sizes
        return [
            "distill/finetune.py", *self._common(name, seed),
            "--task=SST-2", f"--data-dir={TASK}", "--cloze-eval", "--pattern-id=1",
            f"--load-pretrained={self.folder(start)}",
            f"--epochs={epochs}", f"--batch-size={s.ft_batch}", f"--lr={lr}",
            "--lr-decay-style=linear", "--lr-decay-ratio=0", "--warmup=0.1", "--eval-batch-size=50",
        ]  # fmt: skip

    def _common(self, name: str, seed: int) -> list[str]:
        return [
            f"--save={self.out}", f"--experiment-name={name}", "--overwrite", f"--seed={seed}",
            f"--seq-length={self.sizes.seq_length}", f"--tokenizer-path={self.folder('vocab.txt')}",
            "--no-save-optim", "--log-interval=20",
        ]  # fmt: skip

    def _teacher(self, name: str) -> list[str]:
        # Like --load-pretrained: the checkpoint's config.json knows the architecture.
        return [f"--teacher_load_pretrained={self.folder(name)}"]

    @staticmethod
    def _glmd() -> list[str]:
        return [
            "--student_model=logitsdistil",
            "--distill_temperature=15",
            "--logitsdistil_mask_pad",
        ]
