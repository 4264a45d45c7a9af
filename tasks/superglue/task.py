"""SuperGlueTask: a task's patterns, files and scores behind the interface of `Task`."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from config.compat import Compat
from config.data import DataArgs
from config.errors import ConfigError
from config.tasks import FinetuneArgs
from data_utils.batch import Batch
from data_utils.tokenization import Tokenizer
from model.build import HeadSpec
from tasks.base import TaskShape
from tasks.choice import ChoiceTask
from tasks.superglue import metrics
from tasks.superglue.data import SPLITS, find_split, read_records
from tasks.superglue.dataset import Collator, EncodedDataset
from tasks.superglue.encode import Layout, Sample, encode

if TYPE_CHECKING:
    from tasks.superglue.pvp.base import PVP

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a task is set up; what FinetuneArgs, DataArgs and --compat say about it."""

    seq_length: int
    data_dir: str | None = None
    cloze: bool = True
    multi_token: bool = False  # score answers of several tokens where verbalizers would do
    fast_decode: bool = False
    block_position: bool = True
    length_penalty: float = 0.0
    pool_token: str = "cls"
    loss: str = "cross_entropy"
    fixed_choices: bool = False  # batches of one number of choices, whatever their samples have
    w14: bool = False  # the seed's lookup of verbalizers, position of masks, cut of pairs


class SuperGlueTask(ChoiceTask):
    """`dataset(split)` gives samples, `collate` batches of them."""

    def __init__(self, pvp: "PVP", tokenizer: Tokenizer, options: Options):
        self.pvp, self.tokenizer, self.options = pvp, tokenizer, options
        self.multi_token = options.cloze and (options.multi_token or pvp.own_answers)
        super().__init__(pvp.name, _head(pvp, options, self.multi_token), options.loss)
        self.metric_names = pvp.metric_names
        if options.cloze and not self.multi_token:
            for given, flag in (
                (options.fast_decode, "--fast-decode"),
                (options.length_penalty, "--length-penalty"),
            ):
                if given:
                    log.warning("%s: has no effect without answers of several tokens", flag)
        verbalizers = ()
        if options.cloze and not self.multi_token:
            verbalizers = _verbalizer_ids(pvp, tokenizer, options.w14)
        self.collator = Collator(
            eos=tokenizer.get_command("eos").Id,
            sop=tokenizer.get_command("sop").Id,
            cloze=options.cloze,
            verbalizers=verbalizers,
            block_position=options.block_position,
            fast_decode=self.fast_decode,
            several_rows=self.multi_token or pvp.own_answers,
            seat_after=options.pool_token == "start",
        )
        self._datasets: dict[str, EncodedDataset | None] = {}

    @property
    def fast_decode(self) -> bool:
        """Is the context encoded once for all answers?"""
        return self.multi_token and self.options.fast_decode

    @property
    def shape(self) -> TaskShape:
        """Labels; or the most choices that a sample of the splits read so far has."""
        if not self.collator.several_rows:
            return TaskShape(len(self.pvp.labels))
        sizes = [d.max_choices for d in self._datasets.values() if d is not None]
        most = max(sizes, default=len(self.pvp.labels))
        return TaskShape(most, most)

    def dataset(self, split: str) -> EncodedDataset | None:
        """The samples of "train", "val" or "test"; None if the folder has no test file.

        Read and encoded at the first call. FileNotFoundError names what is missing, ValueError
        file, line and field of what is wrong.
        """
        assert split in SPLITS, split
        if split not in self._datasets:
            self._datasets[split] = self._load(split)
        return self._datasets[split]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> one micro-batch, padded to its longest row."""
        least = 1
        if self.options.fixed_choices:
            least = max(d.max_choices for d in self._datasets.values() if d is not None)
        return self.collator(samples, least)

    def metrics(self, predictions: Mapping[int, int], split: str = "val") -> dict[str, float]:
        """Index of a sample -> chosen label, for a whole split. {} if the split has no labels."""
        dataset = self.dataset(split)
        if dataset is None or not dataset.labelled:
            return {}
        missing = len(dataset) - len(predictions)
        assert not missing, f"{missing} of {len(dataset)} predictions of {split} are missing"
        chosen = [predictions[i] for i in range(len(dataset))]
        scores = {"accuracy": metrics.accuracy, "f1-macro": metrics.f1_macro}
        return {name: scores[name](chosen, dataset.labels.tolist()) for name in self.metric_names}

    def prediction_lines(self, predictions: Mapping[int, int], split: str = "val") -> list[str]:
        """Lines `{"idx": ..., "label": ...}` of a predictions file, in the order of the split."""
        dataset, labels = self.dataset(split), self.pvp.labels
        assert dataset is not None, split
        return [
            json.dumps({"idx": dataset.idx[i], "label": labels[predictions[i]]})
            for i in sorted(predictions)
        ]

    def _load(self, split: str) -> EncodedDataset | None:
        if self.options.data_dir is None:
            raise ConfigError(
                f"--data-dir=: is missing; the folder with the files of --task={self.name}"
            )
        path = find_split(self.options.data_dir, self.pvp.files[split], self.name, split)
        if path is None:
            return None
        examples = self.pvp.read(read_records(path), split)
        if not examples:
            raise ValueError(f"{path}: holds no examples")
        if self.options.cloze:
            rows = [self.pvp.cloze_rows(x, self.multi_token) for x in examples]
        else:
            rows = [self.pvp.classifier_rows(x) for x in examples]
        layout = Layout(
            seq_length=self.options.seq_length,
            cloze=self.options.cloze,
            fast_decode=self.fast_decode,
            w14=self.options.w14,
        )
        encoded = encode(rows, [x.where for x in examples], self.tokenizer, layout)
        dataset = EncodedDataset(examples, encoded)
        log.log(
            logging.WARNING if encoded.num_squeezed else logging.INFO,
            "%s: %d examples; %d of %d rows cut to --seq-length=%d, %d even in text meant to stay",
            path,
            len(dataset),
            encoded.num_truncated,
            len(encoded.contexts),
            layout.seq_length,
            encoded.num_squeezed,
        )
        return dataset


def build_superglue(
    pvp_class: type["PVP"],
    name: str,
    finetuning: FinetuneArgs,
    data: DataArgs,
    tokenizer: Tokenizer,
    compat: Compat,
    block_position: bool,
) -> SuperGlueTask:
    """The task of the command line. ConfigError for a pattern or metric that it has not."""
    wanted = finetuning.validation_metric
    if wanted is not None and wanted not in pvp_class.metric_names:
        raise ConfigError(
            f"--validation-metric={wanted}: {name} has {', '.join(pvp_class.metric_names)}"
        )
    options = Options(
        seq_length=data.seq_length,
        data_dir=data.data_dir,
        cloze=finetuning.cloze_eval,
        multi_token=finetuning.multi_token,
        fast_decode=finetuning.fast_decode,
        block_position=block_position,
        length_penalty=finetuning.length_penalty,
        pool_token=finetuning.pool_token,
        loss="adapet" if finetuning.adapet and finetuning.cloze_eval else finetuning.loss_func,
        fixed_choices=finetuning.fix_variable_num_choices,
        w14="W14" in compat,
    )
    return SuperGlueTask(pvp_class(name, finetuning.pattern_id), tokenizer, options)


def _head(pvp: "PVP", options: Options, multi_token: bool) -> HeadSpec:
    if not options.cloze:
        classes = 1 if pvp.own_answers else len(pvp.labels)
        return HeadSpec("classification", num_classes=classes, pool_token=options.pool_token)
    if not multi_token:
        return HeadSpec("single_token", take_softmax=options.loss == "adapet")
    kind = "multi_token_fast" if options.fast_decode else "multi_token"
    return HeadSpec(kind, length_penalty=options.length_penalty)


def _verbalizer_ids(pvp: "PVP", tokenizer: Tokenizer, stripped: bool) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.token_id(word, stripped=stripped) for word in pvp.verbalizers())
    except ValueError as error:
        raise ConfigError(
            f"--pattern-id={pvp.pattern_id}: {error}; give --multi-token, another pattern, "
            "or no --cloze-eval"
        ) from error
