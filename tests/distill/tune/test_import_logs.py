"""The seed's logs, in small: the same two runs as its published GLMD log has, and a KD one."""

import json

import pytest

from config import ConfigError
from distill.tune.import_logs import import_logs
from distill.tune.report_run import report


def entry(task: str, scores: dict, command: str = "") -> dict:
    best = {name: {"epoch": 4, "iteration": 100, "score_dict": scores} for name in scores}
    args = {"save": "x", "epochs": 5, "iteration": 100, "task": task, "wsc_negative": False}
    return {"args": args, "now": "", "max_score_dict": best, "epoch": -1, "*cmd": command}


@pytest.fixture
def logs(tmp_path):
    glmd = [
        entry("ReCoRD", {"EM": 62.48, "F1": 63.345761904761986}, "deepspeed --seed=7"),
        entry("ReCoRD", {"EM": 65.24, "F1": 65.96385714285721}, "deepspeed --seed=7"),
        entry("COPA", {"accuracy": 67.0}),
        entry("COPA", {"accuracy": 73.0}),
    ]
    kd = [entry("ReCoRD", {"EM": 21.6, "F1": 22.4}), entry("COPA", {"accuracy": 60.0})]
    (tmp_path / "16_1e-5").mkdir()
    (tmp_path / "GLMD.json").write_text(json.dumps(glmd))
    (tmp_path / "16_1e-5" / "KD.json").write_text(json.dumps(kd))
    return tmp_path


def test_the_best_stage_of_each_task_counts(logs):
    found = import_logs([logs])
    assert found.cells["GLMD", "ReCoRD"].scores == pytest.approx((65.601928571,))
    assert found.cells["GLMD", "COPA"].scores == (73.0,)
    assert found.cells["KD", "ReCoRD"].scores == (22.0,)
    assert found.cells["GLMD", "ReCoRD"].metric == "EM+F1"
    assert (found.cells["GLMD", "ReCoRD"].seeds, found.cells["KD", "COPA"].seeds) == ((7,), (1234,))


def test_a_report_is_made_of_them(logs, tmp_path):
    report([f"--import-logs={logs}", "--baseline=KD", f"--out={tmp_path / 'report'}"])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| GLMD | 65.6 (val) | 73.0 (val) | 69.3 |" in text
    assert "| KD | 22.0 (val) | 60.0 (val) | 41.0 |" in text


def test_other_files_and_baselines_are_refused(logs, tmp_path):
    with pytest.raises(ConfigError, match="--baseline=PKD: is no log; there are"):
        report([f"--import-logs={logs}", "--baseline=PKD"])
    (tmp_path / "x.json").write_text("[{}]")
    with pytest.raises(ConfigError, match="--import-logs=.*x.json: entry 1 has no 'args'"):
        import_logs([tmp_path / "x.json"])


def best(record: dict, **scores: dict) -> dict:
    """A record whose metrics were best at evaluations of their own."""
    found = {name: {"epoch": 1, "iteration": 9, "score_dict": row} for name, row in scores.items()}
    return record | {"max_score_dict": found}


def test_the_oddities_of_published_logs(tmp_path):
    # MultiRC in fractions, each metric best elsewhere; WSC twice; a stage that is missing; a run
    # that never was evaluated; a file of one record.
    early, late = ({"f1a": 0.70, "em": 0.26, "acc": 71.0}, {"f1a": 0.71, "em": 0.24, "acc": 75.0})
    multirc = best(entry("MultiRC", {}), f1a=late, em=early, acc=late)
    negative = entry("WSC", {"accuracy": 84.6})
    negative["args"]["wsc_negative"] = True
    cb = entry("CB", {"accuracy": 92.9, "f1-macro": 0.905})
    rows = [multirc, negative, entry("WSC", {"accuracy": 63.5}), cb, entry("RTE", {})]
    rows += [entry("MultiRC", {"f1a": 0.5, "em": 0.1, "acc": 80.0})]
    (tmp_path / "GLMD_110M-66M.json").write_text(json.dumps(rows))
    (tmp_path / "one.json").write_text(json.dumps(entry("COPA", {"accuracy": 73.0})))
    found = import_logs([tmp_path])
    cells = {task: cell for (name, task), cell in found.cells.items() if name != "one"}
    assert cells["MultiRC"].scores == pytest.approx(((70 + 26) / 2,))  # of one evaluation
    assert cells["WSC-negative"].scores == (84.6,)
    assert cells["WSC"].scores == (63.5,)
    assert cells["CB"].scores == pytest.approx(((92.9 + 90.5) / 2,))
    assert "RTE" not in cells
    assert found.cells["one", "COPA"].scores == (73.0,)
    assert not found.complete("GLMD_110M-66M")
