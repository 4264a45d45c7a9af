"""Folders of all tasks of --multi-task-data, each in the format of its official files."""

import json
from pathlib import Path

from config.multi_task import MULTI_TASKS

PAIR = "index\tsentence1\tsentence2\tgold_label\n0\tThe cat ran.\tA dog ran.\tneutral\n"
QUESTION = {"id": "q1", "question": "Who ran?", "answers": [{"text": "cat", "answer_start": 4}]}
OPEN = {"id": "q2", "question": "Who fell?", "answers": []}
SQUAD = {"data": [{"paragraphs": [{"context": "The cat ran home.", "qas": [QUESTION, OPEN]}]}]}
RACE = {
    "id": "high1.txt",
    "article": "The cat ran home. The dog saw it.",
    "questions": ["Who ran?", "The cat ran _ ."],
    "options": [["the dog", "the cat", "no man", "rain"], ["home", "on", "so", "in"]],
    "answers": ["B", "A"],
}
STARS = '"2","It was a hot day and a good road"\n"1","The house broke"\n'

#: Task -> (training file, validation file, their text).
FILES = {
    "mnli": ("train.tsv", "dev_matched.tsv", PAIR),
    "cola": ("train.tsv", "dev.tsv", "gj04\t1\t\tThe cat ran.\ngj04\t0\t*\tRan cat the.\n"),
    "mrpc": (
        "train.tsv",
        "dev.tsv",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tA cat ran\tThe cat ran\n",
    ),
    "qnli": (
        "train.tsv",
        "dev.tsv",
        "index\tquestion\tsentence\tlabel\n0\tWho ran?\tA cat.\tentailment\n",
    ),
    "qqp": ("train.tsv", "dev.tsv", "id\tquestion1\tquestion2\tis_duplicate\n0\tA?\tB?\t0\n"),
    "sst2": ("train.tsv", "dev.tsv", "sentence\tlabel\nA good day\t1\nA cold house\t0\n"),
    "agnews": ("train.csv", "test.csv", '"3","Oil, up","It rose"\n"1","A man","ran"\n'),
    "yelp-polarity": ("train.csv", "test.csv", STARS),
    "yelp-full": ("train.csv", "test.csv", STARS),
    "yahoo": ("train.csv", "test.csv", '"10","Why?","","Because the sun rose"\n'),
    "squad": ("train-v2.0.json", "dev-v2.0.json", json.dumps(SQUAD)),
    "race": ("train/high/1.txt", "dev/high/1.txt", json.dumps(RACE) + "\n"),
}


def make_tasks(folder: Path) -> Path:
    """All of them below `folder`."""
    for name, (train, valid, text) in FILES.items():
        for file in (train, valid):
            path = folder / MULTI_TASKS[name] / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return folder
