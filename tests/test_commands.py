"""Commands in README.md and docs/: each program's own parser takes them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import change_mp
from config import parse_args
from distill.tune.seed_args import read as read_tuning
from scripts import (
    bench_tasks,
    chain,
    count_tokens,
    expand_vocab,
    generate,
    kill_sweep,
    plan,
    train_tokenizer,
)
from tests.house import ROOT
from tests.test_readme import PROGRAMS, STARTERS, kinds, shell_lines

#: Program -> what reads its words.
READERS: dict[str, Callable[[list[str]], Any]] = {
    "change_mp.py": change_mp.read,
    "distill/auto_tune.py": read_tuning,
    "scripts/bench_tasks.py": bench_tasks.read,
    "scripts/chain.py": chain.read,
    "scripts/count_tokens.py": lambda words: count_tokens.build_parser().parse_args(words),
    "scripts/expand_vocab.py": lambda words: expand_vocab.build_parser().parse_args(words),
    "scripts/generate.py": generate.read,
    "scripts/kill_sweep.py": lambda words: kill_sweep.build_parser().parse_known_args(words),
    "scripts/plan.py": plan.read,
    "scripts/train_tokenizer.py": lambda words: train_tokenizer.build_parser().parse_args(words),
}
#: What a reader of a command has to fill in, or a class that another command made.
OPEN = re.compile(r"\.\.\.|\.py:\w")


def commands() -> list[tuple[str, str, list[str]]]:
    """(file, program, its words) of all commands that can be read as they stand.

    Those of the two training programs in README.md are in tests/test_readme.py.
    """
    found = []
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(r"```bash\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
            for words in shell_lines(block):
                if Path(words[0]).name not in STARTERS or any(map(OPEN.search, words)):
                    continue
                if words[1] == "-m":
                    words = ["python", words[2].replace(".", "/") + ".py", *words[3:]]
                places = [i for i, word in enumerate(words) if word.endswith(".py")]
                program, rest = words[places[0]], words[places[0] + 1 :]
                if not (program in PROGRAMS and file == ROOT / "README.md"):
                    found.append((file.name, program, rest))
    return found


@pytest.mark.parametrize(("place", "program", "words"), commands())
def test_the_command_is_read(place, program, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if program in PROGRAMS:
        assert parse_args(words, program=PROGRAMS[program], **kinds()).program == PROGRAMS[program]
    else:
        assert program in READERS, "add what reads its command line"
        READERS[program](words)


def test_commands_of_every_program_are_found():
    assert {program for _, program, _ in commands()} >= {*READERS, *PROGRAMS}


@pytest.mark.parametrize("program", ["change_mp.py", "scripts/plan.py", "scripts/expand_vocab.py"])
def test_a_wrong_command_is_noticed(program, capsys):
    with pytest.raises(SystemExit):
        READERS[program](["runs/teacher", "--no-such-flag=1"])
    assert "--no-such-flag=1" in capsys.readouterr().err
