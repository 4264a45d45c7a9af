"""The benchmark of sweeps runs and tells what it measured."""

import json

from scripts.bench_sweep import main


def test_it_measures_both_ways(tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert main(["--runs=4", "--seconds=0.01", f"--out={file}"]) == 0
    found = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (found["runs"], found["slots"]) == (4, 2)
    ours = found["sweep_seconds"] + found["reading_and_checking_seconds"]
    rounding, bare = 5e-5, found["bare_seconds"]
    lowest = 100 * ((ours - 2 * rounding) / (bare + rounding) - 1)
    highest = 100 * ((ours + 2 * rounding) / (bare - rounding) - 1)
    assert lowest - 0.005 <= found["overhead_percent"] <= highest + 0.005
    assert found["bare_seconds"] > 0.02
