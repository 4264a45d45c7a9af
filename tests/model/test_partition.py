"""The table of partitions against the partitions that parameters carry."""

import pytest

import mpu
from model.build import HeadSpec, add_head
from model.partition import partition_for
from tests.toy import toy_glm, toy_model_args


def test_every_parameter_is_cut_as_the_model_cuts_it():
    spec = HeadSpec("classification", num_classes=2)
    head = add_head(toy_glm(num_layers=11, output_predict=False), spec, toy_model_args())
    parameters = head.state_dict(keep_vars=True)
    assert len(parameters) == 3 + 11 * 12 + 2 + 4
    for name, parameter in parameters.items():
        assert partition_for(name) == mpu.partition_of(parameter), name


@pytest.mark.parametrize(
    "name",
    [
        "student.fit_dense.weight",
        "transformer.layers.0.attention.relative.weight",
        "transformer.layers.x.mlp.dense_h_to_4h.weight",
        "module.word_embeddings.weight",
        "word_embeddings.weight2",
        "compress_emb_mlp.weight",
    ],
)
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        partition_for(name)
