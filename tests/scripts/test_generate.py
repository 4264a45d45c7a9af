"""scripts/generate.py: prompts, results, messages; the whole program is in tests/e2e."""

import pytest
import torch

from config import ConfigError
from scripts.generate import read, read_prompts
from tasks.generation import Decoding
from tasks.prompts import PromptFiller
from tests.tasks.common import bert
from tests.toy import toy_glm

VOCAB = 30592


def filler(**options):
    model = toy_glm(vocab_size=VOCAB, seed=2).eval()
    return PromptFiller(model, bert(), longest=options.get("longest", 40))


def test_prompts_get_a_mask_and_an_end():
    encode = filler().encode
    assert encode("a [MASK] b [MASK]").ids == [101, *bert().encode("a [MASK] b [MASK]"), 0]
    assert encode("a [MASK] b [MASK]").blanks == [2, 4]
    plain = encode("a b")
    assert (plain.ids, plain.blanks) == ([101, *bert().encode("a b"), 103, 0], [3])
    with pytest.raises(ValueError, match="line 3: is empty"):
        encode("  ", "line 3")
    with pytest.raises(ValueError, match=r"line 4: the model has no \[sMASK\]"):
        encode("a [sMASK]", "line 4")
    with pytest.raises(ValueError, match="has 8 tokens, the model has 7 positions"):
        filler(longest=7).encode("a b c d e")


def test_a_generation_mask_at_the_end_has_nothing_behind_it():
    from config.data import BlockLMArgs, TokenizerArgs
    from data_utils import build_tokenizer

    tokenizer = build_tokenizer(TokenizerArgs(task_mask=True), BlockLMArgs(block_lm=True))
    encode = PromptFiller(toy_glm(vocab_size=VOCAB), tokenizer, longest=40).encode
    assert encode("a b").ids == [101, *tokenizer.encode("a b"), 30524]
    assert encode("a [sMASK] b").ids == [101, *tokenizer.encode("a [sMASK] b"), 0]


def test_a_batch_gives_what_single_prompts_give():
    own = filler()
    prompts = [own.encode(t) for t in ("one [MASK] two [MASK] three", "a [MASK]", "only words")]
    decoding = Decoding(max_length=4, min_length=2, num_beams=2)
    together = own.fill(prompts, decoding)
    assert together == [own.fill([prompt], decoding)[0] for prompt in prompts]
    first = together[0]
    assert len(first.pieces) == 2
    assert first.text == f"one {first.pieces[0]} two {first.pieces[1]} three"
    assert together[2].text == f"only words {together[2].pieces[0]}"


def test_what_the_flags_ask_for():
    _, run = read(["--load-pretrained=x", "--top_k=3", "--temperature=0.5", "--out-seq-length=9"])
    drawn = Decoding.of(run.text, length_penalty=0.0, seed=1)
    assert (drawn.draw, drawn.top_k, drawn.temperature, drawn.max_length) == (True, 3, 0.5, 9)
    for likeliest in (["--num-beams=4"], ["--top_k=1"]):
        _, run = read(["--load-pretrained=x", *likeliest])
        assert not Decoding.of(run.text, length_penalty=0.0, seed=1).draw


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--load-pretrained: missing"),
        (["--load-pretrained=x", "--temperature=0"], "--temperature=0.0: must be positive"),
        (["--load-pretrained=x", "--top_p=1.5"], r"--top_p=1.5: must be in \[0, 1\]"),
        (["--load-pretrained=x", "--output=y"], "--output=y: needs --input"),
        (["--load-pretrained=x", "--out-seq-length=600"], "--out-seq-length=600: is longer than"),
        (["--load-pretrained=x", "--min-tgt-length=256"], "--min-tgt-length=256: must be below"),
    ],
)
def test_bad_flags_are_named(flags, message, monkeypatch):
    monkeypatch.setattr("config.run.take_architecture", lambda *_: {})
    with pytest.raises(ConfigError, match=message):
        read(flags)


def test_bad_prompt_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_prompts(str(tmp_path / "none"))
    file = tmp_path / "p.txt"
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="is empty"):
        read_prompts(str(file))
    file.write_bytes(b"a\n\xff")
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        read_prompts(str(file))


def test_the_model_is_left_as_it_was():
    own = filler()
    before = torch.get_rng_state()
    own.fill([own.encode("a")], Decoding(max_length=2, draw=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(not p.grad_fn for p in own.model.parameters())
