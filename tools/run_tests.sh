#!/usr/bin/env bash
# Sets up the environment, then runs the linter and the tests. Arguments go to pytest:
#   bash tools/run_tests.sh [-k operator] [-n 2] ...
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
export PATH="$(realpath "${VIG_MM_VENV:-.venv}")/bin:$PATH"
ruff check .
exec python -m pytest "$@"
