"""Kinds of samples: the seed's golden batches, shares, and that no sample is ever dropped."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from data_utils.block import BlockSample, SpecialIds
from data_utils.infilling import BlankInfilling
from data_utils.spans import BERT_RATIO
from data_utils.tokenization import ASSETS, BertWordPieceTokenizer
from tests.data_utils.samples import document
from tests.data_utils.seed_order import seed_batch
from tests.vector_checks.data import restore

IDS = SpecialIds(eos=0, ENC=1, MASK=2, sop=3, eop=4)
TASKS = SpecialIds(eos=0, ENC=1, MASK=2, sop=3, eop=4, gMASK=7, sMASK=8, dBLOCK=9)
ENDS = np.arange(1000) % 10 == 9
BERT = SpecialIds(eos=0, ENC=101, MASK=103, sop=30522, eop=30523)
GOLDEN = [
    *(101, 1996, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899, 1012, 1037, 2117, 6251, 4076),
    *(2182, 999, 1998, 2059, 1037, 2353, 2028, 8480, 2012, 2197, 1025, 1996, 2203, 1997, 2009),
    *(3310, 3254, 1012, 0),
]


def restored(sample, ids: SpecialIds = IDS) -> tuple[list[int], list[tuple[int, int]]]:
    return restore({"text": sample.text, "position": sample.position, "sep": sample.sep}, ids)


def test_golden_batch():
    """The seed's first batch of a sample given twice (toolkit section 10)."""
    rows = seed_batch(BlankInfilling(BERT), [GOLDEN, GOLDEN], Random(0))
    first, second = rows
    masks = [[i for i, t in enumerate(s.text) if t == 103] for s in rows]
    assert masks == [[12, 18], [18, 25]]
    assert first.sep == 31
    assert first.text[31:] == [30522, 1037, 2353, 2028, 30522, 2117, 6251]
    assert first.target[31:] == [1037, 2353, 2028, 30523, 2117, 6251, 30523]
    assert first.position[31:] == [18, 18, 18, 18, 12, 12, 12]
    assert first.block_position[31:] == [1, 2, 3, 4, 1, 2, 3]
    assert second.text[second.sep :] == [30522, 1996, 2203, 1997, 30522, 2059, 1037]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_sample_can_be_restored(shuffle: bool):
    corrupt = BlankInfilling(IDS, shuffle=shuffle)
    orders = set()
    for seed in range(200):
        rng = Random(seed)
        tokens = document(rng.randrange(1, 90)) + document(rng.randrange(1, 30), 200)
        sample = corrupt(tokens, Random(seed))
        expected, spans = restored(sample)
        assert expected == tokens
        places = sorted(spans)
        assert all(a[1] < b[0] for a, b in zip(places, places[1:], strict=False))  # a word between
        covered = sum(end - start for start, end in spans)
        assert covered >= int(BERT_RATIO * len(tokens))
        assert sample.sep == len(tokens) - covered + len(spans)
        assert len(sample.text) == len(tokens) + 2 * len(spans)
        for start, end in spans:
            assert not {IDS.eos, IDS.ENC} & set(tokens[start:end])
        orders.add(spans == places)
    assert orders == ({True, False} if shuffle else {True})


def test_one_generator_state_one_sample():
    corrupt = BlankInfilling(IDS)
    samples = [corrupt(document(60), Random(seed)).text for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


def test_single_spans():
    corrupt = BlankInfilling(IDS, single_span_prob=0.25)
    single = sum(len(restored(corrupt(document(60), Random(s)))[1]) == 1 for s in range(2000))
    assert single / 2000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    "tokens",
    [
        document(1),
        document(2),
        sum((document(2, 10 * i) for i in range(1, 12)), []),  # GLM's rule finds no room here
        [1, 10, 11],
    ],
)
def test_no_sample_is_dropped(tokens: list[int]):
    for seed in range(50):
        sample = BlankInfilling(IDS)(tokens, Random(seed))
        assert restored(sample)[0] == tokens
        assert len(sample.text) > sample.sep


def test_the_seed_drops_what_does_not_fit():
    tokens = sum((document(2, 10 * i) for i in range(1, 12)), [])
    assert seed_batch(BlankInfilling(IDS), [tokens, GOLDEN], Random(0))[:-1] == []


@pytest.fixture(scope="module")
def golden_ids() -> dict:
    tokenizer = BertWordPieceTokenizer(ASSETS / "bert-base-uncased-vocab.txt", task_mask=True)
    return {"ids": SpecialIds.of(tokenizer), "sentence_ends": tokenizer.sentence_ends}


def test_golden_gap_sentences(golden_ids: dict):
    infilling = BlankInfilling(**golden_ids, bert_prob=0.0, gap_sentence_prob=1.0)
    first = seed_batch(infilling, [GOLDEN, GOLDEN], Random(0))[0]
    assert first.text[:3] == [101, 30525, 1037]
    assert first.sep == 25
    assert first.target[25:] == [*GOLDEN[1:11], 30523]


def test_golden_generation(golden_ids: dict):
    infilling = BlankInfilling(**golden_ids, bert_prob=0.0, gpt_infill_prob=1.0)
    first = seed_batch(infilling, [GOLDEN, GOLDEN], Random(0))[0]
    assert first.text[:11] == [*GOLDEN[:9], 30524, 30522]
    assert first.sep == 10
    assert first.target[10:] == GOLDEN[9:]


def make(**options) -> BlankInfilling:
    return BlankInfilling(TASKS, ENDS, **({"seq_length": 128} | options))


def original(sample: BlockSample) -> list[int]:
    """The tokens before corruption."""
    row = {"text": sample.text, "position": sample.position, "sep": sample.sep}
    if sample.kind == "gpt" and sample.target[-1] != 4:
        return [*sample.text[: sample.sep - 1], *sample.target[sample.sep :]]
    return restore(row, TASKS)[0]


def test_shares_of_the_kinds():
    infilling = make(bert_prob=0.5, gap_sentence_prob=0.3)
    samples = [infilling(document(60), Random(seed)) for seed in range(3000)]
    counts = Counter(sample.kind for sample in samples)
    for kind, expected in (("bert", 0.5), ("sentence", 0.3), ("gpt", 0.2)):
        assert counts[kind] / 3000 == pytest.approx(expected, abs=0.03)
    masks = {"bert": 2, "sentence": 8, "gpt": 7}
    for sample in samples:
        assert original(sample) == document(60)
        assert masks[sample.kind] in sample.text[: sample.sep]
        assert not (set(masks.values()) - {masks[sample.kind]}) & set(sample.text)
        assert sum(sample.loss) > 0


def test_generated_samples():
    infilling = make(bert_prob=0.0, gpt_infill_prob=0.25, gpt_min_ratio=0.5)
    tokens, ends, lengths = document(60), 0, set()
    for seed in range(2000):
        sample = infilling(tokens, Random(seed))
        generated = len(sample.text) - sample.sep
        at_end = sample.target[-1] == 0
        ends += at_end
        assert sample.text[sample.sep] == 3  # one blank
        assert sample.text.count(3) == 1
        assert sample.position[sample.sep :] == [sample.position[sample.sep]] * generated
        assert sample.block_position[sample.sep :] == list(range(1, generated + 1))
        lengths.add(generated if at_end else generated - 1)
    assert ends / 2000 == pytest.approx(0.25, abs=0.03)
    assert (min(lengths), max(lengths)) == (31, 60)  # int(0.5 * 62) ... 62 - 2


def test_several_documents_are_continued():
    infilling = make(bert_prob=0.0, gpt_infill_prob=0.0)
    tokens = document(30) + document(20, 100)
    for seed in range(50):
        sample = infilling(tokens, Random(seed))
        assert original(sample) == tokens
        for token, counts in zip(
            sample.target[sample.sep :], sample.loss[sample.sep :], strict=True
        ):
            assert counts == (token != 1)


def test_masks_of_a_prompt_count_for_what_is_continued():
    infilling = make(bert_prob=0.0, gpt_infill_prob=1.0)
    tokens = document(20)
    mask = [0] * 18 + [1] * 4
    for seed in range(50):
        sample = infilling(tokens, Random(seed), mask)
        assert sum(sample.loss) == 4
    none = infilling(tokens, Random(0), [0] * 22)  # nothing to generate: short spans instead
    assert none.kind == "bert"
    assert sum(none.loss) > 0


def test_gap_sentences_are_whole_sentences():
    infilling = make(bert_prob=0.0, gap_sentence_prob=1.0, gap_sentence_ratio=0.3)
    for seed in range(50):
        sample = infilling(document(60), Random(seed))
        tokens, spans = restored(sample, TASKS)
        assert tokens == document(60)
        covered = sum(end - start for start, end in spans)
        assert 0.3 * 60 <= covered < 0.3 * 60 + 10
        for start, end in spans:
            assert start == 1 or ENDS[tokens[start - 1]]
            assert ENDS[tokens[end - 1]]


def test_a_document_without_sentences_gets_short_spans():
    infilling = BlankInfilling(
        TASKS, np.zeros(1000, dtype=bool), bert_prob=0.0, gap_sentence_prob=1.0
    )
    assert infilling(document(60), Random(0)).kind == "bert"


def test_short_sequences():
    infilling = make(short_seq_prob=0.25, seq_length=128)
    tokens = document(118)
    lengths = [len(original(infilling(tokens, Random(seed)))) for seed in range(1000)]
    short = [n for n in lengths if n < 120]
    assert len(short) / 1000 == pytest.approx(0.25 * 86 / 95, abs=0.04)  # 32 ... 117 of 32 ... 126
    assert min(short) >= 17
    for seed in range(200):
        sample = make(short_seq_prob=1.0, seq_length=128)(tokens, Random(seed))
        words = original(sample)
        assert words[0] == 1
        place = tokens.index(words[1])
        assert words[1:] == tokens[place : place + len(words) - 1]
        assert place == 1 or ENDS[tokens[place - 1]]


def test_random_positions_end_within_the_sequence():
    starts = set()
    for seed in range(300):
        sample = make(random_position=True)(document(60), Random(seed))
        starts.add(sample.position[0])
        assert max(sample.position) < 128
        steps = np.diff(sample.position[: sample.sep])
        assert set(steps.tolist()) == {1}
    assert min(starts) < 5
    assert max(starts) > 60


def test_sentinels_and_hidden_tokens():
    ids = SpecialIds(
        0, 1, 2, 3, 4, dBLOCK=9, sentinels=tuple((500 + i, 600 + i) for i in range(60))
    )
    infilling = BlankInfilling(ids, ENDS, 128, sentinels=True)
    sample = infilling(document(100), Random(3))
    used = sorted(set(sample.text) & set(range(600, 660)))
    assert used == list(range(600, 600 + len(used)))
    assert len(used) > 3
    assert [t - 100 for t in used] == sorted(set(sample.text) & set(range(500, 560)))
    assert set(sample.position[sample.sep :]) == {128}
    hidden = BlankInfilling(ids, ENDS, 128, block_mask_prob=0.5, context_mask_ratio=0.1)
    sample = hidden(document(100), Random(3))
    assert sample.text[: sample.sep].count(9) == 10
    assert 9 in sample.text[sample.sep :]
    assert 9 not in sample.target[sample.sep :]


def test_masked_language_model_samples():
    sample = make(masked_lm=True)(document(60), Random(0))
    assert sample.block_position is None
    assert sum(sample.loss) >= int(BERT_RATIO * 62)
    assert [t for t, m in zip(sample.text, sample.loss, strict=True) if m] == [2] * sum(sample.loss)


EVERYTHING = {
    "bert_prob": 0.4,
    "gap_sentence_prob": 0.3,
    "gap_sentence_ratio": 0.4,
    "gpt_min_ratio": 0.0,
    "short_seq_prob": 0.3,
    "single_span_prob": 0.1,
    "block_mask_prob": 0.1,
    "context_mask_ratio": 0.1,
    "random_position": True,
}


@pytest.mark.parametrize("seq_length", [8, 24, 128])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_there_is_always_something_to_predict(seq_length: int, ratio: float):
    infilling = make(**EVERYTHING | {"gpt_min_ratio": ratio}, seq_length=seq_length)
    for seed in range(400):
        rng = Random(seed)
        tokens: list[int] = []
        while len(tokens) < seq_length - 2 and rng.random() < 0.9:
            tokens += document(rng.randrange(1, 40), rng.randrange(10, 60))
        tokens = (tokens or document(1))[:seq_length]
        if tokens[-1] == 1:
            tokens.pop()
        sample = infilling(tokens, Random(seed))
        assert sum(sample.loss) > 0
        columns = (sample.target, sample.position, sample.block_position, sample.loss)
        assert {len(column) for column in columns} == {len(sample.text)}
        again = infilling(tokens, Random(seed))
        assert again == sample
