#!/usr/bin/env bash
# Sets up the environment, then runs the linter and the tests. Other arguments go to pytest:
#   bash tools/run_tests.sh [--line upstream|onedl] [-k operator] [-n 2] [--record JSON] ...
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
line=upstream
if [[ ${1:-} == --line ]]; then
  line=${2:?--line needs upstream or onedl}
  shift 2
fi
bash tools/setup_env.sh --line "$line"
venv=${VIG_MM_VENV:-.venv}
[[ $line == upstream ]] || venv=$venv-$line
export PATH="$(realpath "$venv")/bin:$PATH"
ruff check --quiet .
ruff format --check --quiet .
mypy --no-error-summary
exec python -m pytest -p tools.dev.tested_versions "$@"
