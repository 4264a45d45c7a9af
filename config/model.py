"""The architecture of a GLM: what its weights fit into."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from config.errors import ConfigError
from config.group import ArgGroup, flag


@dataclass(frozen=True, kw_only=True)
class ModelArgs(ArgGroup):
    """Shape of one GLM. Official sizes: 12 x 768 (base) to 48 x 4096 (10B)."""

    title, sep = "model", "-"
    num_layers: int = flag(24, "transformer layers")
    hidden_size: int = flag(1024, "width h")
    num_attention_heads: int = flag(16, "heads n; h is a multiple of n")
    max_position_embeddings: int = flag(512, "longest position (tokens); tables hold one row more")
    vocab_size: int = flag(30522, "rows of the embedding, set from the tokenizer and padded")
    make_vocab_size_divisible_by: int = flag(128, "the vocabulary is padded to a multiple of this")
    attention_dropout: float = flag(0.1, "dropout of the attention probabilities")
    hidden_dropout: float = flag(0.1, "dropout of embeddings and of both sub-layer outputs")
    output_dropout: float = flag(0.1, "dropout of the classification head")
    attention_scale: float = flag(1.0, "divide queries, multiply back after: safer scores in fp16")
    transformer_xl: bool = flag(
        False, "relative positions instead of tables; pretraining on text from left to right"
    )
    mem_length: int = flag(0, "with it: remembered states of the text before (tokens)")
    checkpoint_activations: bool = flag(False, "recompute activations in the backward pass")
    checkpoint_num_layers: int = flag(1, "layers in one recomputed chunk")
    no_block_position: bool = flag(False, "tokens of a span all have block position 1")
    block_position_encoding: bool = (
        True  # False: one row of positions, tables without the extra row
    )
    map_vocab_size: float = flag(
        0.0,
        "keep only so many ids of the vocabulary (below 1: this fraction of them); 0: all",
        name="--map_vocab_size",
    )
    unmap_vocab_output: bool = flag(
        False, "with it: logits and labels of kept ids only", name="--unmap_vocab_output"
    )
    compress_word_emb: int = flag(
        0,
        "width of the word table, projected to h and back as in ALBERT; 0: h",
        name="--compress_word_emb",
    )
    cross_layer_parameter_sharing: bool = flag(
        False, "all layers have the same weights", name="--cross_layer_parameter_sharing"
    )
    inverted_bottleneck_mode: bool = flag(
        False,
        "layers of another width inside, after MobileBERT",
        name="--inverted_bottleneck_mode",
    )
    ib_hidden_size: int = flag(128, "for it: width inside", name="--ib_hidden_size")
    ib_ffn_num: int = flag(4, "for it: MLPs in a layer", name="--ib_ffn_num")
    ib_word_emb: int = flag(
        0,
        "inputs from this many entries of three neighbouring words each; 0: own word only",
        name="--ib_word_emb",
    )

    @property
    def table_rows(self) -> int:
        """Rows of the word table: the vocabulary's size, or fewer with vocabulary compression."""
        return mapped_rows(self.map_vocab_size, self.vocab_size)

    @property
    def logit_size(self) -> int:
        """Vocabulary logits of a position: of all ids, or of kept ones."""
        return self.table_rows if self.unmap_vocab_output else self.vocab_size

    @property
    def inner_size(self) -> int:
        """Width of attention and MLP: h, or that inside an inverted bottleneck."""
        return self.ib_hidden_size if self.inverted_bottleneck_mode else self.hidden_size

    def __post_init__(self):
        problems = list(shape_problems(self))
        if self.checkpoint_num_layers < 1:
            problems.append(
                f"--checkpoint-num-layers={self.checkpoint_num_layers}: must be positive"
            )
        problems += [
            f"--{name}={value}: must be in [0, 1)"
            for name, value in (
                ("attention-dropout", self.attention_dropout),
                ("hidden-dropout", self.hidden_dropout),
                ("output-dropout", self.output_dropout),
            )
            if not 0 <= value < 1
        ]
        if problems:
            raise ConfigError(problems)


def shape_problems(group: ArgGroup) -> Iterator[str]:
    """What is wrong with the sizes of a student or a teacher, in the flags of its group."""
    spelled = {f.name: f"{s}={getattr(group, f.name)}" for s, f in group.flags().items()}
    bottleneck = group.inverted_bottleneck_mode
    positive = ["num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"]
    positive += ["ib_hidden_size", "ib_ffn_num"] if bottleneck else []
    wrong = [name for name in positive if getattr(group, name) < 1]
    yield from (f"{spelled[name]}: must be positive" for name in wrong)
    kept = group.map_vocab_size
    if math.isfinite(kept) and not (0 <= kept < 1 or (kept >= 1 and kept == int(kept))):
        yield (
            f"{spelled['map_vocab_size']}: must be a whole number of ids, between 0 and 1 a "
            "fraction of the vocabulary, or 0 to keep all"
        )
    for name in ("compress_word_emb", "ib_word_emb"):
        if getattr(group, name) < 0:
            yield f"{spelled[name]}: must not be negative; 0 leaves it out"
    inner = "ib_hidden_size" if bottleneck else "hidden_size"
    if not wrong and getattr(group, inner) % group.num_attention_heads:
        yield f"{spelled[inner]}: is not a multiple of {spelled['num_attention_heads']}"
    if group.ib_word_emb > group.hidden_size:
        yield (
            f"{spelled['ib_word_emb']}: is more than word vectors have; "
            f"give at most {spelled['hidden_size']}"
        )


def mapped_rows(map_vocab_size: float, vocab_size: int) -> int:
    """Rows of a word table, from a number of ids (0, or not below all: all) or a fraction."""
    wanted = map_vocab_size if map_vocab_size >= 1 else map_vocab_size * vocab_size
    return math.ceil(wanted) if 0 < wanted < vocab_size else vocab_size


def cut_sizes(group: ArgGroup) -> Iterator[str]:
    """Fields of a student's or a teacher's group that the model-parallel size must divide."""
    yield "num_attention_heads"  # and so the inner width, of which it is a divisor
    if group.inverted_bottleneck_mode:
        yield "hidden_size"
    if group.compress_word_emb:
        yield "compress_word_emb"
