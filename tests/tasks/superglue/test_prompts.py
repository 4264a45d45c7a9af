"""Continuous prompts in patterns: places as recorded on the seed, how slots share them, cuts."""

import pytest

from config.errors import ConfigError
from tests.tasks.common import COPA, task_of, write_lines

IRAQ = {
    "premise": "No Weapons of Mass Destruction Found in Iraq Yet.",
    "hypothesis": "Weapons of Mass Destruction Found in Iraq.",
    "label": "not_entailment",
}


def places(tmp_path, name, line, **options):
    write_lines(tmp_path / "train.jsonl", [line])
    task = task_of(name, tmp_path, prompts=True, **options)
    batch = task.collate([task.dataset("train")[0]])
    row = batch.tokens.reshape(-1, batch.tokens.shape[-1])[0]
    where = (row < 0).nonzero().squeeze(1).tolist()
    assert row[where].tolist() == [-1 - k for k in range(len(where))]
    return where, task


def test_places_are_those_of_the_seed(tmp_path):
    where, task = places(tmp_path, "rte", IRAQ, prompt_tokens=5)
    assert where == [1, 2, 13, 14, 17]
    assert (task.head.prompts.length, task.head.prompts.function) == (5, "lstm")
    assert task.head.words == (2748, 2053)


@pytest.mark.parametrize(
    ("number", "expected"), [(1, [1]), (2, [1, 12]), (3, [1, 12, 15]), (4, [1, 2, 13, 14])]
)
def test_the_first_slots_get_most(tmp_path, number, expected):
    assert places(tmp_path, "rte", IRAQ, prompt_tokens=number)[0] == expected


def test_a_prefix_stands_before_all(tmp_path):
    where, task = places(tmp_path, "rte", IRAQ, prefix_tokens=2)
    assert where == [1, 2]
    assert task.head.prompts.length == 2
    assert places(tmp_path, "rte", IRAQ, prefix_tokens=2, prompt_tokens=1)[0] == [1, 2, 3]


def test_prompts_are_never_cut(tmp_path):
    where, task = places(tmp_path, "rte", IRAQ, prompt_tokens=9, seq_length=26)
    assert len(where) == 9
    dataset = task.dataset("train")
    assert len(dataset.encoded.contexts[0]) == 25
    assert dataset.num_truncated == 1
    where, task = places(tmp_path, "copa", COPA[1], prompt_tokens=9, seq_length=24)
    assert len(where) == 9
    assert task.dataset("train").encoded.num_squeezed > 0


def test_a_pattern_of_copa_that_only_prompts_have(tmp_path):
    where, task = places(tmp_path, "copa", COPA[0], prompt_tokens=3, pattern_id=2)
    batch = task.collate([task.dataset("train")[0]])
    assert batch.target_ids[0, 0][batch.logit_mask[0, 0] > 0].tolist()[:2] == [1996, 3103]
    assert len(where) == 3
    assert where[0] == 1
    assert where[-1] == int(batch.attention_mask[0, 0]) - 2


def test_a_pattern_without_slots_needs_a_prefix(tmp_path):
    line = {"sentence1": "A b.", "sentence2": "C d.", "label": "neutral"}
    with pytest.raises(ConfigError, match=r"--num-prompt-tokens=3: .*pattern 0 of mnli has no"):
        places(tmp_path, "mnli", line, prompt_tokens=3)
    assert places(tmp_path, "mnli", line, prefix_tokens=3)[0] == [1, 2, 3]
