"""Theseus against a stack put together by hand; the draw, the rate, frozen blocks."""

import dataclasses
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu
from config import ConfigError, parse_args
from data_utils.batch import Batch
from distill.context import Clock
from distill.methods.theseus import Theseus, TheseusArgs
from distill.registry import method_args
from distill.step import DistillStep, check_method, check_needs
from model.attention import glm_mask
from model.build import HeadSpec
from tests.distill.runs import SIZES, cloze_task, grads_of, lm_task, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import toy_cloze_batch, toy_lm_batch

FLAGS = [
    "--student_model=theseus",
    "--teacher_hidden_size=16",
    "--distill_pt_hard",
    "--mt_disable_operation=1",
]
LM = HeadSpec("lm")


def step_of(
    *flags: str, iteration: int = 0, total: int | None = None, **changes: Any
) -> DistillStep:
    run = toy_run(*FLAGS, *flags)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, **changes))
    step = toy_step(run, lm_task(), iteration)
    step.total = step.total if total is None else total
    return step


def use(step: DistillStep, drawn: list[int | None]) -> None:
    step.method.draw_blocks = lambda: drawn


def expected_loss(step: DistillStep, batch: Batch, blocks: list[nn.Module]) -> Tensor:
    """The student's embeddings, these blocks, the student's LayerNorm and head."""
    glm = step.method.origin_model
    positions, spans = batch.position_ids.unbind(1)
    x = glm.word_embeddings(batch.tokens) + glm.transformer.position_embeddings(positions)
    x = x + glm.transformer.block_position_embeddings(spans)
    mask = glm_mask(batch.attention_mask, x.size(1), 0, x.device)
    for block in blocks:
        x = block(x, mask)
    logits = glm.transformer.final_layernorm(x) @ glm.word_embeddings.weight.T
    losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    return (losses * batch.loss_mask.flatten()).sum() / batch.loss_mask.sum()


CASES = {  # flags, drawn, blocks: s0 s1 of the student, t0 .. of the teacher
    "student": ([], [None, None], "s0 s1"),
    "second": ([], [None, 0], "s0 t2 t3"),
    "first": ([], [0, None], "t0 t1 s1"),
    "teacher": ([], [0, 0], "t0 t1 t2 t3"),
    "uneven": (["--num-layers=3", "--teacher_num_layers=5"], [0, None, 0], "t0 t1 s1 t4"),
    "as deep": (["--teacher_num_layers=2"], [0, None], "t0 s1"),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_mixed_stack_and_all_gradients(name, recompute):
    flags, drawn, text = CASES[name]
    step, batch = step_of(*flags, checkpoint_activations=recompute), toy_lm_batch(3)
    use(step, drawn)
    output = take(step, batch)
    actual = grads_of(step.student.module)
    step.student.module.zero_grad()
    layers = {
        "s": step.method.origin_model.transformer.layers,
        "t": step.teachers[0].module.transformer.layers,
    }
    blocks = [layers[word[0]][int(word[1:])] for word in text.split()]
    expected = expected_loss(step, batch, blocks)
    expected.backward()
    torch.testing.assert_close(output.loss.detach(), expected.detach())
    for key, grad in grads_of(step.student.module).items():
        torch.testing.assert_close(actual[key], grad, rtol=1e-4, atol=1e-6, msg=key)
    assert all(p.grad is None for p in step.teachers[0].module.parameters())
    for number, t_no in enumerate(drawn):
        key = f"transformer.layers.{number}.mlp.dense_h_to_4h.weight"
        assert bool(actual[key].any()) is (t_no is None)


def test_a_teacher_in_a_task_head_gives_its_blocks():
    run = toy_run(*FLAGS, "--distill_ft_hard", program="finetune")
    step, batch = toy_step(run, cloze_task()), toy_cloze_batch(3, choices=2)
    use(step, [0, 0])
    loss = take(step, batch).loss.detach()
    student, teacher = step.method.origin_model, step.teachers[0].module.model
    assert not hasattr(step.teachers[0].module, "transformer")
    assert all(p.grad is None for p in teacher.parameters())
    # The teacher with the student's embeddings, final LayerNorm and head is the same model.
    own = {k: v for k, v in student.state_dict().items() if ".layers." not in k}
    teacher.load_state_dict(teacher.state_dict() | own)
    scores = step.teachers[0].module(*step.task.inputs(batch))[0]
    torch.testing.assert_close(loss, F.cross_entropy(scores, batch.labels))


@pytest.mark.parametrize("own", [False, True])
def test_shared_weights_are_applied_as_often_as_there_are_layers(own):
    flags = ["--teacher_cross_layer_parameter_sharing"]
    step = step_of(*flags, cross_layer_parameter_sharing=own)
    batch = toy_lm_batch(3)
    use(step, [0, None])
    loss = take(step, batch).loss.detach()
    student, (shared,) = step.method.origin_model, step.teachers[0].module.transformer.layers
    expected = expected_loss(step, batch, [shared, shared, student.transformer.layers[-1]])
    torch.testing.assert_close(loss, expected.detach())


def test_teacher_blocks_have_no_dropout():
    step, batch = step_of(hidden_dropout=0.5, attention_dropout=0.5), toy_lm_batch(3)
    use(step, [0, 0])
    stack = step.method.get_student_hook_op([step.teachers[0].module])["transformer"]["self_layers"]
    x, mask = torch.randn(3, 6, 16), glm_mask(0, 6, 0, torch.device("cpu"))
    for block in stack(list(step.method.origin_model.transformer.layers)):
        assert torch.equal(*(block(x, mask, None, mpu.Recorder()) for _ in range(2)))
    take(step, batch)
    assert not step.teachers[0].module.training


@pytest.mark.parametrize("autocast", [False, True])
def test_a_teacher_in_another_precision(autocast):
    losses = []
    for flags in ([], ["--teacher_bf16"]):
        step, batch = step_of(*flags), toy_lm_batch(3)
        use(step, [0, None])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = step(batch, step.count([batch]))
        output.loss.backward()
        losses.append(float(output.loss.detach()))
        assert all(
            p.grad.dtype == p.dtype for p in step.student.module.parameters() if p.grad is not None
        )
    teacher = step.teachers[0].module
    assert next(teacher.parameters()).dtype == torch.bfloat16, "it keeps its own"
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_student_in_half_precision_gets_its_own_dtype_back():
    step = step_of()
    use(step, [0, 0])
    stack = step.method.get_student_hook_op([step.teachers[0].module])["transformer"]["self_layers"]
    x, mask = torch.randn(3, 6, 16).bfloat16(), glm_mask(0, 6, 0, torch.device("cpu"))
    for block in stack([None, None]):
        x = block(x, mask, None, mpu.Recorder())
        assert x.dtype == torch.bfloat16


@pytest.mark.parametrize("soft", [False, True])
def test_the_teachers_forward_runs_only_if_it_is_asked_for(soft):
    flags = ["--mt_disable_operation=0", "--distill_pt_soft"] if soft else []
    step, calls = step_of(*flags), []
    step.teachers[0].module.register_forward_hook(lambda *_: calls.append(1))
    terms = take(step, toy_lm_batch(2)).terms
    assert len(calls) == soft
    assert ("pre_loss/pt_soft_t0" in terms) is soft
    assert list(terms)[0] == "get_student_hook_op/replacing_rate"


def test_evaluation_is_the_students_own():
    step, batch = step_of(), toy_lm_batch(2)
    use(step, [0, 0])
    take(step, batch)
    inputs = step.task.inputs(batch)
    assert torch.equal(step.student.module(*inputs)[0], step.method.origin_model(*inputs)[0])


# The rate and the draw.


def method_of(*flags: str, **clock: int) -> Theseus:
    method = step_of(*flags).method
    method.begin_pass(Clock(**clock))
    return method


@pytest.mark.parametrize(
    ("flags", "iteration", "rate"),
    [
        ([], 0, 0.3),
        ([], 33, 0.65),
        ([], 66, 1.0),
        ([], 90, 1.0),
        (["--compat=D31"], 90, 1.2545454545454544),
        (["--theseus_replacing_rate=0.5", "--theseus_not_replaced_steps=1"], 50, 0.75),
        (["--theseus_not_replaced_steps=0"], 0, 1.0),
        (["--theseus_replacing_rate=1"], 0, 1.0),
    ],
)
def test_the_rate_grows_to_one(flags, iteration, rate):
    assert method_of(*flags, iteration=iteration, total=100).replacing_rate() == pytest.approx(rate)


def drawn(*flags: str, number: int = 400, iteration: int = 0) -> list[list[int | None]]:
    method, found = method_of(*flags), []
    for micro_step in range(number):
        method.begin_pass(Clock(iteration=iteration, micro_step=micro_step, total=100))
        found.append(method.draw_blocks())
    return found


def test_student_blocks_are_drawn_with_the_rate():
    flags = ["--num-layers=4", "--theseus_replacing_rate=0.3", "--compat=D31"]
    blocks = [block for each in drawn(*flags) for block in each]
    assert set(blocks) == {None, 0}
    assert blocks.count(None) / len(blocks) == pytest.approx(0.3, abs=0.04)
    assert {block for each in drawn(*flags, number=50, iteration=66) for block in each} == {None}


@pytest.mark.parametrize("rate", [0, 0.3])
def test_at_least_one_student_block_runs(rate):
    flags = [f"--theseus_replacing_rate={rate}"]
    fixed, seed = drawn(*flags), drawn(*flags, "--compat=D31")
    assert all(None in each for each in fixed)
    assert any(None not in each for each in seed)
    assert all(a == b for a, b in zip(fixed, seed, strict=True) if None in b)
    saved = [a.index(None) for a, b in zip(fixed, seed, strict=True) if None not in b]
    assert saved.count(0) / len(saved) == pytest.approx(0.5, abs=0.15), "either block"


def test_several_teachers_stand_in_equally_often():
    method = method_of("--theseus_replacing_rate=0", "--compat=D31")
    teacher = method.args.teachers[0]
    method.args = dataclasses.replace(method.args, teachers=(teacher,) * 3)
    found = []
    for micro_step in range(200):
        method.begin_pass(Clock(micro_step=micro_step, total=100))
        found += method.draw_blocks()
    assert {t: found.count(t) / len(found) for t in set(found)} == pytest.approx(
        dict.fromkeys(range(3), 1 / 3), abs=0.08
    )


def test_a_draw_follows_from_the_clock():
    flags = ["--num-layers=4"]
    clock = {"iteration": 5, "micro_step": 2, "total": 100}
    first = method_of(*flags, **clock).draw_blocks()
    assert method_of(*flags, **clock, epoch=3).draw_blocks() == first
    assert len({tuple(each) for each in drawn(*flags, number=30)}) > 5
    seeds = [method_of(*flags, f"--seed={seed}", **clock).draw_blocks() for seed in range(20)]
    assert any(each != first for each in seeds)


def draw_on_rank(rank: int, world_size: int, size: int) -> list[list[int | None]]:
    mpu.initialize_model_parallel(size)
    return drawn("--num-layers=4", number=10)


@pytest.mark.parametrize("size", [1, 2])
def test_the_draw_is_equal_on_all_ranks(size):
    first, second = run_ranks(2, draw_on_rank, size)
    assert first == second
    assert len({tuple(each) for each in first}) > 1


# What it needs.


def problems(*flags: str, head: HeadSpec = LM, program: str = "pretrain") -> list[str]:
    return list(Theseus.problems(toy_run(*FLAGS, *flags, program=program), head))


def test_a_complete_run_has_no_problem():
    assert problems() == []
    assert problems("--teacher_bf16") == []
    fine = problems("--distill_ft_hard", head=HeadSpec("multi_token"), program="finetune")
    assert fine == []
    run = toy_run(*FLAGS)
    check_needs(run, LM)
    check_method(toy_step(run, lm_task()).method, LM, run)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--num-layers=5"], "--num-layers=5: .* teacher 0 has 4; use a shallower"),
        (["--teacher_hidden_size=24"], "--hidden-size=16: .* teacher 0 is 24 wide; use the same"),
        (["--distill_hard_rate=0"], "--student_model=theseus: learns from labels, and none are on"),
        (["--teacher_fp16"], "--teacher_fp16: .* use --teacher_bf16"),
    ],
)
def test_what_is_missing_is_told(flags, problem):
    (line,) = problems(*flags)
    assert re.match(problem, line), line


def test_one_stack_a_forward():
    (line,) = problems("--distill_ft_hard", head=HeadSpec("multi_token_fast"), program="finetune")
    assert line.startswith("--fast-decode: theseus needs one stack")


def test_soft_labels_without_the_teachers_forward_are_refused():
    with pytest.raises(ConfigError, match="--mt_disable_operation=1: soft labels need"):
        check_needs(toy_run(*FLAGS, "--distill_pt_soft"), LM)


def test_rates_out_of_range_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        TheseusArgs(theseus_replacing_rate=1.5, theseus_not_replaced_steps=-1)
    assert list(caught.value.problems) == [
        "--theseus_replacing_rate=1.5: must be in [0, 1]",
        "--theseus_not_replaced_steps=-1: must not be negative",
    ]
    methods, flags = method_args(), [*SIZES, *FLAGS, "--theseus_replacing_rate=-1"]
    with pytest.raises(ConfigError, match="replacing_rate=-1"):
        parse_args(flags, program="pretrain", methods=methods, check=False)
