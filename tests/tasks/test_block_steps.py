"""Steps of blank infilling in fine-tuning: what their texts are, and how they become batches."""

import pytest

from config.data import BlockLMArgs
from data_utils.mixed import SECOND
from tasks.block_steps import labelled_texts, with_blocks
from tests.tasks.common import COPA, SST2, bert, task_of, write_lines

BLOCKS = BlockLMArgs(bert_prob=1.0)


@pytest.fixture
def folder(tmp_path):
    write_lines(tmp_path / "train.jsonl", SST2)
    return tmp_path


def words(ids):
    return bert().decode(ids).lower()


def test_a_text_is_the_pattern_with_the_right_word_in_the_place_of_its_mask(folder):
    task = task_of("sst2", folder, pattern_id=0)
    texts, samples = labelled_texts(task, "train"), task.dataset("train")
    assert len(texts) == len(samples) == 3
    for number, word in enumerate((" great", " terrible", " great")):
        context = samples[number].contexts[0].tolist()
        place = samples[number].masks[0]
        assert context[place] == bert().get_command("MASK").Id
        (expected,) = bert().encode(word)
        context[place] = expected
        assert texts.text(number, 0) == context


def test_the_right_choice_is_a_part_of_the_text(tmp_path):
    write_lines(tmp_path / "train.jsonl", COPA)
    task = task_of("copa", tmp_path)
    texts, samples = labelled_texts(task, "train"), task.dataset("train")
    assert len(texts) == len(samples) == 4  # mirrored
    for number in range(4):
        right = "the sun was rising" if "shadow" in words(texts.text(number, 0)) else "it broke"
        assert right in words(texts.text(number, 0))
        assert "[mask]" not in words(texts.text(number, 0))


def test_prompts_and_parts_of_answers_are_no_part_of_it(folder):
    plain = labelled_texts(task_of("sst2", folder), "train").text(0, 0)
    options = {"prompts": True, "prefix_tokens": 3, "prompt_tokens": 0}
    assert labelled_texts(task_of("sst2", folder, **options), "train").text(0, 0) == plain
    parts = task_of("sst2", folder, multi_token=True, segment_length=1)
    assert labelled_texts(parts, "train").text(0, 0) == plain


def test_batches_are_of_the_task_or_of_blanks_and_differ_by_epoch(folder):
    task = task_of("sst2", folder)
    dataset, collate = with_blocks(task, BLOCKS, seed=1)
    of_task = collate([dataset[1], dataset[~2]])
    assert of_task.kinds is None
    assert (
        of_task.labels.tolist()
        == task.collate([task.dataset("train")[i] for i in (1, 2)]).labels.tolist()
    )
    blanks = collate([dataset[SECOND + 1], dataset[~(SECOND + 2)]])
    assert blanks.kinds.tolist() == [0, 0]
    assert blanks.weight.tolist() == of_task.weight.tolist() == [1.0, 0.0]
    assert blanks.loss_mask.sum(1).min() > 1
    again = [dataset[SECOND + 1 + 3 * epoch].text for epoch in range(6)]
    assert len(set(map(tuple, again))) > 1
    assert dataset[SECOND + 4].text == with_blocks(task, BLOCKS, seed=1)[0][SECOND + 4].text
