#!/usr/bin/env bash
# Lint, format check and tests. `--all` adds what is slow or starts whole programs; the rest goes to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
  -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' scripts/test.sh; exit 0 ;;
esac
bash scripts/setup_env.sh
bin=${PYTHON_ENV:-.venv}/bin

# Small tensors: threads that wait for each other cost more than they gain.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

marks=(-m "not slow and not e2e and not gpu")
if [ "${1:-}" = "--all" ]; then
  marks=()
  shift
fi
"$bin/ruff" check .
"$bin/ruff" format --check .
# Two processes; a file's tests stay together, since they share what is costly to build.
# A process that dies fails the run: in its place xdist 3.8 would start one that can wait for ever.
exec "$bin/python" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile --max-worker-restart=0 \
  "${marks[@]}" "$@"
