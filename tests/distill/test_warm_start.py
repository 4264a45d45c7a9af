"""Starting a student from a teacher, entry by entry; layers, heads, shards, bad input."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import mpu
from config import ConfigError, RunArgs
from distill.engine import build
from distill.engine.build import build_module
from distill.warm_start import by_heads, check_warm_start, source_layers, warm_start
from model.build import HeadSpec
from tests.distill.runs import cloze_task, lm_task, toy_run, toy_student, toy_teachers
from tests.ranks import run_ranks
from tests.toy import merged

FLAGS = ["--student_model=kd", "--student_truncate_tn=0"]
SIZES = {  # layers, width and heads of student and teacher
    "same": (2, 16, 4, 4, 16, 4),
    "narrower, fewer heads": (2, 16, 4, 4, 24, 6),
    "narrower heads": (2, 16, 4, 4, 24, 4),
    "more and narrower heads": (3, 32, 8, 4, 48, 4),
    "larger": (3, 24, 4, 2, 16, 4),
    "more heads": (2, 24, 6, 4, 16, 4),
}


def run_of(sizes: tuple[int, ...], *flags: str, program: str = "pretrain") -> RunArgs:
    layers, width, heads, t_layers, t_width, t_heads = sizes
    return toy_run(
        *FLAGS,
        f"--num-layers={layers}",
        f"--hidden-size={width}",
        f"--num-attention-heads={heads}",
        f"--teacher_num_layers={t_layers}",
        f"--teacher_hidden_size={t_width}",
        f"--teacher_num_attention_heads={t_heads}",
        *flags,
        program=program,
    )


def states(run: RunArgs, task: Any = None) -> tuple[dict[str, Tensor], ...]:
    """(student before, teacher, student after), bare names."""
    task = task or lm_task()
    module, teachers = toy_student(run, task), toy_teachers(run, task)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    warm_start(module, teachers, run)
    return before, teachers[0].module.state_dict(), module.state_dict()


def pairs_of(name: str, dim: int, length: int, given: int, *heads: tuple[int, int]) -> list[Any]:
    """(index in the student, index in the teacher) along a dimension, one by one.

    heads: (heads, width of a head) of student and teacher.
    """
    (number, width), (t_number, t_width) = heads
    by_head = dim == ("query_key_value" not in name) and "attention" in name
    if not by_head or name.endswith("dense.bias"):
        return [(i, i) for i in range(length) if i < given]
    found = []
    for i in range(length):
        part, rest = divmod(i, number * width)
        head, d = divmod(rest, width)
        if head < t_number and d < t_width:
            found.append((i, part * t_number * t_width + head * t_width + d))
    return found


def expected_tensor(name: str, before: Tensor, given: Tensor, *heads: tuple[int, int]) -> Tensor:
    sizes = enumerate(zip(before.shape, given.shape, strict=True))
    lists = [pairs_of(name, dim, *pair, *heads) for dim, pair in sizes]
    own, theirs = ([torch.tensor([p[k] for p in pairs]) for pairs in lists] for k in (0, 1))
    expected = before.clone()
    expected[torch.meshgrid(*own, indexing="ij")] = given[torch.meshgrid(*theirs, indexing="ij")]
    return expected


@pytest.mark.parametrize("name", SIZES)
def test_every_entry_of_every_tensor(name):
    layers, width, heads, t_layers, t_width, t_heads = SIZES[name]
    before, given, after = states(run_of(SIZES[name]))
    own, theirs = (heads, width // heads), (t_heads, t_width // t_heads)
    for key, actual in after.items():
        if key.startswith("transformer.layers.") and int(key.split(".")[2]) >= t_layers:
            assert torch.equal(actual, before[key]), key
            continue
        expected = expected_tensor(key, before[key], given[key], own, theirs)
        assert torch.equal(actual, expected), key
        assert not torch.equal(actual, before[key]), key


def test_a_copy_of_all_layers_is_the_teacher():
    sizes = (4, 16, 4, 4, 16, 4)
    _, given, after = states(run_of(sizes))
    assert given.keys() == after.keys()
    assert all(torch.equal(v, given[k]) for k, v in after.items())


def test_queries_stay_queries():
    # All queries are 1, keys 2, values 3: the seed's block cut (D16) mixes them.
    for compat, expected in (("", {1.0, 2.0, 3.0}), ("D16", {1.0, 2.0})):
        run = run_of((2, 8, 4, 4, 24, 4), f"--compat={compat}")
        module, teachers = toy_student(run, lm_task()), toy_teachers(run, lm_task())
        key = "transformer.layers.0.attention.query_key_value.bias"
        bias = torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(24)
        teachers[0].module.load_state_dict(teachers[0].module.state_dict() | {key: bias})
        warm_start(module, teachers, run)
        actual = module.state_dict()[key].view(3, 8)
        assert set(actual.flatten().tolist()) == ({1.0} if compat else expected)
        if not compat:
            assert torch.equal(actual, torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 8))


def test_heads_apart():
    assert by_heads("transformer.layers.0.attention.query_key_value.weight", (48, 16), 4) == (
        3,
        4,
        4,
        16,
    )
    assert by_heads("transformer.layers.0.attention.query_key_value.bias", (48,), 4) == (3, 4, 4)
    assert by_heads("transformer.layers.0.attention.dense.weight", (16, 16), 4) == (16, 4, 4)
    relative = "transformer.layers.0.attention.relative."
    assert by_heads(relative + "weight", (16, 16), 4) == (4, 4, 16)
    assert by_heads(relative + "bias", (16,), 4) == (4, 4)
    for name in ("attention.dense.bias", "mlp.dense_h_to_4h.weight", "word_embeddings.weight"):
        assert by_heads(name, (64, 16), 4) == (64, 16)


# Layers.


@pytest.mark.parametrize(
    ("text", "number", "num_teacher", "expected"),
    [
        (None, 2, 4, [0, 1]),
        (None, 4, 2, [0, 1]),
        ("first", 2, 4, [0, 1]),
        ("last", 2, 4, [2, 3]),
        ("even", 6, 12, [0, 2, 4, 6, 8, 10]),
        ("even", 5, 12, [0, 2, 4, 7, 9]),
        ("even", 3, 2, [0, 0, 1]),
        ("even", 4, 4, [0, 1, 2, 3]),
        ("3,0,3", 3, 4, [3, 0, 3]),
        ("1", 1, 4, [1]),
    ],
)
def test_layers_to_start_from(text, number, num_teacher, expected):
    assert source_layers(text, number, num_teacher) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0,2,4", "names 3 layers, the student has 2; name one for each"),
        ("0", "names 1 layers, the student has 2"),
        ("0,4", "the teacher has no layer 4; it has 0 to 3"),
        ("odd", "must be layers of the teacher, as 0,2,4, or even, first, last"),
        ("0,,1", "must be layers"),
        ("-1,2", "must be layers"),
        ("", "must be layers"),
    ],
)
def test_layers_that_are_wrong(text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        source_layers(text, 2, 4)
    assert str(caught.value).startswith(f"--student_init_layers={text}: ")


@pytest.mark.parametrize(("text", "number"), [("first", 5), ("last", 5)])
def test_more_layers_than_the_teacher_has(text, number):
    with pytest.raises(
        ConfigError, match=f"--student_init_layers={text}: the teacher has no layer"
    ):
        source_layers(text, number, 4)


@pytest.mark.parametrize(("text", "layers"), [("even", [0, 2]), ("last", [2, 3]), ("3,0", [3, 0])])
def test_each_layer_comes_from_its_own(text, layers, caplog):
    with caplog.at_level(logging.INFO):
        _, given, after = states(run_of(SIZES["same"], f"--student_init_layers={text}"))
    for number, source in enumerate(layers):
        for part in ("mlp.dense_h_to_4h.weight", "attention.query_key_value.bias"):
            actual = after[f"transformer.layers.{number}.{part}"]
            assert torch.equal(actual, given[f"transformer.layers.{source}.{part}"])
    assert f"the student starts from its layers {layers}" in caplog.text


def test_shared_layers_are_one():
    sharing = ["--cross_layer_parameter_sharing"]
    before, given, after = states(run_of(SIZES["same"], *sharing, "--student_init_layers=3"))
    key = "mlp.dense_h_to_4h.weight"
    assert torch.equal(after[f"transformer.layers.0.{key}"], given[f"transformer.layers.3.{key}"])
    assert not any(".layers.1." in k for k in after)
    sharing = ["--teacher_cross_layer_parameter_sharing"]
    before, given, after = states(run_of(SIZES["same"], *sharing))
    assert torch.equal(after[f"transformer.layers.0.{key}"], given[f"transformer.layers.0.{key}"])
    assert torch.equal(after[f"transformer.layers.1.{key}"], before[f"transformer.layers.1.{key}"])
    with pytest.raises(ConfigError, match="no layer 1; it has 0 to 0"):
        check_warm_start(run_of(SIZES["same"], *sharing, "--student_init_layers=0,1"))


def test_a_bottleneck_takes_what_has_its_name():
    flags = ["--inverted_bottleneck_mode", "--ib_hidden_size=8", "--ib_ffn_num=2"]
    before, given, after = states(run_of(SIZES["same"], *flags))
    assert torch.equal(after["word_embeddings.weight"], given["word_embeddings.weight"])
    key = "transformer.layers.0.attention.query_key_value.bias"
    expected = given[key].view(3, 4, 4)[:, :, :2].flatten()  # heads of 4, the first 2 entries
    assert torch.equal(after[key], expected)
    for key in ("ib_linear_in.weight", "ib_mlp.0.dense_h_to_4h.weight"):
        name = f"transformer.layers.0.{key}"
        assert torch.equal(after[name], before[name])


def test_a_compressed_table_takes_the_first_columns():
    _, given, after = states(run_of(SIZES["same"], "--compress_word_emb=12"))
    key = "word_embeddings.weight"
    assert torch.equal(after[key], given[key][:, :12])


def test_heads_and_a_methods_own_parameters():
    run = run_of(SIZES["same"], program="finetune")
    _, given, after = states(run, cloze_task())
    assert torch.equal(after["word_embeddings.weight"], given["word_embeddings.weight"])
    task = cloze_task("classification")
    task.head = HeadSpec("classification", num_classes=3)
    before, given, after = states(run_of(SIZES["narrower heads"], program="finetune"), task)
    assert torch.equal(after["pool_layer.weight"], given["pool_layer.weight"][:16, :16])
    assert torch.equal(after["multichoice_head.weight"], given["multichoice_head.weight"][:, :16])


def test_a_teacher_in_half_precision_gives_rounded_weights():
    _, given, after = states(run_of(SIZES["same"], "--teacher_bf16"))
    key = "word_embeddings.weight"
    assert given[key].dtype == torch.bfloat16
    assert after[key].dtype == torch.float32
    assert torch.equal(after[key], given[key].float())


def test_parameters_stay_what_they_are():
    run = run_of(SIZES["narrower heads"])
    module, teachers = toy_student(run, lm_task()), toy_teachers(run, lm_task())
    before, frozen = dict(module.named_parameters()), teachers[0].module.state_dict()
    frozen = {k: v.clone() for k, v in frozen.items()}
    warm_start(module, teachers, run)
    for name, parameter in module.named_parameters():
        assert parameter is before[name]
        assert parameter.requires_grad
        assert parameter.is_leaf
    assert all(torch.equal(v, frozen[k]) for k, v in teachers[0].module.state_dict().items())


# When.


def test_without_the_flag_nothing_changes():
    for flags in (["--student_truncate_tn=-1"], ["--load=somewhere"]):
        before, _, after = states(run_of(SIZES["same"], *flags))
        assert all(torch.equal(v, before[k]) for k, v in after.items())
    alone = toy_run("--student_truncate_tn=0")
    check_warm_start(alone)
    warm_start(toy_student(alone, lm_task()), (), alone)


def test_a_teacher_that_does_not_exist():
    check_warm_start(run_of(SIZES["same"]))
    with pytest.raises(
        ConfigError, match="--student_truncate_tn=1: there is no such teacher; .* 0"
    ):
        check_warm_start(run_of(SIZES["same"], "--student_truncate_tn=1"))


def test_layers_are_checked_before_anything_is_built():
    with pytest.raises(ConfigError, match="--student_init_layers=0,9: the teacher has no layer 9"):
        build.start(run_of(SIZES["same"], "--student_init_layers=0,9"))


def test_the_teacher_wins_over_pretrained_weights(monkeypatch):
    flags = ["--load-pretrained=somewhere", "--distill_pt_hard"]
    run = run_of(SIZES["same"], *flags)

    def load(path: str, module: torch.nn.Module, *, what: str) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(7.0)

    monkeypatch.setattr(build, "load_weights", load)
    teachers = toy_teachers(run, lm_task())
    expected = teachers[0].module.state_dict()
    module = build_module(run, lm_task(), teachers)
    assert all(torch.equal(v, expected[k]) for k, v in module.state_dict().items())
    deeper = run_of((5, 16, 4, 4, 16, 4), *flags)
    module = build_module(deeper, lm_task(), teachers)
    assert bool((module.state_dict()["transformer.layers.4.mlp.dense_h_to_4h.bias"] == 7).all())


# Shards.


def on_rank(rank: int, world_size: int, name: str, compat: str) -> dict[str, Tensor]:
    mpu.initialize_model_parallel(world_size)
    return {k: v.clone() for k, v in states(run_of(SIZES[name], f"--compat={compat}"))[2].items()}


PARALLEL = [
    (2, "narrower, fewer heads", ""),
    (2, "larger", ""),
    (2, "narrower heads", "D16"),
    (4, "more and narrower heads", ""),
]


@pytest.mark.parametrize(("size", "name", "compat"), PARALLEL)
def test_shards_are_those_of_the_whole(size, name, compat):
    run = run_of(SIZES[name], f"--compat={compat}")
    _, _, expected = states(run)
    ranks = run_ranks(size, on_rank, name, compat)
    actual = merged(ranks, toy_student(run, lm_task()))
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key


SHAPED = {  # sizes, and flags of other shapes than the plain one
    "bottlenecks": (
        (2, 16, 4, 4, 24, 4),
        *("--inverted_bottleneck_mode", "--ib_hidden_size=8", "--ib_ffn_num=2"),
        *("--teacher_inverted_bottleneck_mode", "--teacher_ib_hidden_size=16"),
    ),
    "neighbours": ((2, 16, 4, 4, 24, 4), "--ib_word_emb=8", "--teacher_ib_word_emb=12"),
    "albert": (
        (3, 16, 4, 4, 24, 8),
        *("--compress_word_emb=8", "--cross_layer_parameter_sharing"),
        "--teacher_compress_word_emb=12",
    ),
    "even": ((2, 16, 4, 4, 48, 8), "--student_init_layers=even"),
    "relative": ((2, 16, 4, 4, 24, 4), "--transformer-xl"),
}


def on_rank_shaped(rank: int, world_size: int, name: str) -> dict[str, Tensor]:
    mpu.initialize_model_parallel(world_size)
    return {k: v.clone() for k, v in states(run_of(*SHAPED[name]))[2].items()}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", SHAPED)
def test_shards_of_every_shape_are_those_of_the_whole(name, size):
    run = run_of(*SHAPED[name])
    _, _, expected = states(run)
    actual = merged(run_ranks(size, on_rank_shaped, name), toy_student(run, lm_task()))
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key
