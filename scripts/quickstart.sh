#!/usr/bin/env bash
# The quick start: pretrain a teacher, distil a student of half its depth, fine-tune both, report.
#
# Sets the environment up if need be (scripts/setup_env.sh; PYTHON_ENV chooses another one), then runs
# scripts/quickstart.py. What is done already is skipped; --fresh starts over; --smoke is a short trial.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
  -h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' scripts/quickstart.sh
    echo "--out FOLDER: where to; --jobs N: steps at a time; --dry-run: print the commands only"
    exit 0
    ;;
esac
bash scripts/setup_env.sh
exec "${PYTHON_ENV:-.venv}/bin/python" -m scripts.quickstart "$@"
