"""Texts with several blanks, filled from left to right; later pieces see earlier ones."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

from data_utils.bad_lines import BadLines
from data_utils.corpora import clean_text
from tasks.registry import register_task
from tasks.seq2seq.encode import Row
from tasks.seq2seq.files import (
    Example,
    check_folder,
    missing,
    raw_lines,
    read_lines,
    read_pairs,
    split_file,
)
from tasks.seq2seq.metrics import bleu, exact, f1, mean
from tasks.seq2seq.task import Seq2SeqData, Seq2SeqTask

BLANK = "<blank>"  # in the files of test texts


class Filling(Seq2SeqTask):
    """A source with masks in it; a text for each."""

    several_blanks = True

    def _row(self, number: int, context: list[int], fills: Sequence[list[int]]) -> Row:
        """The context is cut to S, and loses the blanks behind."""
        lengths, ids = self.options.lengths, self.ids
        short = context[: lengths.source]
        blanks = [i for i, token in enumerate(short) if token in ids.masks]
        pieces = [ids.ended(fill) for fill in fills[: len(blanks)]]
        cut = len(context) > len(short) or sum(map(len, pieces)) > lengths.target
        return Row(number, short, blanks, pieces, cut)

    def _wanted(self, data: Seq2SeqData, i: int) -> list[str]:
        return self.as_written(data.example(i).fills)


@register_task("blank")
class Blank(Filling):
    """Text infilling: one text a line in `<split>.txt`; a part of its words is blanked out.

    The words are drawn once, by the text's number (--blank-maskratio); for the test they may be
    given: `blank/test.maskratio0.1.blank` has test.txt's lines with <blank> for what is left out.
    """

    metric_names = ("bleu", "em")

    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """source: the text with [MASK] for its blanks, target: the whole text."""
        check_folder(folder, self.name)
        path = split_file(folder, split, ".txt")
        if path is None and split == "test":
            return None
        if path is None:
            raise missing(folder, self.name, split, ".txt")
        given = self._given(folder) if split == "test" else None
        lines = raw_lines(path)
        if given is not None and len(given[1]) != len(lines):
            raise ValueError(f"{given[0]} has {len(given[1])} lines, {path} {len(lines)}")
        examples = []
        for number, raw in enumerate(lines):
            where = raw.where
            try:
                line = raw.filled()
                if set(self.ids.one(line)) & set(self.ids.masks):
                    raise ValueError(f"{where}: holds a mask token itself; take it out")
                if given is None:
                    blanked = self._draw(clean_text(line).split(), split, number)
                else:
                    blanked = clean_text(given[1][number])
                examples.append(_blanked(where, clean_text(line), blanked))
            except ValueError as error:
                bad(error)
        bad.report(path)
        return examples

    def encode(self, examples: Sequence[Example], split: str) -> list[Row]:
        """The blanks are [MASK], with --task-mask [gMASK]."""
        ids, rows = self.ids, []
        mask = ids.mask("gMASK")
        for number, x in enumerate(examples):
            parts = x.source.split(BLANK)
            texts = ids.of([" " + p.strip() if p.strip() else "" for p in parts])
            context = [ids.command["ENC"], *texts[0]]
            for part in texts[1:]:
                context += [mask, *part]
            rows.append(self._row(number, context, ids.of([" " + fill for fill in x.fills])))
        return rows

    def scores(self, written: Sequence[list[str]], data: Seq2SeqData) -> dict[str, float]:
        """BLEU of the filled texts; blanks filled as in the text."""
        texts, wholes, fills, wanted = [], [], [], []
        for i, found in enumerate(written):
            x, right = data.example(i), self._wanted(data, i)
            found = [*found, *[""] * len(right)][: len(right)]  # those that were cut off
            parts = self.as_written(x.source.split(BLANK))
            texts.append(_fill(parts, found))
            wholes.append(_fill(parts, right))
            fills += found
            wanted += [[answer] for answer in right]
        return {"bleu": bleu(texts, wholes), "em": mean(exact, fills, wanted)}

    def _given(self, folder: Path) -> tuple[Path, list[str]] | None:
        path = folder / "blank" / f"test.maskratio{self.options.mask_ratio:g}.blank"
        return (path, read_lines(path)) if path.is_file() else None

    def _draw(self, words: Sequence[str], split: str, number: int) -> str:
        """The words with neighbours that were drawn as one <blank>; at least one word is drawn."""
        draw = random.Random(f"{split} {number}")
        count = max(1, int(len(words) * self.options.mask_ratio))
        out = set(draw.sample(range(len(words)), count))
        shown = [BLANK if i in out else word for i, word in enumerate(words)]
        return " ".join(word for i, word in enumerate(shown) if word != BLANK or i - 1 not in out)


def _blanked(where: str, line: str, blanked: str) -> Example:
    """What stands in the blanks, found by matching the words around them."""
    parts = [" ".join(part.split()) for part in blanked.split(BLANK)]
    if len(parts) < 2:
        raise ValueError(f"{where}: its blanked line has no {BLANK}")
    pattern = " ?(.+?) ?".join(re.escape(part) for part in parts)
    found = re.fullmatch(pattern, " ".join(line.split()))
    if found is None:
        raise ValueError(f"{where}: is not its blanked line {blanked!r} with something filled in")
    return Example(where, blanked, line, fills=found.groups())


def _fill(parts: Sequence[str], fills: Sequence[str]) -> str:
    """The parts with a fill between each two."""
    joined = [parts[0]]
    for fill, part in zip(fills, parts[1:], strict=True):
        joined += [fill, part]
    return " ".join(" ".join(joined).split())


@register_task("extraction")
class Extraction(Filling):
    """`<split>.source` with masks ([MASK]) in its lines; `<split>.target` has a text for each,

    parted by |."""

    metric_names = ("f1", "em")

    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """fills: as many as the source has masks."""
        pairs = read_pairs(folder, split, self.name, bad)
        if pairs is None:
            return None
        examples, uneven = [], BadLines(self.options.skip_bad_lines)
        counts = [
            sum(t in self.ids.masks for t in x) for x in self.ids.of([p.source for p in pairs])
        ]
        for pair, count in zip(pairs, counts, strict=True):
            fills = tuple(fill.strip() for fill in pair.target.split("|"))
            if count != len(fills) or not all(fills):
                uneven(
                    ValueError(
                        f"{pair.where}: {count} masks ([MASK]), but the target has "
                        f"{len([f for f in fills if f])} texts parted by |"
                    )
                )
                continue
            examples.append(Example(pair.where, pair.source, pair.target, fills=fills))
        uneven.report(folder)
        return examples

    def encode(self, examples: Sequence[Example], split: str) -> list[Row]:
        """Sources as they are."""
        ids = self.ids
        sources = ids.of([" " + x.source for x in examples])
        return [
            self._row(
                number, [ids.command["ENC"], *source], ids.of([" " + fill for fill in x.fills])
            )
            for number, (x, source) in enumerate(zip(examples, sources, strict=True))
        ]

    def scores(self, written: Sequence[list[str]], data: Seq2SeqData) -> dict[str, float]:
        """F1 of the words and exact matches, over all blanks."""
        fills, wanted = [], []
        for i, found in enumerate(written):
            right = self._wanted(data, i)
            fills += [*found, *[""] * len(right)][: len(right)]
            wanted += [[answer] for answer in right]
        return {"f1": mean(f1, fills, wanted), "em": mean(exact, fills, wanted)}
