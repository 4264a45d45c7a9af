"""Parallel layers against dense ones at p = 1, 2, 4: outputs, gradients, initial weights, marks."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import mpu
from tests.ranks import RankError, run_ranks

SIZES = (1, 2, 4)
HIDDEN, WIDE, VOCABULARY = 8, 16, 12


class Block(nn.Module):
    """Embedding, fused columns (stride 3), row, gathered column, row of a whole input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        init = {"init_method": lambda w: nn.init.normal_(w, std=0.3)}
        self.embedding = mpu.VocabParallelEmbedding(VOCABULARY, HIDDEN, **init)
        self.fused = mpu.ColumnParallelLinear(HIDDEN, 3 * WIDE, stride=3, **init)
        self.row = mpu.RowParallelLinear(WIDE, HIDDEN, **init)
        self.gathered = mpu.ColumnParallelLinear(HIDDEN, WIDE, gather_output=True, **init)
        self.whole = mpu.RowParallelLinear(
            WIDE, HIDDEN, bias=False, input_is_parallel=False, **init
        )

    def forward(self, ids):
        q, k, v = mpu.split_tensor_along_last_dim(self.fused(self.embedding(ids)), 3)
        return self.whole(torch.tanh(self.gathered(self.row(q.sigmoid() * k.tanh() * v))))


def _ids():
    return torch.randint(0, VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(1))


def _fill_biases(block):
    """Biases start at 0; give them full values and cut those."""
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    for seed, (name, p) in enumerate(sorted(block.named_parameters())):
        if name.endswith("bias"):
            partition = mpu.partition_of(p)
            length = p.numel() * (size if partition else 1)
            full = torch.randn(length, generator=torch.Generator().manual_seed(seed))
            p.data.copy_(mpu.split(full, partition, rank, size))


def _train_step(rank, size):
    """{name: (value, gradient, partition)}, output, next number of the default generator."""
    mpu.initialize_model_parallel(size)
    block = Block()
    after = torch.rand(())
    _fill_biases(block)
    output = block(_ids())
    output.square().sum().backward()
    named = block.named_parameters()
    return (
        {n: (p.detach(), p.grad, mpu.partition_of(p)) for n, p in named},
        output.detach(),
        after,
    )


def _whole(ranks, name, which):
    return mpu.merge([r[0][name][which] for r in ranks], ranks[0][0][name][2])


@pytest.fixture(scope="module")
def steps():
    return {size: run_ranks(size, _train_step) for size in SIZES}


def _dense(weights, ids):
    q, k, v = F.linear(
        F.embedding(ids, weights["embedding.weight"]),
        weights["fused.weight"],
        weights["fused.bias"],
    ).split(WIDE, dim=-1)
    x = F.linear(q.sigmoid() * k.tanh() * v, weights["row.weight"], weights["row.bias"])
    x = F.linear(x, weights["gathered.weight"], weights["gathered.bias"])
    return F.linear(torch.tanh(x), weights["whole.weight"])


@pytest.mark.parametrize("size", SIZES)
def test_output_and_gradients_are_those_of_dense_layers(steps, size):
    names = steps[1][0][0].keys()
    weights = {n: _whole(steps[size], n, 0).requires_grad_() for n in names}
    expected = _dense(weights, _ids())
    expected.square().sum().backward()
    for _, output, _ in steps[size]:
        assert_close(output, expected)
    for name in names:
        assert_close(_whole(steps[size], name, 1), weights[name].grad, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("size", SIZES[1:])
def test_initial_weights_do_not_depend_on_the_size(steps, size):
    for name in steps[1][0][0]:
        assert torch.equal(_whole(steps[size], name, 0), _whole(steps[1], name, 0)), name
    for _, _, after in steps[size]:
        assert torch.equal(after, steps[1][0][2])  # the generator was consumed equally


def test_shapes_and_marks(steps):
    parameters = steps[2][0][0]
    shapes = {n: tuple(p.shape) for n, (p, _, _) in parameters.items()}
    assert shapes == {
        "embedding.weight": (6, 8),
        "fused.weight": (24, 8),
        "fused.bias": (24,),
        "row.weight": (8, 8),
        "row.bias": (8,),
        "gathered.weight": (8, 8),
        "gathered.bias": (8,),
        "whole.weight": (8, 8),
    }
    assert {n: p for n, (_, _, p) in parameters.items()} == {
        "embedding.weight": mpu.Partition(0),
        "fused.weight": mpu.Partition(0, 3),
        "fused.bias": mpu.Partition(0, 3),
        "row.weight": mpu.Partition(1),
        "row.bias": None,
        "gathered.weight": mpu.Partition(0),
        "gathered.bias": mpu.Partition(0),
        "whole.weight": mpu.Partition(1),
    }


def _fused_rows(rank, size):
    mpu.initialize_model_parallel(size)
    layer = mpu.ColumnParallelLinear(
        1, 12, stride=3, init_method=lambda w: w.copy_(torch.arange(12.0).view(12, 1))
    )
    return layer.weight.flatten().tolist()


def test_a_fused_matrix_is_cut_block_by_block():
    assert run_ranks(2, _fused_rows) == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


@pytest.mark.parametrize(
    "make_new",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: m.to(torch.bfloat16),
        lambda m: _reload(m),
    ],
    ids=["deepcopy", "pickle", "to", "load_state_dict(assign=True)"],
)
def test_marks_survive(make_new):
    layer = make_new(mpu.ColumnParallelLinear(4, 6, stride=3))
    for parameter in (layer.weight, layer.bias):
        assert mpu.partition_of(parameter) == mpu.Partition(0, 3)
        assert parameter.model_parallel
        assert parameter.tensor_model_parallel


def _reload(layer):
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)
    return layer


def _too_big(rank, size, token):
    mpu.initialize_model_parallel(size)
    mpu.VocabParallelEmbedding(8, 4)(torch.tensor([1, token]))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("token", [8, -1])
def test_an_id_outside_the_vocabulary_is_an_error_on_every_rank(size, token):
    with pytest.raises(RankError) as error:
        run_ranks(size, _too_big, token)
    assert len(error.value.tracebacks) == size
    assert all("IndexError" in text for text in error.value.tracebacks.values())


def _indivisible(rank, size):
    mpu.initialize_model_parallel(size)
    mpu.ColumnParallelLinear(4, 9)


def test_a_size_that_does_not_divide_is_an_error():
    with pytest.raises(RankError, match=r"dimension 0 of \[9, 4\] .* into 2 equal shards"):
        run_ranks(2, _indivisible)
