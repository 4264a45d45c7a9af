"""What ZeRO-3 and partitioned activations cannot serve is said, with the captures' names."""

import dataclasses

import pytest

from config import ConfigError, RunArgs
from distill.engine.build import build_module
from distill.limits import captured_inside
from tests.distill.engine.small import deepspeed_json
from tests.distill.runs import lm_task, toy_run
from tests.toy import toy_lm_batch

KD = ["--student_model=kd", "--distill_pt_soft"]
TINYBERT = ["--student_model=tinybert", "--tinybert_only_emb_final"]
LRC = ["--student_model=lrc_bert", "--lrc_bert_gard_perturb", "--forward_repeat_num=1"]
LRC += ["--ignore_first_backward_gard"]
THESEUS = ["--student_model=theseus", "--distill_pt_hard"]
RECOMPUTE = ["--checkpoint-activations", "--deepspeed-activation-checkpointing"]
CUT = {"activation_checkpointing": {"partition_activations": True}}


def run_of(*flags: str, stage: int = 1, json: dict | None = None) -> RunArgs:
    """A toy run under DeepSpeed."""
    run = toy_run(*flags)
    parallel = dataclasses.replace(run.parallel, deepspeed=True, zero_stage=stage)
    parallel = dataclasses.replace(parallel, deepspeed_config="ds.json")
    whole = deepspeed_json(stage, 1, False, 1.0) | (json or {})
    return dataclasses.replace(run, parallel=parallel, deepspeed=whole)


def test_partitioned_activations_without_captures_inside():
    module = build_module(run_of(*KD, *RECOMPUTE, json=CUT), lm_task())
    assert module.origin_model.transformer.keep.partition
    assert not module.origin_model.transformer.keep.on_cpu


def test_partitioned_activations_name_what_is_captured_inside():
    with pytest.raises(ConfigError) as error:
        build_module(run_of(*TINYBERT, *RECOMPUTE, json=CUT), lm_task())
    (problem,) = error.value.problems
    assert problem.startswith("--deepspeed_config=ds.json: activation_checkpointing.partition_act")
    assert "--student_model=tinybert captures transformer.layers.0.layernorm_output" in problem
    assert problem.endswith("set it to false")


@pytest.mark.parametrize("left_out", RECOMPUTE)
def test_without_both_flags_nothing_is_partitioned(left_out):
    flags = [flag for flag in RECOMPUTE if flag != left_out]
    module = build_module(run_of(*TINYBERT, *flags, json=CUT), lm_task())
    assert not module.origin_model.transformer.keep.partition


def test_a_capture_that_comes_later_is_named_too():
    module = build_module(run_of(*KD, *RECOMPUTE, json=CUT), lm_task())
    batch, hook = toy_lm_batch(), {"transformer": {"layers": {1: {"tf_output": None}}}}
    with pytest.raises(ValueError, match="partition_activations: these layers are captured in: 1"):
        module(batch.tokens, batch.position_ids, batch.attention_mask, hook=hook)


def test_only_what_is_recomputed_counts():
    hook = {"logits_parallel": None, "transformer": {"output": None, "layers": {2: {"x": None}}}}
    assert captured_inside(hook) == ["transformer.layers.2.x"]
    assert captured_inside(None) == []


def test_zero_3_has_no_gradient_at_captures():
    build_module(run_of(*LRC, stage=2), lm_task())
    with pytest.raises(
        ConfigError, match="needs the gradient at transformer.embeddings of a first"
    ):
        build_module(run_of(*LRC, stage=3), lm_task())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([*KD, "--distill_logits_parallel"], None),
        (["--student_model=tinybert", "--tinybert_wo_att"], None),
        (["--student_model=tinybert"], "compares attention_scores, which hold the memory too"),
        (["--student_model=minilm"], "compares attention_scores, value_layer, which hold"),
        (
            ["--student_model=minilmv2", "--minilmv2_relation_heads=4"],
            "mixed_key_layer, mixed_value",
        ),
        (["--student_model=mobilebert", "--teacher_hidden_size=16"], "compares attention_scores"),
        (["--student_model=sid", "--teacher_hidden_size=16"], "compares attention_scores"),
        ([*THESEUS, "--teacher_hidden_size=16"], "puts other states in place"),
        (LRC, "puts other states in place of the student's; give --mem-length=0"),
        (["--student_model=mixbaseline", "--mixbaseline_inter_bl=glmd,minilm"], "attention_scores"),
        (["--student_model=mixbaseline", "--mixbaseline_inter_bl=glmd,lrc_bert"], "puts other"),
        (["--student_model=mixbaseline", "--mixbaseline_inter_bl=glmd,pkd"], None),
    ],
)
def test_what_a_memory_of_the_text_cannot_serve_is_named(flags, named):
    run = toy_run(*flags, "--transformer-xl", "--mem-length=4")
    if named is None:
        build_module(run, lm_task())
        return
    with pytest.raises(ConfigError) as error:
        build_module(run, lm_task())
    (problem,) = error.value.problems
    assert problem.startswith("--mem-length=4: --student_model=")
    assert named in problem
    build_module(toy_run(*flags, "--transformer-xl"), lm_task())
