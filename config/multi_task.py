"""Multi-task pretraining: batches of labelled tasks among those of blank infilling."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from config.tasks import plain_name

if TYPE_CHECKING:
    from config.run import RunArgs

#: Name in --multi-task-data -> folder below --data-dir.
MULTI_TASKS = {
    "mnli": "MNLI",
    "cola": "CoLA",
    "mrpc": "MRPC",
    "qnli": "QNLI",
    "qqp": "QQP",
    "sst2": "SST-2",
    "agnews": "Agnews",
    "yelp-polarity": "yelp_review_polarity_csv",
    "yelp-full": "yelp_review_full_csv",
    "yahoo": "Yahoo",
    "squad": "SQuAD",
    "race": "RACE",
}


def multi_task_name(given: str) -> str | None:
    """The name in MULTI_TASKS of a task in whatever spelling; None for one that is not there."""
    return next((name for name in MULTI_TASKS if plain_name(name) == plain_name(given)), None)


def multi_task_problems(run: "RunArgs") -> Iterator[str]:
    """What is wrong with the flags of labelled tasks in pretraining."""
    data = run.data
    if data.multi_task_ratio == 0:
        return
    if not data.multi_task_data:
        yield (
            f"--multi-task-ratio={data.multi_task_ratio}: of which tasks? give --multi-task-data, "
            f"names of {', '.join(MULTI_TASKS)}"
        )
        return
    if data.data_dir is None:
        yield "--multi-task-data: needs --data-dir, where the folders of the tasks lie"
    if run.reads_text:
        yield "--multi-task-data: --transformer-xl reads text alone; leave one out"
    if run.blocks.masked_lm:
        yield "--multi-task-data: answers are blanks, which --masked-lm has not; leave out one"
    found: list[str | None] = []
    for given in data.multi_task_data:
        name = multi_task_name(given)
        if name is None:
            yield f"--multi-task-data={given}: unknown task; known are {', '.join(MULTI_TASKS)}"
        elif name in found:
            yield f"--multi-task-data={given}: is named twice; name each task once"
        found.append(name)
