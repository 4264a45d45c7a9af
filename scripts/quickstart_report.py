"""The quick start's report: report.json, report.md and report.png from the files of its runs."""

import json
import os
import platform
import shlex
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scripts.quickstart_plan import TASK, Plan, Row

MARGIN = 10.0  # points by which the teacher is expected to beat the majority class
PRETRAINED = {"teacher": "teacher", "plain": "student alone", "distilled": "student with GLMD"}


@dataclass(frozen=True)
class Line:
    """One model of the table. Accuracies in percent, one value for each seed."""

    model: str
    epochs: str  # of fine-tuning
    parameters: int
    bytes_on_disk: int
    val: list[float]
    test: list[float]
    train_seconds: float  # its own pretraining and, on the mean, fine-tuning
    examples_per_second: float
    commands: list[str]


def summary(plan: Plan, run: str) -> dict[str, Any]:
    """What a run wrote when it ended."""
    text = Path(plan.folder(run), "summary.json").read_text(encoding="utf-8")
    return json.loads(text)


def line(plan: Plan, row: Row) -> Line:
    """The numbers of one row of the plan."""
    runs = [summary(plan, name) for name in row.runs]
    stages = [summary(plan, name) for name in row.first_stages]
    own = summary(plan, row.pretraining)
    tuning = sum(r["train_seconds"] for r in [*runs, *stages]) / len(runs)
    steps = {step.name: step.command for step in plan.steps}
    names = [*row.before, *row.first_stages[:1], row.runs[0]]
    weights = [p.stat().st_size for p in Path(runs[0]["weights"]).glob("*model_states.pt")]
    return Line(
        model=row.title,
        epochs=row.epochs,
        parameters=runs[0]["parameters"],
        bytes_on_disk=sum(weights),
        val=[r["val"]["accuracy"] for r in runs],
        test=[r["test"]["accuracy"] for r in runs],
        train_seconds=own["train_seconds"] + tuning,
        examples_per_second=mean(r["test_samples_per_second"] for r in runs),
        commands=[shlex.join(["python", *steps[name]]) for name in names],
    )


def majority(split: str) -> float:
    """Accuracy (percent) of always answering the most frequent label of the training split."""
    labels = {}
    for name in ("train", split):
        text = Path(TASK, f"{name}.jsonl").read_text(encoding="utf-8")
        labels[name] = [json.loads(row)["label"] for row in text.splitlines()]
    ((most, _),) = Counter(labels["train"]).most_common(1)
    return 100.0 * labels[split].count(most) / len(labels[split])


def spread(values: list[float]) -> str:
    """`71.3 +- 0.6`: mean and standard deviation over the seeds."""
    return f"{mean(values):.1f}" + (f" +- {stdev(values):.1f}" if len(values) > 1 else "")


def machine() -> str:
    """What the numbers were measured on."""
    parts = [platform.machine(), f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    return ", ".join([*parts, *(f"{name} {metadata.version(name)}" for name in ("torch", "numpy"))])


def findings(lines: list[Line], base: float) -> list[str]:
    """What the issue of this table is, in sentences."""
    teacher, plain, longer, *distilled = lines
    above = mean(teacher.test) - base
    said = [
        f"The teacher is {above:+.1f} points from the majority class on test "
        f"(expected: at least {MARGIN:+.0f})."
    ]
    for each, other in ((d, p) for d in distilled for p in (plain, longer)):
        val, test = (mean(getattr(each, s)) - mean(getattr(other, s)) for s in ("val", "test"))
        said.append(
            f"*{each.model}* ({each.epochs} epochs) is {test:+.1f} points on test, {val:+.1f} on "
            f"validation from *{other.model}* ({other.epochs} epochs)."
        )
    return said


def table(head: dict[str, str], rows: list[list[str]]) -> list[str]:
    """Lines of a markdown table; `head` maps titles to `---` or `---:`."""
    every = [list(head), list(head.values()), *rows]
    return [f"| {' | '.join(cells)} |" for cells in every]


def markdown(plan: Plan, lines: list[Line], base: dict[str, float], said: list[str]) -> str:
    """The report as people read it."""
    numbers = (
        "epochs, parameters, on disk (MB), validation acc., test acc., training (s), "
        "inference (ex./s)"
    )
    head = {"model": "---"} | dict.fromkeys(numbers.split(", "), "---:")
    rows = [
        ["majority class", "0", "0", "0", f"{base['val']:.1f}", f"{base['test']:.1f}", "0", "-"]
    ]
    for x in lines:
        size = [x.model, x.epochs, f"{x.parameters:,}", f"{x.bytes_on_disk / 1e6:.1f}"]
        speed = [f"{x.train_seconds:.0f}", f"{x.examples_per_second:.0f}"]
        rows.append([*size, spread(x.val), spread(x.test), *speed])
    losses = []
    for name, title in PRETRAINED.items():
        run = summary(plan, name)
        losses.append([title, str(run["iterations"]), f"{run['val']['loss']:.3f}"])
    seeds = plan.sizes.seeds
    parts = [
        "# Quick start: what distillation gained\n",
        "Accuracy in percent, mean +- standard deviation over fine-tuning seeds "
        f"{', '.join(map(str, seeds))}. The best epoch is chosen on validation; test is scored "
        "once, with its weights. The data (data/demo) are a stand-in for SST-2: no score here is "
        "one of SST-2.\n",
        *table(head, rows),
        "",
        *(f"- {sentence}" for sentence in said),
        "- Distilled: by GLMD, with the teacher of the first row. Epochs: of fine-tuning; GLMD's "
        "two stages train longer, so the undistilled student is also shown with as many epochs. "
        "Each kind of model has the learning rate that did best for it on validation.\n"
        "- Training: the model's own pretraining and fine-tuning (mean over seeds), in seconds of "
        "a process beside which another one runs. A teacher's time is in its own row.\n",
        "Pretraining, nats per target token of held-out text:\n",
        *table({"model": "---", "steps": "---:", "validation loss": "---:"}, losses),
        f"\nMachine: {machine()}\n",
        "![accuracy](report.png)\n",
        f"## Commands\n\nOf seed {seeds[0]}, in order; other seeds differ in `--seed` and names.\n",
    ]
    for x in lines:
        parts.append(f"### {x.model}\n\n```bash\n" + "\n".join(x.commands) + "\n```\n")
    return "\n".join(parts)


def plot(plan: Plan, lines: list[Line], base: dict[str, float], path: Path) -> None:
    """Test accuracy of every model, and validation accuracy over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    labels = ["\n".join(textwrap.wrap(x.model, 16)) for x in lines]
    places = range(len(lines))
    colors = [f"C{i}" for i in places]
    left.bar(places, [mean(x.test) for x in lines], color=colors, alpha=0.6)
    for place, x in zip(places, lines, strict=True):
        left.plot([place] * len(x.test), x.test, "k_", markersize=14)
    left.axhline(base["test"], color="gray", linestyle="--", label="majority class")
    left.set_xticks(list(places), labels, fontsize=8)
    left.set(ylabel="test accuracy (%)", ylim=(40, 100), title="bars: mean, marks: seeds")
    left.legend()
    for place, row in zip(places, plan.rows, strict=True):
        curves = [_epochs(plan, run) for run in row.runs]
        means = [mean(values) for values in zip(*curves, strict=False)]
        right.plot(range(1, len(means) + 1), means, color=colors[place], label=row.title)
    right.axhline(base["val"], color="gray", linestyle="--")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="epoch of the last stage", ylabel="validation accuracy (%)")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _epochs(plan: Plan, run: str) -> list[float]:
    results = json.loads(Path(plan.folder(run), "results.json").read_text(encoding="utf-8"))
    return [row["metrics"]["accuracy"] for row in results["history"]]


def write_report(plan: Plan) -> str:
    """Write the three files; returns the table and where they lie."""
    lines = [line(plan, row) for row in plan.rows]
    base = {split: majority(split) for split in ("val", "test")}
    said = findings(lines, base["test"])
    text = markdown(plan, lines, base, said)
    content = {
        "models": [asdict(x) for x in lines],
        "majority": base,
        "findings": said,
        "machine": machine(),
        "sizes": asdict(plan.sizes),
        "seconds_of_steps": _seconds(plan),
    }
    out = Path(plan.out)
    (out / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / "report.md").write_text(text, encoding="utf-8")
    plot(plan, lines, base, out / "report.png")
    return f"{text.split('Machine:')[0]}{out}/report.md, report.json, report.png"


def _seconds(plan: Plan) -> dict[str, float]:
    marks = {step.name: Path(plan.out) / "done" / f"{step.name}.json" for step in plan.steps}
    return {name: json.loads(mark.read_text())["seconds"] for name, mark in marks.items()}
