"""The shell scripts' own arguments; nothing is set up or started for them."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*command: str) -> subprocess.CompletedProcess:
    """Run a command with an environment that does not exist and cannot be made."""
    env = {"PATH": "/usr/bin:/bin", "PYTHON": "false", "PYTHON_ENV": "no-such-environment"}
    return subprocess.run(["bash", *command], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["setup_env.sh", "test.sh", "quickstart.sh"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_the_comment_at_the_top(name: str, flag: str):
    done = start(f"scripts/{name}", flag)
    assert (done.returncode, done.stderr) == (0, "")
    comment = (ROOT / "scripts" / name).read_text(encoding="utf-8").splitlines()[1]
    assert done.stdout.startswith(comment.removeprefix("# ") + "\n")
    assert "set -euo" not in done.stdout


def test_setting_up_takes_no_other_argument():
    done = start("scripts/setup_env.sh", "--fast")
    assert done.returncode == 2
    assert done.stderr.startswith("scripts/setup_env.sh: unknown argument --fast")
