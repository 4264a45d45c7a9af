"""The table of partitions against the partitions that parameters carry."""

import pytest

import mpu
from model.build import HeadSpec, add_head
from model.partition import partition_for, read, spell
from mpu import Partition
from tests.toy import SHAPES, toy_glm, toy_model_args

SPEC = HeadSpec("classification", num_classes=2)


def parameters(**shape):
    head = add_head(toy_glm(output_predict=False, **shape), SPEC, toy_model_args())
    return head.state_dict(keep_vars=True)


def test_every_parameter_is_cut_as_the_model_cuts_it():
    found = parameters(num_layers=11)
    assert len(found) == 3 + 11 * 12 + 2 + 4
    for name, parameter in found.items():
        assert partition_for(name) == mpu.partition_of(parameter), name


@pytest.mark.parametrize("shape", SHAPES)
def test_so_it_is_in_every_shape(shape):
    for name, parameter in parameters(**SHAPES[shape]).items():
        assert partition_for(name) == mpu.partition_of(parameter), name


def test_gathered_layers_are_cut_by_rows():
    # Right where the seed's tool cuts columns: notes of the vectors, 10.
    layer = "transformer.layers.0."
    gathered = ["ib_emb_mlp", "compress_emb_mlp", "decompress_emb_mlp"]
    gathered += [layer + "ib_linear_in", layer + "ib_linear_out"]
    found = parameters(**SHAPES["everything"])
    for name in (f"{g}.{kind}" for g in gathered for kind in ("weight", "bias")):
        assert mpu.partition_of(found[name]) == Partition(dim=0), name


@pytest.mark.parametrize(
    "name",
    [
        "student.fit_dense.weight",
        "transformer.layers.0.attention.relation.weight",
        "transformer.layers.x.mlp.dense_h_to_4h.weight",
        "module.word_embeddings.weight",
        "word_embeddings.weight2",
        "compress_emb_mlp.weight2",
        "transformer.ib_linear_in.weight",
    ],
)
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        partition_for(name)


@pytest.mark.parametrize("partition", [None, Partition(0), Partition(1), Partition(0, 3)], ids=str)
def test_partitions_have_words(partition):
    assert read(spell(partition)) == partition
    assert spell(Partition(0, 3)) == "dim 0 in 3 blocks"


@pytest.mark.parametrize("text", ["", "rows", "dim", "dim 0 in 3", "dim -1"])
def test_other_words_are_no_partition(text):
    with pytest.raises(ValueError, match="is no partition"):
        read(text)


@pytest.mark.parametrize(
    "name", ["spell_embeddings.weight", "lstm_head.weight_ih_l1_reverse", "mlp_head.2.bias"]
)
def test_prompt_encoders_are_whole(name):
    assert partition_for(f"prompt_spell.{name}") is None
