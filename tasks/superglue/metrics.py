"""Scores of the SuperGLUE tasks, in the units of the seed: accuracies and ReCoRD in percent."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Right answers, in percent."""
    assert len(predictions) == len(labels), (len(predictions), len(labels))
    right = sum(int(p == y) for p, y in zip(predictions, labels, strict=True))
    return 100.0 * right / len(labels)


def f1_macro(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Unweighted mean of the classes' F1 (0 to 1), over the classes that occur."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def f1_binary(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """F1 of the class 1 (0 to 1)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="binary", zero_division=0))


def matthews(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Matthews correlation (-1 to 1); 0 where one side has a single class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def gender_parity(predictions: Sequence[int], pairs: Sequence[object]) -> float:
    """Pairs whose members got the same prediction, in percent. pairs: one name a prediction."""
    found: dict[object, set[int]] = {}
    for pair, p in zip(pairs, predictions, strict=True):
        found.setdefault(pair, set()).add(p)
    return 100.0 * sum(len(each) == 1 for each in found.values()) / len(found)


def multirc(
    predictions: Sequence[int], labels: Sequence[int], questions: Sequence[object]
) -> dict[str, float]:
    """One entry an answer. `f1a`: F1 of the class 1 over all answers (0 to 1). `em`: questions
    with every answer right (0 to 1). `acc`: answers, in percent."""
    whole: dict[object, bool] = {}
    for question, p, y in zip(questions, predictions, labels, strict=True):
        whole[question] = whole.get(question, True) and p == y
    return {
        "f1a": f1_binary(predictions, labels),
        "em": sum(whole.values()) / len(whole),
        "acc": accuracy(predictions, labels),
    }


def record(
    predictions: Sequence[int],
    candidates: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str]],
) -> dict[str, float]:
    """One entry a query, the prediction an index in its candidates. `em`, `f1`: the best over the
    query's answers, 0 without any; in percent."""
    chosen = [names[p] for p, names in zip(predictions, candidates, strict=True)]
    return {
        "em": 100.0 * _mean_best(_same, chosen, answers),
        "f1": 100.0 * _mean_best(_token_f1, chosen, answers),
    }


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case without accents, punctuation, articles, extra spaces."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c)).lower()
    return " ".join(_ARTICLES.sub(" ", plain.translate(_NO_PUNCTUATION)).split())


def _mean_best(
    score: Callable[[str, str], float], chosen: list[str], answers: Sequence[Sequence[str]]
) -> float:
    best = [
        max((score(text, answer) for answer in known), default=0.0)
        for text, known in zip(chosen, answers, strict=True)
    ]
    return sum(best) / len(best)


def _same(text: str, answer: str) -> float:
    return float(normalize_answer(text) == normalize_answer(answer))


def _token_f1(text: str, answer: str) -> float:
    ours, theirs = normalize_answer(text).split(), normalize_answer(answer).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)
