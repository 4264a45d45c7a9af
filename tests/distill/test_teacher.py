"""Teachers: frozen, in their own precision, refused where they do not fit the student."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from config import ConfigError
from distill.capture import hidden, logits, to_hook
from distill.teacher import Teacher, build_teachers, in_fp32
from tests.distill.runs import cloze_task, lm_task, toy_run
from tests.toy import toy_glm, toy_lm_batch, toy_teacher_args


def save(folder: Path, module: torch.nn.Module, **config: object) -> str:
    """A checkpoint in the official layout."""
    (folder / "5").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("5")
    torch.save({"module": module.state_dict()}, folder / "5" / "mp_rank_00_model_states.pt")
    if config:
        (folder / "5" / "config.json").write_text(json.dumps(config))
    return str(folder)


def run_with(path: str, *flags: str):
    run = toy_run("--student_model=kd", *flags)
    (teacher,) = run.teachers
    return dataclasses.replace(
        run, teachers=(dataclasses.replace(teacher, random_para=False, load_pretrained=path),)
    )


def inputs():
    batch = toy_lm_batch(2)
    return batch.tokens, batch.position_ids, batch.attention_mask


def test_a_teacher_is_frozen_and_in_eval_mode():
    glm = toy_glm(hidden_dropout=0.5).train()
    teacher = Teacher(glm)
    output = teacher(inputs())
    assert not output.logits.requires_grad
    assert not any(p.requires_grad for p in glm.parameters())
    assert torch.equal(output.logits, teacher(inputs()).logits), "no dropout"


def test_captures_are_indexed_by_the_hook():
    teacher = Teacher(toy_glm())
    hook = to_hook([hidden(2, 2), logits()])
    output = teacher(inputs(), hook)
    assert torch.equal(output.captured[hook["logits_parallel"]], output.logits)
    assert output.captured[hook["transformer"]["output"]].shape[-1] == 16


def test_edits_and_rows_reach_the_forward():
    teacher = Teacher(toy_glm())
    edit = {"transformer": {"output": lambda output, **_: output * 0}}
    assert not teacher(inputs(), None, edit).logits.any()
    assert teacher(inputs(), output_rows=torch.tensor([3, 4])).logits.shape == (2, 64)


@pytest.mark.parametrize("flag", ["bf16", "fp16"])
def test_a_teacher_has_its_own_precision_and_answers_in_fp32(flag):
    run = toy_run("--student_model=kd")
    half = dataclasses.replace(run.teachers[0], **{flag: True})
    (teacher,) = build_teachers(dataclasses.replace(run, teachers=(half,)), lm_task(), "cpu")
    dtype = torch.bfloat16 if flag == "bf16" else torch.float16
    assert {p.dtype for p in teacher.module.parameters()} == {dtype}
    hook = to_hook([hidden(4, 4)])
    output = teacher(inputs(), hook)
    assert output.logits.dtype is output.captured[0].dtype is torch.float32


def test_autocast_of_the_student_does_not_reach_the_teacher():
    teacher = Teacher(toy_glm())
    expected = teacher(inputs()).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(inputs()).logits, expected)


def test_weights_come_from_the_checkpoint(tmp_path):
    glm = toy_glm(toy_teacher_args(), seed=5)
    (teacher,) = build_teachers(run_with(save(tmp_path, glm)), lm_task(), "cpu")
    expected = glm.eval()(*inputs())[0]
    torch.testing.assert_close(teacher(inputs()).logits, expected.detach())


def test_teachers_get_the_tasks_head():
    (teacher,) = build_teachers(
        toy_run("--student_model=kd", program="finetune"), cloze_task(), "cpu"
    )
    assert type(teacher.module).__name__ == "GLMForMultiTokenCloze"


def test_without_a_method_there_are_none():
    assert build_teachers(toy_run(), lm_task(), "cpu") == ()


def test_a_teacher_without_weights_is_an_error():
    with pytest.raises(ConfigError, match="--teacher_load_pretrained: teacher 0 has no weights"):
        build_teachers(run_with(None), lm_task(), "cpu")


def test_another_tokenizer_is_an_error(tmp_path):
    path = save(tmp_path, toy_glm(toy_teacher_args()), tokenizer_fingerprint="abc")
    build_teachers(run_with(path), lm_task(), "cpu", fingerprint="abc")
    with pytest.raises(ConfigError, match="--teacher_load_pretrained=.*vocabulary"):
        build_teachers(run_with(path), lm_task(), "cpu", fingerprint="xyz")


def test_another_vocabulary_is_an_error(tmp_path):
    config = {"model": {"vocab_size": 128}}
    path = save(tmp_path, toy_glm(toy_teacher_args(vocab_size=128)), **config)
    with pytest.raises(ConfigError, match="has 128 vocabulary entries, the student 64"):
        build_teachers(run_with(path), lm_task(), "cpu")


def test_another_shape_names_key_and_shapes(tmp_path):
    path = save(tmp_path, toy_glm(seed=1))
    with pytest.raises(
        ValueError, match=r"word_embeddings.weight: \[64, 16\], the model has \[64, 24\]"
    ):
        build_teachers(run_with(path), lm_task(), "cpu")


def test_in_fp32_leaves_integers():
    kinds = [
        x.dtype
        for x in in_fp32([torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.int64)])
    ]
    assert kinds == [torch.float32, torch.int64]
