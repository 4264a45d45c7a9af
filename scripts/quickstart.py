"""Run the quick start: every step of scripts/quickstart_plan.py, two at a time, then the report.

A step that has ended leaves a mark with its command; it is run again only when its command, or
that of a step before it, has changed. Start it with `bash scripts/quickstart.sh`.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from distill.tune.devices import environment, num_cores
from distill.tune.process import start, tail
from scripts.quickstart_plan import FULL, SMOKE, Plan, Step

ROOT = Path(__file__).resolve().parent.parent


class StepError(RuntimeError):
    """A command that did not exit with 0; its text names the log."""


class Runner:
    """Runs steps as soon as those they need have ended, at most `jobs` at the same time."""

    def __init__(self, plan: Plan, jobs: int):
        self.plan, self.jobs = plan, jobs
        self.marks, self.logs = (Path(plan.out) / name for name in ("done", "logs"))
        self.keys = step_keys(plan.steps)
        # Two steps with half the threads each are faster than one after the other with all.
        self.environment = environment(jobs)
        self.started = time.monotonic()

    def run(self) -> None:
        """All steps. StepError after the steps that were running have ended."""
        for folder in (self.marks, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        waiting = {step.name: step for step in self.plan.steps}
        running: dict[Future, Step] = {}
        ended: set[str] = set()
        failure: StepError | None = None
        with ThreadPoolExecutor(self.jobs) as pool:
            while waiting or running:
                ready = [s for s in waiting.values() if ended.issuperset(s.needs)]
                for step in ready[: self.jobs - len(running)] if failure is None else ():
                    del waiting[step.name]
                    running[pool.submit(self._step, step)] = step
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    if isinstance(future.exception(), StepError):
                        failure = failure or future.exception()
                    else:
                        future.result()
                        ended.add(step.name)
        if failure is not None:
            raise failure

    def _step(self, step: Step) -> None:
        mark, log = self.marks / f"{step.name}.json", self.logs / f"{step.name}.log"
        number = f"[{self.plan.steps.index(step) + 1:2d}/{len(self.plan.steps)}]"
        if mark.is_file() and json.loads(mark.read_text())["key"] == self.keys[step.name]:
            print(f"{number} {step.about}: done before", flush=True)
            return
        mark.unlink(missing_ok=True)
        print(f"{number} {step.about} ...", flush=True)
        begin = time.monotonic()
        process = start(["python", *step.command], log, self.environment, cwd=ROOT)
        status = process.wait()
        seconds = time.monotonic() - begin
        if status:
            raise StepError(f"{step.about}: exit status {status}; see {log}\n{tail(log)}")
        content = {"key": self.keys[step.name], "command": step.command, "seconds": seconds}
        mark.write_text(json.dumps(content, indent=2), encoding="utf-8")
        total = time.monotonic() - self.started
        print(f"{number} {step.about}: {seconds:.0f} s, {total / 60:.1f} min in all", flush=True)


def step_keys(steps: list[Step]) -> dict[str, str]:
    """Step name -> hash of its command and of everything before it. Steps stand in order."""
    keys: dict[str, str] = {}
    for step in steps:
        text = json.dumps([step.command, [keys[name] for name in step.needs]])
        keys[step.name] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def main(argv: list[str] | None = None) -> int:
    """Run what is not done yet, then write report.json, report.md and report.png."""
    parser = argparse.ArgumentParser(description="Distil a small GLM and report what it gained.")
    parser.add_argument("--fresh", action="store_true", help="remove earlier results first")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--out", type=Path, help="output folder; default: runs/quickstart")
    parser.add_argument("--jobs", type=int, default=min(2, num_cores()), help="steps at a time")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    options = parser.parse_args(argv)
    name = "quickstart-smoke" if options.smoke else "quickstart"
    plan = Plan(SMOKE if options.smoke else FULL, options.out or Path("runs") / name)
    if options.dry_run:
        for step in plan.steps:
            print(shlex.join(["python", *step.command]))
        return 0
    if options.fresh:
        shutil.rmtree(ROOT / plan.out, ignore_errors=True)
    os.chdir(ROOT)
    try:
        Runner(plan, options.jobs).run()
    except StepError as failure:
        print(failure, file=sys.stderr)
        return 1
    from scripts.quickstart_report import write_report

    print("\n" + write_report(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
