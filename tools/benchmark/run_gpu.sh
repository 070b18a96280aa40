#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most eight minutes, what is worth most first:
# correctness of all Triton kernels, the operator's benchmark, whole models beside Swin-T,
# ConvNeXt-T and DeiT, and the kernels' launch settings. Needs a CUDA GPU, torch and triton, and this
# checkout, which need not be installed. pytest and timm are used if they are there. What the
# operator's benchmark needs is compiled in other processes beside the tests.
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
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
python="${PYTHON:-python3}"
out="${OUT:-$root/work_dirs/benchmark_gpu}"
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests operator models variants)
test_share=150 operator_share=80 share=75 # seconds
[ ${#steps[@]} -gt 1 ] || test_share=$LIMIT operator_share=$LIMIT share=$((LIMIT / 2))
workers="$(nproc)"
[ "$workers" -le 8 ] || workers=8

fail() {
    echo "run_gpu.sh: $1" >&2
    exit 2
}

for step in "${steps[@]}"; do
    case "$step" in
        tests | operator | models | variants | fla) ;;
        *) fail "unknown step '$step'; the steps are tests operator models variants fla" ;;
    esac
done
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

mkdir -p "$out" || fail "cannot write to $out"
out="$(cd "$out" && pwd)"
: >"$out/run.log"
tree="$(mktemp -d)"
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/vig_mm" # setup.py installs the folder kernels as vig_mm.kernels; links do here
ln -s "$root"/vig_mm/* "$root/kernels" "$tree/vig_mm" || fail "cannot make the package importable"
export PYTHONPATH="$tree${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET # it would run the kernels on the CPU

# limited SECONDS COMMAND...: with a time limit that keeps to the whole script's. Interrupts first,
# so that pytest still prints what it knows.
limited() {
    local left=$((LIMIT - SECONDS)) seconds=$1
    shift
    [ "$seconds" -le "$left" ] || seconds=$left
    if [ "$seconds" -lt 30 ]; then # to import, build and compile takes about as long
        echo "left out: no time"
        return 0
    fi
    timeout --signal=INT --kill-after=10 "$seconds" "$@"
}

run_tests() {
    local files=() processes=() i status=0
    if ! "$python" -c 'import pytest' 2>/dev/null; then
        echo "pytest is not installed: no tests (the benchmark checks every shape it measures)"
        return 0
    fi
    for i in test_triton test_locality_gate test_norm_conv test_feed_forward; do
        files+=("$root/tests/test_kernels/$i.py")
    done
    # from outside the checkout, whose vig_mm lacks the kernels as long as it is not installed
    cd "$tree" || return 1
    export PYTHONPATH="$PYTHONPATH:$here" # of the plugin shapes, by which the processes share tests
    for ((i = 0; i < workers; i++)); do
        TEST_SHARD=$i/$workers limited "$test_share" "$python" -m pytest -c "$root/pyproject.toml" \
            --rootdir "$root" -p shapes -p no:cacheprovider -q --tb=short "${files[@]}" \
            >"$out/tests_$i.log" 2>&1 &
        processes+=($!)
    done
    for i in "${!processes[@]}"; do
        wait "${processes[i]}" || status=$?
        tail -n 40 "$out/tests_$i.log"
    done
    return "$status"
}

# benchmark SECONDS SCRIPT STEM OPTION...: its own guard ends it before it would be killed
benchmark() {
    local seconds=$1 script=$2 stem=$3
    shift 3
    [ "$seconds" -le $((LIMIT - SECONDS)) ] || seconds=$((LIMIT - SECONDS))
    [ "$seconds" -ge 30 ] || seconds=30
    limited "$seconds" "$python" "$root/tools/$script" --device cuda --out "$out/$stem.json" \
        --minutes "$("$python" -c "print(($seconds - 25) / 60)")" "$@"
}

statuses=()
# step NAME COMMAND...: runs it, notes how it ended and goes on
step() {
    local name=$1 status
    shift
    "$@" 2>&1 | tee -a "$out/run.log"
    status=${PIPESTATUS[0]}
    statuses+=("$name=$status")
    echo "--- $name: exit status $status, $SECONDS s since the start"
}

operator=benchmark/bidirectional_gla.py ahead=()
if [[ " ${steps[*]} " == *" tests "* ]]; then
    for ((i = 0; i < workers; i++)); do
        timeout "$test_share" "$python" "$root/tools/$operator" --compile "$i" "$workers" \
            >"$out/compile_$i.log" 2>&1 &
        ahead+=($!)
    done
fi
for name in "${steps[@]}"; do
    [ "$name" = tests ] || [ ${#ahead[@]} -eq 0 ] || wait "${ahead[@]}"
    case "$name" in
        tests) step tests run_tests ;;
        operator) step operator benchmark "$operator_share" $operator bidirectional_gla_gpu ;;
        models)
            step maps benchmark "$share" analysis_tools/benchmark.py maps_gpu --task maps \
                --precisions bfloat16
            step classifiers benchmark "$share" analysis_tools/cost_vs_resolution.py cost_gpu \
                --training
            ;;
        variants) step variants benchmark $((LIMIT - SECONDS)) benchmark/gpu_variants.py variants ;;
        fla) step fla benchmark "$LIMIT" $operator bidirectional_gla_gpu_fla --fla ;;
    esac
done
printf '%s\n' "==== ${statuses[*]}; files in $out" | tee -a "$out/run.log"
[[ " ${statuses[*]} " =~ =[1-9] ]] && exit 1
exit 0
