"""Every pattern, in ids recorded on the seed or in the words it spells."""

import pytest

from tests.tasks.common import COPA, bert, row_ids, task_of, write_lines

IRAQ = {
    "premise": "No Weapons of Mass Destruction Found in Iraq Yet.",
    "hypothesis": "Weapons of Mass Destruction Found in Iraq.",
    "label": "not_entailment",
}
RAIN = {"premise": "It was raining.", "hypothesis": "It was wet.", "label": "neutral"}
CATS = {"passage": "Cats are animals.", "question": "are cats animals", "label": True}
COME = {
    "sentence1": "Do you want to come over?",
    "sentence2": "Come over here.",
    "word": "come",
    "label": True,
}
FILM = {"sentence": "A joy.", "label": 1}


def ids(text: str) -> list[int]:
    return [int(x) for x in text.split()]


def first_batch(tmp_path, name, line, **options):
    write_lines(tmp_path / "train.jsonl", [line])
    task = task_of(name, tmp_path, **options)
    return task.collate([task.dataset("train")[0]])


def spelled(tmp_path, name, line, pattern_id) -> str:
    """The context as text: what the model sees, without [ENC] and [eos]."""
    batch = first_batch(tmp_path, name, line, pattern_id=pattern_id)
    row = (0,) if batch.tokens.dim() == 2 else (0, 0)
    return bert().decode(batch.tokens[row][1 : int(batch.attention_mask[row]) - 1].tolist())


def test_copa_pattern_0_in_ids(tmp_path):
    batch = first_batch(tmp_path, "copa", COPA[0])
    context = ids(
        "101 1000 1996 3103 2001 4803 1000 2030 1000 1996 5568 2001 3013 1000 1029 2026 2303 3459"
        " 1037 5192 2058 1996 5568 2138 103 1012 0"
    )
    assert row_ids(batch, 0, 0) == context + ids("30522 1996 3103 2001 4803")
    assert row_ids(batch, 0, 1) == context + ids("30522 1996 5568 2001 3013")
    assert batch.target_ids[0, 0, 27:32].tolist() == ids("1996 3103 2001 4803 30523")
    assert batch.attention_mask.tolist() == [[27, 27]]
    assert batch.position_ids[0, 0, :, 27:].tolist() == [[24] * 5, [1, 2, 3, 4, 5]]


def test_rte_pattern_0_in_ids(tmp_path):
    batch = first_batch(tmp_path, "rte", IRAQ)
    assert row_ids(batch, 0) == ids(
        "101 1000 4255 1997 3742 6215 2179 1999 5712 1000 1029 103 1010 1000 2053 4255 1997 3742"
        " 6215 2179 1999 5712 2664 1012 1000 0 30522"
    )
    assert batch.target_ids.tolist() == [[2748, 2053]]
    assert batch.labels.tolist() == [1]
    batch = first_batch(tmp_path, "rte", IRAQ, seq_length=20)
    assert row_ids(batch, 0) == ids(
        "101 1000 4255 1997 3742 6215 2179 1000 1029 103 1010 1000 2053 4255 1997 3742 6215 1000 0 30522"
    )


def test_cb_pattern_3_in_ids(tmp_path):
    batch = first_batch(tmp_path, "cb", RAIN, pattern_id=3)
    assert row_ids(batch, 0) == ids("101 2009 2001 4954 1029 103 1012 2009 2001 24057 1012 0 30522")
    assert batch.target_ids.tolist() == [[2748, 2053, 2672]]


def test_boolq_pattern_4_in_ids(tmp_path):
    batch = first_batch(tmp_path, "boolq", CATS, pattern_id=4)
    assert row_ids(batch, 0) == ids(
        "101 2241 2006 1996 2206 6019 2024 8870 4176 1029 103 1012 8870 2024 4176 1012 0 30522"
    )


def test_wic_pattern_1_in_ids(tmp_path):
    batch = first_batch(tmp_path, "wic", COME, pattern_id=1)
    assert row_ids(batch, 0) == ids(
        "101 2079 2017 2215 2000 2272 2058 1029 2272 2058 2182 1012 2515 2272 2031 1996 2168 3574"
        " 1999 2119 11746 1029 103 0 30522"
    )


@pytest.mark.parametrize(
    ("name", "line", "pattern_id", "expected"),
    [
        ("rte", RAIN | {"label": "entailment"}, 1, "it was wet ? [MASK] , it was raining ."),
        (
            "rte",
            RAIN | {"label": "entailment"},
            2,
            '" it was wet " ? [MASK] . " it was raining . "',
        ),
        (
            "rte",
            RAIN | {"label": "entailment"},
            4,
            "it was raining . question : it was wet true or false ? answer : [MASK]",
        ),
        (
            "cb",
            RAIN,
            4,
            "it was raining . question : it was wet . true , false or neither ? answer : [MASK]",
        ),
        ("boolq", CATS, 1, "cats are animals . question : are cats animals ? answer : [MASK] ."),
        (
            "boolq",
            CATS,
            2,
            "cats are animals . based on the previous passage , are cats animals ? [MASK] .",
        ),
        (
            "wic",
            COME,
            0,
            '" do you want to come over ? " / " come over here . " similar sense of " come " ? [MASK] .',
        ),
        (
            "wic",
            COME,
            2,
            'come . sense ( 1 ) ( a ) " do you want to come over ? " ( [MASK] ) " come over here . "',
        ),
        ("sst2", FILM, 0, "a joy . it was [MASK] ."),
        (
            "copa",
            COPA[1],
            1,
            "it broke into many small pieces on the hard kitchen floor or it sang ? the cup fell , so [MASK] .",
        ),
    ],
)
def test_a_pattern_in_words(tmp_path, name, line, pattern_id, expected):
    assert spelled(tmp_path, name, line, pattern_id) == expected


@pytest.mark.parametrize(
    ("name", "pattern_id", "words"),
    [
        ("rte", 0, "yes no"), ("rte", 4, "true false"), ("cb", 0, "yes no maybe"), ("cb", 4, "true false neither"),
        ("boolq", 2, "no yes"), ("boolq", 3, "false true"), ("wic", 1, "no yes"), ("wic", 2, "2 b"),
        ("sst2", 0, "terrible great"), ("sst2", 1, "bad good"),
    ],
)  # fmt: skip
def test_the_words_of_the_labels(tmp_path, name, pattern_id, words):
    actual = task_of(name, tmp_path, pattern_id=pattern_id).collator.verbalizers
    assert bert().decode(actual) == words


def test_copa_s_answer_in_pattern_2_is_the_joiner(tmp_path):
    batch = first_batch(tmp_path, "copa", COPA[0], pattern_id=2)
    first, second = (bert().decode(batch.tokens[0, k].tolist()) for k in (0, 1))
    assert "over the grass [MASK] the sun was rising" in first
    assert "over the grass [MASK] the grass was cut" in second
    for k in (0, 1):
        answer = batch.target_ids[0, k][batch.logit_mask[0, k].bool()].tolist()
        assert answer == [2138, 30523]  # because, end of piece


def test_what_a_classifier_reads(tmp_path):
    def read(name, line):
        batch = first_batch(tmp_path, name, line, cloze=False)
        assert batch.logit_mask is None
        assert batch.target_ids is None
        rows = batch.tokens.reshape(-1, batch.tokens.shape[-1])
        seps = batch.attention_mask.flatten().tolist()
        return [
            bert().decode(row[1 : sep - 1].tolist()) for row, sep in zip(rows, seps, strict=True)
        ]

    assert read("rte", IRAQ)[0].endswith(
        "in iraq yet . [SEP] weapons of mass destruction found in iraq ."
    )
    assert read("wic", COME) == ["come : do you want to come over ? [SEP] come over here ."]
    assert read("sst2", FILM) == ["a joy ."]
    assert read("copa", COPA[1])[1] == "the cup fell . so [SEP] it sang ."
