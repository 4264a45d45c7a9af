"""Tasks by name, and what the command line may get wrong."""

import pytest

from config.compat import Compat
from config.data import DataArgs
from config.errors import ConfigError
from config.tasks import LM_TASKS, SEQ2SEQ_TASKS, FinetuneArgs, is_one_of
from tasks import TASKS, build_task, register_task, task_name
from tasks.language_model.task import LMTask
from tasks.seq2seq.task import Seq2SeqTask
from tests.house import ROOT
from tests.tasks.common import SST2, bert, write_lines

#: What the seed routes --task by: toolkit.md, sections 6 and 11.1.
SEED_CHOICES = (
    "mnli mnli-mm agnews yahoo yelp-polarity yelp-full xstance xstance-de xstance-fr wic rte cb wsc "
    "wsc1 boolq copa multirc record ax-g ax-b sst2 cola mrpc qqp qnli squad race afqmc tnews cluewsc"
)
SEED_TEXTS = (
    "cnn_dm cnn_dm_original gigaword blank squad_generation squad squad_v1 xsum extraction cmrc"
)
SEED_LM = "lambda wikitext language_model"


def build(tmp_path, **finetuning):
    data = DataArgs(data_dir=str(tmp_path), seq_length=32)
    return build_task(FinetuneArgs(**finetuning), data, bert(), Compat())


@pytest.mark.parametrize(
    ("given", "name"),
    [("SST-2", "sst-2"), ("sst2", "sst-2"), ("COPA", "copa"), ("BoolQ", "boolq"), ("AX_b", "ax-b")],
)
def test_names_are_found_in_any_spelling(given, name):
    assert task_name(given) == name


@pytest.mark.parametrize("name", f"{SEED_CHOICES} {SEED_TEXTS} {SEED_LM}".split())
def test_the_seeds_tasks_are_known_or_their_lack_has_a_reason(name):
    try:
        known = task_name(name)
    except ConfigError:
        lines = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8").splitlines()
        assert any(line.startswith(f"- `--task={name}`") for line in lines)
        return
    # As in the seed, `squad` is the task with a pattern; its namesake is out of reach there.
    kinds = {SEED_TEXTS: Seq2SeqTask, SEED_LM: LMTask}
    expected = [kind for names, kind in kinds.items() if name in names.split() and name != "squad"]
    actual = [kind for kind in kinds.values() if issubclass(TASKS[known], kind)]
    assert actual == expected


def test_checks_of_flags_know_which_tasks_write():
    assert {n for n, x in TASKS.items() if issubclass(x, Seq2SeqTask)} == set(SEQ2SEQ_TASKS)
    assert {n for n, x in TASKS.items() if issubclass(x, LMTask)} == set(LM_TASKS)
    assert not is_one_of("squad", SEQ2SEQ_TASKS)


def test_an_unknown_task_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError) as error:
        build(tmp_path, task="sst3")
    assert "--task=sst3" in str(error.value)
    for name in ("boolq", "cb", "copa", "rte", "sst-2", "wic"):
        assert name in str(error.value)


def test_a_missing_task_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="a task is needed"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("task", "last"), [("rte", 4), ("boolq", 5), ("copa", 2), ("wic", 2), ("cb", 4), ("sst2", 1)]
)
def test_a_pattern_out_of_range_names_the_range(tmp_path, task, last):
    build(tmp_path, task=task, pattern_id=last, cloze_eval=True)
    for wrong in (-1, last + 1):
        with pytest.raises(ConfigError, match=rf"--pattern-id={wrong}: .*0 to {last}"):
            build(tmp_path, task=task, pattern_id=wrong)


def test_an_unknown_metric_lists_the_known_ones(tmp_path):
    assert build(tmp_path, task="cb", validation_metric="f1-macro").metric_names[0] == "accuracy"
    with pytest.raises(ConfigError, match="accuracy, f1-macro"):
        build(tmp_path, task="cb", validation_metric="rouge")


def test_a_second_registration_of_a_name_names_both_classes():
    with pytest.raises(ValueError, match="RTE and Mine"):

        @register_task("R-T-E")
        class Mine:
            pass

    assert "R-T-E" not in TASKS


def test_build_task_passes_everything_on(tmp_path):
    write_lines(tmp_path / "train.jsonl", SST2)
    task = build(
        tmp_path,
        task="SST-2",
        cloze_eval=True,
        multi_token=True,
        length_penalty=1.0,
        loss_func="hinge",
    )
    assert task.head.kind == "multi_token"
    assert task.head.length_penalty == 1.0
    assert task.loss == "hinge"
    assert build(tmp_path, task="SST-2", cloze_eval=True, adapet=True).head.take_softmax
    assert (
        build(tmp_path, task="SST-2", cloze_eval=True, multi_token=True, fast_decode=True).head.kind
        == "multi_token_fast"
    )
    assert build(tmp_path, task="SST-2", adapet=True).loss == "cross_entropy"  # of cloze heads
    head = build(tmp_path, task="SST-2", pool_token="pad").head
    assert (head.kind, head.num_classes, head.pool_token) == ("classification", 2, "pad")
    assert len(task.dataset("train")) == 3
