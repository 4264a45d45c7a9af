"""The recipes are those of the seed, complete, and command lines that parse."""

import json
import logging
from pathlib import Path

import pytest

from config import parse_args
from distill.combiner import COMBINERS, combiner_args
from distill.registry import METHODS, method_args
from distill.step import check_needs
from model.build import HeadSpec
from scripts.quickstart_plan import FULL
from scripts.recipes import (
    PUBLISHED,
    PUBLISHED_OF,
    chain,
    command,
    lines,
    recipes_of,
    recipes_with,
    scaled_flags,
    shape,
    stages,
)
from tests.distill.runs import all_methods

# Stage -> the recorded case that has the flags of the seed's README for it.
RECORDED = {
    "kd.finetune": "kd_ft",
    "pd.finetune": "pd_2_ft",
    "glmd_vc.pretrain": "glmd_vc_1_pt",
    "glmd_vc.finetune-1": "glmd_vc_2_ft",
    "glmd_vc.finetune-2": "glmd_vc_3_ft",
    "glmd.pretrain": "glmd_al_map_1_pt",
    "glmd.finetune-1": "glmd_al_map_2_ft",
    "glmd.finetune-2": "glmd_al_map_3_ft",
    "tinybert.pretrain": "tinybert_1_pt",
    "tinybert.finetune-1": "tinybert_2_ft",
    "tinybert.finetune-2": "tinybert_3_ft",
    "minilmv2.pretrain": "minilmv2_1_pt",
    "minilm.pretrain": "minilm_1_pt",
    "distilbert.pretrain": "distilbert_1_pt",
    "pkd.finetune": "pkd_ft",
    "rail_kd.finetune": "rail_kd_2_ft",
    "mgskd.finetune-1": "mgskd_2_ft",
    "mgskd.finetune-2": "mgskd_3_ft",
    "diito.pretrain": "diito_1_pt",
    "sid.finetune": "sid_2_ft",
    "alp_kd.finetune": "alp_kd_ft",
    "ckd.finetune": "ckd_2_ft",
    "theseus.finetune": "theseus_ft",
    "universal_kd.finetune-1": "universal_kd_1_ft",
    "lrc_bert.finetune-1": "lrc_bert_2_ft",
    "lrc_bert.finetune-2": "lrc_bert_3_ft",
    "annealing_kd.finetune-1": "annealing_kd_2_ft",
    "mobilebert.teacher": "mobilebert_1_pt_teacher",
    "mobilebert.pretrain": "mobilebert_2_pt",
    "mobilebert.finetune": "mobilebert_3_ft",
    "continuation_kd.finetune": "continuation_kd_2_ft",
    "mixbaseline.pretrain": "mixbaseline_1_pt",
    "mixbaseline.finetune-1": "mixbaseline_2_ft",
    "mixbaseline.finetune-2": "mixbaseline_3_ft",
    "random_data.pretrain": "random_data_readme_pt",
    "avgmt.finetune": "avgmt_kd_ft",
    "tmkd.pretrain": "tmkd_1_pt",
    "tmkd.finetune": "tmkd_2_ft",
    "mt_bert.finetune": "mt_bert_ft",
    "uncertainty.finetune": "uncertainty_ft",
    "uncertainty_soft.finetune": "uncertainty_soft_ft",
    "rl_kd.finetune-1": "rl_kd_1_ft",
    "rl_kd.finetune-2": "rl_kd_2_ft",
    "rl_kd_reward_2.finetune": "rl_kd_2r2_ft",
    "mixmt.finetune": "x_mixmt_ft",
}
# The case has them at toy size, or leaves out what is a size.
OF_SIZE = (
    "--minilmv2_relation_heads", "--minilmv2_teacher_layer", "--ib_hidden_size", "--ib_word_emb",
    "--teacher_ib_hidden_size", "--teacher_ib_word_emb", "--rl_kd_semantic_model_dim",
)  # fmt: skip
NOT_AS_PUBLISHED = {
    "random_data.pretrain": ("--forward_repeat_num",),
    "uncertainty_soft.finetune": ("--student_truncate_tn",),  # begins as with hard selection
}


def parse(stage, sizes):
    program, *words = command(stage, sizes)
    assert program == f"distill/{stage.program}.py"
    kinds = {"methods": method_args(), "combiners": combiner_args()}
    return parse_args(words, program=stage.program, **kinds)


def shape_of(model):
    return model.num_layers, model.hidden_size, model.num_attention_heads


@pytest.mark.parametrize("sizes", [FULL, PUBLISHED], ids=["small", "published"])
@pytest.mark.parametrize("key", stages())
def test_the_command_parses_and_the_method_has_what_it_needs(key, sizes, caplog):
    stage = stages()[key]
    with caplog.at_level(logging.WARNING):
        run = parse(stage, sizes)
    check_needs(run, HeadSpec("lm" if stage.program == "pretrain" else "single_token"))
    assert run.distill.student_model == stage.method
    assert len(run.teachers) == len(stage.teachers)
    assert run.multi_teacher.multi_teacher_model == stage.combiner
    models = [stages()[key] for key in stage.teachers]
    assert [shape_of(teacher) for teacher in run.teachers] == [shape(sizes, m.role) for m in models]
    assert shape_of(run.model) == shape(sizes, stage.role)
    assert caplog.messages == []  # no flag without effect


def test_every_method_has_a_recipe_and_every_recipe_a_method():
    assert [name for name in all_methods() if not recipes_of(name)] == []
    used = {stage.method for stage in stages().values()} - {None}
    assert used <= set(METHODS)


def test_every_combiner_has_a_recipe():
    combiner_args()
    with_recipe = {COMBINERS[name] for name in COMBINERS if recipes_with(name)}
    assert with_recipe == set(COMBINERS.values())


@pytest.mark.parametrize("key", RECORDED)
def test_the_flags_are_the_seeds(key, vectors):
    def comparable(flags):
        skipped = (*OF_SIZE, *NOT_AS_PUBLISHED.get(key, ()))
        return [flag for flag in flags if flag.partition("=")[0] not in skipped]

    case = json.loads((vectors / RECORDED[key] / "args.json").read_text())
    assert comparable(stages()[key].flags) == comparable(case["readme_flags"])


def test_flags_of_other_sizes_are_the_published_ones_scaled():
    for stage in stages().values():
        published = PUBLISHED_OF.get(stage.recipe, PUBLISHED)
        assert scaled_flags(stage, published) == list(stage.flags)
    minilmv2 = scaled_flags(stages()["minilmv2.pretrain"], FULL)
    assert minilmv2[1:] == ["--minilmv2_relation_heads=16", "--minilmv2_teacher_layer=4"]
    rl_kd = scaled_flags(stages()["rl_kd.finetune-1"], FULL)
    assert rl_kd[-1] == "--rl_kd_semantic_model_dim=128"
    student = scaled_flags(stages()["mobilebert.finetune"], FULL)
    assert {"--ib_hidden_size=32", "--ib_word_emb=32", "--ib_ffn_num=4"} <= set(student)


def test_a_chain_has_what_is_needed_before_it_is_needed():
    everything = chain(*stages())
    assert {stage.key for stage in everything} == set(stages())
    for number, stage in enumerate(everything):
        before = {other.key for other in everything[:number]}
        assert {stage.start, *stage.teachers} - {None} <= before, stage.key
    assert [stage.key for stage in chain("rail_kd.finetune")] == [
        "teacher.pretrain",
        "distilbert.pretrain",
        "teacher.finetune",
        "rail_kd.finetune",
    ]
    assert chain("tinybert.finetune-2")[-1].run_name == "tinybert-finetune-2"


def test_what_a_stage_starts_from_fits():
    """A model is loaded into one of its own size; the teacher of a task has learned the task."""
    for stage in stages().values():
        if stage.start is not None:
            assert stages()[stage.start].role == stage.role, stage.key
        semantic = f"--rl_kd_semantic_model={len(stage.teachers) - 3}" in stage.flags
        for number, key in enumerate(stage.teachers):
            teacher = stages()[key]
            if not (semantic and number == 0):
                assert teacher.program == stage.program, stage.key
            assert layers(teacher.role) >= layers(stage.role), stage.key
            assert teacher.role != "student", stage.key


def layers(role):
    return shape(PUBLISHED, role)[0]


def test_a_script_that_keeps_a_part_of_the_vocabulary_ranks_it_before():
    script = list(lines(["glmd"], Path("out")))
    assert "scripts/count_tokens.py" in script[1]
    assert all("count_tokens" not in line for line in [script[0], *script[2:]])
    assert all("count_tokens" not in line for line in lines(["glmd_vc"], Path("out")))


def test_the_printed_script_makes_the_vocabulary_first():
    script = list(lines(["pd"], Path("out")))
    assert "train_tokenizer.py" in script[0]
    names = [line.partition("--experiment-name=")[2].split()[0] for line in script[1:]]
    assert names == ["plain-pretrain", "teacher-pretrain", "teacher-finetune", "pd-finetune"]
    assert all(line.count("out/vocab.txt") == 1 for line in script)
