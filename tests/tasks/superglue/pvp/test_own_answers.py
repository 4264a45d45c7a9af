"""ReCoRD, WSC, MultiRC, RACE: lines to examples, patterns in recorded ids, scores, submissions."""

import json

import pytest

from config.errors import ConfigError
from data_utils.bad_lines import BadLines
from tasks.superglue.data import Example
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import encode
from tests.tasks.common import bert, row_ids, task_of, write_lines

PARIS = {
    "idx": 3,
    "passage": {"text": "Paris is big.", "entities": [{"start": 0, "end": 4}]},
    "qas": [
        {
            "idx": 8,
            "query": "The city of @placeholder is big.",
            "answers": [{"text": "Paris"}],
        }
    ],
}
MARK = {
    "idx": 5,
    "text": "Mark told Pete many lies about himself",
    "target": {"span1_index": 2, "span1_text": "Pete", "span2_index": 6, "span2_text": "himself"},
    "label": True,
    "candidates": [{"text": "Mark"}],
}
HOME = {
    "idx": 1,
    "passage": {
        "text": "He ran home.",
        "questions": [
            {
                "idx": 4,
                "question": "Who ran?",
                "answers": [
                    {"idx": 6, "text": "He did", "label": 1},
                    {"idx": 7, "text": "She did", "label": 0},
                ],
            },
            {"idx": 5, "question": "Where?", "answers": [{"idx": 8, "text": "Home", "label": 1}]},
        ],
    },
}


def ids(text: str) -> list[int]:
    return [int(x) for x in text.split()]


def with_entities(text: str, *names: str) -> dict:
    places = [{"start": text.index(x), "end": text.index(x) + len(x) - 1} for x in names]
    return {"text": text, "entities": places}


def dataset_of(tmp_path, name, lines, split="train", **options):
    write_lines(tmp_path / f"{split}.jsonl", lines)
    task = task_of(name, tmp_path, **options)
    return task, task.dataset(split)


# ReCoRD -------------------------------------------------------------------------------------------


def test_record_in_ids_whole_and_in_segments(tmp_path):
    texts = ("Paris is big.", "The city of @placeholder is big.")
    example = Example("x", "here", texts, 0, choices=("Paris", "New York"))
    context = ids("101 3000 2003 2502 1012 1996 2103 1997 103 2003 2502 1012 0")
    for length, rows in ((0, 2), (1, 5)):
        task = task_of("record", tmp_path, segment_length=length)
        encoded = encode(
            [task.pvp.cloze_rows(example, True)], ["here"], bert(), task.splits.layout()
        )
        batch = task.collate([EncodedDataset([example], encoded)[0]])
        assert batch.tokens.shape[:2] == (1, rows)
        scored = [batch.target_ids[0, r][batch.logit_mask[0, r] > 0].tolist() for r in range(rows)]
        assert row_ids(batch, 0, 0)[:13] == context
        if length == 0:
            assert row_ids(batch, 0, 0)[13:] == [30522, 3000]
            assert row_ids(batch, 0, 1)[13:] == [30522, 2047, 2259]
            assert scored == [[3000, 30523], [2047, 2259, 30523]]
        else:
            assert batch.segments[0].tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
            second = ids("101 3000 2003 2502 1012 1996 2103 1997 3000 103 2003 2502 1012 0")
            assert row_ids(batch, 0, 1) == [*second, 30522]
            assert batch.attention_mask[0, 1] == 14
            assert batch.position_ids[0, 1, :, 14].tolist() == [9, 1]
            assert scored == [[3000], [30523], [2047], [2259], [30523]]


def test_record_trains_on_ten_candidates_and_is_scored_on_all(tmp_path):
    names = [f"Town{chr(65 + k)}" for k in range(14)]
    passage = with_entities(" ".join(names), *names)
    asked = {"idx": 0, "query": "I saw @placeholder.", "answers": [{"text": x} for x in names[:2]]}
    line = {"idx": 0, "passage": passage, "qas": [asked]}
    write_lines(tmp_path / "val.jsonl", [line])
    task, dataset = dataset_of(tmp_path, "record", [line, PARIS])
    assert dataset.guids == ["train-p3-q8-a0", "train-p0-q0-a0", "train-p0-q0-a1"]
    assert [len(x) for x in dataset.choices] == [1, 10, 10]
    assert [x[0] for x in dataset.choices[1:]] == names[:2]
    assert all(not set(names[:2]) & set(x[1:]) for x in dataset.choices)
    assert dataset.choices[1][1:] != dataset.choices[2][1:]  # drawn
    val = task.dataset("val")
    assert list(val.choices[0]) == names
    assert task.metrics({0: 1}, "val") == {"em": 100.0, "f1": 100.0}
    assert task.metrics({0: 2}, "val") == {"em": 0.0, "f1": 0.0}
    name, lines = task.submission({0: 1}, "val")
    assert (name, json.loads(lines[0])) == ("ReCoRD.jsonl", {"idx": 0, "label": "TownB"})
    batch = task.collate([dataset[0], dataset[1]])
    assert batch.choice_mask.sum(1).tolist() == [1.0, 10.0]


def test_record_s_highlights_become_dashes(tmp_path):
    passage = with_entities("Ann won.\n@highlight\nBen lost", "Ann", "Ben")
    line = PARIS | {"passage": passage, "qas": [PARIS["qas"][0] | {"answers": [{"text": "Ann"}]}]}
    task, dataset = dataset_of(tmp_path, "record", [line], "val")
    spelled = bert().decode(dataset.encoded.contexts[0].tolist())
    assert spelled.startswith("[CLS] ann won . - ben lost the city of [MASK] is big .")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "Nothing here."}, r"line 1: field 'qas\[0\].query' must hold @placeholder once"),
        ({"answers": []}, r"line 1: field 'qas\[0\].answers' is empty; must have an answer"),
        ({"answers": [{"text": " "}]}, r"field 'qas\[0\].answers\[0\].text' is empty"),
        ({"answers": ["Paris"]}, r"field 'qas\[0\].answers\[0\]' is 'Paris'; must be an object"),
        ({"answers": None}, r"field 'qas\[0\].answers' is None; must be a list"),
    ],
)
def test_a_wrong_query_is_named(tmp_path, change, message):
    line = PARIS | {"qas": [PARIS["qas"][0] | change]}
    with pytest.raises(ValueError, match=message):
        dataset_of(tmp_path, "record", [line])


def test_an_entity_outside_the_text_is_named(tmp_path):
    line = PARIS | {"passage": {"text": "Paris", "entities": [{"start": 1, "end": 9}]}}
    with pytest.raises(ValueError, match=r"field 'passage.entities\[0\].end' is 9, start 1"):
        dataset_of(tmp_path, "record", [line])


# WSC ----------------------------------------------------------------------------------------------


def test_wsc_with_candidates_in_ids(tmp_path):
    task, dataset = dataset_of(tmp_path, "wsc", [MARK], pattern_id=2, loss="mix")
    batch = task.collate([dataset[0]])
    context = ids(
        "101 2928 2409 6969 2116 3658 2055 1008 2370 1008 3160 1024 1999 1996 6019 2682 1010 2054"
        " 2515 1996 4013 3630 4609 1005 1008 2370 1008 1005 6523 2000 1029 3437 1024 103 1012 0"
    )
    assert row_ids(batch, 0, 0) == [*context, 30522, 6969]
    assert row_ids(batch, 0, 1) == [*context, 30522, 2928]
    assert batch.labels.tolist() == [0]


def test_wsc_is_written_where_the_loss_compares_nothing(tmp_path):
    lines = [MARK, MARK | {"label": False}]
    task, dataset = dataset_of(tmp_path, "wsc", lines)
    assert task.head.kind == "lm"
    assert len(dataset) == 1  # true examples only
    batch = task.collate([dataset[0]])
    assert batch.labels[batch.loss_mask > 0].tolist() == [6969, 30523]
    write_lines(tmp_path / "val.jsonl", lines)
    assert task.metrics({0: 1, 1: 1}) == {"accuracy": 50.0}
    assert task.metrics({0: 1, 1: 0}) == {"accuracy": 100.0}
    name, submitted = task.submission({0: 1, 1: 0}, "val")
    assert name == "WSC.jsonl"
    expected = [{"idx": 5, "label": "True"}, {"idx": 5, "label": "False"}]
    assert [json.loads(line) for line in submitted] == expected


def test_a_classifier_of_wsc_learns_from_all_examples(tmp_path):
    lines = [MARK, MARK | {"label": False}]
    task, dataset = dataset_of(tmp_path, "wsc", lines, cloze=False)
    assert dataset.labels.tolist() == [1, 0]
    assert (task.head.kind, task.head.num_classes) == ("classification", 2)
    spelled = bert().decode(dataset.encoded.contexts[0].tolist())
    assert spelled == "[CLS] mark told pete many lies about * himself * [SEP] pete [PAD]"


def test_an_index_wrong_by_one_and_glued_punctuation_are_mended(tmp_path):
    target = MARK["target"] | {"span2_index": 5}
    _, dataset = dataset_of(tmp_path, "wsc", [MARK | {"target": target}], cloze=False)
    assert "* himself *" in bert().decode(dataset.encoded.contexts[0].tolist())
    glued = MARK | {"text": "Mark told Pete many lies about himself, often."}
    _, dataset = dataset_of(tmp_path, "wsc", [glued], cloze=False)
    assert "* himself * , often ." in bert().decode(dataset.encoded.contexts[0].tolist())
    with pytest.raises(ValueError, match=r"field 'target.span2_index' is 2, .* no word 'himself'"):
        dataset_of(tmp_path, "wsc", [MARK | {"target": MARK["target"] | {"span2_index": 2}}])


def test_many_candidates_become_groups_that_are_scored_together(tmp_path):
    names = [f"word{k}" for k in range(12)]
    line = MARK | {"candidates": [{"text": x} for x in [*names, "word3"]]}
    task, dataset = dataset_of(tmp_path, "wsc", [line], "val", loss="mix")
    groups = [list(x) for x in dataset.choices]
    assert groups == [names[:9], [*names[9:], *names[:6]]]
    assert task.metrics({0: 0, 1: 0}) == {"accuracy": 100.0}
    assert task.metrics({0: 0, 1: 2}) == {"accuracy": 0.0}
    _, lines = task.submission({0: 0, 1: 2}, "val")
    assert [json.loads(x) for x in lines] == [{"idx": 5, "label": "False"}]


# MultiRC ------------------------------------------------------------------------------------------


def test_multirc_in_ids(tmp_path):
    task, dataset = dataset_of(tmp_path, "multirc", [HOME])
    assert row_ids(task.collate([dataset[0]]), 0) == ids(
        "101 2002 2743 2188 1012 3160 1024 2040 2743 1029 2003 2009 2002 2106 1029 103 1012 0 30522"
    )
    assert dataset.guids == ["train-p1-q4-a6", "train-p1-q4-a7", "train-p1-q5-a8"]


def test_an_answer_of_multirc_may_be_empty(tmp_path):
    answers = [{"idx": 0, "text": "", "label": 0}]
    passage = {"text": "A.", "questions": [{"idx": 0, "question": "Who?", "answers": answers}]}
    for cloze in (True, False):
        _, dataset = dataset_of(tmp_path, "multirc", [HOME | {"passage": passage}], cloze=cloze)
        assert len(dataset) == 1


def test_multirc_s_scores_and_submission(tmp_path):
    task, _ = dataset_of(tmp_path, "multirc", [HOME], "val")
    # Right answers: 6 and 8; chosen: 6 and 7. Question 4 has one wrong, question 5 too.
    assert task.metrics({0: 1, 1: 1, 2: 0}) == pytest.approx({"f1a": 50, "em": 0, "acc": 100 / 3})
    actual = task.metrics({0: 1, 1: 1, 2: 1})
    assert actual == pytest.approx({"f1a": 80, "em": 50, "acc": 200 / 3})
    seed = task_of("multirc", tmp_path, w29=True).metrics({0: 1, 1: 1, 2: 1})
    assert seed == pytest.approx({"f1a": 0.8, "em": 0.5, "acc": 200 / 3})
    name, (line,) = task.submission({0: 1, 1: 0, 2: 1}, "val")
    four = {"idx": 4, "answers": [{"idx": 6, "label": 1}, {"idx": 7, "label": 0}]}
    five = {"idx": 5, "answers": [{"idx": 8, "label": 1}]}
    assert name == "MultiRC.jsonl"
    assert json.loads(line) == {"idx": 1, "passage": {"questions": [four, five]}}


# RACE ---------------------------------------------------------------------------------------------


def test_race_reads_folders(tmp_path):
    folder = tmp_path / "train" / "high"
    folder.mkdir(parents=True)
    article = {
        "id": "high1.txt",
        "article": "He  ran\nhome .  Then slept",
        "questions": ["He ran _ .", "Who ran?"],
        "options": [["home", "away", "in", "out"], ["He", "She", "It", "We"]],
        "answers": ["A", "C"],
    }
    (folder / "1.txt").write_text(json.dumps(article))
    task = task_of("race", tmp_path)
    dataset = task.dataset("train")
    assert dataset.labels.tolist() == [0, 2]
    batch = task.collate([dataset[0], dataset[1]])
    spelled = [bert().decode(row_ids(batch, i, 0)) for i in (0, 1)]
    assert spelled[0].startswith("[CLS] he ran home . then slept he ran [MASK] . [PAD]")
    assert spelled[1].startswith("[CLS] he ran home . then slept question : who ran ? answer : [M")
    assert batch.tokens.shape[:2] == (2, 4)
    (folder / "2.txt").write_text(json.dumps(article | {"answers": ["A", "E"]}))
    with pytest.raises(ValueError, match=r"2.txt, line 1: field 'answers\[1\]' is 'E'"):
        task_of("race", tmp_path).dataset("train")


def squad_file(path, *questions, passage="Ann met Ben in Rome."):
    path.write_text(
        json.dumps({"data": [{"paragraphs": [{"context": passage, "qas": questions}]}]})
    )


def test_squad_writes_one_answer_and_is_right_with_any(tmp_path):
    rome = {"id": "a", "question": "Where?", "answers": [{"text": "Rome"}, {"text": "in Rome"}]}
    who = {"id": "b", "question": "Who left?", "answers": []}
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        squad_file(tmp_path / name, rome, who)
    squad_file(tmp_path / "test-v2.0.json", {"id": "c", "question": "When?"})
    task = task_of("squad", tmp_path)
    train, val = task.dataset("train"), task.dataset("val")
    batch = task.collate([train[0], train[1]])
    words = "Ann met Ben in Rome. Where?[MASK]."
    eos, sop, eop = (bert().get_command(name).Id for name in ("eos", "sop", "eop"))
    context = [bert().get_command("ENC").Id, *bert().encode(words), eos]
    assert row_ids_of(batch, 0) == [*context, sop, *bert().encode(" Rome")]
    scored = batch.labels[1][batch.loss_mask[1] > 0].tolist()
    assert scored == [*bert().encode(" N/A"), eop]
    # Validation: the answers of a question share their fate.
    assert (len(train), len(val)) == (2, 3)
    assert task.metrics({0: 0, 1: 1, 2: 0}) == {"em": 50.0}
    assert task.metrics({0: 0, 1: 0, 2: 0}) == {"em": 0.0}
    assert task.metrics({0: 0}, "test") == {}
    assert task.submission({0: 1, 1: 0, 2: 1}, "val") is None
    with pytest.raises(ConfigError, match="--task=squad: .* give --cloze-eval"):
        task_of("squad", tmp_path, cloze=False)


def row_ids_of(batch, row):
    """Token ids up to the end of the answer's input."""
    return batch.tokens[row][: int(batch.loss_mask[row].nonzero()[-1]) + 1].tolist()


def test_bad_files_of_squad(tmp_path):
    path = tmp_path / "train-v2.0.json"
    pvp = task_of("squad", tmp_path).pvp
    good = {"id": "a", "question": "Where?", "answers": [{"text": "Rome"}]}
    place = r"train-v2.0.json, line 1: field 'data\[0\].paragraphs\[0\].qas\[1\]"
    for wrong, message in (
        (good | {"question": " "}, place + ".question' is empty"),
        (good | {"answers": "Rome"}, place + ".answers' is 'Rome'; must be a list"),
        (good | {"answers": [{"text": 3}]}, place + r".answers\[0\].text' is 3; must be a text"),
    ):
        squad_file(path, good, wrong)
        with pytest.raises(ValueError, match=message):
            pvp.read(path, "train")
        bad = BadLines(skip=True)
        assert len(pvp.read(path, "train", bad)) == bad.number == 1
    path.write_text('{"data": [{"paragraphs": 3}, {"paragraphs": []}]}')
    with pytest.raises(ValueError, match=r"'data\[0\].paragraphs' is 3; must be a list"):
        pvp.read(path, "train")
    path.write_bytes(b'{\n"data": "\xff"}')
    with pytest.raises(ValueError, match="train-v2.0.json, line 2: not UTF-8"):
        pvp.read(path, "train")


def test_an_answer_that_is_no_candidate_is_told(tmp_path):
    wrong = PARIS | {"qas": [PARIS["qas"][0] | {"answers": [{"text": "Berlin"}]}]}
    with pytest.raises(
        ValueError, match=r"line 1: field 'qas\[0\].answers' has only 'Berlin'; must"
    ):
        dataset_of(tmp_path, "record", [wrong], "val")
    spelled = PARIS | {"qas": [PARIS["qas"][0] | {"answers": [{"text": "the paris."}]}]}
    _, dataset = dataset_of(tmp_path, "record", [spelled], "val")  # the score takes both as one
    assert len(dataset) == 1


def test_lists_without_an_entry_are_told(tmp_path):
    asked = HOME["passage"]["questions"][0]
    for name, line, message in (
        ("record", PARIS | {"qas": []}, "field 'qas' is empty"),
        ("multirc", HOME | {"passage": HOME["passage"] | {"questions": []}}, "'passage.questions' is"),
        ("multirc", HOME | {"passage": {"text": "a", "questions": [asked | {"answers": []}]}},
         r"field 'passage.questions\[0\].answers' is empty"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            dataset_of(tmp_path, name, [line], "val")


def test_lists_of_race_belong_together(tmp_path):
    folder = tmp_path / "train" / "high"
    folder.mkdir(parents=True)
    article = {"id": "1", "article": "a", "questions": ["b?", "c?"], "options": [["d"], ["e"]]}
    pvp = task_of("race", tmp_path).pvp
    for wrong, message in (
        ({"options": [["d"]]}, "line 1: field 'options' has 1 entries, 'questions' has 2"),
        ({"answers": ["A"]}, "line 1: field 'answers' has 1 entries, 'questions' has 2"),
        ({"options": [["d"], []]}, r"field 'options\[1\]' is \[\]; must list 1 to 4 texts"),
        ({"options": [["d"], [3]]}, r"field 'options\[1\]\[0\]' is 3; must be a text"),
    ):
        lines = [article | {"answers": ["A", "A"]} | wrong]
        (folder / "1.txt").write_text(json.dumps(lines[0]))
        with pytest.raises(ValueError, match=message):
            pvp.read(tmp_path / "train", "train")


def test_a_winograd_line_without_indices(tmp_path):
    line = {
        "text": "Ann saw Eve, as she left.",
        "pronoun": "She",
        "candidate": "Eve",
        "label": True,
    }
    _, dataset = dataset_of(tmp_path, "wsc", [line], cloze=False)
    spelled = bert().decode(dataset.encoded.contexts[0].tolist())
    assert spelled == "[CLS] ann saw eve , as * she * left . [SEP] eve [PAD]"
    twice = line | {"text": "She saw Eve as she left."}
    with pytest.raises(ValueError, match="field 'pronoun' is 'She', which the text has 2 times"):
        dataset_of(tmp_path, "wsc", [twice], cloze=False)


def test_examples_without_candidates_are_told_to_be_true_anyway(tmp_path, caplog):
    alone = {k: v for k, v in MARK.items() if k != "candidates"}
    dataset_of(tmp_path, "wsc", [MARK, alone], "val", loss="mix")
    assert "line 2: 1 of 2 examples have no other candidates" in caplog.text
