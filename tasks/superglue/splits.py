"""Splits: the samples of a task's files, read and encoded at the first call."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from config.errors import ConfigError
from data_utils.bad_lines import BadLines
from data_utils.tokenization import Tokenizer
from tasks.superglue.data import SPLITS, find_split
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import Layout, encode

if TYPE_CHECKING:
    from tasks.superglue.pvp.base import PVP

log = logging.getLogger(__name__)


class Splits:
    """`splits("train")` and the others of one task."""

    def __init__(self, pvp: "PVP", tokenizer: Tokenizer, multi_token: bool):
        """multi_token: answers are rows of their own."""
        self.pvp, self.tokenizer, self.options = pvp, tokenizer, pvp.options
        self.multi_token = multi_token
        self._read: dict[str, EncodedDataset | None] = {}

    def __call__(self, split: str) -> EncodedDataset | None:
        """The samples of "train", "val" or "test"; None if the folder has no test file.

        FileNotFoundError names what is missing, ValueError file, line and field of what is wrong.
        """
        assert split in SPLITS, split
        if split not in self._read:
            self._read[split] = self._load(split)
        return self._read[split]

    def read_so_far(self) -> list[EncodedDataset]:
        """Those that were asked for and are there."""
        return [dataset for dataset in self._read.values() if dataset is not None]

    def layout(self) -> Layout:
        """How rows become ids."""
        options = self.options
        return Layout(
            seq_length=options.seq_length,
            cloze=options.cloze,
            fast_decode=self.multi_token and options.fast_decode,
            segment_length=options.segment_length if self.multi_token else 0,
            prompt_tokens=options.prompt_tokens,
            prefix_tokens=options.prefix_tokens,
            pattern=f"pattern {self.pvp.pattern_id} of {self.pvp.name}",
            w14=options.w14,
        )

    def _load(self, split: str) -> EncodedDataset | None:
        pvp, options = self.pvp, self.options
        if options.data_dir is None:
            raise ConfigError(
                f"--data-dir=: is missing; the folder with the files of --task={pvp.name}"
            )
        path = find_split(options.data_dir, pvp.files_of(split), pvp.name, split)
        return None if path is None else self._encoded(path, split)

    def _encoded(self, path: Path, split: str) -> EncodedDataset:
        bad, layout = BadLines(self.options.skip_bad_lines), self.layout()
        examples = self.pvp.read(path, split, bad)
        bad.report(path)
        if not examples:
            raise ValueError(f"{path}: holds no examples that can be used")
        if layout.cloze:
            rows = [self.pvp.cloze_rows(x, self.multi_token) for x in examples]
        else:
            rows = [self.pvp.classifier_rows(x) for x in examples]
        encoded = encode(rows, [x.where for x in examples], self.tokenizer, layout)
        log.log(
            logging.WARNING if encoded.num_squeezed else logging.INFO,
            "%s: %d examples; %d of %d rows cut to --seq-length=%d, %d even in text meant to stay",
            path,
            len(examples),
            encoded.num_truncated,
            len(encoded.contexts),
            layout.seq_length,
            encoded.num_squeezed,
        )
        return EncodedDataset(examples, encoded)
