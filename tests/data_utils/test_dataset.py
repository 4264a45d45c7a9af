"""BlockDataset: samples are pure functions of (seed, index) and made as GLM makes them."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from data_utils.block import SpecialIds
from data_utils.corpora import find_corpus
from data_utils.dataset import SMALLEST_PIECE, BlockDataset
from data_utils.documents import Documents
from data_utils.infilling import BlankInfilling
from data_utils.parts import Part
from data_utils.token_cache import load_documents
from data_utils.tokenization import Tokenizer
from tests.data_utils.samples import sentence, small_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return small_tokenizer(tmp_path)


def documents_of(texts: list[str], folder: Path, tokenizer: Tokenizer) -> Documents:
    file = folder / "corpus.txt"
    file.write_text("\n".join(texts) + "\n")
    return load_documents([find_corpus(str(file))], tokenizer, str(folder / "cache"))


def dataset_of(texts: list[str], folder: Path, tokenizer: Tokenizer, **options) -> BlockDataset:
    part = Part(documents_of(texts, folder, tokenizer), options.pop("numbers", None))
    corrupt = BlankInfilling(SpecialIds.of(tokenizer))
    return BlockDataset(part, tokenizer, corrupt, **({"seq_length": 32, "seed": 1} | options))


def drawn(dataset: BlockDataset, number: int) -> list[list[int]]:
    return [dataset.text(Random(i))[0] for i in range(number)]


def split(tokens: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """The documents of a sample, ENC and eos taken off."""
    enc, eos = tokenizer.get_command("ENC").Id, tokenizer.get_command("eos").Id
    assert tokens[0] == enc
    parts: list[list[int]] = []
    for token in tokens:
        if token == enc:
            parts.append([])
        elif token != eos:
            parts[-1].append(token)
    return parts


LONG = [" ".join(sentence(i * 40 + j, words=3 + j % 5) for j in range(40)) for i in range(3)]
SHORT = [sentence(i, words=2 + i % 6) for i in range(60)]


def test_a_sample_is_a_pure_function_of_seed_and_index(tmp_path: Path, tokenizer: Tokenizer):
    first = dataset_of(LONG, tmp_path, tokenizer)
    again = dataset_of(LONG, tmp_path, tokenizer)
    for i in (5, 0, 10**12):
        assert first[i] == again[i]
        assert (first[i].index, first[i].weight) == (i, 1.0)
        filler = first[~i]
        assert (filler.text, filler.index, filler.weight) == (first[i].text, i, 0.0)
    others = [
        first[1],
        dataset_of(LONG, tmp_path, tokenizer, seed=2)[0],
        dataset_of(LONG, tmp_path, tokenizer, stream="valid")[0],
    ]
    assert all(other.text != first[0].text for other in others)


@pytest.mark.parametrize("texts", [LONG, SHORT, LONG + SHORT])
@pytest.mark.parametrize("seq_length", [16, 32, 64])
def test_samples_consist_of_documents(texts, seq_length: int, tmp_path: Path, tokenizer: Tokenizer):
    dataset = dataset_of(texts, tmp_path, tokenizer, seq_length=seq_length)
    known = ["/".join(map(str, d.tolist())) for d in dataset.part.documents]
    lengths = []
    for tokens in drawn(dataset, 300):
        assert len(tokens) <= seq_length
        lengths.append(len(tokens))
        parts = split(tokens, tokenizer)
        for number, part in enumerate(parts):
            text = "/".join(map(str, part))
            assert part
            assert any(text in k for k in known)  # consecutive tokens
            if 0 < number < len(parts) - 1:
                assert text in known  # whole documents between the ends
    assert min(lengths) >= seq_length // 2 - 1
    assert max(lengths) == seq_length


def test_crops_start_and_end_with_sentences(tmp_path: Path, tokenizer: Tokenizer):
    dot = tokenizer.token_id(".")
    for share in (0.0, 1.0):
        dataset = dataset_of(LONG, tmp_path, tokenizer, non_sentence_start=share, seq_length=48)
        starts = {tuple(d[:1].tolist()) for d in dataset.part.documents}
        sentences = [s.split()[:2] for text in LONG for s in text.split(" . ")]
        heads = {tuple(tokenizer.encode(" ".join(s))) for s in sentences}
        samples = drawn(dataset, 200)
        at_start = sum(tuple(tokens[1:3]) in heads for tokens in samples) / 200
        ended = (
            sum(tokens[-1] in (dot, tokenizer.get_command("eos").Id) for tokens in samples) / 200
        )
        assert ended > 0.95
        assert at_start == 1.0 if share == 0 else at_start < 0.8
        assert starts


def test_every_part_of_a_long_document_is_seen(tmp_path: Path, tokenizer: Tokenizer):
    dataset = dataset_of(LONG[:1], tmp_path, tokenizer, non_sentence_start=1.0)
    (document,) = [d.tolist() for d in dataset.part.documents]
    samples = drawn(dataset, 400)
    eos = tokenizer.get_command("eos").Id
    assert any(tokens[1:5] == document[:4] for tokens in samples)
    assert any(tokens[-5:] == [*document[-4:], eos] for tokens in samples)


def test_documents_are_drawn_by_length(tmp_path: Path, tokenizer: Tokenizer):
    texts = ["cat " * 10, "dog " * 20, "mat " * 70]
    dataset = dataset_of(texts, tmp_path, tokenizer, one_document=True, seq_length=200)
    words = np.array([tokens[1] for tokens in drawn(dataset, 3000)])
    for text, expected in zip(texts, (0.1, 0.2, 0.7), strict=True):
        assert np.mean(words == tokenizer.token_id(text[:3])) == pytest.approx(expected, abs=0.03)


def test_the_shortest_documents_are_drawn_too(tmp_path: Path, tokenizer: Tokenizer):
    dataset = dataset_of(["cat", "dog", "mat"], tmp_path, tokenizer, one_document=True)
    words = [tokenizer.decode(tokens[1:2]) for tokens in drawn(dataset, 3000)]
    for word in ("cat", "dog", "mat"):
        assert words.count(word) == pytest.approx(1000, abs=120)


def test_only_documents_of_its_part_are_drawn(tmp_path: Path, tokenizer: Tokenizer):
    texts = ["cat " * 10, "dog " * 10, "mat " * 10]
    dataset = dataset_of(texts, tmp_path, tokenizer, numbers=np.array([0, 2]))
    words = {tokenizer.decode([t]) for tokens in drawn(dataset, 100) for t in tokens}
    assert words == {"[CLS]", "[PAD]", "cat", "mat"}
    assert dataset.num_tokens == 20


def test_one_document_a_sample(tmp_path: Path, tokenizer: Tokenizer):
    alone = dataset_of(SHORT, tmp_path, tokenizer, one_document=True, seq_length=64)
    assert {len(split(tokens, tokenizer)) for tokens in drawn(alone, 50)} == {1}
    filled = dataset_of(SHORT, tmp_path, tokenizer, seq_length=64)
    assert min(len(split(tokens, tokenizer)) for tokens in drawn(filled, 50)) > 2
    assert all(len(tokens) > 64 - SMALLEST_PIECE - 20 for tokens in drawn(filled, 50))


def test_prompts_are_no_targets(tmp_path: Path, tokenizer: Tokenizer):
    class Prompted(Documents):
        def prompt(self, number: int) -> int:
            return 3

    documents = documents_of(SHORT, tmp_path, tokenizer)
    part = Part(Prompted(documents.caches))
    corrupt = BlankInfilling(SpecialIds.of(tokenizer))
    dataset = BlockDataset(part, tokenizer, corrupt, seq_length=32, seed=1)
    enc = tokenizer.get_command("ENC").Id
    starts = {tuple(d[:3].tolist()) for d in documents}
    for i in range(200):
        tokens, mask = dataset.text(Random(i))
        assert len(mask) == len(tokens)
        for at in [k for k, token in enumerate(tokens) if token == enc]:
            assert mask[at] == 0
            if tuple(tokens[at + 1 : at + 4]) in starts:
                assert mask[at + 1 : at + 5] == [0, 0, 0, 1][: len(mask) - at - 1]
