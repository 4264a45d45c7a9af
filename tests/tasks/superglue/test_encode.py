"""Truncation against the rule carried out token by token; what does not fit; masks in user text."""

import random
import sys

import pytest

from config.errors import ConfigError
from tasks.superglue import encode as encoding
from tasks.superglue.encode import MASK, Cut, Layout, Row, cut_level, cut_shares, encode
from tests.tasks.common import bert

ENC, MASK_ID, SEP, EOS, EOP = 101, 103, 102, 0, 30523
A, B, C = 1037, 1038, 1039  # the words a, b, c


def words(letter: str, n: int) -> str:
    return " ".join([letter] * n)


def context(row: Row, **layout) -> list[int]:
    return encode([[row]], ["here"], bert(), Layout(**layout)).contexts[0].tolist()


def one_at_a_time(a: int, b: int, surplus: int) -> tuple[int, int]:
    """The rule: the side with more loses a token, B where they are equal."""
    left = [a, b]
    for _ in range(surplus):
        left[0 if left[0] > left[1] else 1] -= 1
    return a - left[0], b - left[1]


def test_the_shares_are_those_of_taking_one_token_at_a_time():
    draw = random.Random(0)
    for _ in range(500):
        a, b = draw.randrange(30), draw.randrange(30)
        surplus = draw.randrange(a + b + 1)
        assert cut_shares(a, b, surplus) == one_at_a_time(a, b, surplus), (a, b, surplus)


def test_the_last_tokens_that_may_go_are_gone_first():
    row = Row([Cut(words("a", 5)), "b", Cut(words("c", 2))], [MASK])
    full = [ENC, *[A] * 5, B, C, C, MASK_ID, EOS]
    assert context(row, seq_length=12) == full
    assert context(row, seq_length=11) == [ENC, *[A] * 5, B, C, MASK_ID, EOS]
    assert context(row, seq_length=8) == [ENC, *[A] * 3, B, MASK_ID, EOS]


def test_the_longer_side_is_cut():
    row = Row([Cut(words("a", 2)), MASK], [Cut(words("b", 6))])
    assert context(row, seq_length=8) == [ENC, A, A, MASK_ID, B, B, EOS]
    assert context(row, seq_length=7) == [ENC, A, A, MASK_ID, B, EOS]
    assert context(row, seq_length=6) == [ENC, A, MASK_ID, B, EOS]


def test_an_answer_takes_its_seats_from_the_text():
    row = Row([Cut(words("a", 9)), MASK], answer=words("c", 3))
    encoded = encode([[row]], ["here"], bert(), Layout(seq_length=10))
    assert encoded.contexts[0].tolist() == [ENC, A, A, A, MASK_ID, EOS]
    assert encoded.answers[0].tolist() == [C, C, C, EOP]
    assert (encoded.num_truncated, encoded.num_squeezed) == (1, 0)


def test_where_no_text_may_go_the_longest_pieces_are_cut_to_one_length():
    row = Row(["b", words("a", 20), Cut(words("c", 4)), MASK], answer=words("a", 20))
    encoded = encode([[row]], ["here"], bert(), Layout(seq_length=20))
    ids, answer = encoded.contexts[0].tolist(), encoded.answers[0].tolist()
    assert ids == [ENC, B, *[A] * 5, *[C] * 4, MASK_ID, EOS]
    assert answer == [*[A] * 5, EOP]
    assert len(ids) + len(answer) <= 20
    assert encoded.num_squeezed == 1


def test_the_level_is_the_largest_that_fits():
    assert cut_level([1, 20, 4, 20], 17) == 6
    assert cut_level([1, 20, 4, 20], 16) == 5
    assert cut_level([3, 3], 100) == 3


def test_a_pattern_that_cannot_fit_names_the_line():
    with pytest.raises(ValueError, match=r"here: no room in --seq-length=5"):
        context(Row(["a", "b", "c", MASK]), seq_length=5)


def test_the_answer_belongs_to_the_pattern_s_mask_and_in_the_seed_to_the_first():
    row = Row([Cut("a [MASK] b"), "c", MASK])
    expected = [ENC, A, MASK_ID, B, C, MASK_ID, EOS]
    for w14, position in ((False, 5), (True, 2)):
        encoded = encode([[row]], ["here"], bert(), Layout(seq_length=20, w14=w14))
        assert encoded.contexts[0].tolist() == expected
        assert encoded.masks.tolist() == [position]


def test_a_classifier_reads_both_texts_and_the_seed_loses_the_second():
    row = Row([Cut(words("a", 10))], [Cut(words("b", 3))])
    assert context(row, seq_length=12, cloze=False) == [ENC, *[A] * 6, SEP, *[B] * 3, EOS]
    assert context(row, seq_length=12, cloze=False, w14=True) == [ENC, *[A] * 10, EOS]
    assert context(Row([Cut("a")]), seq_length=12, cloze=False) == [ENC, A, EOS]


class Counted(list):
    """Ids whose slices are counted."""

    copied = 0

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if isinstance(key, slice):
            Counted.copied += len(found)
            return Counted(found)
        return found


def lines_run(work) -> int:
    """Lines of the encoder's file that a call runs."""
    number = 0

    def count(frame, event, argument):
        nonlocal number
        if frame.f_code.co_filename != encoding.__file__:
            return None
        number += event == "line"
        return count

    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(None)
    return number


@pytest.mark.parametrize("both", [False, True])
def test_cutting_takes_as_many_steps_whatever_is_lost(both):
    """One token at a time, a passage of n tokens would take n steps and n copies of itself."""
    lines = []
    for length in (1000, 2000, 4000):
        row = Row([Cut(words("a", length)), MASK], [Cut(words("b", length - 7))] if both else None)
        encoder = encoding._Encoder(bert(), Layout(seq_length=100))
        encoder.tokenize([row])
        encoder.ids = {text: Counted(ids) for text, ids in encoder.ids.items()}
        Counted.copied = 0
        lines.append(lines_run(lambda: encoder.add([row], "here")))  # noqa: B023
        assert len(encoder.contexts[0]) == 100 - 1  # and [sop]
        assert Counted.copied == 100 - 4  # what is left; beside [ENC], [MASK], [eos], [sop]
    assert 0 < lines[0] == lines[1] == lines[2]


def test_a_passage_is_tokenised_and_stored_once_for_all_its_answers(monkeypatch):
    row = Row([Cut(words("a", 9)), "b", MASK])
    answers = [words("c", n) for n in (1, 3, 1, 2)] + ["a c", "b"]
    rows = [Row(row.a, row.b, answer=text) for text in answers]
    expected = [context(Row(row.a, answer=text), seq_length=12) for text in answers]
    tokenizer, asked = bert(), []
    arrays = tokenizer.encode_arrays
    monkeypatch.setattr(tokenizer, "encode_arrays", lambda x: arrays(asked.extend(x) or x))
    encoded = encode([rows], ["here"], tokenizer, Layout(seq_length=12))
    assert sorted(asked) == sorted({words("a", 9), "b", *answers})
    assert [x.tolist() for x in encoded.sample(0, 0, 1.0).contexts] == expected
    different = {tuple(ids) for ids in expected}
    assert len(different) == 3
    assert len(encoded.contexts.flat) == sum(map(len, different))
    assert encoded.num_truncated == sum(len(ids) < 13 for ids in expected)


def test_fast_decoding_needs_one_context_for_all_choices():
    rows = [Row([word, MASK], answer="c") for word in "ab"]
    with pytest.raises(ConfigError, match="--fast-decode"):
        encode([rows], ["here"], bert(), Layout(seq_length=20, fast_decode=True))
