"""Windows, scores and messages of LAMBADA, WikiText and plain texts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mpu
from config.compat import Compat
from config.data import DataArgs
from config.errors import ConfigError
from config.tasks import FinetuneArgs
from config.text import TextArgs
from tasks import build_task
from tasks.language_model.texts import plain_wikitext
from tasks.language_model.windows import Cut
from tests.ranks import run_ranks
from tests.tasks.common import bert
from tests.toy import toy_glm

VOCAB = 30592


def task_of(name, file, length=13, step=4, **options):
    text = TextArgs(overlapping_eval=step, **options)
    data = DataArgs(valid_data=(str(file),), seq_length=64, eval_seq_length=length)
    return build_task(FinetuneArgs(task=name), data, bert(), Compat(), text=text)


def test_the_recorded_windows():
    # toolkit.md section 13, of the seed: 26 tokens, sequence length 13, step 4 -> 5 windows.
    ids = np.arange(1000, 1026)
    cut = Cut(length=13, step=4, unidirectional=False, enc=101, mask=103)
    assert cut.number(26) == 5
    first, second, *_, last = (cut.window(ids, i) for i in range(5))
    assert first.context.tolist() == [101, 1000, 103]
    assert first.targets.tolist() == list(range(1001, 1012))
    assert second.context.tolist() == [101, *range(1004, 1012), 103]
    assert second.targets.tolist() == list(range(1012, 1016))
    assert last.targets.tolist() == [1024, 1025]


@pytest.mark.parametrize("unidirectional", [False, True])
@pytest.mark.parametrize(("length", "step"), [(13, 4), (13, 11), (6, 1), (64, 8)])
def test_every_token_but_the_first_counts_once(unidirectional, length, step):
    cut = Cut(length=length, step=step, unidirectional=unidirectional, enc=101, mask=103)
    for number in (2, 3, 11, 12, 13, 26, 64):
        ids = np.arange(number)
        windows = [cut.window(ids, i) for i in range(cut.number(number))]
        counted = [t for w in windows for t in w.targets[w.first :].tolist()]
        assert counted == list(range(1, number)), number
        if unidirectional:
            assert {len(w.context) for w in windows} == {3}


def dense_loss(model, ids, length, step, unidirectional):
    """By hand, one window a time, on logits of the whole sequence."""
    total, width, start = 0.0, length - 1, 0
    while True:
        part = ids[start : start + width]
        new = 1 if start == 0 else width - step
        prompt = 1 if unidirectional else new
        context = [101, *part[:prompt], 103]
        tokens = [*context, 30522, *part[prompt:-1]]
        places = [[*range(len(context)), *[len(context) - 1] * (len(part) - prompt)]]
        places += [[0] * len(context) + [*range(1, len(part) - prompt + 1)]]
        logits = model(torch.tensor([tokens]), torch.tensor([places]), torch.tensor([len(context)]))
        scores = mpu.gather_from_model_parallel_region(logits[0])[0].double().log_softmax(-1)
        for i in range(new, len(part)):
            total -= float(scores[len(context) + i - prompt, part[i]])
        if start + width >= len(ids):
            return total
        start += step


def perplexities(rank, world_size, file):
    mpu.initialize_model_parallel(world_size)
    return [perplexity(file, unidirectional) for unidirectional in (False, True)]


def perplexity(file, unidirectional):
    model = toy_glm(vocab_size=VOCAB, seed=1).eval()
    task = task_of("language_model", file, unidirectional=unidirectional)
    data = task.dataset("val")
    found = {}
    with torch.no_grad():
        for i in range(0, len(data), 2):
            rows = [data[k] for k in range(i, min(i + 2, len(data)))] + [data[~0]]
            answers = task.answers(model, task.collate(rows))
            assert answers[-1][1] == 0  # a filler
            found |= {r.sample_id: a for r, a in zip(rows[:-1], answers, strict=False)}
        ids = [bert().encode(text) for text in Path(file).read_text().splitlines()]
        expected = sum(dense_loss(model, x, 13, 4, unidirectional) for x in ids)
    return task.metrics(found), expected, sum(len(x) - 1 for x in ids)


def test_perplexity_is_that_of_a_loop_over_windows(tmp_path):
    file = tmp_path / "texts.txt"
    lines = [
        "the cat sat on the mat and the dog ran to the old house in the rain all day",
        "one two",
    ]
    file.write_text("\n".join(lines) + "\n")
    words = sum(len(line.split()) for line in lines)
    for metrics, total, targets in sum(run_ranks(2, perplexities, str(file)), start=[]):
        assert metrics["loss"] == pytest.approx(total / targets, rel=1e-5)
        assert metrics["ppl"] == pytest.approx(math.exp(total / targets), rel=1e-4)
        expected = math.exp(min(20, total / (words - 2)))
        assert metrics["adjusted-ppl"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_lambada_wants_all_tokens_of_the_last_word(tmp_path, unidirectional):
    file = tmp_path / "lambada.jsonl"
    texts = ["a b c d.", "one two three four five six seven unaffable"]
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    task = task_of("lambada", file, length=11, unidirectional=unidirectional)
    data = task.dataset("val")
    assert task.dataset("test") is None
    assert task.dataset("train") is None
    word = bert().encode("unaffable")
    assert len(word) == 4 or len(word) == 3
    window, shown = data[1], bert().encode("one two three four five six seven")[-(8 - len(word)) :]
    if unidirectional:
        assert window.context.tolist() == [101, shown[0], 103, 0]
        assert window.targets.tolist() == [*shown[1:], *word]
    else:
        assert window.context.tolist() == [101, *shown, 103, 0]
        assert window.targets.tolist() == word
    assert window.targets[window.first :].tolist() == word
    assert window.mask == len(window.context) - 2
    batch = task.collate([data[0], window])
    assert batch.loss_mask.sum(1).tolist() == [2, len(word)]  # "d" and "."
    model = toy_glm(vocab_size=VOCAB, seed=1).eval()
    with torch.no_grad():
        logits = model(*task.inputs(batch))[0]
        rows = batch.loss_mask.bool()
        batch.labels[0][rows[0]] = logits[0][rows[0]].argmax(-1)  # the first is right
        answers = task.answers(model, batch)
    assert [hit for *_, hit in answers] == [True, False]
    assert task.metrics(dict(enumerate(answers)))["accuracy"] == 50.0


def test_wikitext_is_one_text_as_people_write(tmp_path):
    raw = ' = Title = \n In 1 @,@ 000 ( about ) games , " this " wasn \'t state @-@ of @-@ art . \n'
    plain = ' = Title =\nIn 1,000 (about) games, "this" wasn\'t state-of-art.\n'
    assert plain_wikitext(raw) == plain
    file = tmp_path / "wiki.txt"
    file.write_text(raw)
    task = task_of("wikitext", file, length=64, step=8)
    data = task.dataset("val")
    assert len(data) == 1
    assert [*data.texts[0]] == bert().encode(plain)
    assert task.words == len(raw.split())


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("lambada", b'{"text": "a b"}\n{"text": "a"}\n', "line 2: 'a' has fewer than two words"),
        ("lambada", b'{"txt": "a b"}\n', r"line 1: no text in field 'text' \(--text-key\)"),
        ("lambada", b"a b\n", "line 1: not JSON"),
        ("language_model", b'{"text": "a b"}\n\xff\n', "line 2: not UTF-8"),
        ("language_model", b"\n\n", "holds no texts"),
        ("wikitext", b"\n", "holds no text"),
    ],
)
def test_bad_files_are_named(tmp_path, task, content, message):
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jsonl.*" + message):
        task_of(task, file).dataset("val")


def test_a_missing_file_and_an_unknown_metric(tmp_path):
    with pytest.raises(ConfigError, match=r"--valid-data=.*no such file"):
        task_of("wikitext", tmp_path / "none.txt").dataset("val")
    with pytest.raises(ConfigError, match="ppl, adjusted-ppl, loss"):
        build_task(
            FinetuneArgs(task="wikitext", validation_metric="em"), DataArgs(), bert(), Compat()
        )
