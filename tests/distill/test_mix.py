"""What the lists of a mix mean, and how captures are shared."""

import dataclasses

import pytest
import torch

from config import ConfigError, parse_args
from config.run import RunArgs
from distill.capture import Captured
from distill.methods.mixbaseline import MixBaselineArgs
from distill.mix import Borrowed, label_of, narrowed, projected, read_numbers, read_words
from distill.registry import METHODS, method_args
from distill.student import GLMStudent
from model.build import HeadSpec
from tests.distill.runs import SIZES, toy_run
from tests.toy import toy_glm


def mix_run(*flags: str, program: str = "pretrain") -> RunArgs:
    return toy_run("--student_model=mixbaseline", *flags, program=program)


def parts(*flags: str, program: str = "pretrain"):
    run = mix_run(*flags, program=program)
    return run.method.lists(program).parts(run)


def problems(*flags: str, program: str = "pretrain", head: str = "lm") -> list[str]:
    run = mix_run(*flags, program=program)
    return list(METHODS["mixbaseline"].problems(run, HeadSpec(head)))


INTER, PT = "--mixbaseline_inter_bl", "--mixbaseline_pre_bl_pt_soft"
FT = "--mixbaseline_pre_bl_ft_soft"
SOFT = ["--distill_pt_soft", "--distill_pt_hard"]


def test_parts_are_in_the_order_of_the_flags():
    flags = [f"{INTER}=TinyBERT,glmd", f"{PT}=kd,glmd", f"{FT}=SID", *SOFT]
    found = [(p.label, p.name, p.inter, p.pre, p.hard) for p in parts(*flags)]
    assert found == [
        ("TinyBERT", "TinyBERT", True, False, False),
        ("LogitsDistil", "glmd", True, True, True),
        ("KD", "kd", False, True, False),
        ("SID", "SID", False, False, False),
    ]
    tuned = parts(*flags, program="finetune")
    assert [p.label for p in tuned if p.pre] == ["SID"]


def test_one_method_by_two_names_is_one_part():
    found = parts(f"{INTER}=tinybert", f"{PT}=TinyBERT")
    assert [(p.label, p.name, p.inter, p.pre) for p in found] == [
        ("TinyBERT", "tinybert", True, True)
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tinybert", "TinyBERT"), ("rail_kd", "RAIL_KD"), ("glmd", "LogitsDistil"), ("kd", "KD")],
)
def test_a_label_is_the_seeds_spelling(name, expected):
    method_args()
    assert label_of(name) == label_of(expected) == expected


def test_without_inter_nothing_inside_is_compared():
    found = parts(f"{INTER}=PKD", f"{PT}=PKD", "--mixbaseline_wo_inter")
    assert [(p.inter, p.pre) for p in found] == [(False, True)]


def test_each_part_has_its_own_arguments():
    flags = [f"{INTER}=TinyBERT,glmd,pkd", f"{PT}=glmd,pkd", *SOFT, "--distill_logits_parallel"]
    flags += ["--pkd_beta=7", "--distill_temperature=4", "--mixbaseline_tinybert_t=2"]
    tiny, glmd, pkd = parts(*flags, "--mixbaseline_weights=1,0.5,3")
    assert [p.weight for p in (tiny, glmd, pkd)] == [1, 0.5, 3]
    assert [p.run.distill.distill_temperature for p in (tiny, glmd, pkd)] == [2, 4, 4]
    assert pkd.run.method.pkd_beta == 7
    assert pkd.run.distill.student_model == "pkd"
    assert [p.run.distill.distill_pt_hard for p in (tiny, glmd, pkd)] == [False, False, True]
    assert [p.run.distill.distill_pt_soft for p in (tiny, glmd, pkd)] == [True, True, True]
    assert not any(p.run.distill.distill_logits_parallel for p in (tiny, glmd, pkd))
    (flags[-1],) = ["--mixbaseline_temperatures=5,6,7"]
    assert [p.run.distill.distill_temperature for p in parts(*flags)] == [5, 6, 7]


def test_tinyberts_temperature_is_one_as_in_the_seed():
    found = parts(f"{INTER}=TinyBERT,PKD", "--distill_temperature=10")
    assert [p.run.distill.distill_temperature for p in found] == [1, 10]


@pytest.mark.parametrize("flag", ["weights", "temperatures"])
def test_as_many_numbers_as_methods(flag):
    (line,) = problems(f"{INTER}=PKD,glmd", f"--mixbaseline_{flag}=1,2,3")
    assert line.startswith(f"--mixbaseline_{flag}: has 3 values, --mixbaseline_inter_bl and ")
    assert "name 2 methods (PKD, LogitsDistil); give one value for each" in line


@pytest.mark.parametrize("text", ["1,x", "0", "-1", "1,nan", "inf"])
@pytest.mark.parametrize("flag", ["--mixbaseline_weights", "--mixbaseline_temperatures"])
def test_numbers_that_are_none(flag, text):
    with pytest.raises(ConfigError, match=f"{flag}={text}: .* no number above 0"):
        mix_run(f"{flag}={text}")


def test_tinyberts_temperature_is_above_zero():
    with pytest.raises(ConfigError, match="--mixbaseline_tinybert_t=0: '0' is no number above 0"):
        mix_run("--mixbaseline_tinybert_t=0")


def test_two_temperatures_of_tinybert():
    with pytest.raises(ConfigError, match="--mixbaseline_tinybert_t=3: .*leave out one"):
        mix_run("--mixbaseline_tinybert_t=3", "--mixbaseline_temperatures=1")


def test_a_method_twice_in_a_list():
    (line,) = problems(f"{INTER}=logitsdistil,glmd")
    assert line == "--student_model=mixbaseline: LogitsDistil is listed twice; list it once"


def test_an_unknown_method():
    with pytest.raises(ConfigError, match="--student_model=mixbaseline: 'pdk' is no method"):
        mix_run(f"{INTER}=pdk")


def test_a_mix_in_a_mix():
    (line,) = problems(f"{INTER}=MixBaseline")
    assert line.endswith("MixBaseline is a mix itself; list its methods")


class Own(GLMStudent):
    """A user's."""


class Forward(GLMStudent):
    """With a forward of its own."""

    def forward(self, *inputs, **kwargs):
        return super().forward(*inputs, **kwargs)


def test_a_method_with_a_forward_of_its_own(monkeypatch):
    method_args()
    monkeypatch.setitem(METHODS, "forward", Forward)
    (line,) = problems(f"{INTER}=forward")
    assert "forward has a forward of its own" in line


def test_two_classes_of_one_name(monkeypatch):
    method_args()
    monkeypatch.setitem(METHODS, "a/own.py:Own", Own)
    monkeypatch.setitem(METHODS, "b/own.py:Own", type("Own", (GLMStudent,), {}))
    (line,) = problems(f"{INTER}=a/own.py:Own,b/own.py:Own")
    assert line.endswith("b/own.py:Own and a/own.py:Own are both called Own; rename one class")


def test_a_mix_without_anything():
    (line,) = problems()
    assert "has no method and no labels to learn from" in line
    (line,) = problems(f"{INTER}=PKD", "--mixbaseline_wo_inter")
    assert "--distill_pt_soft" in line
    assert problems("--distill_pt_soft") == []
    assert problems("--distill_logits_parallel") == []
    assert problems("--distill_ft_hard", program="finetune") == []


def test_soft_labels_that_are_off():
    same = "--teacher_hidden_size=16"
    (line,) = problems(f"{PT}=glmd")
    assert line.startswith("--mixbaseline_pre_bl_pt_soft: LogitsDistil learns from soft and hard")
    assert line.endswith("are off; add --distill_pt_soft")
    assert problems(f"{PT}=glmd", "--distill_pt_hard") == []
    assert problems(f"{PT}=DistilBERT", same) == []  # has switches of its own


def test_kd_is_there_already_in_fine_tuning():
    flags = ["--distill_ft_soft", "--distill_pt_soft"]
    (line,) = problems(f"{FT}=KD", *flags, program="finetune")
    assert line.startswith("--mixbaseline_pre_bl_ft_soft: KD is there already")
    assert problems(f"{PT}=KD", *flags) == []


def test_what_a_part_needs_is_told():
    lines = problems(f"{INTER}=PKD,TinyBERT", "--teacher_num_attention_heads=2")
    assert [line.split(":")[0].split("=")[0] for line in lines] == [
        "--hidden-size",
        "--num-attention-heads",
    ]
    assert problems(f"{INTER}=PKD", f"{FT}=glmd", "--mixbaseline_wo_inter", *SOFT) == []


def test_a_list_of_the_other_program_is_not_checked():
    assert problems(f"{INTER}=glmd", f"{FT}=PKD") == []  # widths differ: of no matter here


CLI = [*SIZES, "--student_model=mixbaseline", f"{INTER}=TinyBERT,glmd", "--train-data=x"]
CLI += ["--train-iters=2", "--tokenizer-path=x", "--seq-length=32", "--bert-prob=1"]


def test_flags_of_a_part_are_in_use_and_others_warn(caplog):
    flags = ["--tinybert_wo_emb", "--logitsdistil_top_n=5", "--pkd_beta=3"]
    parse_args([*CLI, *flags], program="pretrain", methods=method_args())
    told = [r.message for r in caplog.records if "mixbaseline" in r.message]
    assert told == ["--pkd_beta: has no effect with --student_model=mixbaseline"]


def test_the_groups_of_the_parts_are_saved():
    run = mix_run(f"{INTER}=tinybert,glmd", "--tinybert_wo_emb", "--logitsdistil_top_n=5")
    again = RunArgs.from_json(run.to_json(), method_args())
    assert again.mixed == run.mixed
    assert again.mixed["tinybert"].tinybert_wo_emb
    assert again.mixed["glmd"].logitsdistil_top_n == 5
    assert again.method == run.method


def test_the_seeds_flags():
    group = {f.name: f.default for f in dataclasses.fields(MixBaselineArgs)}
    assert group == {
        "mixbaseline_wo_inter": False,
        "mixbaseline_inter_checkpoint": False,
        "mixbaseline_tinybert_t": 1.0,
        "mixbaseline_inter_bl": "",
        "mixbaseline_pre_bl_pt_soft": "",
        "mixbaseline_pre_bl_ft_soft": "",
        "mixbaseline_weights": "",
        "mixbaseline_temperatures": "",
    }


def test_words_and_numbers():
    assert read_words("") == ()
    assert read_words(" a, b ,") == ("a", "b")
    assert read_numbers("--x", "1, .5") == (1.0, 0.5)


def test_a_part_sees_only_what_it_asked_for():
    hook = {"transformer": {"layers": {0: {"a": 3, "b": 1}, 2: {"a": 5}}, "output": 4}, "x": 0}
    asked = {"transformer": {"layers": {0: {"a": None}, 1: {"a": None}}}, "y": None}
    expected = {"transformer": {"layers": {0: {"a": 3}, 1: {"a": None}}}, "y": None}
    assert narrowed(hook, asked) == expected


def test_projection_reaches_hidden_states_only():
    hook = {"transformer": {"layers": {0: {"layernorm_output": 0, "query_layer": 1}}, "output": 2}}
    hook |= {"logits_parallel": 3}
    given = [torch.full((1,), float(i)) for i in range(4)]
    found = projected(Captured(hook, given), lambda x: x + 10).inter_vars
    assert [float(x) for x in found] == [10, 1, 12, 3]
    assert [float(x) for x in given] == [0, 1, 2, 3]


def test_a_borrowed_model_answers_but_is_nobodys_child():
    glm = toy_glm()
    student = GLMStudent(Borrowed(glm), toy_run())
    assert list(student.parameters()) == []
    assert student.state_dict() == {}
    assert student.origin_model.word_embeddings is glm.word_embeddings
    assert not hasattr(student.origin_model, "no_such_part")


def test_a_number_that_is_not_finite_is_told_of_a_part_too():
    with pytest.raises(ConfigError, match="--pkd_beta=inf: must be a finite"):
        parse_args(
            [*CLI, "--mixbaseline_pre_bl_pt_soft=PKD", "--pkd_beta=inf"],
            program="pretrain",
            methods=method_args(),
        )


FOUR = f"{INTER}=TinyBERT,MiniLMv2,MiniLM,DistilBERT"
HEADS = ["--minilmv2_relation_heads=4", "--minilmv2_teacher_layer=4", "--teacher_hidden_size=16"]


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("pretrain", [FOUR, f"{PT}=DistilBERT", *HEADS]),
        ("finetune", [FOUR, f"{FT}=DistilBERT", *HEADS]),
        (
            "finetune",
            ["--mixbaseline_wo_inter", "--tinybert_wo_inter", "--distill_ft_soft"]
            + ["--distill_ft_hard", "--mixbaseline_tinybert_t=1", f"{FT}=TinyBERT"],
        ),
    ],
)
def test_the_published_stages_have_what_they_need(program, flags):
    assert problems(*flags, program=program) == []
