"""Parameter name -> Partition, for checkpoints that do not say how they are cut.

The models of this project carry their partitions (`mpu.partition_of`); this table is for files of
others. A name that is not in it is an error: a guess would cut a tensor along the wrong dimension.
"""

import re

from mpu.layout import Partition

ROWS, COLUMNS, QKV = Partition(dim=0), Partition(dim=1), Partition(dim=0, stride=3)

_LAYER = r"transformer\.layers\.\d+\."
_TABLE: tuple[tuple[str, Partition | None], ...] = (
    (r"word_embeddings\.weight", ROWS),
    (r"(ib|compress|decompress)_emb_mlp\.(weight|bias)", ROWS),
    (r"transformer\.(block_)?position_embeddings\.weight", None),
    (r"transformer\.position_embeddings\.inv_freq", None),
    (r"transformer\.r_[wr]_bias", ROWS),
    (_LAYER + r"(input|post_attention)_layernorm\.(weight|bias)", None),
    (_LAYER + r"attention\.query_key_value\.(weight|bias)", QKV),
    (_LAYER + r"attention\.relative\.(weight|bias)", ROWS),
    (_LAYER + r"attention\.dense\.weight", COLUMNS),
    (_LAYER + r"attention\.dense\.bias", None),
    (_LAYER + r"(ib_mlp\.\d+|mlp)\.dense_h_to_4h\.(weight|bias)", ROWS),
    (_LAYER + r"(ib_mlp\.\d+|mlp)\.dense_4h_to_h\.weight", COLUMNS),
    (_LAYER + r"(ib_mlp\.\d+|mlp)\.dense_4h_to_h\.bias", None),
    (_LAYER + r"ib_linear_(in|out)\.(weight|bias)", ROWS),
    (_LAYER + r"ib_(mlp_layernorm\.\d+|linear_out_layernorm)\.(weight|bias)", None),
    (r"transformer\.final_layernorm\.(weight|bias)", None),
    (r"(pool_layer|multichoice_head)\.(weight|bias)", None),
    (r"prompt_spell\..+", None),
    (r"vocab_map\..+", None),
)


def partition_for(name: str) -> Partition | None:
    """How a checkpoint's tensor is cut; None if every rank has all of it.

    ValueError for a name that no model of this project has.
    """
    for pattern, partition in _TABLE:
        if re.fullmatch(pattern, name):
            return partition
    raise ValueError(f"{name}: not a parameter of a GLM, so its partition is not known")


def spell(partition: Partition | None) -> str:
    """A partition in words, as config.json records it: `whole`, `dim 0`, `dim 0 in 3 blocks`."""
    if partition is None:
        return "whole"
    blocks = f" in {partition.stride} blocks" if partition.stride > 1 else ""
    return f"dim {partition.dim}{blocks}"


def read(text: str) -> Partition | None:
    """The partition that `spell` put into words. ValueError for other words."""
    found = re.fullmatch(r"dim (\d+)(?: in (\d+) blocks)?", text)
    if found is None and text != "whole":
        raise ValueError(
            f"{text!r}: is no partition; such are 'whole', 'dim 0', 'dim 0 in 3 blocks'"
        )
    return Partition(int(found[1]), int(found[2] or 1)) if found else None
