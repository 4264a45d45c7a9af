"""docs/methods.md is up to date, complete, and its commands are the recipes'."""

import json
import re
import shlex
from types import SimpleNamespace

import pytest
from torch import nn

from config import parse_args
from distill.capture import attention_scores, hidden, mixed_query, output, to_hook, value
from distill.combiner import combiner_args
from distill.registry import METHODS, method_args
from scripts import methods_doc
from scripts.doc_parts import About, markdown, wrapped
from scripts.methods_cost import captures, cost, methods, most_costly, spans
from scripts.methods_doc import document
from scripts.recipes import command, has_several_teachers, recipes_of, stages
from tests.distill.runs import toy_run
from tests.house import ROOT
from tests.test_readme import PROGRAMS, commands

FILE = ROOT / "docs" / "methods.md"


@pytest.fixture(scope="module")
def text():
    return FILE.read_text(encoding="utf-8")


def section(text, name):
    """From a method's heading to the next one's."""
    heading = f"\n## {About.read(methods()[name]).name}\n"
    assert text.count(heading) == 1, heading
    return text.partition(heading)[2].partition("\n## ")[0]


def test_it_is_up_to_date(text):
    assert document() == text, "run: python -m scripts.methods_doc --write"


def kinds():
    return {"methods": method_args(), "combiners": combiner_args()}


def written(text):
    """Commands of all blocks, variables filled in."""
    return commands("\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)))


def test_the_commands_are_those_of_the_recipes(text):
    of_one_teacher = [
        stage
        for stage in stages().values()
        if stage.recipe != "large" and not has_several_teachers(stage.recipe)
    ]
    expected = {shlex.join(command(stage)) for stage in of_one_teacher}
    expected -= {shlex.join(command(stages()["plain.finetune"]))}  # nobody starts from it
    assert {shlex.join(words) for words in written(text)} == expected


def test_every_command_parses(text):
    for program, *words in written(text):
        assert not any("$" in word for word in words)
        parse_args(words, program=PROGRAMS[program], **kinds())


@pytest.mark.parametrize("name", methods())
def test_everything_is_said_of_a_method(name, text):
    cls = methods()[name]
    about, part = About.read(cls), section(text, name)
    assert re.search(
        r"\((.+, \d{4}, .+|GLMKD's authors, unpublished)\): .+|.+ \d{4}\): .+", about.title
    )
    assert "\n    " in part, "a formula"
    assert set(about.parts) >= {"When"}
    assert {"Not as in the paper", "Not as in the seed"} & set(about.parts)
    assert all(about.parts.values())
    for flag, field in cls.Args.flags().items():
        assert f"| `{flag}` |" in part
        assert len(field.metadata["help"]) > 5, flag
    assert all(f"scripts.recipes {recipe}`" in part for recipe in recipes_of(name))
    assert "Forward passes a step" in part


def test_links_and_anchors_exist(text):
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert [a for a in re.findall(r"\]\(#(.+?)\)", text) if a not in anchors] == []
    files = re.findall(r"\]\((?!http|#)([^)#]+)\)", text)
    assert [name for name in files if not (FILE.parent / name).resolve().exists()] == []


def test_a_docstring_is_cut_into_its_parts(monkeypatch):
    doc = """Name-X (A, 2020): what
    it matches.

        loss = a < b

    Text.

    Not as in the paper: one
    line.
    Not as in the seed: other (D1).

    More of it.

    Stages:
        pretrain: --flag
    When: always.
    """
    monkeypatch.setitem(methods_doc.sys.modules, "own", SimpleNamespace(__doc__=doc))
    about = About.read(type("Own", (nn.Module,), {"__module__": "own"}))
    assert (about.name, about.title) == ("Name-X", "Name-X (A, 2020): what it matches.")
    assert about.body == "    loss = a < b\n\nText."
    assert about.parts == {
        "Not as in the paper": "one\nline.",
        "Not as in the seed": "other (D1).\n\nMore of it.",
        "Stages": "    pretrain: --flag",
        "When": "always.",
    }


def test_docstring_text_becomes_markdown():
    actual = markdown("a * b\n    x * y < z\n\n    w\nmore <a>")
    assert actual == "a \\* b\n\n    x * y < z\n\n    w\n\nmore \\<a>"


def test_long_commands_are_wrapped():
    words = [f"--flag-{number}=value" for number in range(20)]
    lines = wrapped(["python", *words]).split(" \\\n")
    assert all(len(line) <= 98 for line in lines)
    assert lines[1].startswith("  --flag")
    assert " ".join(line.strip() for line in lines).split() == ["python", *words]


def test_captures_are_counted_in_words_and_numbers():
    model = toy_run("--num-layers=3").model  # h 16, 4 heads, v 64 padded to 128
    points = [hidden(k, 3) for k in range(4)] + [attention_scores(2), value(3), mixed_query(3)]
    actual = captures(to_hook(points), model)
    assert sorted(actual.what.split("; ")) == [
        "attention scores 2", "hidden states 0-3", "queries 3", "values 3",
    ]  # fmt: skip
    assert actual.entries == 4 * 16 + 4 * 512 + 2 * 16
    assert set(actual.formula.split(" + ")) == {"6 h", "n s"}
    assert actual.bytes == 4 * actual.entries
    assert captures(to_hook([output()]), model).what == "hidden states 3"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([3], "3"), ([2, 1], "1, 2"), ([0, 1, 2], "0-2"), ([0, 2, 4, 6], "0, 2, ... 6"),
     ([0, 1, 4], "0, 1, 4"), ([5, 5], "5"), ([], "")],
)  # fmt: skip
def test_spans_of_layers(numbers, expected):
    assert spans(numbers) == expected


def test_the_cost_of_some_methods():
    pkd, theseus = most_costly("pkd"), most_costly("theseus")
    assert (pkd.student.what, pkd.teacher.what) == (
        "hidden states 1-5",
        "hidden states 2, 4, ... 10",
    )
    assert (theseus.student_passes, theseus.teacher_passes, theseus.entries) == (1, 0, 0)
    lrc = most_costly("lrc_bert")
    assert (lrc.student_passes, lrc.takes_gradient, lrc.added) == (2, True, 768 * 768)
    assert most_costly("tinybert").added == 768 * 768 + 768
    universal = most_costly("universal_kd")
    assert any("t_" in name for name in set(universal.parameters) - universal.trained)
    sid, mobilebert = cost(stages()["sid.finetune"]), most_costly("mobilebert")
    assert "attention scores 1-6" in sid.student.what  # the last stage but one
    assert mobilebert.student.formula == "24 n s + 25 h"


def test_what_was_measured_is_shown(monkeypatch, tmp_path):
    file = tmp_path / "methods.json"
    monkeypatch.setattr(methods_doc, "MEASURED", file)
    assert "Not measured yet" in methods_doc.measured_table()
    row = {"recipe": "pkd", "stage": "finetune", "program": "finetune", "seconds": 0.3,
           "kd_seconds": 0.2, "time_ratio": 1.5, "time_ratio_range": [1.25, 1.75],
           "peak_bytes": 3 << 20, "kd_peak_bytes": 2 << 20, "memory_ratio": 1.6}  # fmt: skip
    about = {"threads": 1, "cores": 2, "machine": "x86_64", "torch": "2", "load_before": 0.1}
    sizes = {"student_layers": 2, "teacher_layers": 4, "hidden": 128, "heads": 4, "batch": 32,
             "vocabulary": 4000, "seq_length": 64, "steps": 4, "repeats": 9}  # fmt: skip
    content = {"conditions": about, "sizes": sizes, "methods": {"pkd": row}}
    file.write_text(json.dumps(content))
    assert "| 1.50 (1.25-1.75) |" in methods_doc.measured_table()
    assert "9 repeats" in methods_doc.measured_table()
    said = methods_doc.cost_text(most_costly("pkd"))
    assert "1.50 times the time and 1.60 times the memory of a KD step of fine-tuning" in said


def test_own_methods_are_not_in_it(monkeypatch):
    own = type("Own", (METHODS["kd"],), {"__module__": "my_file"})
    monkeypatch.setitem(METHODS, "my_file.py:Own", own)
    assert own not in methods().values()
