"""SuperGlueTask: a task's patterns, files and scores behind the interface of `Task`."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from config.errors import ConfigError
from data_utils.batch import Batch
from data_utils.tokenization import Tokenizer
from model.build import HeadSpec
from tasks.base import TaskShape
from tasks.choice import ChoiceTask
from tasks.superglue.dataset import Collator, EncodedDataset
from tasks.superglue.encoded import Sample
from tasks.superglue.generative import GenerativeTask
from tasks.superglue.options import Options, prompts_of
from tasks.superglue.scores import Scorer
from tasks.superglue.splits import Splits

if TYPE_CHECKING:
    from tasks.superglue.pvp.base import PVP

log = logging.getLogger(__name__)

FIXED_CHOICES = 10  # of --fix_variable_num_choices, as many as a training example has at most


class SuperGlueTask(ChoiceTask):
    """`dataset(split)` gives samples, `collate` batches of them."""

    def __init__(self, pvp: "PVP", tokenizer: Tokenizer):
        self.pvp, self.tokenizer, self.options = pvp, tokenizer, pvp.options
        options = pvp.options
        self.multi_token = options.cloze and (options.multi_token or pvp.own_answers)
        verbalizers = ()
        if options.cloze and not self.multi_token:
            self._warn_of_long_answers_only()
            verbalizers = _verbalizer_ids(pvp, tokenizer)
        super().__init__(pvp.name, _head(pvp, self.multi_token, verbalizers), options.loss)
        self.splits = Splits(pvp, tokenizer, self.multi_token)
        self.scorer = Scorer(pvp, self.splits)
        self.metric_names = pvp.metric_names
        self.collator = Collator(
            eos=tokenizer.get_command("eos").Id,
            sop=tokenizer.get_command("sop").Id,
            cloze=options.cloze,
            verbalizers=verbalizers,
            block_position=options.block_position,
            fast_decode=self.fast_decode,
            several_rows=self.multi_token or (pvp.row_per_choice and not options.cloze),
            seat_after=options.pool_token == "start",
        )

    @property
    def fast_decode(self) -> bool:
        """Is the context encoded once for all answers?"""
        return self.multi_token and self.options.fast_decode

    @property
    def shape(self) -> TaskShape:
        """Labels; or the most choices that a sample of the splits read so far has."""
        if not self.collator.several_rows:
            return TaskShape(len(self.pvp.labels))
        sizes = [dataset.max_choices for dataset in self.splits.read_so_far()]
        most = max(sizes, default=len(self.pvp.labels))
        if self.options.fixed_choices and self.pvp.variable_choices:
            most = FIXED_CHOICES
        return TaskShape(most, most)

    def dataset(self, split: str) -> EncodedDataset | None:
        """The samples of "train", "val" or "test"; see `Splits`."""
        return self.splits(split)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> one micro-batch, padded to its longest row."""
        least = 1
        if self.options.fixed_choices:
            least = FIXED_CHOICES
            if not self.pvp.variable_choices:
                least = max(dataset.max_choices for dataset in self.splits.read_so_far())
        return self.collator(samples, least)

    def metrics(self, predictions: Mapping[int, int], split: str = "val") -> dict[str, float]:
        """Index of a sample -> chosen label, for a whole split. {} if the split has no labels."""
        return self.scorer.metrics(predictions, split)

    def submission(
        self, predictions: Mapping[int, int], split: str
    ) -> tuple[str, list[str]] | None:
        """Name and lines of the file that the task's official server takes; None without one."""
        return self.scorer.submission(predictions, split)

    def _warn_of_long_answers_only(self) -> None:
        for given, flag in (
            (self.options.fast_decode, "--fast-decode"),
            (self.options.length_penalty, "--length-penalty"),
            (self.options.segment_length, "--segment-length"),
        ):
            if given:
                log.warning("%s: has no effect without answers of several tokens", flag)


def make_task(
    pvp_class: type["PVP"], name: str, pattern_id: int, tokenizer: Tokenizer, options: Options
) -> SuperGlueTask | GenerativeTask:
    """The task of a pattern. ConfigError for one that it has not, or that cannot work so."""
    pvp = pvp_class(name, pattern_id, options)
    if pvp.generative:
        return GenerativeTask(pvp, tokenizer)
    return SuperGlueTask(pvp, tokenizer)


def _head(pvp: "PVP", multi_token: bool, verbalizers: tuple[int, ...]) -> HeadSpec:
    options = pvp.options
    if not options.cloze:
        classes = 1 if pvp.row_per_choice else len(pvp.labels)
        return HeadSpec("classification", num_classes=classes, pool_token=options.pool_token)
    prompts = prompts_of(options)
    if not multi_token:
        softmax = options.loss == "adapet"
        return HeadSpec("single_token", take_softmax=softmax, prompts=prompts, words=verbalizers)
    kind = "multi_token_fast" if options.fast_decode else "multi_token"
    return HeadSpec(kind, length_penalty=options.length_penalty, prompts=prompts)


def _verbalizer_ids(pvp: "PVP", tokenizer: Tokenizer) -> tuple[int, ...]:
    stripped = pvp.options.w14
    try:
        return tuple(tokenizer.token_id(word, stripped=stripped) for word in pvp.verbalizers())
    except ValueError as error:
        raise ConfigError(
            f"--pattern-id={pvp.pattern_id}: {error}; give --multi-token, another pattern, "
            "or no --cloze-eval"
        ) from error
