"""Fine-tuning's evaluations: the best epoch on validation is kept, then reported on test.

The test split is scored once, at the end, with the weights that validation chose.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from config import RunArgs
from data_utils.loader import StepLoader
from distill.context import TrainState
from distill.engine import files
from distill.engine.checkpoint import BEST, FINAL, Checkpoints
from distill.engine.evaluate import Evaluation, evaluate
from distill.engine.launch import Runtime
from distill.engine.run_dir import RESULTS, SUBMISSION, TEST_RESULTS, predictions_file
from distill.engine.weights import fill, whole_weights
from distill.engine.wrap import Engine
from tasks.base import Task
from tasks.superglue.dataset import EncodedDataset

log = logging.getLogger(__name__)

LOWER_IS_BETTER = frozenset({"loss", "ppl", "adjusted-ppl"})


class Selection:
    """Evaluates a task, remembers which weights were best, and writes the results."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        loaders: dict[str, StepLoader | None],
        state: TrainState,
        run: RunArgs,
        runtime: Runtime,
        checkpoints: Checkpoints,
    ):
        """`loaders`: "val", and "test" or None."""
        self.engine, self.task, self.loaders = engine, task, loaders
        self.state, self.run, self.runtime, self.checkpoints = state, run, runtime, checkpoints
        wanted = (run.finetuning.validation_metric or task.metric_names[0]).lower()
        self.metric = next(name for name in task.metric_names if name.lower() == wanted)
        self.history: list[dict[str, Any]] = self._earlier()
        self._best_weights: dict[str, Tensor] | None = None  # kept here if nothing is saved
        if state.best is not None and not checkpoints.has_best():
            log.info("the best weights so far are elsewhere; the choice starts anew")
            state.best = state.best_epoch = None

    def evaluate(self) -> dict[str, float]:
        """Scores on validation after the present step; keeps the weights if they are the best."""
        scores = self._score("val").metrics
        value, state = scores[self.metric], self.state
        sign = -1.0 if self.metric in LOWER_IS_BETTER else 1.0
        better = state.best is None or sign * value > sign * state.best
        # Without a student scores say nothing: the last weights of its teachers are the best.
        if better or self.run.multi_teacher.student_use_empty_glm:
            state.best, state.best_epoch = value, state.epoch
            self._keep()
        self._remember(scores)
        self._write(RESULTS, self._results())
        self._write_scores(last_epoch=state.epoch - 1)
        return scores

    def finish(self) -> dict[str, Any]:
        """Evaluate the best weights on validation and test; write and return the results."""
        if self.run.checkpoint.ft_final_save:
            self.checkpoints.save_weights(self.engine, FINAL, self.state.state_dict())
        if self.loaders.get("val") is None:  # --no-validation: the last weights are the best
            self.state.best_epoch = self.state.epoch
            self._keep()
        elif self.state.best is not None:
            self._restore()
        results: dict[str, Any] = {"task": self.task.name, "metric": self.metric}
        results |= {"type": "val", "best_epoch": self.state.best_epoch}
        for split in ("val", "test"):
            if self.loaders.get(split) is None:
                continue
            found = self._score(split)
            self._write_predictions(found)
            if found.metrics:
                results["type"] = split
                results[split] = found.metrics
                log.info("%s: %s", split, _text(found.metrics))
            results[f"{split}_samples_per_second"] = found.samples_per_second
        if not self.history and "val" in results:  # evaluated only
            self._remember(results["val"])
            self.state.best, self.state.best_epoch = results["val"][self.metric], self.state.epoch
            results["best_epoch"] = self.state.best_epoch
        self._write(RESULTS, self._results())
        self._write(TEST_RESULTS, results)
        self._write_scores(last_epoch=-1, final=results)
        return results

    def _remember(self, scores: dict[str, float]) -> None:
        state = self.state
        self.history.append({"epoch": state.epoch, "iteration": state.iteration, "metrics": scores})

    def _score(self, split: str) -> Evaluation:
        loader = self.loaders[split]
        assert loader is not None, split
        return evaluate(self.engine, self.task, loader, split=split)

    def _keep(self) -> None:
        if self.checkpoints.writes:
            self.checkpoints.save_weights(self.engine, BEST, self.state.state_dict())
        else:
            self._best_weights = whole_weights(self.engine.module, everywhere=True)

    def _restore(self) -> None:
        if self.checkpoints.writes:
            self.checkpoints.load_best(self.engine)
        elif self._best_weights is not None:
            fill(self.engine.module, self._best_weights)

    def _results(self) -> dict[str, Any]:
        return {
            "task": self.task.name,
            "metric": self.metric,
            "best": self.state.best,
            "best_epoch": self.state.best_epoch,
            "history": self.history,
        }

    def _earlier(self) -> list[dict[str, Any]]:
        """Evaluations of the part of the run before it was resumed."""
        if self.runtime.run_dir is None or not self.state.iteration:
            return []
        file = self.runtime.run_dir / RESULTS
        if not file.is_file():
            return []
        rows = json.loads(file.read_text(encoding="utf-8")).get("history", [])
        return [row for row in rows if row["iteration"] <= self.state.iteration]

    def _write(self, name: str, content: Any) -> None:
        if self.runtime.is_main and self.runtime.run_dir is not None:
            files.write_json(self.runtime.run_dir / name, content)

    def _write_predictions(self, found: Evaluation) -> None:
        if self.runtime.is_main and self.runtime.run_dir is not None:
            rows = [{"id": k, "prediction": v} for k, v in found.predictions.items()]
            dataset = getattr(self.loaders[found.split], "dataset", None)
            if isinstance(dataset, EncodedDataset) and dataset.labelled:
                rows = [row | {"label": int(dataset.labels[row["id"]])} for row in rows]
            files.write_lines(self.runtime.run_dir / predictions_file(found.split), rows)
            official = self.task.submission(found.predictions, found.split)
            if official is not None:
                name, lines = official
                folder = self.runtime.run_dir / SUBMISSION / found.split
                folder.mkdir(parents=True, exist_ok=True)
                files.write_text(folder / name, "".join(line + "\n" for line in lines))

    def _write_scores(self, *, last_epoch: int, final: dict[str, Any] | None = None) -> None:
        """--custom_tmp_result: per metric, the evaluation at which it was best (validation)."""
        path = self.run.evaluation.custom_tmp_result
        if path is None or not self.runtime.is_main:
            return
        best = {}
        for name in self.task.metric_names:
            sign = -1.0 if name in LOWER_IS_BETTER else 1.0
            rows = [row for row in self.history if name in row["metrics"]]
            if rows:
                top = max(rows, key=lambda row: sign * row["metrics"][name])  # noqa: B023
                best[name] = {
                    "epoch": top["epoch"] - 1,
                    "iteration": top["iteration"],
                    "score_dict": top["metrics"],
                }
        record = {
            "args": {
                "save": str(self.runtime.run_dir) if self.runtime.run_dir else None,
                "epochs": self.run.train.epochs,
                "iteration": self.state.iteration,
                "task": self.run.finetuning.task,
                "wsc_negative": self.run.finetuning.wsc_negative,
            },
            "now": time.strftime("%y%m%d_%H%M%S"),
            "max_score_dict": best,
            "epoch": last_epoch,
        }
        if final is not None:
            record["test"] = final.get("test")
        files.write_json(Path(path), record)


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
