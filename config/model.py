"""The architecture of a GLM: what its weights fit into."""

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
    mem_length: int = flag(0, "remembered states of earlier segments (tokens)")
    checkpoint_activations: bool = flag(False, "recompute activations in the backward pass")
    checkpoint_num_layers: int = flag(1, "layers in one recomputed chunk")
    no_block_position: bool = flag(False, "block-LM samples carry no second position row")
    block_position_encoding: bool = (
        True  # False: one row of positions, tables without the extra row
    )

    def __post_init__(self):
        problems = [
            f"--{name}={value}: must be positive"
            for name, value in (
                ("num-layers", self.num_layers),
                ("hidden-size", self.hidden_size),
                ("num-attention-heads", self.num_attention_heads),
                ("max-position-embeddings", self.max_position_embeddings),
                ("checkpoint-num-layers", self.checkpoint_num_layers),
            )
            if value < 1
        ]
        if not problems and self.hidden_size % self.num_attention_heads:
            problems.append(
                f"--hidden-size={self.hidden_size}: is not a multiple of "
                f"--num-attention-heads={self.num_attention_heads}"
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
