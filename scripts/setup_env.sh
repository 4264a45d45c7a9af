#!/usr/bin/env bash
# Make the virtual environment once: Python 3.11 or newer is all it needs. A complete one is left alone.
#
# PYTHON      the interpreter that makes it        (default: python3)
# PYTHON_ENV  its folder, an existing one included (default: .venv in the repository)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
  -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' scripts/setup_env.sh; exit 0 ;;
  ?*) echo "scripts/setup_env.sh: unknown argument $1; it takes none but --help" >&2; exit 2 ;;
esac
env_dir=${PYTHON_ENV:-.venv}

if ! [ -x "$env_dir/bin/python" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "$python is $("$python" --version 2>&1); Python 3.11 or newer is needed: PYTHON=/path/to/python3" >&2; exit 1; }
  "$python" -m venv "$env_dir"
fi

# Silent and quick when every pinned version is there and the project's packages are this checkout's.
if "$env_dir/bin/python" scripts/check_env.py; then exit 0; fi

pip=("$env_dir/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "$(grep '^torch==' requirements.txt)" # first: what follows must not choose another build
"${pip[@]}" -r requirements.txt
"${pip[@]}" --no-deps -e .
"$env_dir/bin/python" scripts/check_env.py --explain
