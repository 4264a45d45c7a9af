"""Training steps: losses, named terms, logits and gradients of one or several micro-batches.

Any case whose args.json has a `stage` is one. A `tp2_*` case is run in this process and on two
ranks, each compared with the seed's one-process numbers (NOTES.md, 6-8).
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mpu
from config import Compat, RunArgs, parse_args
from data_utils.batch import Batch
from distill.combiner import combiner_args
from distill.context import TrainState
from distill.registry import method_args
from distill.step import DistillStep
from distill.student import build_student, find_student
from distill.teacher import Teacher
from model.build import HeadSpec, add_head, build_model
from tasks.base import Task, TaskShape
from tasks.block_lm import BlockLM
from tasks.choice import ChoiceTask
from tests.ranks import run_ranks
from tests.vector_checks.choices import use_choices
from tests.vector_checks.common import Result, read_json, read_tensors
from tests.vector_checks.model import map_tables

LAUNCH_ONLY = ("--deepspeed", "--distributed-backend", "--model-parallel-size")
LAUNCH_ONLY += ("--deepspeed_config", "--local_rank")
PATHS = ("--teacher_load_pretrained", "--mt_load_pretrained")  # of value RANDOM
# Terms of MiniLM and MiniLMv2, whose parts the seed does not log.
OURS_ALONE = re.compile(r"inter_loss/(attention|(query|key|value)_relation)(_t\d+)?(_repeat\d+)?")
HARD_LOSS = re.compile(r"(Train/hard_loss)_repeat\d+")  # the seed gives all passes one name
PART = re.compile(r"(pre_loss|inter_loss)/\w+/(.+)_t\d+")  # a mix's part; the seed drops its name
COMBINER = re.compile(r"(?<=_t\d)_[A-Z]\w*$")  # whose term it is, in a mix of combiners
FIXED = {"theseus": "D31"}  # which defect a `*_fixed` case mends; D1 unless named here


@dataclasses.dataclass
class Local:
    """An engine of this process alone: the module itself."""

    module: nn.Module
    device: torch.device = torch.device("cpu")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def autocast(self) -> contextlib.AbstractContextManager:
        """fp32."""
        return contextlib.nullcontext()


@dataclasses.dataclass
class Outcome:
    """What one run of a case gave; tensors are whole, whatever p."""

    loss: Tensor
    pre_loss: list[Tensor]
    inter_loss: list[Tensor]
    summary: list[tuple[str, float]]
    grads: dict[str, Tensor | None]
    s_logits: list[Tensor]  # of each call of pre_loss, as t_logits
    t_logits: list[Tensor | None]
    grad_norm: Tensor


def check(case: Path) -> list[Result]:
    """A case of the training-step kind."""
    result = Result(case.name)
    if case.name.startswith("tp2_"):
        _check_two_ranks(case, result)
        return [result]
    expected, tensors = read_json(case, "expected.json"), read_tensors(case, "expected.safetensors")
    for number, (run, outcome) in enumerate(zip(expected["runs"], run_case(case), strict=True)):
        prefix = f"run{number}."
        mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        parts = read_run(case).combined
        if parts:
            run, outcome = _in_one_order(run, outcome, len(parts))
        compare(result, prefix, run, mine, outcome)
    return [result]


def _in_one_order(
    run: dict[str, Any], outcome: Outcome, parts: int
) -> tuple[dict[str, Any], Outcome]:
    """A mix of combiners: the seed takes them one by one, in the order of a set, here each teacher

    is asked once for all of them. Calls and terms are sorted by name and value on both sides.
    """

    def size(call: Any) -> tuple[int, float]:
        x = torch.as_tensor(call)
        return x.dim(), float(x.mean())

    def terms(summary: Any) -> list[tuple[str, float]]:
        return sorted((COMBINER.sub("", name), value) for name, value in summary)

    run = run | {"summary": terms(run["summary"])}
    changed: dict[str, Any] = {"summary": terms(outcome.summary)}
    for name in ("pre_loss", "inter_loss"):
        run[name] = sorted(run[name], key=size)
        changed[name] = sorted(getattr(outcome, name), key=size)
    for name in ("s_logits", "t_logits"):  # call k of the seed has teacher k modulo their number
        calls = getattr(outcome, name)
        teachers = calls[::parts]
        changed[name] = [teachers[k % len(teachers)] for k in range(len(calls))]
    return run, dataclasses.replace(outcome, **changed)


def compare(
    result: Result, where: str, run: dict[str, Any], tensors: dict[str, Tensor], outcome: Outcome
) -> None:
    """One run against the seed's numbers."""
    result.values(where + "total_loss", outcome.loss, run["total_loss"])
    for name in ("pre_loss", "inter_loss"):
        actual = getattr(outcome, name)
        result.exact(where + f"number of {name}", len(actual), len(run[name]))
        for i, (a, e) in enumerate(zip(actual, run[name], strict=False)):
            result.values(where + f"{name}.{i}", a, e)
    names, values = zip(*run["summary"], strict=True) if run["summary"] else ((), ())
    summary = [(PART.sub(r"\1/\2", name), value) for name, value in outcome.summary]
    summary = [term for term in summary if not OURS_ALONE.fullmatch(term[0])]
    ours = [HARD_LOSS.sub(r"\1", name) for name, _ in summary]
    result.exact(where + "names of terms", ours, list(names))
    for name, (_, a), e in zip(names, summary, values, strict=False):
        result.values(where + name, a, e)
    for key, e in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "grad":
            _compare_gradient(result, where + key, outcome.grads.get(name), e)
        elif kind in ("s_logits", "t_logits"):
            number = name.partition(".")[0]
            a = getattr(outcome, kind)[int(number)]
            result.values(where + key, a[0] if name.endswith(".sample0") else a, e)
    result.gradient(where + "grad_norm", outcome.grad_norm, run["grad_norm"])
    if "param_grad_norms" in run:
        _compare_norms(result, where, run["param_grad_norms"], outcome.grads)


def _compare_gradient(result: Result, what: str, actual: Tensor | None, expected: Tensor) -> None:
    if actual is None:
        result.fail(f"{what}: no gradient")
    else:
        result.gradient(what, actual, expected)


def _compare_norms(
    result: Result, where: str, expected: dict[str, float], grads: dict[str, Tensor | None]
) -> None:
    actual = {k: float(g.norm()) for k, g in grads.items() if g is not None}
    extra = [k for k, norm in actual.items() if norm and k not in expected]
    missing = [k for k in expected if k not in actual]
    if extra or missing:
        result.fail(f"{where}gradients: none expected for {extra}, missing {missing}")
    else:
        names = list(expected)
        norms = torch.tensor([[x[k] for k in names] for x in (actual, expected)])
        result.gradient(where + "param_grad_norms", *norms)


# From a case to a run ------------------------------------------------------------------------------


def read_run(case: Path) -> RunArgs:
    """The run that a case's flags ask for, in the seed's numerics."""
    args = read_json(case, "args.json")
    flags = args.get("all_flags_in_order") or args["all_flags_mp1"]
    flags = without(flags, (*LAUNCH_ONLY, *PATHS))
    compat = "glmkd"
    if case.name.endswith("_fixed"):
        compat += ",-" + FIXED.get(case.name.split("_")[0], "D1")
    assert Compat.parse(compat)
    program = "pretrain" if args["stage"] == "pt" else "finetune"
    argv = [*flags, *_by_hand(args.get("note") or ""), f"--compat={compat}"]
    kinds = {"methods": method_args(), "combiners": combiner_args()}
    return parse_args(argv, program=program, **kinds, check=False)


def _by_hand(note: str) -> list[str]:
    """Flags that the seed reads but does not declare: `set by hand: name=value, name=False`."""
    settings = re.findall(r"(\w+)=([\w.]*)", note.partition("set by hand:")[2])
    values = [(f"--{name}", value) for name, value in settings if value != "False"]
    return [name if value == "True" else f"{name}={value}" for name, value in values]


def without(flags: list[str], names: Sequence[str]) -> list[str]:
    """The flags but for those of these names and their values: `--x`, `--x=1` and `--x`, `1`."""
    kept, dropping = [], False
    for word in flags:
        dropping = word.split("=")[0] in names if word.startswith("--") else dropping
        kept += [] if dropping else [word]
    return kept


def read_task(case: Path) -> Task:
    """The task of a case, from the shapes of its batch and the flags of its head."""
    if read_json(case, "args.json")["stage"] in ("pt", "lm"):
        return BlockLM(read_run(case).text.label_smoothing)
    flags, batch = read_run(case).finetuning, read_batch(case, 0)
    if batch.target_ids is None and batch.dec_target_ids is None:
        weights = read_tensors(case, "student.safetensors")
        head = HeadSpec(
            "classification",
            num_classes=len(weights["multichoice_head.weight"]),
            pool_token=flags.pool_token,
        )
        return ChoiceTask("vectors", head, flags.loss_func, TaskShape(head.num_classes))
    loss = "adapet" if flags.adapet else flags.loss_func
    if batch.dec_target_ids is not None:
        head = HeadSpec("multi_token_fast", length_penalty=flags.length_penalty)
    elif batch.target_ids.dim() == 3:
        head = HeadSpec("multi_token", length_penalty=flags.length_penalty)
    else:
        head = HeadSpec("single_token", take_softmax=flags.adapet)
    return ChoiceTask("vectors", head, loss, _shape(case, batch))


def _shape(case: Path, batch: Batch) -> TaskShape:
    """Choices of the batch, or of the task where an agent was made for them."""
    classes = batch.target_ids.size(1)
    weights = read_tensors(case, "student.safetensors")
    agent = weights.get("student.multi_teacher_model.agent_mt_soft.weight")
    if agent is not None:
        classes = agent.size(1) // agent.size(0)
    return TaskShape(classes, classes if batch.target_ids.dim() == 3 else 1)


def read_batch(case: Path, number: int) -> Batch:
    """Batch `number` of a case; with one batch names have no suffix."""
    inputs = read_tensors(case, "inputs.safetensors")
    several = any(name.endswith(".0") for name in inputs)
    x = {k.removesuffix(f".{number}"): v for k, v in inputs.items()} if several else inputs
    if "position_id" in x:
        return Batch(
            tokens=x["text"],
            position_ids=x["position_id"],
            attention_mask=x["attention_mask"],
            labels=x["target"],
            loss_mask=x["loss_mask"].float(),
        )
    masks = {k: x[k].float() if k in x else None for k in ("logit_mask", "loss_mask")}
    return Batch(
        tokens=x["text"],
        position_ids=x["position"],
        attention_mask=x["mask"],
        labels=x["label"],
        target_ids=x.get("target"),
        logit_mask=masks["logit_mask"],
        choice_mask=masks["loss_mask"],
        dec_tokens=x.get("dec_text"),
        dec_position_ids=x.get("dec_position"),
        dec_attention_mask=x.get("dec_mask"),
        dec_target_ids=x.get("dec_target"),
        dec_logit_mask=x.get("dec_logit_mask"),
    )


def load(module: nn.Module, whole: dict[str, Tensor]) -> nn.Module:
    """Fill a module with whole weights, each rank its shard; all keys must fit."""
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    parameters = module.state_dict(keep_vars=True)
    state = {}
    for name, tensor in whole.items():
        partition = mpu.partition_of(parameters[name]) if name in parameters else None
        state[name] = tensor if partition is None else mpu.split(tensor, partition, rank, size)
    module.load_state_dict(state, strict=True)
    return module


def build(case: Path, run: RunArgs, task: Task) -> tuple[nn.Module, list[Teacher]]:
    """Student with head, and teachers, with the case's weights."""
    student = build_student(build_model(run.model, task.head), run, task.shape)
    weights = read_tensors(case, "student.safetensors") | map_tables(case)
    student = load(add_head(student, task.head, run.model), weights)
    files = sorted(case.glob("teacher*.safetensors"))
    teachers = []
    for args, file in zip(run.teachers, files, strict=bool(run.teachers)):
        model_args = args.model_args(run.model)
        module = add_head(build_model(model_args, task.head), task.head, model_args)
        teachers.append(Teacher(load(module, read_tensors(case, file.name))))
    return student.train(), teachers


def run_case(case: Path) -> list[Outcome]:
    """All runs of a case on the current model-parallel group; gradients are this rank's."""
    run, task, expected = read_run(case), read_task(case), read_json(case, "expected.json")
    module, teachers = build(case, run, task)
    tensors = read_tensors(case, "expected.safetensors")
    runs = expected.get("runs") or [expected["mp1"]]
    outcomes = []
    for number, numbers in enumerate(runs):
        state = TrainState(iteration=numbers["iteration"], epoch=numbers["epoch"])
        step = DistillStep(task, Local(module), teachers, run, state)
        mark = f"run{number}.choice."
        drawn = {k.removeprefix(mark): v for k, v in tensors.items() if k.startswith(mark)}
        use_choices(step, numbers.get("choice"), drawn)
        outcomes.append(one_step(step, module, read_batch(case, numbers.get("batch", 0))))
    return outcomes


@sdpa_kernel(SDPBackend.MATH)
def one_step(step: DistillStep, module: nn.Module, batch: Batch) -> Outcome:
    """Forward, backward, and everything the vectors tell of it."""
    module.zero_grad()
    method, calls = find_student(module), {"pre_loss": [], "inter_loss": []}
    handed: list[tuple[Tensor, Tensor | None]] = []
    if method is not None:
        _record(method, calls, handed)
    output = step(batch, step.count([batch]))
    output.loss.backward()
    parameters = module.state_dict(keep_vars=True)
    inputs = step.task.inputs(batch)
    with torch.no_grad():  # where only some rows were handed on
        whole = [
            (module(*inputs)[0], teacher(inputs, hook_op=method.get_teacher_hook_op(t_no)).logits)
            for t_no, teacher in enumerate(step.teachers)
        ]
    pairs = [
        (s, t) if s.dim() == w[0].dim() else w
        for (s, t), w in zip(handed, whole * len(handed), strict=False)
    ]
    return Outcome(
        loss=output.loss.detach(),
        pre_loss=calls["pre_loss"],
        inter_loss=calls["inter_loss"],
        summary=[(name, float(value)) for name, value in output.terms.items()],
        grads={k: p.grad for k, p in parameters.items()},
        s_logits=[s.detach() for s, _ in pairs],
        t_logits=[t for _, t in pairs],
        grad_norm=mpu.grad_norm([p for p in module.parameters() if p.grad is not None]),
    )


def _record(method: nn.Module, calls: dict[str, list[Any]], handed: list[Any]) -> None:
    for name, kept in calls.items():
        function = getattr(type(method), name).__get__(method)
        pairs = handed if name == "pre_loss" else []
        setattr(method, name, _recorder(function, kept, pairs))


def _recorder(
    function: Callable[..., Any], kept: list[Any], pairs: list[Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        pairs.append(args[:2])
        result = function(*args, **kwargs)
        kept.append(result.detach() if isinstance(result, Tensor) else torch.tensor(result))
        return result

    return call


# Two ranks -----------------------------------------------------------------------------------------


def _check_two_ranks(case: Path, result: Result) -> None:
    numbers = read_json(case, "expected.json")
    tensors = read_tensors(case, "expected.safetensors")
    expected = {k.removeprefix("mp1."): v for k, v in tensors.items() if k.startswith("mp1.")}
    norms = {k: v["mp1_norm"] for k, v in numbers["grad_compare"].items()}
    run = numbers["mp1"] | {"param_grad_norms": norms}
    (alone,) = run_case(case)
    compare(result, "mp1.", run, expected, alone)
    results = run_ranks(2, _rank, str(case))
    partitions = results[0][1]
    actual = {k: {"dim": p.dim, "stride": p.stride} for k, p in partitions.items() if p}
    expected_cuts = read_json(case, "args.json")["partition"]  # adapters are whole here
    cuts = {k: cut for k, cut in expected_cuts.items() if not k.startswith("student.")}
    result.exact("partition", actual, cuts)
    grads = _whole([outcome.grads for outcome, _ in results], partitions, result)
    for rank, (outcome, _) in enumerate(results):
        whole = dataclasses.replace(outcome, grads=grads)
        compare(result, f"mp2_rank{rank}.", run, expected, whole)


def _rank(rank: int, world_size: int, case: str) -> tuple[Outcome, dict[str, Any]]:
    """The case on this rank, and how each parameter is cut."""
    mpu.initialize_model_parallel(world_size)
    task = read_task(Path(case))
    model = read_run(Path(case)).model
    module = add_head(build_model(model, task.head), task.head, model)
    partitions = {k: mpu.partition_of(p) for k, p in module.state_dict(keep_vars=True).items()}
    (outcome,) = run_case(Path(case))
    if task.vocab_parallel:
        outcome.s_logits = [_gathered(x) for x in outcome.s_logits]
        outcome.t_logits = [_gathered(x) for x in outcome.t_logits]
    return outcome, partitions


def _gathered(x: Tensor) -> Tensor:
    return mpu.gather_from_model_parallel_region(x)


def _whole(
    shards: Iterable[dict[str, Tensor | None]], partitions: dict[str, Any], result: Result
) -> dict[str, Tensor | None]:
    """Gradients of all ranks joined; replicated ones must be equal."""
    shards, whole = list(shards), {}
    for name, first in shards[0].items():
        parts, partition = [s[name] for s in shards], partitions.get(name)
        if first is None:
            whole[name] = None
        elif partition is None:
            whole[name] = first
            for part in parts[1:]:
                result.gradient(f"{name} on the other rank", part, first)
        else:
            whole[name] = mpu.merge(parts, partition)
    return whole


CHECKS: dict[str, Callable[[Path], list[Result]]] = {
    glob: check
    for glob in (
        "plain_*",
        "kd_ft*",
        "pd_*_ft*",
        "glmd_vc_*",
        "lm_plain_*",
        "lm_kd*",
        "x_kd_*",
        "x_logitsdistil_*",
        "tp2_*",
    )
}
