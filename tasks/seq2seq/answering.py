"""Passages and questions: writing the question, or the answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from data_utils.bad_lines import BadLines
from data_utils.corpora import clean_text
from tasks.registry import register_task
from tasks.seq2seq.encode import Row
from tasks.seq2seq.files import NAMES, Example, check_folder, missing, read_squad
from tasks.seq2seq.metrics import bleu, exact, f1, mean, rouge
from tasks.seq2seq.task import Seq2SeqData, Seq2SeqTask

NO_ANSWER = "N/A"  # what is written for a window of the passage that holds no answer


class Passages(Seq2SeqTask):
    """Files in SQuAD's format."""

    version = ""  # between the split's name and .json
    needs_answers: ClassVar[tuple[str, ...]] = ("train",)  # splits whose questions have one

    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """`<split><version>.json`; a test split may be missing."""
        check_folder(folder, self.name)
        ending = f"{self.version}.json"
        found = [folder / f"{name}{ending}" for name in NAMES[split]]
        path = next((p for p in found if p.is_file()), None)
        if path is None and split == "test":
            return None
        if path is None:
            raise missing(folder, self.name, split, ending)
        return read_squad(path, bad, needs_answer=split in self.needs_answers)


@register_task("squad_generation")
class QuestionGeneration(Passages):
    """`[ENC] <passage> Question: [mask] Answer: <answer>` -> question. One example an answer."""

    needs_answers = ("train", "val", "test")

    def read(self, folder: Path, split: str, bad: BadLines) -> list[Example] | None:
        """Every distinct answer of every question."""
        examples = super().read(folder, split, bad)
        if examples is None:
            return None
        pairs = []
        for x in examples:
            for answer in x.answers:
                start = x.start if answer == x.target else x.context.find(answer)
                pairs.append(
                    Example(x.where, answer, x.source, context=x.context, start=start, key=x.key)
                )
        return pairs

    def encode(self, examples: Sequence[Example], split: str) -> list[Row]:
        """A passage that is too long is cut to a window around the answer."""
        lengths, ids = self.options.lengths, self.ids
        ask = ids.one(" Question:")
        rows = []
        answers = ids.of([" Answer: " + clean_text(x.source) for x in examples])
        questions = ids.of([" " + clean_text(x.target) for x in examples])
        passages = ids.of([clean_text(x.context) for x in examples])
        for number, (x, answer, question, passage) in enumerate(
            zip(examples, answers, questions, passages, strict=True)
        ):
            answer = answer[: lengths.source // 2]
            room = lengths.source - 2 - len(ask) - len(answer)
            cut = len(passage) > room or len(question) >= lengths.target
            if len(passage) > room:
                middle = len(ids.one(x.context[: max(0, x.start)])) + len(answer) // 2
                first = min(max(0, middle - room // 2), len(passage) - room)
                passage = passage[first : first + room]
            context = [ids.command["ENC"], *passage, *ask]
            blank = len(context)
            context += [ids.mask(), *answer]
            piece = ids.ended(question)[: lengths.target]
            rows.append(Row(number, context, [blank], [piece], cut))
        return rows

    def scores(self, written: Sequence[str], data: Seq2SeqData) -> dict[str, float]:
        """ROUGE and BLEU of the questions."""
        references = self.as_written([data.example(i).target for i in range(len(data))])
        return rouge(written, references) | {"bleu": bleu(written, references)}


class Answers(Passages):
    """Scored by F1 and exact match against all answers of a question."""

    metric_names = ("f1", "em")

    def scores(self, written: Sequence[str], data: Seq2SeqData) -> dict[str, float]:
        """Of a question with several windows, the first that has an answer says it.

        {} of a split without any answers, as of an official test.
        """
        if not any(x.answers for x in data.examples):
            return {}
        chosen: dict[int, str] = {}
        for text, row in zip(written, data.rows, strict=True):
            if "".join(text.split()).lower() not in ("", NO_ANSWER.lower()):
                chosen.setdefault(row.example, text)
        found = [chosen.get(i, "") for i in range(len(data.examples))]
        answers = [self.as_written(x.answers or ("",)) for x in data.examples]
        return {"f1": mean(f1, found, answers), "em": mean(exact, found, answers)}


@register_task("squad_v1")
class Squad(Answers):
    """`[ENC] <question> [mask] . <window of the passage>` -> answer, or N/A.

    Windows overlap by half of --src-seq-length.
    """

    version = "-v1.1"

    def encode(self, examples: Sequence[Example], split: str) -> list[Row]:
        """A row a window; those without the answer learn to say so."""
        ids, rows = self.ids, []
        stop = ids.one(".")
        questions = ids.of([" " + clean_text(x.source) for x in examples])
        passages = ids.of([clean_text(x.context) for x in examples])
        answers = ids.of([" " + clean_text(x.target) for x in examples])
        none = ids.one(" " + NO_ANSWER)
        stride = self.options.lengths.source // 2
        for number, (x, question, passage, answer) in enumerate(
            zip(examples, questions, passages, answers, strict=True)
        ):
            start = [ids.command["ENC"], *question[: stride - 3]]
            blank = len(start)
            start += [ids.mask(), *stop]
            room = self.options.lengths.source - len(start)
            before = len(ids.one(clean_text(x.context[: max(0, x.start)])))
            first = 0
            while True:
                holds = x.start >= 0 and first <= before and before + len(answer) <= first + room
                piece = ids.ended(answer if holds else none)[: self.options.lengths.target]
                context = [*start, *passage[first : first + room]]
                rows.append(Row(number, context, [blank], [piece]))
                if first + room >= len(passage):
                    break
                first += min(stride, room)
        return rows


@register_task("cmrc")
class Cmrc(Answers):
    """Chinese: `[ENC] question: <q> answer: [MASK] <passage>`, the words in Chinese -> answer."""

    def encode(self, examples: Sequence[Example], split: str) -> list[Row]:
        """The passage is cut at its end."""
        ids, lengths, rows = self.ids, self.options.lengths, []
        questions = ids.of(
            ["\u95ee\u9898\uff1a" + x.source + "\u7b54\u6848\uff1a" for x in examples]
        )
        passages = ids.of([x.context for x in examples])
        answers = ids.of([x.target for x in examples])
        for number, (question, passage, answer) in enumerate(
            zip(questions, passages, answers, strict=True)
        ):
            context = [ids.command["ENC"], *question[: lengths.source - 2]]
            blank = len(context)
            context += [ids.command["MASK"], *passage]
            piece = ids.ended(answer)
            cut = len(context) > lengths.source or len(piece) > lengths.target
            rows.append(
                Row(number, context[: lengths.source], [blank], [piece[: lengths.target]], cut)
            )
        return rows
