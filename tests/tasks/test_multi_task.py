"""Multi-task pretraining: samples against the fine-tuning tasks' own encoding, and their draw."""

import math
from collections import Counter

import pytest

from config.compat import Compat
from config.data import DataArgs
from config.errors import ConfigError
from config.multi_task import MULTI_TASKS
from config.training import TrainArgs
from data_utils.block import collate
from tasks.multi_task import MultiTaskDataset, build_multi_task
from tests.data_utils.samples import small_tokenizer
from tests.tasks.common import bert, task_of
from tests.tasks.multi import FILES, make_tasks

NOTHING = Compat.parse("")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks"))


def mixture(folder, *names, tokenizer=None, block_position=True, **flags):
    data = DataArgs(
        data_dir=str(folder), multi_task_data=names, multi_task_ratio=0.5, seq_length=64, **flags
    )
    groups = data, TrainArgs(seed=3, batch_size=5), tokenizer or bert(), NOTHING
    return build_multi_task(*groups, block_position=block_position)


def texts_of(folder, name, **flags):
    (texts,) = mixture(folder, name, **flags).datasets["train"].tasks
    return texts


@pytest.mark.parametrize(
    ("name", "pattern"), [("mnli", 2), ("sst2", 0), ("sst2", 1), ("agnews", 4), ("yelp-full", 1)]
)
def test_a_label_of_one_word_is_the_only_target(folder, name, pattern):
    # Beside it: what a cloze head would be asked, and the word of the label.
    texts = texts_of(folder, name)
    task = task_of(name, folder / MULTI_TASKS[name], pattern_id=pattern)
    dataset = task.dataset("train")
    for number in range(len(texts)):
        expected = task.collate([dataset[number]])
        actual = collate([texts.cloze(number, pattern)])
        assert actual.tokens.tolist() == expected.tokens.tolist()
        assert actual.position_ids.tolist() == expected.position_ids.tolist()
        assert actual.attention_mask.tolist() == expected.attention_mask.tolist()
        assert actual.loss_mask.tolist() == expected.logit_mask.float().tolist()
        word = expected.target_ids[0, expected.labels[0]]
        assert actual.labels[actual.loss_mask > 0].tolist() == [int(word)]
        assert actual.kinds.tolist() == [3]


@pytest.mark.parametrize("pattern", [0, 1])
def test_the_right_option_is_the_text_to_write(folder, pattern):
    texts = texts_of(folder, "race")
    task = task_of("race", folder / "RACE", pattern_id=pattern)
    dataset = task.dataset("train")
    for number in range(len(texts)):
        choices = task.collate([dataset[number]])
        right = int(choices.labels[0])
        actual = collate([texts.cloze(number, pattern)])
        length = actual.tokens.size(1)
        assert actual.tokens[0].tolist() == choices.tokens[0, right, :length].tolist()
        positions = choices.position_ids[0, right, :, :length]
        assert actual.position_ids[0].tolist() == positions.tolist()
        assert actual.loss_mask[0].tolist() == choices.logit_mask[0, right, :length].tolist()
        expected = choices.target_ids[0, right][choices.logit_mask[0, right] > 0]
        assert actual.labels[actual.loss_mask > 0].tolist() == expected.tolist()
    assert right != int(task.collate([dataset[0]]).labels[0])  # two labels were seen


def test_squad_writes_the_first_answer_or_that_there_is_none(folder):
    tokenizer = bert()
    texts = texts_of(folder, "squad")
    for number, answer in ((0, " cat"), (1, " N/A")):
        sample = texts.cloze(number, 0)
        targets = [t for t, counts in zip(sample.target, sample.loss, strict=True) if counts]
        assert targets == [*tokenizer.encode(answer), tokenizer.get_command("eop").Id]
        question = ("who ran?", "who fell?")[number]
        read = tokenizer.decode(sample.text[: sample.sep]).lower().replace(" ?", "?")
        assert f"the cat ran home . {question} [mask] ." in read


def test_words_that_are_no_token_are_written_as_texts(folder, tmp_path):
    tokenizer = small_tokenizer(tmp_path)  # spells " incorrect" with nine tokens
    sample = texts_of(folder, "cola", tokenizer=tokenizer).cloze(1, 0)
    targets = [t for t, counts in zip(sample.target, sample.loss, strict=True) if counts]
    assert len(targets) == 10
    assert targets == [*tokenizer.encode(" incorrect"), tokenizer.get_command("eop").Id]


def test_without_block_positions_all_of_an_answer_have_1(folder):
    sample = texts_of(folder, "race", block_position=False).cloze(0, 0)
    assert set(sample.block_position[sample.sep :]) == {1}
    assert len(sample.block_position) - sample.sep > 2


def test_all_tasks_of_the_recipe_and_the_draw(folder):
    assert set(FILES) == set(MULTI_TASKS)
    found = mixture(folder, *MULTI_TASKS, multi_seq_length=48, multi_batch_size=2)
    assert (found.ratio, found.batch_size) == (0.5, 2)
    train, valid = found.datasets["train"], found.datasets["valid"]
    first, again = train[17], mixture(folder, *MULTI_TASKS).datasets["train"][17]
    assert first == again
    assert any(train[i].text != valid[i].text for i in range(5))
    assert max(len(train[i].text) for i in range(200)) <= 48
    assert mixture(folder, "mnli").batch_size == 5


class Sized:
    """Examples of a task by number alone."""

    def __init__(self, name, number, patterns):
        self.name, self.number, self.pvps = name, number, range(patterns)

    def __len__(self):
        return self.number

    def cloze(self, number, pattern):
        return self.name, number, pattern


def test_tasks_are_drawn_by_a_power_of_their_size_examples_and_patterns_evenly():
    sizes = {"small": 2, "medium": 20_000, "large": 200_000, "huge": 900_000}
    tasks = [Sized(name, number, 3) for name, number in sizes.items()]
    dataset = MultiTaskDataset(tasks, seed=1, stream="train")
    weights = {name: min(n, 200_000) ** 0.8 for name, n in sizes.items()}
    drawn = [dataset[i] for i in range(6000)]
    counts = Counter(name for name, _, _ in drawn)
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        spread = 4 * math.sqrt(6000 * share * (1 - share))
        assert abs(counts[name] - 6000 * share) <= max(spread, 1)
    patterns = Counter(pattern for _, _, pattern in drawn)
    assert all(abs(patterns[k] - 2000) < 4 * math.sqrt(6000 * 2 / 9) for k in range(3))
    halves = Counter(number >= 450_000 for name, number, _ in drawn if name == "huge")
    assert abs(halves[True] - counts["huge"] / 2) < 2 * math.sqrt(counts["huge"])


@pytest.mark.parametrize(
    ("names", "spoil", "said"),
    [
        (["sst2", "mnli"], "SST-2", "--multi-task-data=sst2: "),
        (["mnli"], "MNLI/dev_matched.tsv", "no val.jsonl or dev_matched.tsv"),
    ],
)
def test_what_is_missing_is_named(tmp_path, names, spoil, said):
    make_tasks(tmp_path)
    (tmp_path / spoil).rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=said) as caught:
        mixture(tmp_path, *names)
    assert str(tmp_path / spoil.split("/", maxsplit=1)[0]) in str(caught.value)


def test_no_room_is_told_before_training(folder):
    with pytest.raises(ConfigError, match=r"--multi-task-data=race: .*no room"):
        mixture(folder, "race", multi_seq_length=5)
