"""Our parts of samples, called in the seed's order for a whole batch: its golden batches."""

from collections.abc import Sequence
from random import Random

from data_utils.block import BlockSample
from data_utils.infilling import BlankInfilling
from data_utils.spans import draw_lengths, place_spans, sentence_spans


def seed_batch(
    infilling: BlankInfilling, samples: Sequence[Sequence[int]], rng: Random
) -> list[BlockSample]:
    """The samples of a batch, all of one kind. Those whose spans do not fit are dropped."""
    ids = infilling.ids
    rng.random()  # short sequences: probability 0
    single = rng.random() < infilling.single_span_prob
    kind = "bert" if single else infilling.draw_kind(rng)
    batch = []
    if kind == "gpt":
        least = int(infilling.gpt_min_ratio * min(map(len, samples)))
        return [_generated(infilling, samples, rng.randint(least, max(map(len, samples)) - 2), rng)]
    for tokens in samples:
        if kind == "sentence":
            assert infilling.sentence_ends is not None
            spans = sentence_spans(tokens, infilling.sentence_ends, ids.eos, ids.ENC)
            rng.shuffle(spans)
            chosen, covered = [], 0
            for span in spans:
                chosen.append(span)
                covered += span[1] - span[0]
                if covered >= int(infilling.gap_sentence_ratio * len(tokens)):
                    break
            batch.append(infilling.finish(tokens, chosen, rng, "sentence"))
            continue
        lengths = draw_lengths(len(tokens), rng, infilling.average, single, least=0)
        rng.shuffle(lengths)
        spans = place_spans(tokens, lengths, rng, ids.eos, ids.ENC)
        if len(spans) == len(lengths):
            batch.append(infilling.finish(tokens, spans, rng))
    return batch


def _generated(
    infilling: BlankInfilling, samples: Sequence[Sequence[int]], longest: int, rng: Random
) -> BlockSample:
    """The first sample of a batch of the kind gpt; its end or a span is to be generated."""
    from data_utils.block import continue_text

    ids, tokens = infilling.ids, samples[0]
    length = min(longest, len(tokens) - 2)
    if rng.random() < infilling.gpt_infill_prob:
        return continue_text(tokens, length, ids, [1] * len(tokens))
    spans = place_spans(tokens, [length], rng, ids.eos, ids.ENC)
    return infilling.finish(tokens, spans, rng, "gpt")
