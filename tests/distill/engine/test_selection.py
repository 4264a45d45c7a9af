"""Best weights by validation alone; test once, at the end."""

import dataclasses
import json

import pytest
import torch

import mpu
from config import CheckpointArgs, EvalArgs, FinetuneArgs, TrainArgs
from distill.context import TrainState
from distill.engine.checkpoint import Checkpoints, resolve
from distill.engine.selection import Selection
from model.build import HeadSpec
from tasks.choice import ChoiceTask
from tests.distill.engine import small


class Task(ChoiceTask):
    """Its scores on each split are a function of the model's single weight."""

    metric_names = ("accuracy", "f1-macro")

    def __init__(self, scores):
        super().__init__("toy", HeadSpec("classification"))
        self.scores, self.asked = scores, []

    def metrics(self, predictions, split="val"):
        self.asked.append(split)
        value = self.scores(split)
        return {} if value is None else {"accuracy": value, "f1-macro": -value}


@pytest.fixture
def make(tmp_path):
    """selection(scores of validation, test score) over an engine whose weight is the step."""

    def build(validation, test=1.0, metric=None, save=True, has_test=True, **checkpoint):
        run = small.make_run()
        save_args = CheckpointArgs(save=str(tmp_path) if save else None, **checkpoint)
        run = dataclasses.replace(
            run,
            program="finetune",
            train=TrainArgs(epochs=len(validation)),
            checkpoint=save_args,
            finetuning=FinetuneArgs(task="toy", validation_metric=metric),
            evaluation=EvalArgs(custom_tmp_result=str(tmp_path / "score.json")),
        )
        folder = tmp_path / "run" if save else None
        runtime = small.runtime(run_dir=folder)
        engine = small.make_engine(0, 1, run)

        def scores(split):
            step = int(engine.module.last.bias[0])
            return validation[step] if split == "val" else test

        task = Task(scores)
        loaders = {"train": None, "val": [], "test": [] if has_test else None}
        state = TrainState()
        selection = Selection(
            engine, task, loaders, state, run, runtime, Checkpoints(run, runtime, "abc")
        )

        def epochs(first=0):
            for step in range(first, len(validation)):
                with torch.no_grad():
                    engine.module.last.bias.fill_(float(step))
                state.iteration, state.epoch = 10 * (step + 1), step + 1
                selection.evaluate()
            return selection.finish()

        return selection, epochs, engine, task

    yield build
    mpu.destroy_model_parallel()


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("save", [True, False])
def test_the_best_epoch_on_validation_is_reported_on_test(make, tmp_path, save):
    selection, epochs, engine, task = make([50.0, 70.0, 60.0], test=65.0, save=save)
    results = epochs()
    assert results["val"]["accuracy"] == 70.0
    assert results["test"]["accuracy"] == 65.0
    assert (results["type"], results["best_epoch"]) == ("test", 2)
    assert engine.module.last.bias[0] == 1.0  # the weights of the second epoch
    assert task.asked == ["val"] * 4 + ["test"]
    assert (tmp_path / "run").exists() == save


def test_files(make, tmp_path):
    epochs = make([50.0, 70.0, 60.0])[1]
    epochs()
    run = tmp_path / "run"
    results = read(run / "results.json")
    assert (results["metric"], results["best"], results["best_epoch"]) == ("accuracy", 70.0, 2)
    assert [row["metrics"]["accuracy"] for row in results["history"]] == [50.0, 70.0, 60.0]
    assert read(run / "test_results.json")["type"] == "test"
    assert (run / "predictions-val.jsonl").is_file()
    assert resolve(run, prefer_best=True) == (run, "best")
    score = read(tmp_path / "score.json")
    assert score["epoch"] == -1
    assert score["args"]["epochs"] == 3
    best = score["max_score_dict"]["accuracy"]
    assert best == {"epoch": 1, "iteration": 20, "score_dict": results["history"][1]["metrics"]}
    assert score["max_score_dict"]["f1-macro"]["epoch"] == 0


def test_another_metric_selects(make):
    results = make([50.0, 70.0, 60.0], metric="f1-macro")[1]()
    assert results["best_epoch"] == 1


def test_the_first_of_equals_wins(make):
    assert make([60.0, 60.0])[1]()["best_epoch"] == 1


def test_without_a_test_split_validation_is_reported(make):
    results = make([50.0], has_test=False)[1]()
    assert results["type"] == "val"
    assert "test" not in results


def test_a_test_split_without_labels_gets_predictions_only(make, tmp_path):
    results = make([50.0], test=None)[1]()
    assert "test" not in results
    assert (tmp_path / "run" / "predictions-test.jsonl").is_file()


def test_a_run_resumed_elsewhere_chooses_anew(make, tmp_path):
    """Its best weights lie in the other run's folder."""
    selection, epochs, engine, task = make([50.0, 40.0])
    selection.state.best, selection.state.best_epoch = 90.0, 1
    parts = (engine, task, selection.loaders, selection.state, selection.run, selection.runtime)
    Selection(*parts, selection.checkpoints)
    assert selection.state.best is None
    assert epochs()["val"]["accuracy"] == 50.0


def test_a_resumed_run_keeps_its_history_and_its_best(make, tmp_path):
    selection, epochs, engine, task = make([50.0, 70.0, 60.0])
    for step in range(2):
        with torch.no_grad():
            engine.module.last.bias.fill_(float(step))
        selection.state.iteration, selection.state.epoch = 10 * (step + 1), step + 1
        selection.evaluate()
    parts = (engine, task, selection.loaders, selection.state, selection.run, selection.runtime)
    resumed = Selection(*parts, selection.checkpoints)
    assert resumed.state.best == 70.0
    assert [row["iteration"] for row in resumed.history] == [10, 20]


def test_zero_epochs_only_evaluate(make, tmp_path):
    selection, _, engine, task = make([42.0])
    with torch.no_grad():
        engine.module.last.bias.zero_()
    results = selection.finish()
    assert results["val"]["accuracy"] == 42.0
    found = read(tmp_path / "run" / "results.json")
    assert (found["best"], found["best_epoch"]) == (42.0, 0)
    assert task.asked == ["val", "test"]
    assert not (tmp_path / "run" / "best").exists()
    assert (
        read(tmp_path / "score.json")["max_score_dict"]["accuracy"]["score_dict"]["accuracy"]
        == 42.0
    )


def test_the_last_weights_are_kept_on_request(make, tmp_path):
    make([70.0, 50.0], ft_final_save=True)[1]()
    folder = tmp_path / "run"
    files = {tag: folder / tag / "mp_rank_00_model_states.pt" for tag in ("best", "final")}
    steps = {
        tag: torch.load(file, weights_only=True)["module"]["last.bias"][0].item()
        for tag, file in files.items()
    }
    assert steps == {"best": 0.0, "final": 1.0}
