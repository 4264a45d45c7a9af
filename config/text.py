"""Tasks whose answers are texts: their lengths, their decoding; windows of language modelling."""

from dataclasses import dataclass

from config.group import ArgGroup, flag


@dataclass(frozen=True, kw_only=True)
class TextArgs(ArgGroup):
    """Sequence-to-sequence tasks, generation, and the evaluation of language models."""

    title, sep = "texts: sequence-to-sequence, generation, language modelling", "-"
    src_seq_length: int | None = flag(None, "length of a source (tokens); longer ones are cut")
    tgt_seq_length: int | None = flag(None, "longest target, its end included (tokens)")
    label_smoothing: float = flag(
        0.0, "share of the target's probability that all words get (fraction)"
    )
    blank_maskratio: float = flag(
        0.1, "blank: part of a text that is blanked out (fraction); names the test file, too"
    )
    num_beams: int = flag(1, "beams of a search; 1: the likeliest token each time")
    no_repeat_ngram_size: int = flag(
        0, "an output holds no run of so many tokens twice; 0: no such rule"
    )
    min_tgt_length: int = flag(0, "shortest output (tokens)")
    select_topk: bool = flag(
        False, "beams go on with their likeliest tokens: always so; without it, under W16 only, "
        "with drawn ones",
    )  # fmt: skip
    temperature: float = flag(1.0, "scripts/generate.py: logits are divided by it")
    top_k: int = flag(
        0, "scripts/generate.py: draw from so many likeliest tokens; 0: from all", name="--top_k"
    )
    top_p: float = flag(
        0.0,
        "scripts/generate.py: draw from the likeliest tokens of this probability together; 0: all",
        name="--top_p",
    )
    out_seq_length: int = flag(256, "scripts/generate.py: longest output of a mask (tokens)")
    overlapping_eval: int = flag(32, "step from one window to the next (tokens)")
    unidirectional: bool = flag(
        False, "the prompt is the first token only, and the rest of it is read causally"
    )
