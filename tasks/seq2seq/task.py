"""Seq2SeqTask: files, encodings, decoding and scores behind the interface of `Task`."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from config.errors import ConfigError
from data_utils.bad_lines import BadLines
from data_utils.batch import Batch
from data_utils.tokenization import Tokenizer
from tasks.base import FinetuneTask, as_float, weighted
from tasks.block_lm import BlockLM
from tasks.generation import Decoding, Symbols, Writer
from tasks.registry import Setting
from tasks.seq2seq.encode import Collator, Ids, Lengths, Row, Sample
from tasks.seq2seq.files import Example
from tasks.seq2seq.metrics import readable

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a task is set up; what the command line says about it."""

    lengths: Lengths
    decoding: Decoding
    data_dir: str | None = None
    label_smoothing: float = 0.0
    mask_ratio: float = 0.1  # of `blank`
    block_position: bool = True
    skip_bad_lines: bool = False


def _check_installed(name: str) -> None:
    """ConfigError before any work without the libraries that write and score texts."""
    missing = [x for x in ("transformers", "rouge_score", "sacrebleu") if find_spec(x) is None]
    if missing:
        raise ConfigError(f"--task={name}: needs pip install {' '.join(missing)}")


@dataclass
class Seq2SeqData:
    """A split: its examples, and the rows made of them. `data[~i]` is row i with weight 0."""

    examples: list[Example]
    rows: list[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:
        number = i if i >= 0 else ~i
        return Sample(self.rows[number], number, weight=float(i >= 0))

    def example(self, i: int) -> Example:
        """The example that row i was made of."""
        return self.examples[self.rows[i].example]


class Seq2SeqTask(BlockLM, FinetuneTask):
    """Fine-tuned as a language model on the targets, evaluated by what it writes.

    A subclass says how its files are read, how an example is encoded and how texts are scored.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("rouge-1", "rouge-2", "rouge-l", "bleu")
    several_blanks: ClassVar[bool] = False  # a prediction is a list of texts

    def __init__(self, name: str, tokenizer: Tokenizer, options: Options):
        super().__init__(options.label_smoothing)
        self.name, self.tokenizer, self.options = name, tokenizer, options
        self.ids, self.symbols = Ids(tokenizer), Symbols.of(tokenizer)
        self._collator = Collator(self.ids, options.lengths, options.block_position)
        self._datasets: dict[str, Seq2SeqData | None] = {}

    @classmethod
    def build(cls, name: str, setting: Setting) -> "Seq2SeqTask":
        """The task of the command line. ConfigError for a library that is not installed."""
        _check_installed(name)
        text = setting.text
        decoding = Decoding(
            max_length=text.tgt_seq_length,
            min_length=text.min_tgt_length,
            num_beams=text.num_beams,
            length_penalty=setting.finetuning.length_penalty,
            no_repeat_ngram_size=text.no_repeat_ngram_size,
            draw="W16" in setting.compat and text.num_beams > 1 and not text.select_topk,
        )
        options = Options(
            lengths=Lengths(text.src_seq_length, text.tgt_seq_length),
            decoding=decoding,
            data_dir=setting.data.data_dir,
            label_smoothing=text.label_smoothing,
            mask_ratio=text.blank_maskratio,
            block_position=setting.block_position,
            skip_bad_lines=setting.data.skip_bad_lines,
        )
        return cls(name, setting.tokenizer, options)

    @abstractmethod
    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """The examples of a split; None for a test split that is not there."""

    @abstractmethod
    def encode(self, examples: Sequence[Example], split: str) -> list[Row]:
        """Rows of all examples, in order; one each, or several."""

    @abstractmethod
    def scores(self, written: Sequence[Any], data: Seq2SeqData) -> dict[str, float]:
        """What was written for every row of a split -> scores in percent."""

    def dataset(self, split: str) -> Seq2SeqData | None:
        """The rows of "train", "val" or "test"; None without a test split.

        Read and encoded at the first call. FileNotFoundError, ValueError: file, line and remedy.
        """
        if split not in self._datasets:
            self._datasets[split] = self._load(split)
        return self._datasets[split]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Rows -> one micro-batch."""
        return self._collator(samples)

    def row_masks(self, batch: Batch) -> dict[str, Tensor]:
        """`targets` [b, s]: the loss mask. `tokens` [b, s]: all but padding, inside too."""
        targets = as_float(batch.loss_mask, batch.tokens)
        columns = torch.arange(batch.tokens.size(1), device=batch.tokens.device)
        source = (columns < batch.attention_mask[:, None]) & (batch.tokens != self.symbols.pad)
        return {
            "targets": weighted(targets, batch.weight),
            "tokens": weighted(torch.maximum(targets, source.float()), batch.weight),
        }

    def answers(self, model: nn.Module, batch: Batch) -> list[Any]:
        """The text written into each sample's blank; a list of texts where it has several."""
        width = self.options.lengths.source
        writer = Writer(
            model,
            self.symbols,
            batch.tokens[:, :width],
            batch.position_ids[:, :, :width],
            batch.attention_mask,
            block_position=self.options.block_position,
        )
        if not self.several_blanks:
            pieces = writer.write(batch.position_ids[:, 0, width], self.options.decoding)
            return [self.text_of(piece) for piece in pieces]
        blanks = self._blanks(batch.tokens[:, :width])
        found = writer.fill(blanks, self.options.decoding)
        return [[self.text_of(piece) for piece in row] for row in found]

    def text_of(self, piece: Sequence[int]) -> str:
        """Ids as people write them. Scores compare it with a target that went the same way."""
        return readable(self.tokenizer.decode(piece))

    def as_written(self, texts: Sequence[str]) -> list[str]:
        """References as a perfect model would write them: encoded and decoded again."""
        return [self.text_of(ids) for ids in self.ids.of([" " + text for text in texts])]

    def metrics(self, predictions: Mapping[int, Any], split: str = "val") -> dict[str, float]:
        """Index of a row -> what was written, for a whole split."""
        data = self.dataset(split)
        if data is None:
            return {}
        missing = len(data) - len(predictions)
        assert not missing, f"{missing} of {len(data)} predictions of {split} are missing"
        return self.scores([predictions[i] for i in range(len(data))], data)

    def _blanks(self, contexts: Tensor) -> list[list[int]]:
        masks = torch.tensor(self.ids.masks, device=contexts.device)
        found = torch.isin(contexts, masks)
        return [row.nonzero().flatten().tolist() for row in found]

    def _load(self, split: str) -> Seq2SeqData | None:
        folder = self.options.data_dir
        if folder is None:
            raise ConfigError(
                f"--data-dir=: is missing; the folder with the files of --task={self.name}"
            )
        examples = self.read(Path(folder), split, BadLines(self.options.skip_bad_lines))
        if examples is None:
            return None
        if not examples:
            raise ValueError(f"{folder}: the {split} split of {self.name} holds no examples")
        data = Seq2SeqData(examples, self.encode(examples, split))
        cut = sum(row.truncated for row in data.rows)
        lengths = self.options.lengths
        log.info(
            "%s, %s: %d examples, %d rows; %d cut to --src-seq-length=%d or --tgt-seq-length=%d",
            *(folder, split, len(examples), len(data), cut, lengths.source, lengths.target),
        )
        return data
