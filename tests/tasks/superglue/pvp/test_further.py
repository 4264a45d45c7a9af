"""GLUE, topics, reviews and the Chinese tasks: their files, patterns in words, scores."""

import json

import pytest

from config.errors import ConfigError
from data_utils.bad_lines import BadLines
from tasks import TASKS
from tasks.superglue.data import Example
from tasks.superglue.encode import Cut, Mask, Prompt
from tasks.superglue.options import Options
from tests.tasks.common import task_of, write_lines

CHINESE = {"tnews", "afqmc", "cluewsc"}


def spelled(name, pattern_id, *texts, **options) -> str:
    """The parts of a pattern: M the mask, P a prompt, ||  between A and B."""
    pvp = TASKS[name](name, pattern_id, Options(**options))
    sides = pvp.parts(Example("x", "here", texts))

    def word(part):
        if isinstance(part, Mask):
            return "[M]"
        if isinstance(part, Prompt):
            return "[P]"
        return part.text if isinstance(part, Cut) else part

    return " || ".join("".join(map(word, side)) for side in sides if side)


@pytest.mark.parametrize(
    ("name", "pattern_id", "texts", "expected"),
    [
        ("mnli", 0, ("A b.", "C d."), '"A b" ? || [M], "C d."'),
        ("mnli", 3, ("A b.", "C d."), "A b? || [M], C d."),
        ("qnli", 1, ("Who?", "He."), "He. Based on the previous passage, do you know the answer Who?[M]."),
        ("qnli", 2, ("Who?", "He."), "Based on the following passage, do you know the answer Who?[M]. He."),
        ("qqp", 0, ("A?", "Is it B?"), "A? ||  Do you mean is it B?[M]."),
        ("mrpc", 1, ("A.", "So it is."), "A. ||  Does it mean that so it is?[M]"),
        ("cola", 0, ("Me go.",), '"Me go." This is[M].'),
        ("agnews", 3, ("Head", "Body"), "HeadBody([M])"),
        ("yahoo", 1, ("Why?", "So."), "[M] Question:Why?So."),
        ("yelp-full", 3, ("Nice.",), "Nice. ||  In summary, the restaurant is[M]."),
        ("xstance", 4, ("Q?", "C."), '"Q?" || [M]. "C."'),
        ("tnews", 0, ("T", "K"), "\u6807\u9898\uff1aT\u5173\u952e\u8bcd\uff1aK\u7c7b\u522b\uff1a[M]"),
        ("afqmc", 0, ("A", "B"), "A\uff1f || \u4f60\u662f\u8bf4B\uff1f[M]\u3002"),
        ("cluewsc", 0, ("t", "p", "s"), "[P]t\u4ee3\u8bcd'*p*'[M]\u6307#s#."),
    ],
)  # fmt: skip
def test_a_pattern_in_words(name, pattern_id, texts, expected):
    assert spelled(name, pattern_id, *texts) == expected


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_pattern_of_every_task_has_one_mask(name):
    pvp = TASKS[name]
    if not hasattr(pvp, "num_patterns"):
        return
    texts = ("one _ @placeholder.", "two @placeholder _.", "three", "cause")[: len(pvp.fields) + 2]
    for pattern_id in range(pvp.num_patterns):
        for prompts in (False, True):
            made = pvp(name, pattern_id, Options(prompts=prompts))
            example = Example("x", "here", _texts(name, texts), choices=("a", "b", "c", "d"))
            for row in made.cloze_rows(example, made.own_answers):
                parts = [*row.a, *(row.b or ())]
                assert sum(isinstance(part, Mask) for part in parts) == 1
            if not made.own_answers and name not in CHINESE:
                words = made.verbalizers()
                assert len(words) == len(set(words)) == len(made.labels)


def _texts(name, texts):
    number = {"record": 2, "wsc": 3, "copa": 4, "multirc": 3, "race": 2, "cluewsc": 3}.get(name)
    return texts[: number or len(TASKS[name].fields)]


@pytest.mark.parametrize(
    ("name", "file", "text", "labels"),
    [
        ("mnli", "train.tsv", "index\tsentence1\tsentence2\tgold_label\n0\tA.\tB.\tneutral\n", [2]),
        ("mrpc", "train.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tA\tB\n", [1]),
        ("qqp", "train.tsv", "id\tquestion1\tquestion2\tis_duplicate\n0\tA?\tB?\t0\n", [0]),
        ("qnli", "train.tsv", "index\tquestion\tsentence\tlabel\n0\tA?\tB.\tentailment\n", [0]),
        ("cola", "train.tsv", "gj04\t1\t\tIt works.\ngj04\t0\t*\tWorks it.\n", [1, 0]),
        ("agnews", "train.csv", '"3","Oil, up","It rose\\again"\n"1","A ""b""",""\n', [2, 0]),
        ("yahoo", "train.csv", '"10","Why?","","Because."\n', [9]),
        ("yelp-polarity", "train.csv", '"2","Two\nlines"\n"1","Bad"\n', [1, 0]),
        ("afqmc", "train.json", '{"sentence1": "A", "sentence2": "B", "label": "1"}\n', [1]),
        (
            "tnews",
            "train.json",
            '{"sentence": "T", "keywords": "", "label": "116", "label_desc": "x"}\n',
            [14],
        ),
        (
            "cluewsc",
            "train.json",
            json.dumps(
                {
                    "text": "ab cd",
                    "label": "false",
                    "target": {
                        "span1_text": "ab",
                        "span1_index": 0,
                        "span2_text": "d",
                        "span2_index": 4,
                    },
                }
            ),
            [0],
        ),
    ],
)
def test_the_official_files(tmp_path, name, file, text, labels):
    (tmp_path / file).write_text(text, encoding="utf-8")
    task = task_of(name, tmp_path, cloze=False)
    assert task.dataset("train").labels.tolist() == labels


def test_texts_of_csv_files(tmp_path):
    (tmp_path / "train.csv").write_text('"3","Oil, up","It rose\\again"\n', encoding="utf-8")
    pvp = task_of("agnews", tmp_path, cloze=False).pvp
    (example,) = pvp.read(tmp_path / "train.csv", "train")
    assert example.texts == ("Oil, up", "It rose again")
    (tmp_path / "train.csv").write_text('"10","Why?","So?","Because."\n', encoding="utf-8")
    (example,) = task_of("yahoo", tmp_path, cloze=False).pvp.read(tmp_path / "train.csv", "train")
    assert example.texts == ("Why? So?", "Because.")
    (tmp_path / "train.csv").write_text('"3","a"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"train.csv, line 1: 2 columns, the task has 3"):
        pvp.read(tmp_path / "train.csv", "train")


def test_marks_of_cluewsc(tmp_path):
    target = {"span1_text": "ab", "span1_index": 0, "span2_text": "d", "span2_index": 4}
    write_lines(tmp_path / "train.jsonl", [{"text": "ab cd", "label": "true", "target": target}])
    pvp = task_of("cluewsc", tmp_path, cloze=False).pvp
    (example,) = pvp.read(tmp_path / "train.jsonl", "train")
    assert example.texts == ("#ab# c*d*", "d", "ab")


def test_one_language_of_xstance(tmp_path):
    line = {"question": "Q?", "comment": "C.", "label": "FAVOR"}
    lines = [line | {"language": x} for x in ("de", "fr", "de")]
    write_lines(tmp_path / "train.jsonl", lines)
    sizes = [
        len(task_of(name, tmp_path, cloze=False).dataset("train"))
        for name in ("xstance", "xstance-de", "xstance-fr")
    ]
    assert sizes == [3, 2, 1]


def test_scores_of_paraphrases_acceptability_and_gender(tmp_path):
    lines = [{"sentence1": "a", "sentence2": "b", "label": x} for x in (1, 0, 1, 1)]
    write_lines(tmp_path / "val.jsonl", lines)
    chosen = {0: 1, 1: 1, 2: 0, 3: 1}  # P 2/3, R 2/3
    assert task_of("mrpc", tmp_path).metrics(chosen) == pytest.approx(
        {"accuracy": 50, "f1": 200 / 3}
    )
    lines = [{"sentence": "a", "label": x} for x in (1, 0, 1, 0)]
    write_lines(tmp_path / "val.jsonl", lines)
    # One of two right in each class but for one: TP 2, TN 1, FP 1, FN 0.
    found = task_of("cola", tmp_path).metrics({0: 1, 1: 1, 2: 1, 3: 0})
    assert found == pytest.approx({"accuracy": 75, "matthews": 100 * 2 / 12**0.5})
    pair = {"premise": "a", "hypothesis": "b", "label": "entailment"}
    lines = [pair | {"pair_id": x} for x in (1, 1, 2, 2)]
    write_lines(tmp_path / "AX-g.jsonl", lines)
    found = task_of("ax-g", tmp_path).metrics({0: 0, 1: 0, 2: 0, 3: 1}, "test")
    assert found == {"accuracy": 75.0, "gender-parity": 50.0}


def test_submissions_of_clue_and_glue(tmp_path):
    lines = [{"id": 4, "sentence1": "a", "sentence2": "b", "label": "0"}]
    write_lines(tmp_path / "val.jsonl", lines)
    name, (line,) = task_of("afqmc", tmp_path, cloze=False).submission({0: 1}, "val")
    assert (name, json.loads(line)) == ("afqmc_predict.json", {"id": 4, "label": "1"})


def test_few_superglue_reads_its_own_files(tmp_path):
    line = {"premise": "a", "hypothesis": "b", "label": "entailment"}
    for name, number in (("train", 1), ("dev32", 2), ("val", 3), ("test", 4)):
        write_lines(tmp_path / f"{name}.jsonl", [line] * number)
    task = task_of("rte", tmp_path, few=True)
    assert [len(task.dataset(x)) for x in ("train", "val", "test")] == [1, 2, 3]


def test_a_label_of_the_wrong_kind_names_the_right_ones(tmp_path):
    write_lines(tmp_path / "train.jsonl", [{"sentence1": "a", "sentence2": "b", "label": "yes"}])
    with pytest.raises(ValueError, match="must be one of contradiction, entailment, neutral"):
        task_of("mnli", tmp_path).dataset("train")
    with pytest.raises(ConfigError, match="0 to 3"):
        task_of("mnli", tmp_path, pattern_id=4)


def test_a_quote_without_its_end_is_told(tmp_path):
    path = tmp_path / "train.csv"
    pvp = task_of("agnews", tmp_path, cloze=False).pvp
    good = '"1","a ""b""","two\nlines"\n'
    for wrong, message in (
        ('"3","a","b\n1,c,d\n2,e,f\n', "line 3: unexpected end of data"),
        ('"3","a","' + 140_000 * "x" + '"\n', "line 3: field larger than field limit"),
    ):
        path.write_text(good + wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            pvp.read(path, "train")
        bad = BadLines(skip=True)
        (kept,) = pvp.read(path, "train", bad)
        assert (kept.texts, bad.number) == (('a "b"', "two\nlines"), 1)
