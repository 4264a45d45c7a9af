"""The seed's numerics on request: `--compat=glmkd`, single defects, all but some."""

from dataclasses import dataclass
from typing import Self

from config.errors import ConfigError

#: Every item, with what it turns back on. docs/differences.md gives the reasons.
ITEMS: dict[str, str] = {
    "D1": "squared error of fine-tuning's soft labels ignores the loss mask",
    "D2": "soft cross entropy is not multiplied by the squared temperature",
    "D3": "masked losses divide by all rows of the micro-batch, padding included",
    "D6": "fine-tuning gives soft and intermediate losses neither token nor choice masks",
    "D13": "--alp_kd_lambda and --rail_kd_layer_wise_alpha do nothing",
    "D16": "a narrower student starts from a fused projection cut as one block",
    "D20": "staged methods count calls, one stage a call, and forget the count on resume",
    "D21": "PKD, RAIL-KD, MGSKD, DIITO and ERDistill take every floor(T / S)-th teacher layer",
    "D27": "MiniLM applies the softmax to probabilities once more",
    "D28": "Universal-KD trains the teacher's projections and its own target",
    "D29": "DIITO swaps the input of attention only, not the hidden state",
    "D31": "Theseus may run a forward pass of teacher blocks only",
    "D32": "a mix shares TinyBERT's projected captures with its other methods",
    "D37": "RAIL-KD sums over the batch",
    "MT": "combiners of several teachers: uncertainty and RL-KD as in the seed",
    "W11": "the linear decay of the learning rate goes on below its floor",
    "W29": "F1a, EM and macro-F1 of MultiRC and CB are fractions, not percent",
    "W14": "verbalizers of byte-level BPE lose their leading space; the first mask counts",
    "W16": "beams are drawn, unless --select-topk is given",
}

ALL = "glmkd"  # the name of the whole set


@dataclass(frozen=True)
class Compat:
    """A set of items in which a run follows the seed instead of the paper."""

    items: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """`""`, `"glmkd"`, `"D2,D3"`, `"glmkd,-D1"`. ConfigError for an item not known."""
        chosen: set[str] = set()
        unknown = []
        for word in filter(None, (part.strip() for part in text.split(","))):
            drop, name = word.startswith("-"), word.removeprefix("-")
            if name != ALL and name not in ITEMS:
                unknown.append(word)
                continue
            named = set(ITEMS) if name == ALL else {name}
            chosen = chosen - named if drop else chosen | named
        if unknown:
            raise ConfigError(
                f"--compat={text}: unknown {', '.join(unknown)}; known are {ALL}, "
                f"{', '.join(ITEMS)}, and each of them with a leading minus"
            )
        return cls(frozenset(chosen))

    def __contains__(self, item: str) -> bool:
        assert item in ITEMS, f"{item} is not in config.compat.ITEMS"
        return item in self.items

    def __bool__(self) -> bool:
        return bool(self.items)

    def __str__(self) -> str:
        """The shortest spelling that `parse` reads back: `glmkd,-D1` or `D2,D3`."""
        missing = [name for name in ITEMS if name not in self.items]
        if len(missing) < len(ITEMS) / 2:
            return ",".join([ALL, *("-" + name for name in missing)])
        return ",".join(name for name in ITEMS if name in self.items)
