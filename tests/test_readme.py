"""What README.md and the scripts say is true: commands parse, tables are up to date, files exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import ArgGroup, parse_args
from distill.combiner import combiner_args
from distill.registry import method_args
from scripts.chain import plan, problems, read
from scripts.quickstart_plan import FULL, SMOKE, Plan
from scripts.readme_tables import generated
from tests.house import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = {"distill/pretrain.py": "pretrain", "distill/finetune.py": "finetune"}
STARTERS = ("python", "deepspeed", "torchrun")


def shell_lines(text: str) -> Iterator[list[str]]:
    """Commands of a shell text as words: continued lines joined, `NAME=value` lines filled in."""
    values: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = shlex.split(line, comments=True)
        if len(words) == 1 and (found := re.fullmatch(r"(\w+)=(.*)", words[0], re.DOTALL)):
            values[found[1]] = found[2]
            continue
        filled = re.sub(r"\$\{?(\w+)\}?", lambda m: values.get(m[1], m[0]), line)
        if words:
            yield shlex.split(filled, comments=True)


def commands(text: str) -> list[list[str]]:
    """The commands that start one of our programs, from the program on."""
    found = []
    for words in shell_lines(text):
        if Path(words[0]).name in STARTERS:
            places = [i for i, word in enumerate(words) if word in PROGRAMS]
            found += [words[i:] for i in places[:1]]
    return found


def kinds() -> dict[str, dict[str, type[ArgGroup]]]:
    """What --student_model and --multi_teacher_model choose from."""
    return {"methods": method_args(), "combiners": combiner_args()}


def written_commands() -> list[tuple[str, list[str]]]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    found = [("README.md", words) for block in blocks for words in commands(block)]
    for path in sorted((ROOT / "scripts").rglob("*.sh")):
        found += [(path.name, words) for words in commands(path.read_text(encoding="utf-8"))]
    return found


def planned_commands() -> list[tuple[str, list[str]]]:
    return [
        (step.name, list(step.command))
        for sizes in (FULL, SMOKE)
        for step in Plan(sizes, Path("runs/quickstart")).steps
        if step.command[0] in PROGRAMS
    ]


def with_flags_of_run(word: str, file: Path) -> str:
    """`--args_file=runs/NAME/config.json` as the file that README's command for NAME would write."""
    found = re.fullmatch(r"--args_file=runs/(.*)/config.json", word)
    if found is None:
        return word
    name = f"--experiment-name={found[1]}"
    (program, *flags) = next(words for _, words in written_commands() if name in words)
    run = parse_args(flags, program=PROGRAMS[program], **kinds())
    file.write_text(run.to_json())
    return f"--args_file={file}"


@pytest.mark.parametrize(
    ("place", "words"),
    [*written_commands(), *planned_commands()],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_the_command_parses(place, words, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    words = [with_flags_of_run(word, tmp_path / "config.json") for word in words]
    run = parse_args(words[1:], program=PROGRAMS[words[0]], **kinds())
    assert run.program == PROGRAMS[words[0]]


def test_the_chains_parse():
    text = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    found = [words[3:] for words in shell_lines(text) if "scripts.chain" in words]
    assert found
    for words in found:
        options, flags = read(words)
        assert list(problems(plan(options, flags), options.program)) == []


def test_the_readme_shows_commands_of_both_programs():
    programs = {words[0] for place, words in written_commands() if place == "README.md"}
    assert programs == set(PROGRAMS)


def test_a_wrong_command_is_noticed():
    (words,) = commands(
        "STEPS=5\npython distill/pretrain.py --train-iters=$STEPS \\\n  --no-such-flag=1"
    )
    assert words == ["distill/pretrain.py", "--train-iters=5", "--no-such-flag=1"]
    with pytest.raises(ValueError, match="--no-such-flag"):
        parse_args(words[1:], program="pretrain", **kinds())


def test_the_generated_parts_are_up_to_date():
    assert generated(README) == README, "run: python -m scripts.readme_tables --write"


def test_links_and_named_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    scripts = [w for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
               for w in re.findall(r"\b(?:scripts|distill)/[\w/]+\.(?:py|sh)", block)]  # fmt: skip
    assert [name for name in [*links, *scripts] if not (ROOT / name).exists()] == []


def test_the_two_commands_of_the_readme_are_there():
    for name in ("scripts/quickstart.sh", "scripts/test.sh"):
        assert f"bash {name}" in README
        assert (ROOT / name).is_file()
