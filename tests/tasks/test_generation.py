"""Decoding with a cache equals decoding by whole forward passes, written out here one by one."""

import itertools

import pytest
import torch

import mpu
from tasks.generation import Decoding, Symbols, Writer
from tests.ranks import run_ranks
from tests.toy import EOP, PAD, SHAPES, SOP, toy_glm

WORDS = 30  # ids that may be written
SYMBOLS = Symbols(sop=SOP, eop=EOP, pad=PAD, num_tokens=WORDS)
CONTEXTS = [[1, 11, 2, 12, 13, 2, 14], [1, 15, 2], [1, 16, 17, 2, 18, 2]]
MASKS = [(2, 5), (2, 2), (3, 5)]  # two blanks each


def lively(seed, **changes):
    """A model in eval mode whose next word is seldom the last one again."""
    model = toy_glm(seed=seed, **changes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("dense.weight", "dense_4h_to_h.weight")):
                parameter.mul_(4)
            if name.endswith("word_embeddings.weight"):
                parameter.mul_(0.5)
    return model


def batch(contexts=CONTEXTS):
    """Right-padded contexts: tokens [b, s], positions [b, 2, s], sep [b]."""
    width = max(map(len, contexts))
    tokens = torch.tensor([c + [PAD] * (width - len(c)) for c in contexts])
    places = torch.zeros(len(contexts), 2, width, dtype=torch.long)
    places[:, 0] = torch.arange(width)
    return tokens, places, torch.tensor([len(c) for c in contexts])


def log_probs(model, context, pieces, current):
    """Of the token after `current`, by one forward without cache: context, earlier pieces, it.

    pieces: (mask, ids) of the blanks that are filled. current: (mask, ids), [sop] left out.
    """
    ids, first, second = list(context), list(range(len(context))), [0] * len(context)
    for mask, piece in [*pieces, current]:
        ids += [SOP, *piece]
        first += [mask] * (1 + len(piece))
        second += range(1, 2 + len(piece))
    places = torch.tensor([[first, second]])
    logits = model(torch.tensor([ids]), places, torch.tensor([len(context)]))[0][0, -1]
    logits = mpu.gather_from_model_parallel_region(logits).float()
    logits[WORDS:] = float("-inf")
    return logits.log_softmax(-1)


def greedy(model, context, pieces, mask, longest, shortest=0, ngram=0):
    """The likeliest token each time."""
    piece = []
    while len(piece) < longest:
        scores = log_probs(model, context, pieces, (mask, piece))
        if len(piece) < shortest:
            scores[[EOP, PAD]] = float("-inf")
        whole = [SOP, *piece]
        for i in range(len(whole) - ngram + 1 if ngram else 0):
            if whole[i : i + ngram - 1] == whole[len(whole) - ngram + 1 :]:
                scores[whole[i + ngram - 1]] = float("-inf")
        token = int(scores.argmax())
        if token in (EOP, PAD):
            break
        piece.append(token)
    return piece


def beam_search(model, context, mask, beams, longest, penalty):
    """Plain lists: (score, ids). A search ends when no beam can beat the worst finished one."""
    running, finished = [(0.0, [])], []
    for length in range(1, longest + 1):
        candidates = []
        for score, ids in running:
            scores = log_probs(model, context, [], (mask, ids))
            candidates += [(score + float(s), [*ids, t]) for t, s in enumerate(scores)]
        candidates.sort(key=lambda x: -x[0])
        running = []
        for rank, (score, ids) in enumerate(candidates):
            if ids[-1] in (EOP, PAD) or length == longest:
                if rank < beams:
                    finished.append((score / length**penalty, ids))
            elif len(running) < beams:
                running.append((score, ids))
        finished = sorted(finished, key=lambda x: -x[0])[:beams]
        best = running[0][0] / length**penalty if running else float("-inf")
        if len(finished) == beams and best <= finished[-1][0]:
            break
    return [t for t in finished[0][1] if t not in (EOP, PAD)]


def pieces_of(model, decoding, *, use_cache=True, blanks=2):
    writer = Writer(model, SYMBOLS, *batch(), use_cache=use_cache)
    positions = torch.tensor(MASKS)
    with torch.no_grad():
        return [writer.write(positions[:, k], decoding) for k in range(blanks)]


@pytest.mark.parametrize("shape", ["plain", "albert", "bottleneck", "neighbours", "relative"])
@torch.no_grad()
def test_greedy_pieces_are_those_of_whole_forward_passes(shape):
    model = lively(1 if shape == "relative" else 5, **SHAPES.get(shape, {"transformer_xl": True}))
    cached = pieces_of(model, Decoding(max_length=6, min_length=2))
    for row, (context, masks) in enumerate(zip(CONTEXTS, MASKS, strict=True)):
        filled = []
        for k, mask in enumerate(masks):
            expected = greedy(model, context, filled, mask, 6, shortest=2)
            assert cached[k][row] == expected, (row, k)
            filled.append((mask, expected))
    assert len({tuple(piece) for piece in cached[0]}) > 1  # it depends on the context


@torch.no_grad()
def test_shortest_length_and_repeated_runs():
    model = lively(2)
    for decoding, options in (
        (Decoding(max_length=9, min_length=5), {"shortest": 5}),
        (Decoding(max_length=9, min_length=8, no_repeat_ngram_size=2), {"shortest": 8, "ngram": 2}),
        (Decoding(max_length=9, min_length=8, no_repeat_ngram_size=1), {"shortest": 8, "ngram": 1}),
    ):
        (actual,) = pieces_of(model, decoding, blanks=1)
        expected = [
            greedy(model, c, [], m[0], 9, **options) for c, m in zip(CONTEXTS, MASKS, strict=True)
        ]
        assert actual == expected
        assert min(map(len, actual)) >= decoding.min_length


@pytest.mark.parametrize(("beams", "penalty"), [(2, 0.0), (3, 0.7), (5, 1.0)])
@torch.no_grad()
def test_beams_are_those_of_a_search_over_lists(beams, penalty):
    model = lively(9)
    decoding = Decoding(max_length=5, num_beams=beams, length_penalty=penalty)
    (actual,) = pieces_of(model, decoding, blanks=1)
    assert pieces_of(model, decoding, blanks=1, use_cache=False) == [actual]
    expected = [
        beam_search(model, c, m[0], beams, 5, penalty) for c, m in zip(CONTEXTS, MASKS, strict=True)
    ]
    assert actual == expected


@torch.no_grad()
def test_enough_beams_find_the_best_of_all_sequences():
    model = lively(4)
    few = Symbols(sop=SOP, eop=EOP, pad=PAD, num_tokens=7)
    writer = Writer(model, few, *batch(CONTEXTS[:1]))
    decoding = Decoding(max_length=3, num_beams=30, length_penalty=0.6)
    (actual,) = writer.write(torch.tensor([2]), decoding)
    best = (float("-inf"), [])
    words = [t for t in range(7) if t not in (EOP, PAD)]
    for length in range(1, 4):
        for body in itertools.product(words, repeat=length - 1):
            for last in range(7) if length == 3 else (EOP, PAD):
                ids, score = [*body, last], 0.0
                for i, token in enumerate(ids):
                    scores = log_probs(model, CONTEXTS[0], [], (2, ids[:i]))
                    score += float(scores[:7].log_softmax(-1)[token])
                best = max(best, (score / length**0.6, ids))
    assert actual == [t for t in best[1] if t not in (EOP, PAD)]


def test_draws_follow_the_seed_and_the_distribution():
    model = lively(4)
    tokens, places, sep = batch([CONTEXTS[0]] * 400)

    def draw(seed, **options):
        decoding = Decoding(max_length=1, draw=True, seed=seed, **options)
        with torch.no_grad():
            written = Writer(model, SYMBOLS, tokens, places, sep).write(
                torch.full((400,), 2), decoding
            )
        return [piece[0] if piece else EOP for piece in written]

    before = torch.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        probs = log_probs(model, CONTEXTS[0], [], (2, [])).exp()
        cold = (log_probs(model, CONTEXTS[0], [], (2, [])) / 0.5).softmax(-1)
    likeliest = int(probs.argmax())
    for options, expected in (({}, probs), ({"temperature": 0.5}, cold)):
        share = draw(3, **options).count(likeliest) / 400
        assert abs(share - float(expected[likeliest])) < 0.08  # 3 deviations
    assert set(draw(4, top_k=2)) <= set(probs.topk(2).indices.tolist())
    order = probs.sort(descending=True)
    kept = int((order.values.cumsum(0) < 0.3).sum()) + 1
    assert set(draw(5, top_p=0.3)) <= set(order.indices[:kept].tolist())


@torch.no_grad()
def test_of_a_compressed_vocabulary_only_kept_words_are_written():
    every = Symbols(sop=SOP, eop=EOP, pad=PAD, num_tokens=64)
    kept = torch.arange(64) % 2 == 0
    kept[[SOP, EOP]] = True
    ids = torch.cat((kept.nonzero().flatten(), (~kept).nonzero().flatten()))
    rows = torch.zeros(64, dtype=torch.long)
    number = int(kept.sum())
    rows[ids[:number]] = torch.arange(number)
    tables = {
        "origin_id_to_target_pos": rows,
        "origin_id_mask_map": kept,
        "target_pos_to_origin_id": torch.cat((ids[:number], ids[:1].expand(64 - number))),
    }
    found = []
    for over_rows in (False, True):
        model = lively(3, map_vocab_size=number, unmap_vocab_output=over_rows)
        model.vocab_map.set_tables(tables)
        writer = Writer(model, every, *batch())
        decoding = Decoding(max_length=8, min_length=6, no_repeat_ngram_size=1)
        found.append(writer.write(torch.tensor([2, 2, 3]), decoding))
    assert found[0] == found[1]
    written = {token for piece in found[0] for token in piece}
    assert len(written) > 6
    assert all(kept[token] for token in written)


def decode_on(rank, world_size):
    mpu.initialize_model_parallel(world_size)
    return decode(rank)


def decode(rank):
    model = lively(9)
    torch.manual_seed(rank)  # draws must not follow it
    return [
        pieces_of(model, Decoding(max_length=5)),
        pieces_of(model, Decoding(max_length=5, num_beams=3, length_penalty=0.7)),
        pieces_of(model, Decoding(max_length=5, draw=True, seed=7)),
    ]


def test_two_ranks_of_one_model_write_what_one_does():
    expected = decode(0)
    for actual in run_ranks(2, decode_on):
        assert actual == expected
