"""ROUGE, BLEU, exact match and F1 of written texts, in percent; and how tokens become text again.

ROUGE (Lin, 2004) by rouge_score with its stemmer, BLEU (Papineni et al., 2002) by sacrebleu, exact
match and F1 as SQuAD's evaluation has them (Rajpurkar et al., 2016, arXiv 1606.05250).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

SEP = "[SEP]"  # between the sentences of a summary
SHORT = 4  # words: such sentences of a longer summary are left out
REPEATED = 0.7  # part of a sentence's words that earlier ones have: it is left out

_JOINED: tuple[tuple[str, str], ...] = (
    (r"(\d) ([.,:]) (?=\d)", r"\1\2"),  # 3 . 5
    (r" ([.,!?;:%)\]}])", r"\1"),
    (r"([(\[{$#]) ", r"\1"),
    (r"(\w) ' (s|t|d|m|ll|re|ve)\b", r"\1'\2"),
    (r"\b(\w+) n't\b", r"\1n't"),
    (r" '(s|d|m|ll|re|ve)\b", r"'\1"),
    (r"(\w) - (?=\w)", r"\1-"),
    (r'" ([^"]*?) "', r'"\1"'),
)


def readable(text: str) -> str:
    """Word pieces joined by spaces as people write: `don ' t ( 3 . 5 ) .` -> `don't (3.5).`"""
    for pattern, joined in _JOINED:
        text = re.sub(pattern, joined, text)
    return " ".join(text.split())


def sentences(summary: str) -> list[str]:
    """A written summary's sentences, those left out that are very short or repeat earlier ones.

    Only where there are several; never all of them.
    """
    parts = [part.strip() for part in summary.split(SEP) if part.strip()]
    if len(parts) < 2:
        return parts
    kept: list[str] = []
    seen: set[str] = set()
    for part in parts:
        words = part.lower().split()
        repeated = sum(word in seen for word in words) / len(words)
        if len(words) > SHORT and repeated <= REPEATED:
            kept.append(part)
            seen.update(words)
    return kept or parts[:1]


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F of ROUGE-1, ROUGE-2, ROUGE-L (summary level). [SEP] parts sentences."""
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeLsum"}
    scorer = RougeScorer(list(names.values()), use_stemmer=True)
    totals = dict.fromkeys(names, 0.0)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        wanted = "\n".join(part.strip() for part in reference.split(SEP))
        scores = scorer.score(wanted, "\n".join(sentences(hypothesis)))
        for name, key in names.items():
            totals[name] += scores[key].fmeasure
    return {name: 100.0 * total / len(references) for name, total in totals.items()}


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 of the corpus, one reference each, sacrebleu's tokens (13a)."""
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(list(hypotheses), [list(references)]).score)


def answer_words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles; a CJK character is a word."""
    text = "".join(c for c in text.lower() if not _is_punctuation(c))
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    text = re.sub(r"([\u3400-\u9fff])", r" \1 ", text)
    return text.split()


def exact(hypothesis: str, answers: Sequence[str]) -> float:
    """1 if it is one of the answers, their case, punctuation and articles aside."""
    return float(answer_words(hypothesis) in [answer_words(answer) for answer in answers])


def f1(hypothesis: str, answers: Sequence[str]) -> float:
    """F1 of the words against the answer that is closest; 1 for nothing against nothing."""
    return max(_f1(answer_words(hypothesis), answer_words(answer)) for answer in answers)


def mean(
    score: Callable[[str, Sequence[str]], float],
    hypotheses: Sequence[str],
    answers: Sequence[Sequence[str]],
) -> float:
    """The mean of a score over all examples, in percent."""
    scores = [score(h, a) for h, a in zip(hypotheses, answers, strict=True)]
    return 100.0 * sum(scores) / len(scores)


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    common = sum((Counter(found) & Counter(wanted)).values())
    if not found or not wanted:
        return float(found == wanted)
    return 2.0 * common / (len(found) + len(wanted))


def _is_punctuation(c: str) -> bool:
    return c in string.punctuation or unicodedata.category(c).startswith("P")
