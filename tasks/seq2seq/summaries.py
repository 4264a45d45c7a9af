"""Summaries and other rewritings: a source, a target, one blank. Scored by ROUGE and BLEU."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from data_utils.bad_lines import BadLines
from data_utils.corpora import clean_text
from tasks.registry import register_task
from tasks.seq2seq.encode import Row
from tasks.seq2seq.files import Example, check_folder, read_json, read_pairs
from tasks.seq2seq.metrics import SEP, bleu, rouge
from tasks.seq2seq.task import Seq2SeqData, Seq2SeqTask

_BRACKETS = (("lrb", "("), ("rrb", ")"), ("lcb", "{"), ("rcb", "}"), ("lsb", "["), ("rsb", "]"))


def brackets(text: str, case: Callable[[str], str]) -> str:
    """Penn Treebank's -LRB- and so on as brackets; `case` is str.lower or str.upper."""
    for name, bracket in _BRACKETS:
        text = text.replace(f"-{case(name)}-", bracket)
    return text


def gigaword(source: str, target: str) -> tuple[str, str]:
    """Brackets, and UNK as the tokenizer's own token."""
    unknown = re.compile(r"\b(UNK|unk)\b")
    texts = (unknown.sub("[UNK]", brackets(text, str.lower)) for text in (source, target))
    source, target = texts
    return source, target


def cnn_dm(source: str, target: str) -> tuple[str, str]:
    """Brackets, clitics joined to their words, <S_SEP> between the sentences of a summary."""
    parts = source.replace("<S_SEP>", ""), target.replace("<S_SEP>", SEP)
    source, target = (_clitics(brackets(text, str.upper)) for text in parts)
    return source, target


def _clitics(text: str) -> str:
    return re.sub(r" (n't|'s|'d|'ll)\b", r"\1", text)


class Summary(Seq2SeqTask):
    """`[ENC] [mask] Content: <source>` -> target."""

    prompt: ClassVar[str] = " Content:"

    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """`<split>.source`, `<split>.target`, a line an example."""
        return read_pairs(folder, split, self.name, bad)

    def encode(self, examples: Sequence[Example], split: str) -> list[Row]:
        """Sources are cut at their end, to S; targets to T."""
        lengths, ids = self.options.lengths, self.ids
        start = [ids.command["ENC"], ids.mask(), *ids.one(self.prompt)]
        sources = ids.of([" " + x.source for x in examples])
        targets = ids.of([" " + x.target for x in examples])
        rows = []
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            context, piece = [*start, *source], ids.ended(target)
            cut = len(context) > lengths.source or len(piece) > lengths.target
            rows.append(Row(number, context[: lengths.source], [1], [piece[: lengths.target]], cut))
        return rows

    def scores(self, written: Sequence[str], data: Seq2SeqData) -> dict[str, float]:
        """ROUGE-1, -2, -L and BLEU."""
        references = self.as_written([data.example(i).target for i in range(len(data))])
        return rouge(written, references) | {"bleu": bleu(_joined(written), _joined(references))}


def _joined(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.replace(SEP, " ").split()) for text in texts]


@register_task("gigaword")
class Gigaword(Summary):
    """Headlines."""

    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """`<split>.source`, `<split>.target`; -lrb- and the like are brackets, UNK is [UNK]."""
        return read_pairs(folder, split, self.name, bad, gigaword)


@register_task("cnn_dm")
class CnnDm(Summary):
    """News, several sentences a summary."""

    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """`<split>.source`, `<split>.target`, as tokenized by CoreNLP; <S_SEP> parts sentences."""
        return read_pairs(folder, split, self.name, bad, cnn_dm)


@register_task("cnn_dm_original")
class CnnDmOriginal(Summary):
    """News as printed."""


@register_task("customization")
class Customization(Summary):
    """Pairs of one's own, of whatever kind: nothing is said about the source."""

    prompt = ""


@register_task("xsum")
class XSum(Summary):
    """One sentence a summary. Of the official files, or as pairs."""

    INDEX = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
    KEYS: ClassVar[dict[str, str]] = {"train": "train", "val": "validation", "test": "test"}

    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """The index of splits and `<id>.summary`; without the index, pairs."""
        check_folder(folder, self.name)
        index = folder / self.INDEX
        if not index.is_file():
            return read_pairs(folder, split, self.name, bad)
        names = read_json(index).get(self.KEYS[split])
        if not isinstance(names, list):
            raise ValueError(f"{index}: no list {self.KEYS[split]!r} of summary ids")
        examples = []
        for name in names:
            try:
                examples.append(_read_summary(folder / f"{name}.summary"))
            except ValueError as error:
                bad(error)
        bad.report(index)
        return examples


_SECTION = partial(re.compile, flags=re.DOTALL)
_SECTIONS = {
    "RESTBODY": _SECTION(r"\[SN\]RESTBODY\[SN\](.*?)(?=\[SN\]|\Z)"),
    "FIRST-SENTENCE": _SECTION(r"\[SN\]FIRST-SENTENCE\[SN\](.*?)(?=\[SN\]|\Z)"),
}


def _read_summary(path: Path) -> Example:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, which the index names")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    texts = []
    for name, pattern in _SECTIONS.items():
        found = pattern.search(content)
        text = " ".join(found[1].split()) if found else ""
        if not text:
            raise ValueError(f"{path}: no text behind [SN]{name}[SN]")
        texts.append(clean_text(text))
    return Example(str(path), *texts)
