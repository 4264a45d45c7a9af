"""Tokenizers against the golden ids of the seed, and against themselves."""

import json
import os
import random
import re
import select
import signal
from pathlib import Path

import numpy as np
import pytest

from data_utils.bpe import GPT2BPETokenizer
from data_utils.chinese import ChineseSPTokenizer
from data_utils.tokenization import (
    ASSETS,
    BertWordPieceTokenizer,
    Tokenizer,
    read_vocabulary,
)
from tests.data_utils.samples import LETTERS, small_tokenizer, write_vocabulary
from tests.vector_checks.common import OK
from tests.vector_checks.data import check_tokenizers


@pytest.fixture(scope="module")
def bert() -> Tokenizer:
    return BertWordPieceTokenizer(ASSETS / "bert-base-uncased-vocab.txt")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return GPT2BPETokenizer(ASSETS)


@pytest.fixture(scope="module")
def chinese() -> Tokenizer:
    return ChineseSPTokenizer(ASSETS / "cog-pretrain.model")


def test_golden_tokenizers(vectors: Path):
    results = check_tokenizers(vectors / "superglue_encodings")
    assert [r for r in results if r.status != OK] == []
    assert len(results) >= 8


def test_a_wrong_id_is_noticed(vectors: Path, tmp_path: Path):
    text = (vectors / "superglue_encodings/tokenizers.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizers.json").write_text(text.replace("30522", "30529"), encoding="utf-8")
    assert any(r.status == "FAILED" for r in check_tokenizers(tmp_path))


def test_golden_command_ids(bert: Tokenizer, gpt2: Tokenizer):
    names = ["pad", "eos", "ENC", "MASK", "sep", "unk", "sop", "eop"]
    expected = [0, 0, 101, 103, 102, 100, 30522, 30523]
    assert [bert.get_command(n).Id for n in names] == expected
    expected = [50256, 50256, 50259, 50260, 50261, 50262, 50257, 50258]
    assert [gpt2.get_command(n).Id for n in names] == expected
    with pytest.raises(KeyError, match="gMASK.*this tokenizer has pad"):
        bert.get_command("gMASK")


def test_command_tokens_in_a_text(bert: Tokenizer, gpt2: Tokenizer):
    assert bert.encode("a[MASK]b [PAD] <|endofpiece|>") == [1037, 103, 1038, 0, 30523]
    # [MASK] swallows the space before it in BPE, <|startofpiece|> does not
    assert gpt2.encode("It is [MASK] here <|startofpiece|> x") == [
        *(1026, 318, 50260, 994, 220, 50257, 2124)
    ]
    assert gpt2.decode([1026, 318, 50260, 994]) == "It is[MASK] here"


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u00a0\u3000"])
def test_white_space_is_nothing(bert: Tokenizer, gpt2: Tokenizer, text: str):
    for tokenizer in (bert, gpt2):
        assert tokenizer.encode(text) == []
        assert tokenizer.encode_batch([text, "x", text])[::2] == [[], []]
        assert tokenizer.encode_arrays([text, "x"])[1].tolist() == [0, 1]


CHINESE_IDS = {  # toolkit section 8
    (False, False): {"pad": 50000, "eos": 50000, "ENC": 50002, "MASK": 50003, "sep": 50001}
    | {"unk": 50004, "sop": 50006, "eop": 50007, "gMASK": 50007, "sMASK": 50008, "dBLOCK": 50009},
    (True, False): {"sop": 50006, "eop": 50007, "gMASK": 50009, "sMASK": 50008, "dBLOCK": 50010},
}


@pytest.mark.parametrize("fixed", [False, True])
def test_golden_command_ids_of_the_chinese_tokenizer(fixed: bool):
    model = ASSETS / "cog-pretrain.model"
    tokenizer = ChineseSPTokenizer(model, task_mask=True, block_mask=True, fix_command_token=fixed)
    for name, expected in CHINESE_IDS[fixed, False].items():
        assert tokenizer.get_command(name).Id == expected, name
    assert tokenizer.padded_size() == 50048
    assert tokenizer.num_tokens == (50011 if fixed else 50010)


def test_chinese_text_is_what_sentencepiece_makes_of_it(chinese: Tokenizer):
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(ASSETS / "cog-pretrain.model"))
    for text in ("\u4eca\u5929 \u5929\u6c14\u3002", "Hello,  world 3.14", "\u4f60\u597d\nx"):
        assert chinese.encode(text) == model.encode(text)
    mixed = chinese.encode("\u4f60\u597d [MASK] world<|endofpiece|>")
    hello, world = model.encode("\u4f60\u597d"), model.encode("world")
    assert mixed == [*hello, 50003, *world, 50007]
    assert chinese.decode(mixed) == "\u4f60\u597d[MASK]world<|endofpiece|>"
    assert chinese.token_id("\u4f60\u597d") == model.piece_to_id("\u2581\u4f60\u597d")
    assert chinese.token_id(" \u4e16\u754c") == model.encode("\u4e16\u754c")[-1]
    with pytest.raises(ValueError, match="not one token"):
        chinese.token_id("antidisestablishment")


def roberta_folder(folder: Path, **more: int) -> Path:
    """A tiny vocabulary in RoBERTa's format: its commands first and last."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, "\u0120a", "<|endoftext|>", "<mask>"]
    ids = {token: i for i, token in enumerate(tokens)} | more
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n\u0120 a\n", encoding="utf-8")
    return folder


def test_roberta(tmp_path: Path):
    folder = roberta_folder(tmp_path)
    tokenizer = GPT2BPETokenizer(folder, task_mask=True, block_mask=True)
    size = 4 + 256 + 3
    expected = {"pad": 2, "eos": 2, "sep": 2, "ENC": 0, "MASK": size - 1, "unk": 3, "sop": size}
    expected |= {"eop": size + 1, "gMASK": size + 2, "sMASK": size + 3, "dBLOCK": size + 4}
    assert {name: c.Id for name, c in tokenizer.commands.items()} == expected
    assert tokenizer.num_tokens == size + 5
    space_a = tokenizer.encode(" a")
    assert len(space_a) == 1
    ids = tokenizer.encode("[CLS] a [MASK][SEP] a<|endoftext|>")
    assert ids == [0, *space_a, size - 1, 2, *space_a, 2]
    assert tokenizer.encode_batch(["[SEP]"]) == [[2]]
    assert tokenizer.encode_arrays(["x", "[SEP] a"])[0].tolist()[-2:] == [2, *space_a]
    assert tokenizer.decode(ids[:3]) == "[CLS] a[MASK]"
    assert len(tokenizer.encode("<mask>")) > 1  # the vocabulary's own spelling is plain text
    assert tokenizer.fingerprint != GPT2BPETokenizer(folder).fingerprint


def test_bad_bpe_folders(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"neither gpt2-vocab.json .* vocab.json and merg"):
        GPT2BPETokenizer(tmp_path)
    roberta_folder(tmp_path, x=7)
    with pytest.raises(ValueError, match=r"vocab.json: must map every token to an id"):
        GPT2BPETokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match=r"vocab.json: .*no token <\|endoftext\|>"):
        GPT2BPETokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"no vocabulary of RoBERTa: has no </s>, <mask>"):
        GPT2BPETokenizer(tmp_path, roberta=True)
    (tmp_path / "merges.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"merges.txt: not the merges"):
        GPT2BPETokenizer(tmp_path)


def test_bad_sentencepiece_models(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="none.model"):
        ChineseSPTokenizer(tmp_path / "none.model")
    with pytest.raises(FileNotFoundError, match="holds 0 .model files"):
        ChineseSPTokenizer(tmp_path)
    (tmp_path / "a.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"a.model: not a SentencePiece model"):
        ChineseSPTokenizer(tmp_path)


def test_sentinels():
    path = ASSETS / "bert-base-uncased-vocab.txt"
    tokenizer = BertWordPieceTokenizer(path, task_mask=True, num_sentinels=3)
    assert tokenizer.get_command("MASK1").Id == 30526
    assert tokenizer.get_command("sop3").Id == 30531
    assert tokenizer.encode("[MASK2] [MASK]") == [30528, 103]


ALPHABET = [
    *"aAbBzZ019 \t\n\r.,'\"!?#_-()[]<|>",
    *("'s", "'LL", " the", "  ", "\n\n", "[MASK]", " [CLS] ", "<|endoftext|>", "ing"),
    *("<|startofpiece|>", " the cat", "Hello", "word", "x" * 101, "don't"),
    *"\u00e9\u00c9\u00e7\u0130\u01c5\u03a3\u03c2\u0301\u0308\u00ad\u200b\u200d\ufeff\ufffd\u4f60\u597d\uac00\U0001f600",
    *"\x00\x01\x0b\x0c\x1c\x1d\x1e\x1f\x7f\x85\u00a0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000",
    *"\u201c\u2019\u2013\u00b2\u0663\u216b\u00b4\u2581\u00a8\uff01\uff0c",
]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "chinese"])
def test_encode_arrays_is_encode(kind: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(kind)
    rng = random.Random(kind)
    texts = ["".join(rng.choices(ALPHABET, k=rng.randrange(60))) for _ in range(3000)]
    expected = [tokenizer.encode(text) for text in texts]
    for repeat in range(2):  # the second time from the cache
        ids, lengths = tokenizer.encode_arrays(texts)
        actual = [a.tolist() for a in np.split(ids, np.cumsum(lengths)[:-1])]
        wrong = [t for t, a, e in zip(texts, actual, expected, strict=True) if a != e]
        assert wrong == [], repeat
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_arrays([])[0].tolist() == []


WORDS = ["the cat sat", "a  cat , sat", "cat~sat ~ the", "\u4f60 cat", " the\ncat", "at the_cat"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"treat_whitespace_as_suffix": True},
        {"split_by_whitespace": False},
        {"normalization_rule_tsv": "7E\t20\n"},  # ~ is a space
        {"normalization_rule_tsv": "7E\t\n"},  # ~ is nothing
    ],
    ids=lambda options: "_".join(options) or "plain",
)
def test_arrays_of_a_sentencepiece_model_of_ones_own(tmp_path: Path, options: dict):
    from sentencepiece import SentencePieceTrainer

    if tsv := options.get("normalization_rule_tsv"):
        (tmp_path / "rules.tsv").write_text(tsv, encoding="utf-8")
        options = {"normalization_rule_tsv": str(tmp_path / "rules.tsv")}
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a cat ate", "at the"] * 20),
        model_prefix=str(tmp_path / "own"),
        vocab_size=24,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    tokenizer = ChineseSPTokenizer(tmp_path / "own.model")
    expected = [tokenizer.encode(text) for text in WORDS]
    ids, lengths = tokenizer.encode_arrays(WORDS)
    assert [a.tolist() for a in np.split(ids, np.cumsum(lengths)[:-1])] == expected


def test_ids_of_the_padded_vocabulary_can_be_decoded(bert: Tokenizer, gpt2: Tokenizer):
    assert bert.decode([1037, 30590]) == "a [UNK]"
    assert gpt2.decode([64, 50300]) == "a"


def test_bpe_decodes_what_it_encodes(gpt2: Tokenizer):
    for text in ["  two  spaces\n\n", "caf\u00e9 \u4f60\u597d \U0001f600", "tabs\tand\r\nlines"]:
        assert gpt2.decode(gpt2.encode(text)) == text


def test_verbalizers(bert: Tokenizer, gpt2: Tokenizer):
    assert bert.token_id(" Yes") == 2748
    assert gpt2.token_id(" Yes") == 3363  # as GLM
    assert gpt2.token_id(" Yes", stripped=True) == 5297  # as the seed, W14
    assert gpt2.token_id(" neither") == 6159
    with pytest.raises(ValueError, match="' neither'"):
        gpt2.token_id(" neither", stripped=True)
    with pytest.raises(ValueError, match="unaffable"):
        bert.token_id("unaffable")


def test_sentence_ends(bert: Tokenizer, gpt2: Tokenizer):
    for tokenizer in (bert, gpt2):
        ends = tokenizer.sentence_ends
        assert ends.shape == (tokenizer.num_tokens,)
        assert all(ends[tokenizer.token_id(c)] for c in ".?!;:")
        assert not any(ends[tokenizer.token_id(c)] for c in ",-a")
    assert gpt2.sentence_ends[198]  # newline
    words = (ASSETS / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").split("\n")
    expected = {
        i for i, w in enumerate(words) if re.search("[.?!;:\u3002\uff1f\uff01\uff1b\u2026]", w)
    }
    assert set(np.flatnonzero(bert.sentence_ends).tolist()) == expected


def test_a_vocabulary_of_ones_own(tmp_path: Path):
    tokenizer = small_tokenizer(tmp_path)
    size = len(read_vocabulary(tmp_path))
    ids = {name: command.Id for name, command in tokenizer.commands.items()}
    assert ids == {
        "pad": 1,
        "eos": 1,
        "ENC": 2,
        "MASK": 4,
        "unk": 0,
        "sep": 3,
        "sop": size,
        "eop": size + 1,
    }
    assert tokenizer.num_tokens == size + 2
    assert tokenizer.padded_size(64) == -(-(size + 2) // 64) * 64
    assert tokenizer.decode(tokenizer.encode("The fox [MASK]")) == "the fox [MASK]"
    assert BertWordPieceTokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_fingerprint_tells_vocabularies_apart(tmp_path: Path, bert: Tokenizer, gpt2: Tokenizer):
    path = write_vocabulary(tmp_path)
    masks = BertWordPieceTokenizer(path, task_mask=True)
    prints = [
        bert.fingerprint,
        gpt2.fingerprint,
        masks.fingerprint,
        small_tokenizer(tmp_path).fingerprint,
    ]
    path.write_text(path.read_text().replace("\na\nb\n", "\nb\na\n"))
    prints.append(BertWordPieceTokenizer(path).fingerprint)
    assert len(set(prints)) == 5


def test_bad_vocabularies(tmp_path: Path):
    path = write_vocabulary(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        BertWordPieceTokenizer(tmp_path / "nothing")
    path.write_text(path.read_text().replace("[MASK]\n", "").replace("[PAD]\n", ""))
    with pytest.raises(ValueError, match=r"vocab.txt.*no line \[MASK\], \[PAD\]"):
        BertWordPieceTokenizer(path)
    path.write_text("[PAD]\n" + "\n".join(LETTERS) + "\nc\n")
    with pytest.raises(ValueError, match=r"vocab.txt:28: token 'c' is also on line 4"):
        BertWordPieceTokenizer(path)


def test_a_forked_process_encodes_alone(bert: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    bert.encode_batch(["x y", "z"])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        ids = bert.encode_batch(["x y", "z"])
        os.write(writer, f"{os.environ['TOKENIZERS_PARALLELISM']} {sum(map(len, ids))}".encode())
        os._exit(0)
    answered, _, _ = select.select([reader], [], [], 20)
    if not answered:  # it waits for threads that do not exist
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert answered
    assert os.read(reader, 100) == b"false 3"
