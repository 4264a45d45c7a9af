"""The benchmark of sweeps runs and tells what it measured."""

import json

from scripts.bench_sweep import main


def test_it_measures_both_ways(tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert main(["--runs=4", "--seconds=0.01", f"--out={file}"]) == 0
    found = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (found["runs"], found["slots"]) == (4, 2)
    expected = (
        found["sweep_seconds"] + found["reading_and_checking_seconds"] - found["bare_seconds"]
    )
    expected *= 100 / found["bare_seconds"]
    assert abs(found["overhead_percent"] - expected) < 5
    assert found["bare_seconds"] > 0.02
