"""Many runs: the seed's sequence of tasks, or a sweep over methods, tasks, seeds and settings.

python distill/auto_tune.py --py_file=distill/finetune.py --model=block_tiny6 --tasks=copa,rte ...
python distill/auto_tune.py --sweep config/sweeps/example.yaml
python distill/auto_tune.py --report runs/example
"""

import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> None:
    """The program. A mistake of the user ends it with one message and exit code 2."""
    from distill.engine.launch import run_program

    words = sys.argv[1:] if argv is None else list(argv)
    run_program(lambda: auto_tune(words))


def auto_tune(words: Sequence[str]) -> None:
    """One of the program's uses, by its flags. SystemExit(1) if a run failed."""
    names = {word.partition("=")[0] for word in words}
    if "--sweep" in names:
        from distill.tune.sweep import run_sweep

        run_sweep(words)
    elif names & {"--report", "--import-logs"}:
        from distill.tune.report_run import report

        report(words)
    else:
        run_tasks(words)


def show(path: Path) -> None:
    """The scores of a saved tune file."""
    from distill.tune.scores import read_records, table

    sys.stdout.write(table(read_records(path, "--show_tune")) + "\n")


def run_tasks(words: Sequence[str]) -> None:
    """The seed's command line: every task, stage after stage; with --test the commands only."""
    from distill.tune.seed_args import read
    from distill.tune.seed_plan import Clock, jobs_of
    from distill.tune.seed_run import Runner

    given, clock = read(words or ["--test"]), Clock()
    if given.tune.show_tune is not None:
        show(Path(given.tune.show_tune))
        return
    name, jobs = clock(), jobs_of(given, clock)
    if given.tune.test:
        for job in jobs:
            sys.stdout.writelines(f"{command.text}\n" for command in job.commands)
        return
    runner = Runner(jobs, Path(given.tune.data_root), name, given.tune.retries)
    runner.prepare()
    if not runner.run():
        sys.exit(1)


if __name__ == "__main__":
    main()
