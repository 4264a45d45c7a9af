"""The pretraining program's own parts."""

import pytest

from config import parse_args
from data_utils import build_tokenizer
from distill.pretrain import load_data
from distill.registry import method_args
from tests.distill.engine import small
from tests.e2e import world as w


@pytest.mark.parametrize("flags", [[], ["--no-block-position"]])
def test_positions_within_a_span_are_as_asked_for(tmp_path, flags):
    argv = [*w.pretraining(w.make_world(tmp_path)), "--train-iters=1", *flags]
    run = parse_args(argv, program="pretrain", methods=method_args())
    loaders = load_data(run, small.runtime(), build_tokenizer(run.tokenizer, run.blocks))
    (batch,) = next(iter(loaders.train))
    blocks = batch.position_ids[:, 1][batch.loss_mask > 0]
    assert blocks.min() == 1
    assert (blocks.max() == 1) == bool(flags)
