"""LAMBADA, WikiText and texts of one's own: a language model is scored, nothing is trained."""

import dataclasses
import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

import mpu
from data_utils.bad_lines import BadLines
from data_utils.batch import Batch
from data_utils.tokenization import Tokenizer
from tasks.base import FinetuneTask, in_model_labels
from tasks.block_lm import BlockLM
from tasks.language_model.texts import plain_wikitext, read_texts, read_whole, text_file
from tasks.language_model.windows import Collator, Cut, Window
from tasks.registry import Setting, register_task

HIGHEST = 20.0  # nats; the logarithm of the largest perplexity that is told, as in the seed


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    length: int  # of a window (tokens)
    step: int = 32
    unidirectional: bool = False
    file: str = ""
    text_key: str = "text"
    skip_bad_lines: bool = False
    block_position: bool = True


class Windows:
    """The windows of all texts; they are cut when they are asked for. `x[~i]` has weight 0."""

    def __init__(self, texts: Sequence[np.ndarray], cut: Cut):
        self.texts, self.cut = texts, cut
        self.ends = list(accumulate(cut.number(len(ids)) for ids in texts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, i: int) -> Window:
        number = i if i >= 0 else ~i
        text = bisect_right(self.ends, number)
        before = self.ends[text - 1] if text else 0
        window = self.cut.window(self.texts[text], number - before)
        return dataclasses.replace(window, sample_id=number, weight=float(i >= 0))


class Answers:
    """One window an example, as they are. `x[~i]` has weight 0."""

    def __init__(self, windows: list[Window]):
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> Window:
        number = i if i >= 0 else ~i
        return dataclasses.replace(self.windows[number], sample_id=number, weight=float(i >= 0))


class LMTask(BlockLM, FinetuneTask):
    """Validation only: the file of --valid-data."""

    metric_names: ClassVar[tuple[str, ...]] = ("ppl", "adjusted-ppl", "loss")

    def __init__(self, name: str, tokenizer: Tokenizer, options: Options):
        super().__init__()
        self.name, self.tokenizer, self.options = name, tokenizer, options
        ids = {c.name: c.Id for c in tokenizer.commands.values()}
        self.eos, self.enc = ids["eos"], ids["ENC"]
        self.mask = ids.get("gMASK", ids["MASK"])
        self._collator = Collator(ids["pad"], ids["sop"], options.block_position)
        self._data: Any = None

    @classmethod
    def build(cls, name: str, setting: Setting) -> "LMTask":
        """The task of the command line."""
        data, text = setting.data, setting.text
        files = data.valid_data or ("",)
        options = Options(
            length=data.eval_seq_length or data.seq_length,
            step=text.overlapping_eval,
            unidirectional=text.unidirectional,
            file=files[0],
            text_key=data.text_key,
            skip_bad_lines=data.skip_bad_lines,
            block_position=setting.block_position,
        )
        return cls(name, setting.tokenizer, options)

    @abstractmethod
    def read(self, file: Path, bad: BadLines) -> Any:
        """The windows of a file."""

    def dataset(self, split: str) -> Any:
        """The windows of --valid-data under "val"; None for the other splits."""
        if split != "val":
            return None
        if self._data is None:
            file = text_file(self.options.file, self.name)
            self._data = self.read(file, BadLines(self.options.skip_bad_lines))
        return self._data

    def collate(self, samples: Sequence[Window]) -> Batch:
        """Windows -> one micro-batch."""
        return self._collator(samples)

    def answers(self, model: nn.Module, batch: Batch) -> list[tuple[float, int, bool]]:
        """Of each window: summed loss (nats), targets, whether each is the likeliest word.

        Logits are made for targets only.
        """
        batch = in_model_labels(self, batch, model)
        wanted = self.row_masks(batch)["targets"] > 0
        rows = wanted.flatten().nonzero().squeeze(1)
        logits = model(*self.inputs(batch), output_rows=rows)[0]
        labels = batch.labels.flatten()[rows]
        losses = mpu.vocab_parallel_cross_entropy(logits, labels)
        best = mpu.gather_from_model_parallel_region(logits).argmax(-1) == labels
        sample = rows // batch.tokens.size(1)
        sums = losses.double().new_zeros(len(batch)).index_add(0, sample, losses.double())
        counts = wanted.sum(1)
        hits = counts.new_zeros(len(batch)).index_add(0, sample, best.long())
        return [
            (loss, count, hit == count)
            for loss, count, hit in zip(sums.tolist(), counts.tolist(), hits.tolist(), strict=True)
        ]


class Perplexity(LMTask):
    """Perplexity of all tokens but each text's first.

    loss = sum / targets      ppl = e^loss      adjusted-ppl = e^(sum / (words - texts))

    Words are those of the file, between spaces: the same for every tokenizer. Exponents are told
    up to 20.
    """

    words: int = 0
    texts: int = 0

    def read(self, file: Path, bad: BadLines) -> Windows:
        """Texts as ids, in windows."""
        raw, texts = self.documents(file, bad)
        self.words, self.texts = sum(len(text.split()) for text in raw), len(raw)
        ids = [np.array(x, dtype=np.int64) for x in self.tokenizer.encode_batch(texts)]
        cut = Cut(
            length=self.options.length,
            step=self.options.step,
            unidirectional=self.options.unidirectional,
            enc=self.enc,
            mask=self.mask,
        )
        return Windows([x for x in ids if len(x) > 1], cut)

    @abstractmethod
    def documents(self, file: Path, bad: BadLines) -> tuple[list[str], list[str]]:
        """The texts of a file as they are (words are counted there), and as they are read."""

    def metrics(
        self, predictions: Mapping[int, tuple[float, int, bool]], split: str = "val"
    ) -> dict[str, float]:
        """Window -> (loss, targets, ...), of all of them -> scores."""
        total = math.fsum(loss for loss, *_ in predictions.values())
        targets = sum(count for _, count, _ in predictions.values())
        loss, by_word = total / targets, total / max(1, self.words - self.texts)
        exponents = {"ppl": loss, "adjusted-ppl": by_word}
        return {k: math.exp(min(HIGHEST, v)) for k, v in exponents.items()} | {"loss": loss}


@register_task("wikitext")
class WikiText(Perplexity):
    """WikiText-2 or -103: one text, written as people write before it is tokenized."""

    def documents(self, file: Path, bad: BadLines) -> tuple[list[str], list[str]]:
        """The whole file."""
        text = read_whole(file)
        return [text], [plain_wikitext(text)]


@register_task("language_model")
class PlainTexts(Perplexity):
    """One text a line (.txt), or a row (.jsonl)."""

    def documents(self, file: Path, bad: BadLines) -> tuple[list[str], list[str]]:
        """Every line."""
        texts = [text for _, text in read_texts(file, self.options.text_key, bad)]
        return texts, texts


@register_task("lambda")
class Lambada(LMTask):
    """LAMBADA (Paperno et al., 2016): the last word of a passage. `lambda` is the seed's name.

    `[ENC] passage [mask] [eos] | [sop] word`. It is right if each of its tokens is the likeliest
    one. A passage that is too long loses its beginning.
    """

    metric_names = ("accuracy", "ppl")

    def read(self, file: Path, bad: BadLines) -> Answers:
        """A window a line."""
        passages, words = [], []
        for _, text in read_texts(file, self.options.text_key, bad):
            passage, word = text.rstrip().rsplit(maxsplit=1)
            passages.append(passage)
            words.append(" " + word)
        encode = self.tokenizer.encode_batch
        pairs = zip(encode(passages), encode(words), strict=True)
        return Answers([self._window(passage, word) for passage, word in pairs])

    def _window(self, passage: list[int], word: list[int]) -> Window:
        room = max(1, self.options.length - 3 - len(word))
        passage, rest = passage[-room:], list(word)
        if self.options.unidirectional:
            passage, rest = passage[:1], [*passage[1:], *word]
        context = np.array([self.enc, *passage, self.mask, self.eos], dtype=np.int64)
        targets = np.array(rest, dtype=np.int64)
        return Window(context, len(context) - 2, targets, len(rest) - len(word))

    def metrics(
        self, predictions: Mapping[int, tuple[float, int, bool]], split: str = "val"
    ) -> dict[str, float]:
        """Percent of the passages whose word is right; perplexity of its tokens."""
        rows = predictions.values()
        loss = math.fsum(row[0] for row in rows) / sum(row[1] for row in rows)
        right = sum(row[2] for row in rows)
        return {"accuracy": 100.0 * right / len(rows), "ppl": math.exp(min(HIGHEST, loss))}


@register_task("lambada")
class LambadaByName(Lambada):
    """The same under its right name."""
