"""Encodings of every task, batches, and what is written, scored and refused."""

import json

import pytest
import torch

from config.compat import Compat
from config.data import BlockLMArgs, DataArgs, TokenizerArgs
from config.errors import ConfigError
from config.tasks import FinetuneArgs
from config.text import TextArgs
from data_utils import build_tokenizer
from data_utils.bad_lines import BadLines
from tasks import build_task
from tasks.base import token_mask
from tests.tasks.common import bert, gpt2
from tests.tasks.seq2seq.common import sources, targets, task_of, write_pairs, write_squad
from tests.toy import toy_glm

CAT = ("The cat sat on the mat.", "A cat sat.")


def test_the_recorded_encoding(tmp_path):
    # toolkit.md section 12, of the seed: S = 16, T = 8.
    write_pairs(tmp_path, [CAT])
    task = task_of("xsum", tmp_path, 16, 8)
    dataset = task.dataset("train")
    batch = task.collate([dataset[0], dataset[~0]])
    context = [101, 103, 4180, 1024, 1996, 4937, 2938, 2006, 1996, 13523, 1012, 0, 0, 0, 0, 0]
    assert batch.tokens.tolist() == [[*context, 30522, 1037, 4937, 2938, 1012]] * 2
    assert batch.labels[0, 16:].tolist() == [1037, 4937, 2938, 1012, 30523]
    assert batch.loss_mask.tolist() == [[0] * 16 + [1] * 5] * 2
    assert batch.position_ids[0].tolist() == [
        [*range(16), 1, 1, 1, 1, 1],
        [0] * 16 + [1, 2, 3, 4, 5],
    ]
    assert batch.attention_mask.tolist() == [16, 16]  # padding is visible, as in GLM
    assert batch.weight.tolist() == [1, 0]
    masks = task.row_masks(batch)
    assert masks["targets"].sum(1).tolist() == [5, 0]
    assert masks["tokens"].tolist() == [[1] * 11 + [0] * 5 + [1] * 5, [0] * 21]
    assert token_mask(batch.position_ids).sum() == 42  # what positions alone would say


def test_long_texts_are_cut_and_their_end_is_lost(tmp_path):
    write_pairs(tmp_path, [("one two three four five six", "a b c d e f g h")])
    task = task_of("gigaword", tmp_path, 8, 4)
    row = task.dataset("train").rows[0]
    assert len(row.context) == 8
    assert row.pieces == [bert().encode("a b c d")]
    assert row.truncated


def test_what_summaries_are_cleaned_of(tmp_path):
    write_pairs(tmp_path, [("-lrb- unk -rrb- x", "\u201cUNK\u201d says")])
    task = task_of("gigaword", tmp_path, 32, 16)
    assert sources(task) == ["[CLS] [MASK] content : ( [UNK] ) x"]
    assert targets(task) == [['" [UNK] " says <|endofpiece|>']]
    write_pairs(tmp_path, [("-LRB- he did n't -RRB- <S_SEP> it 's", "a b . <S_SEP> we 'll c .")])
    task = task_of("cnn_dm", tmp_path, 32, 16)
    assert sources(task) == ["[CLS] [MASK] content : ( he didn ' t ) it ' s"]
    assert targets(task) == [["a b . [SEP] we ' ll c . <|endofpiece|>"]]
    task = task_of("cnn_dm_original", tmp_path, 64, 32)
    assert "< s _ sep >" in sources(task)[0]
    task = task_of("customization", tmp_path, 64, 32)
    assert "content" not in sources(task)[0]


def test_byte_level_bpe_and_the_sentence_mask(tmp_path):
    write_pairs(tmp_path, [CAT])
    task = task_of("xsum", tmp_path, 16, 8, gpt2())
    assert sources(task) == ["[CLS][MASK] Content: The cat sat on the mat."]
    arguments = TokenizerArgs(tokenizer_type="GPT2BPETokenizer", task_mask=True)
    with_masks = build_tokenizer(arguments, BlockLMArgs(block_lm=True))
    task = task_of("xsum", tmp_path, 16, 8, with_masks)
    assert sources(task) == ["[CLS][sMASK] Content: The cat sat on the mat."]
    assert targets(task) == [[" A cat sat.<|endofpiece|>"]]


def test_official_xsum(tmp_path):
    index = '{"train": ["7"], "validation": ["8"], "test": ["7", "8"]}'
    (tmp_path / "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json").write_text(index)
    for name in "78":
        (tmp_path / f"{name}.summary").write_text(
            f"[SN]URL[SN]\nu\n[SN]TITLE[SN]\nt\n[SN]FIRST-SENTENCE[SN]\nsum {name}\n"
            f"[SN]RESTBODY[SN]\nbody\nof {name}\n"
        )
    task = task_of("xsum", tmp_path, 32, 16)
    assert sources(task, "val") == ["[CLS] [MASK] content : body of 8"]
    assert targets(task, "test") == [["sum 7 <|endofpiece|>"], ["sum 8 <|endofpiece|>"]]
    (tmp_path / "8.summary").write_text("[SN]RESTBODY[SN]\nbody")
    with pytest.raises(ValueError, match=r"8\.summary: no text behind \[SN\]FIRST-SENTENCE"):
        task_of("xsum", tmp_path, 32, 16).dataset("val")


PASSAGE = "one two three four five six seven eight nine ten"


def test_questions_are_asked_about_a_window_around_the_answer(tmp_path):
    asked = [("Which number?", ["nine", "ten", "nine"])]
    for split in ("train", "dev"):
        write_squad(tmp_path / f"{split}.json", [(PASSAGE, asked)])
    task = task_of("squad_generation", tmp_path, 40, 16)
    whole = f"[CLS] {PASSAGE} question : [MASK] answer :"
    assert sources(task) == [f"{whole} nine", f"{whole} ten"]  # one example a distinct answer
    assert targets(task) == [["which number ? <|endofpiece|>"]] * 2
    assert task.dataset("test") is None
    assert sources(task_of("squad_generation", tmp_path, 12, 16))[0] == (
        "[CLS] six seven eight nine ten question : [MASK] answer : nine"
    )


def test_squad_slides_over_its_passage(tmp_path):
    write_squad(tmp_path / "train-v1.1.json", [(PASSAGE, [("which", ["nine"])])])
    write_squad(tmp_path / "dev-v1.1.json", [(PASSAGE, [("which", ["Nine", "the nine"])] * 2)])
    task = task_of("squad_v1", tmp_path, 10, 8)
    assert sources(task) == [
        "[CLS] which [MASK] . one two three four five six",
        "[CLS] which [MASK] . six seven eight nine ten",
    ]
    assert targets(task) == [["n / a <|endofpiece|>"], ["nine <|endofpiece|>"]]
    written = ["n / a", "a nine", "ten", "nine"]  # two windows for each of two questions
    scores = task.metrics(dict(enumerate(written)), "val")
    assert scores == {"f1": 50.0, "em": 50.0}


def test_the_chinese_layout(tmp_path):
    write_squad(tmp_path / "train.json", [("abc def", [("who", ["abc"])])])
    task = task_of("cmrc", tmp_path, 24, 8)
    row = task.dataset("train").rows[0]
    assert row.context[row.blanks[0]] == 103
    assert row.context[row.blanks[0] + 1 :] == bert().encode("abc def")
    assert row.context[1 : row.blanks[0]] == bert().encode(
        "\u95ee\u9898\uff1awho\u7b54\u6848\uff1a"
    )


def test_blanks_are_drawn_or_given(tmp_path):
    lines = ["a b c d e f g h i j", "k l m n o p q r s t"]
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "blank").mkdir()
    given = "<blank> c d e <blank> g h i <blank>\nk <blank> n o p q r s t\n"
    (tmp_path / "blank" / "test.maskratio0.3.blank").write_text(given)
    task = task_of("blank", tmp_path, 32, 16, blank_maskratio=0.3)
    assert sources(task, "test")[0] == "[CLS] [MASK] c d e [MASK] g h i [MASK]"
    end = "<|endofpiece|>"
    assert targets(task, "test") == [[f"a b {end}", f"f {end}", f"j {end}"], [f"l m {end}"]]
    batch = task.collate([task.dataset("test")[0]])
    assert batch.position_ids[0, :, 32:].tolist() == [
        [1, 1, 1, 5, 5, 9, 9],
        [1, 2, 3, 1, 2, 1, 2],
    ]
    for context, pieces, line in zip(sources(task), targets(task), lines, strict=True):
        words = [w for piece in pieces for w in piece.split()[:-1]]
        assert len(words) == 3
        assert sorted([*words, *context.split()[1:]]) == sorted(
            [*line.split(), *["[MASK]"] * len(pieces)]
        )
        assert "[MASK] [MASK]" not in context  # neighbours are one blank
    written = {0: ["a b", "f", "x"], 1: ["l m"]}
    scores = task.metrics(written, "test")
    assert scores["em"] == 75.0
    assert 0 < scores["bleu"] < 100
    assert task.metrics({0: ["a b", "f", "j"], 1: ["l m"]}, "test")["bleu"] > 99.99


def test_extraction_and_its_masks(tmp_path):
    write_pairs(tmp_path, [("It was [MASK] in [MASK].", "cold | May 2020"), ("[MASK]", "x")])
    task = task_of("extraction", tmp_path, 16, 8)
    assert sources(task)[0] == "[CLS] it was [MASK] in [MASK] ."
    assert targets(task)[0] == ["cold <|endofpiece|>", "may 2020 <|endofpiece|>"]
    scores = task.metrics({0: ["cold", "may 2021"], 1: ["y"]}, "val")
    assert scores == {"f1": pytest.approx(50.0), "em": pytest.approx(100 / 3)}
    write_pairs(tmp_path, [("It was [MASK].", "a | b")])
    with pytest.raises(ValueError, match=r"train.source, line 1: 1 masks .* 2 texts parted by"):
        task_of("extraction", tmp_path, 16, 8).dataset("train")


def test_beams_are_drawn_on_request_only():
    data = DataArgs(data_dir="x")
    for compat, beams, select, drawn in (
        ("", 3, False, False),
        ("W16", 3, False, True),
        ("W16", 3, True, False),
        ("W16", 1, False, False),
    ):
        text = TextArgs(src_seq_length=16, tgt_seq_length=8, num_beams=beams, select_topk=select)
        finetuning = FinetuneArgs(task="xsum")
        task = build_task(finetuning, data, bert(), Compat.parse(compat), text=text)
        assert task.options.decoding.draw is drawn


@torch.no_grad()
def test_what_is_written_is_scored(tmp_path):
    write_pairs(tmp_path, [CAT, ("Rain fell on the old house all day.", "It rained.")])
    task = task_of("xsum", tmp_path, 24, 8, num_beams=2, min_tgt_length=2)
    model = toy_glm(vocab_size=30592, seed=2).eval()
    dataset = task.dataset("val")
    together = task.answers(model, task.collate([dataset[0], dataset[1]]))
    alone = [task.answers(model, task.collate([dataset[i]]))[0] for i in range(2)]
    assert together == alone  # padding of a batch changes nothing
    assert all(len(bert().encode(text)) >= 2 for text in together)
    scores = task.metrics({0: "a cat sat.", 1: "it rained."})
    assert scores == pytest.approx(
        {"rouge-1": 100, "rouge-2": 100, "rouge-l": 100, "bleu": 100}, abs=1e-3
    )
    write_pairs(tmp_path, [("[MASK] and [MASK]", "a | b"), ("[MASK]", "c")])
    task = task_of("extraction", tmp_path, 16, 4)
    rows = [task.dataset("val")[i] for i in range(2)]
    assert [len(found) for found in task.answers(model, task.collate(rows))] == [2, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.source": b"a\nb\n", "train.target": b"a\n"}, "has 2 lines, .*target 1;"),
        (
            {"train.source": b"a\n\n", "train.target": b"a\nb\n"},
            r"train.source, line 2: is empty.*",
        ),
        ({"train.source": b"a\n", "train.target": b"\n"}, r"train.target, line 1: is empty"),
        ({"train.source": b"a\n\xff\n", "train.target": b"a\nb\n"}, "source, line 2: not UTF-8"),
        ({"train.source": b"", "train.target": b""}, "train split of xsum holds no examples"),
        ({"train.source": b"a\n"}, "no train.target, which the task xsum needs"),
        ({}, "no train.source"),
    ],
)
def test_bad_files_are_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        task_of("xsum", tmp_path, 16, 8).dataset("train")


def test_bad_lines_can_be_left_out(tmp_path, caplog):
    write_pairs(tmp_path, [CAT, ("x", ""), CAT])
    task = build_task(
        FinetuneArgs(task="xsum"),
        DataArgs(data_dir=str(tmp_path), skip_bad_lines=True),
        bert(),
        Compat(),
        text=TextArgs(src_seq_length=16, tgt_seq_length=8),
    )
    assert len(task.dataset("train")) == 2
    assert "1 bad lines skipped" in caplog.text
    with pytest.raises(ConfigError, match="rouge-1, rouge-2, rouge-l, bleu"):
        build_task(
            FinetuneArgs(task="xsum", validation_metric="f1"),
            DataArgs(data_dir=str(tmp_path)),
            bert(),
            Compat(),
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "line 1: not JSON"),
        (b"[]", 'no list "data"'),
        (b"\xff", "not UTF-8"),
        (b'{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": 1}]}]}]}', "field 'question'"),
    ],
)
def test_a_bad_squad_file_is_named(tmp_path, content, message):
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.json.*" + message):
        task_of("squad_generation", tmp_path, 16, 8).dataset("train")


def read_squad_text(tmp_path, text, task="squad_v1", split="val"):
    (tmp_path / "dev-v1.1.json").write_text(text, encoding="utf-8")
    (tmp_path / "dev.json").write_text(text, encoding="utf-8")
    bad = BadLines(skip=True)
    examples = task_of(task, tmp_path, 16, 8).read(tmp_path, split, bad)
    return examples, bad.shown


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([3], "dev-v1.1.json: field 'data[0]' is 3; must be an object"),
        ([{"title": "x"}], "article 0: field 'paragraphs' is None; must be a list"),
        ([{"paragraphs": [3]}], "article 0: field 'paragraphs[0]' is 3; must be an object"),
        ([{"paragraphs": [{"context": "x", "qas": 3}]}], "paragraph 0: field 'qas' is 3; must be"),
        (
            [{"paragraphs": [{"context": "x", "qas": [{"question": "q", "answers": [{"text": "x", "answer_start": "0"}]}]}]}],
            "question 0: field 'answers' is [{'text': 'x', 'answer_start': '0'}]; must list",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_around_questions(tmp_path, data, message):
    good = {"paragraphs": [{"context": "x y", "qas": [{"question": "q"}]}]}
    examples, (shown,) = read_squad_text(tmp_path, json.dumps({"data": [*data, good]}))
    assert message in shown
    assert [x.source for x in examples] == ["q"]


def test_a_question_without_the_answer_it_needs(tmp_path):
    data = {"data": [{"paragraphs": [{"context": "x y", "qas": [{"question": "q"}]}]}]}
    examples, (shown,) = read_squad_text(tmp_path, json.dumps(data), "squad_generation")
    assert examples == []
    assert "question 0: field 'answers' is empty; an answer is needed" in shown
    examples, shown = read_squad_text(tmp_path, json.dumps(data))
    assert (len(examples), shown) == (1, [])
    assert task_of("squad_v1", tmp_path, 16, 8).metrics({0: ""}) == {}  # nothing to compare with


def test_lines_that_are_not_utf_8_are_skipped_and_a_mark_is_no_text(tmp_path):
    for ending in ("source", "target"):
        (tmp_path / f"train.{ending}").write_bytes(b"\xef\xbb\xbfone\ntwo \xff\nthree\n")
    bad = BadLines(skip=True)
    examples = task_of("customization", tmp_path, 16, 8).read(tmp_path, "train", bad)
    assert [x.source for x in examples] == ["one", "three"]
    assert bad.number == 1
    assert "train.source, line 2: not UTF-8" in bad.shown[0]
