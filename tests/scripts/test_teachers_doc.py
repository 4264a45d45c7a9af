"""docs/teachers.md is up to date, complete, and its commands are the recipes' and the chain's."""

import re
import shlex

import pytest

from config.teachers import MultiTeacherArgs
from distill.combiner import COMBINERS
from scripts import methods_doc, teachers_doc
from scripts.chain import plan, problems, read
from scripts.doc_parts import About
from scripts.methods_cost import combiner_cost, combiners
from scripts.recipes import (
    CHAINS,
    chain,
    command,
    has_several_teachers,
    recipes,
    recipes_with,
    stages,
)
from scripts.teachers_doc import WHEN, costliest, document, with_aliases
from tests.test_readme import shell_lines

FIRST = ("teacher.finetune", "large.finetune", "plain.pretrain")


@pytest.fixture(scope="module")
def text():
    return teachers_doc.FILE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(text):
    """Commands of all blocks, variables filled in, without python."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    return [words[1:] for words in shell_lines(blocks)]


def section(text, name):
    heading = f"\n## {About.read(combiners()[name]).name}\n"
    assert text.count(heading) == 1, heading
    return text.partition(heading)[2].partition("\n## ")[0]


def test_it_is_up_to_date(text):
    assert document() == text, "run: python -m scripts.methods_doc --write"


def test_the_commands_are_those_of_the_recipes(written):
    several = [
        s.key for recipe in recipes() if has_several_teachers(recipe) for s in recipes()[recipe]
    ]
    expected = {shlex.join(command(stage)) for stage in chain(*FIRST, *several)}
    found = {shlex.join(words) for words in written if words[0].startswith("distill/")}
    assert found == expected  # tests/scripts/test_recipes.py parses them


def test_the_chains_parse(written):
    found = [words[2:] for words in written if words[:2] == ["-m", "scripts.chain"]]
    assert len(found) == len(CHAINS)
    for words in found:
        options, flags = read(words)
        made = plan(options, flags)
        assert len(made) == 3
        assert list(problems(made, options.program)) == []


@pytest.mark.parametrize("name", combiners())
def test_everything_is_said_of_a_combiner(name, text):
    cls = combiners()[name]
    part = section(text, name)
    assert "\n    loss" in part, "a formula"
    assert WHEN[name] in part
    for flag, field in cls.Args.flags().items():
        assert f"| `{flag}` |" in part
        assert len(field.metadata["help"]) > 5, flag
    assert with_aliases(name, cls)
    assert all(f"scripts.recipes {recipe}`" in part for recipe in with_aliases(name, cls))
    assert "Parameters of its own" in part


def test_every_recipe_of_several_teachers_is_there(text):
    found = {recipe for name in COMBINERS for recipe in recipes_with(name)} | set(CHAINS)
    assert found == {recipe for recipe in recipes() if has_several_teachers(recipe)}
    assert [recipe for recipe in found if f"scripts.recipes {recipe}`" not in text] == []


def test_shared_flags_links_and_anchors(text):
    assert [f for f in MultiTeacherArgs.flags() if f"| `{f}` |" not in text] == []
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert [a for a in re.findall(r"\]\(#(.+?)\)", text) if a not in anchors] == []
    files = re.findall(r"\]\((?!http|#)([^)#]+)\)", text)
    there = teachers_doc.FILE.parent
    assert [name for name in files if not (there / name).resolve().exists()] == []


def test_the_cost_of_some_combiners():
    average, mt_bert, rl_kd = (costliest(name) for name in ("avg", "mt_bert", "rl_kd"))
    assert (average.passes, average.added, average.per_sample) == (2, 0, False)
    assert mt_bert.added == (768 * 768 + 768) + (1024 * 768 + 768)
    assert (mt_bert.hard_losses, mt_bert.per_sample) == (True, True)
    assert (rl_kd.passes, rl_kd.teachers) == (3, 3)
    assert rl_kd.captured[0].entries == 768
    dense = combiner_cost(stages()["dgkd.finetune-3"])
    assert (dense.teachers, dense.passes) == (3, 3 * 0.75)
    first = combiner_cost(stages()["rl_kd.finetune-1"])
    assert (first.passes, first.hard_losses, first.captured) == (2, False, {})


def test_both_documents_are_written(monkeypatch, tmp_path):
    for module in (methods_doc, teachers_doc):
        monkeypatch.setattr(module, "FILE", tmp_path / module.__name__)
        monkeypatch.setattr(module, "document", lambda name=module.__name__: name)
    assert methods_doc.main(["--write"]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        module.__name__: module.__name__ for module in (methods_doc, teachers_doc)
    }
