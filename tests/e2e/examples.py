"""A few examples of every task, made up for the tests, in the files that the task reads."""

import json
from pathlib import Path
from typing import Any

TEXT = "Ann met Ben in Rome. Ben gave Ann a red book, and Ann read it on the train."
NAMES = ("Ann", "Ben", "Rome")


def rte(labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Premises and hypotheses."""
    pairs = [
        ("It rained all day.", "It was wet."),
        ("The shop is closed.", "The shop is open."),
        ("Two dogs ran home.", "A dog ran."),
        ("She may come.", "She comes."),
    ]
    return [
        {"premise": a, "hypothesis": b, "label": labels[i % len(labels)], "idx": i}
        for i, (a, b) in enumerate(pairs)
    ]


def boolq() -> list[dict[str, Any]]:
    """Questions about one passage."""
    questions = ("did ann meet ben", "is the book blue", "did ben read", "is rome in the text")
    return [
        {"passage": TEXT, "question": q, "label": i % 2 == 0, "idx": i}
        for i, q in enumerate(questions)
    ]


def wic() -> list[dict[str, Any]]:
    """A word in two sentences."""
    rows = [
        ("The bank of the river.", "The bank lent money.", "bank", False),
        ("A red book.", "An old book.", "book", True),
        ("He can run.", "A can of beans.", "can", False),
        ("We saw a bear.", "The bear slept.", "bear", True),
    ]
    keys = ("sentence1", "sentence2", "word", "label")
    return [dict(zip(keys, row, strict=True)) | {"idx": i} for i, row in enumerate(rows)]


def wsc() -> list[dict[str, Any]]:
    """Pronouns, each with the right span and a wrong one."""
    sentences = [
        ("The cat saw the dog and it ran.", "it", 6, [("The cat", 0), ("the dog", 3)]),
        ("Ann thanked Eve for what she gave.", "she", 5, [("Eve", 2), ("Ann", 0)]),
    ]
    return [
        {
            "text": text,
            "target": {
                "span1_text": span,
                "span1_index": place,
                "span2_text": pronoun,
                "span2_index": at,
            },
            "label": k == 0,
            "candidates": [{"text": spans[1 - k][0]}, {"text": "the moon"}][: 1 + number],
            "idx": 2 * number + k,
        }
        for number, (text, pronoun, at, spans) in enumerate(sentences)
        for k, (span, place) in enumerate(spans)
    ]


def copa() -> list[dict[str, Any]]:
    """Causes and effects."""
    rows = [
        ("The cup fell.", "It broke.", "It sang.", "effect", 0),
        ("The grass was wet.", "It was noon.", "It rained.", "cause", 1),
        ("He was tired.", "He slept.", "He flew to the moon.", "effect", 0),
    ]
    keys = ("premise", "choice1", "choice2", "question", "label")
    return [dict(zip(keys, row, strict=True)) | {"idx": i} for i, row in enumerate(rows)]


def multirc() -> list[dict[str, Any]]:
    """Two passages of two questions."""

    def asked(number: int) -> list[dict[str, Any]]:
        return [
            {
                "idx": 2 * number + q,
                "question": question,
                "answers": [
                    {"idx": 10 * number + 2 * q, "text": right, "label": 1},
                    {"idx": 10 * number + 2 * q + 1, "text": wrong, "label": 0},
                ],
            }
            for q, (question, right, wrong) in enumerate(
                [("Who gave a book?", "Ben", "Ann"), ("Where did they meet?", "In Rome", "At home")]
            )
        ]

    return [{"idx": i, "passage": {"text": TEXT, "questions": asked(i)}} for i in range(2)]


def record() -> list[dict[str, Any]]:
    """Queries about one passage; the second has another number of entities."""
    queries = [
        ("The city of @placeholder is old.", "Rome", NAMES),
        ("I heard that @placeholder likes books.", "Ann", NAMES[:2]),
        ("A book came from @placeholder.", "Ben", NAMES),
    ]
    places = {x: {"start": TEXT.index(x), "end": TEXT.index(x) + len(x) - 1} for x in NAMES}
    return [
        {
            "idx": i,
            "passage": {"text": TEXT, "entities": [places[x] for x in names]},
            "qas": [{"idx": i, "query": query, "answers": [{"text": answer}]}],
        }
        for i, (query, answer, names) in enumerate(queries)
    ]


TWO = ("entailment", "not_entailment")
TASKS = {
    "rte": rte(TWO),
    "ax-b": rte(TWO),
    "ax-g": [row | {"pair_id": row["idx"] // 2} for row in rte(TWO)],
    "cb": rte(("entailment", "contradiction", "neutral")),
    "boolq": boolq(),
    "wic": wic(),
    "wsc": wsc(),
    "copa": copa(),
    "multirc": multirc(),
    "record": record(),
}


def write_task(folder: Path, name: str) -> Path:
    """The folder of a task: the same lines to train, to validate and as the test."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in TASKS[name])
    for file in ("train.jsonl", "val.jsonl", "test.jsonl", "AX-b.jsonl", "AX-g.jsonl"):
        (place / file).write_text(lines, encoding="utf-8")
    return place
