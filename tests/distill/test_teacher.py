"""Teachers: frozen, in their own precision, refused where they do not fit the student; several."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import mpu
from config import ConfigError, parse_args
from distill.capture import hidden, logits, to_hook
from distill.combiner import combiner_args
from distill.engine.checkpoint import check_sources, sources
from distill.registry import method_args
from distill.step import check_needs
from distill.teacher import Teacher, build_teachers, in_fp32
from tests.distill.runs import SIZES, cloze_task, lm_task, toy_run, toy_step
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


def test_a_teacher_reads_the_same_prompts(tmp_path):
    saved = {"continuous_prompt": True, "num_prompt_tokens": 4, "prompt_func": "lstm"}
    flags = ("--continuous-prompt", "--cloze-eval", "--num-prompt-tokens=5", "--epochs=1")
    for known, has in ((saved, 4), ({"continuous_prompt": False, "num_prompt_tokens": 5}, 0)):
        folder = tmp_path / str(has)
        folder.mkdir()
        path = save(folder, toy_glm(toy_teacher_args()), finetuning=known)
        run = toy_run(*flags, "--student_model=kd", program="finetune")
        teacher = dataclasses.replace(run.teachers[0], load_pretrained=str(path), random_para=False)
        run = dataclasses.replace(run, teachers=(teacher,))
        message = f"was trained with --num-prompt-tokens={has}, this run has 5"
        with pytest.raises(ConfigError, match=message):
            build_teachers(run, lm_task(), "cpu")


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


# Several ------------------------------------------------------------------------------------------

ALONE = [f for f in SIZES if f != "--teacher_random_para" and not f.startswith("--teacher_num_l")]


def several(*flags: str):
    """A run whose teachers are as the flags say, with weights."""
    kinds = {"methods": method_args(), "combiners": combiner_args()}
    argv = [*ALONE, "--student_model=kd", "--distill_pt_soft", *flags]
    return parse_args(argv, program="pretrain", **kinds, check=False)


def test_teachers_of_other_shapes_and_precision(tmp_path):
    glms = toy_glm(toy_teacher_args(num_layers=3), seed=1), toy_glm(toy_teacher_args(), seed=2)
    paths = [save(tmp_path / name, glm) for name, glm in zip("ab", glms, strict=True)]
    run = several(f"--mt_load_pretrained={':'.join(paths)}", "--mt_num_layers=3:4", "--mt_bf16=0:1")
    teachers = build_teachers(run, lm_task(), "cpu")
    for teacher, glm, dtype in zip(teachers, glms, (torch.float32, torch.bfloat16), strict=True):
        assert {p.dtype for p in teacher.module.parameters()} == {dtype}
        expected = Teacher(glm.to(dtype))(inputs()).logits
        assert torch.equal(teacher(inputs()).logits, expected)


def test_all_that_cannot_go_with_the_student_is_told_before_weights_are_read(tmp_path):
    good = save(tmp_path / "a", toy_glm(toy_teacher_args(num_layers=2)), tokenizer_fingerprint="x")
    other = save(tmp_path / "b", toy_glm(), tokenizer_fingerprint="y")
    wide = save(tmp_path / "c", toy_glm(), model={"vocab_size": 128}, tokenizer_fingerprint="x")
    for file in tmp_path.rglob("*.pt"):
        file.write_bytes(b"not read")
    lists = f"--mt_load_pretrained={good}:{other}:{wide}:{tmp_path / 'd'}:"
    with pytest.raises(ConfigError) as caught:
        build_teachers(several(lists), lm_task(), "cpu", fingerprint="x")
    lines = caught.value.problems
    assert [line.split("=")[0] for line in lines[:3]] == [
        "--mt_load_pretrained[1]",
        "--mt_load_pretrained[2]",
        "--mt_load_pretrained[3]",
    ]
    assert "another vocabulary" in lines[0]
    assert "student and teachers must share one" in lines[0]
    assert "has 128 vocabulary entries, the student 64" in lines[1]
    assert "no such folder" in lines[2]
    assert lines[3].startswith("--teacher_load_pretrained: teacher 4 has no weights")


def test_weights_that_do_not_fit_name_the_entry(tmp_path):
    paths = [save(tmp_path / k, toy_glm(toy_teacher_args(num_layers=3))) for k in "ab"]
    run = several(f"--mt_load_pretrained={':'.join(paths)}", "--mt_num_layers=3:4")
    with pytest.raises(ValueError, match=r"--mt_load_pretrained\[1\]: .*does not fit"):
        build_teachers(run, lm_task(), "cpu")


def test_every_checkpoint_is_checked_at_the_start(tmp_path):
    mpu.initialize_model_parallel(1)
    good = save(tmp_path / "a", toy_glm(), tokenizer_fingerprint="x")
    run = several(f"--mt_load_pretrained={good}:{tmp_path / 'b'}", f"--mt_model_load={tmp_path}/c")
    assert [flag for flag, _ in sources(run)] == [
        "--mt_model_load",
        "--mt_load_pretrained[0]",
        "--mt_load_pretrained[1]",
    ]
    with pytest.raises(ConfigError) as caught:
        check_sources(run, "y")
    lines = caught.value.problems
    assert [line.split("=")[0] for line in lines] == [flag for flag, _ in sources(run)]
    joint = several(f"--mt_load_from_s={tmp_path / 'b'}", f"--mt_load_pretrained={good}:")
    with pytest.raises(FileNotFoundError, match="--mt_load_from_s=.*no such folder"):
        check_sources(joint, "x")
    mpu.destroy_model_parallel()


def test_offloading_on_a_cpu_is_told_to_do_nothing(caplog):
    run = toy_run("--student_model=kd", "--teacher_offload=cpu")
    (teacher,) = build_teachers(run, lm_task(), "cpu")
    assert caplog.messages == [
        "--teacher_offload=cpu: has no effect on a CPU, where teachers are anyway"
    ]
    assert teacher._offloaded is None
    caplog.clear()
    build_teachers(toy_run("--student_model=kd"), lm_task(), "cpu")
    assert caplog.messages == []


def test_hard_losses_that_nobody_needs_are_told(caplog):
    def messages(*flags: str) -> list[str]:
        caplog.clear()
        toy_step(toy_run("--student_model=kd", "--distill_pt_soft", "--mt_has_loss", *flags))
        return caplog.messages

    (message,) = messages("--mt_num_layers=2:3")
    assert message.startswith("--mt_has_loss: has no effect with --multi_teacher_model=avg")
    assert messages("--mt_has_grad") == []
    assert messages("--multi_teacher_model=mt_bert") == []


@pytest.mark.parametrize("name", ["theseus", "erdistill"])
def test_methods_that_use_weights_beside_the_forward_need_them_there(name):
    soft = ["--distill_ft_soft", "--distill_ft_hard", "--teacher_hidden_size=16"]
    run = toy_run(f"--student_model={name}", *soft, "--teacher_offload=cpu", program="finetune")
    with pytest.raises(ConfigError, match=f"--teacher_offload=cpu: {name} uses weights"):
        check_needs(run, cloze_task().head)


def test_theseus_does_not_train_its_teachers():
    flags = ["--distill_ft_hard", "--teacher_hidden_size=16", "--mt_has_grad"]
    run = toy_run("--student_model=theseus", *flags, program="finetune")
    with pytest.raises(ConfigError, match="--mt_has_grad: theseus uses frozen weights"):
        check_needs(run, cloze_task().head)
