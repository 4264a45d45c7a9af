"""The check that scripts/setup_env.sh relies on."""

from scripts.check_env import ROOT, installed_from, problems


def test_this_environment_is_complete():
    assert problems() == []


def test_a_missing_package_and_another_version_are_named(tmp_path):
    text = "# a comment\ntorch==0.0.1\nno-such-package-of-ours==1.0\n"
    (tmp_path / "requirements.txt").write_text(text)
    torch, missing, source = problems(tmp_path)
    assert torch.startswith("torch: ")
    assert "0.0.1" in torch
    assert missing.startswith("no-such-package-of-ours: not installed")
    assert str(tmp_path) in source


def test_the_project_is_installed_from_here():
    assert installed_from() == ROOT
