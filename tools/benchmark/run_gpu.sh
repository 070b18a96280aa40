#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most eight minutes, what is worth most first:
# correctness of all Triton kernels, the operator's benchmark, whole models beside Swin-T,
# ConvNeXt-T and DeiT, and the kernels' launch settings. Needs a CUDA GPU, torch and triton, and this
# checkout, which need not be installed. pytest, pytest-xdist and timm are used if they are there.
#
#   bash tools/benchmark/run_gpu.sh [STEP ...]     steps: tests operator models variants fla
#
# `fla` (the comparison with flash-linear-attention, which tunes itself for minutes) runs only if it
# is named. A step named alone gets the time of all. Files go to $OUT, or to
# work_dirs/benchmark_gpu, as the figures come. PYTHON names another interpreter than python3. A step
# that fails does not stop the next ones. Exit status: 0 if all went well, 1 if a test or another
# step failed, 2 if nothing could be run.
set -uo pipefail

readonly LIMIT=455 # seconds for all steps; the rest of eight minutes is for stopping the last one
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-python3}"
out="${OUT:-$root/work_dirs/benchmark_gpu}"
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests operator models variants)
alone=$((${#steps[@]} == 1))

fail() {
    echo "run_gpu.sh: $1" >&2
    exit 2
}

for step in "${steps[@]}"; do
    [[ " tests operator models variants fla " == *" $step "* ]] ||
        fail "unknown step '$step'; the steps are tests operator models variants fla"
done
[[ $python != */* ]] || python="$(cd "$(dirname "$python")" && pwd)/$(basename "$python")"
command -v "$python" >/dev/null || fail "no interpreter '$python'; name one in PYTHON"
PYTHONPATH="$root/tools/analysis_tools" "$python" -c '
import sys
try:
    import torch, triton
except ImportError as error:
    sys.exit(f"run_gpu.sh: {sys.executable} lacks a package: {error}")
if not torch.cuda.is_available():
    sys.exit("run_gpu.sh: needs a CUDA GPU, and torch sees none")
import common
print(common.describe(common.machine("cuda")))
' || exit 2

mkdir -p "$out" && out="$(cd "$out" && pwd)" && : >"$out/run.log" || fail "cannot write to $out"
tree="$(mktemp -d)"
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/vig_mm" # setup.py installs the folder kernels as vig_mm.kernels; links do here
ln -s "$root"/vig_mm/* "$root/kernels" "$tree/vig_mm" || fail "cannot make the package importable"
export PYTHONPATH="$tree${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET # it would run the kernels on the CPU
cd "$tree" || exit 2   # not the checkout, whose vig_mm lacks the kernels while it is not installed

statuses=()
# run NAME SECONDS ARGUMENT...: Python with them, within this time and the script's;
# notes how it ended and goes on. Interrupts first, so that pytest still prints what it knows.
run() {
    local name=$1 seconds=$2 left=$((LIMIT - SECONDS)) status=0
    shift 2
    ((seconds < left)) || seconds=$left
    if ((seconds < 30)); then # to import, build and compile takes about as long
        echo "left out: no time"
    else
        timeout --signal=INT --kill-after=10 "$seconds" "$python" "$@" 2>&1 | tee -a "$out/run.log"
        status=${PIPESTATUS[0]}
    fi
    statuses+=("$name=$status")
    echo "--- $name: exit status $status, $SECONDS s since the start"
}

# benchmark NAME SECONDS SCRIPT STEM OPTION...: starts nothing in the last 25 of these seconds; a step
# alone has all, two benchmarks of one step half each
benchmark() {
    local name=$1 seconds=$2 script=$3 stem=$4 left=$((LIMIT - SECONDS)) minutes
    shift 4
    ((seconds < left && !alone)) || seconds=$left
    [ "$name" != maps ] || ((seconds < left)) || seconds=$((left / 2))
    printf -v minutes '%d.%02d' $(((seconds - 25) / 60)) $(((seconds - 25) % 60 * 100 / 60))
    run "$name" "$seconds" "$root/tools/$script" --device cuda --out "$out/$stem.json" \
        --minutes "$minutes" "$@"
}

run_tests() {
    # a warning that only a GPU's libraries give is no error here
    local options=(-c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q --tb=short -W default)
    if ! "$python" -c 'import pytest' 2>/dev/null; then
        echo "pytest is not installed: no tests (the benchmark checks every shape it measures)"
        return
    fi
    "$python" -c 'import xdist' 2>/dev/null && options+=(-n auto --maxprocesses 8)
    run tests $((alone ? LIMIT : 130)) -m pytest "${options[@]}" \
        "$root"/tests/test_kernels/test_{triton,locality_gate,norm_conv,feed_forward}.py
}

operator=benchmark/bidirectional_gla.py
for step in "${steps[@]}"; do
    case "$step" in
        tests) run_tests ;;
        operator) benchmark operator 100 $operator bidirectional_gla_gpu ;;
        models)
            benchmark maps 75 analysis_tools/benchmark.py maps_gpu --task maps --precisions bfloat16
            benchmark classifiers 75 analysis_tools/cost_vs_resolution.py cost_gpu --training
            ;;
        variants) benchmark variants "$LIMIT" benchmark/gpu_variants.py variants ;;
        fla) benchmark fla "$LIMIT" $operator bidirectional_gla_gpu_fla --fla ;;
    esac
done
printf '%s\n' "==== ${statuses[*]}; files in $out" | tee -a "$out/run.log"
[[ " ${statuses[*]} " =~ =[1-9] ]] && exit 1
exit 0
