#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most eight minutes, what is worth most first:
# correctness of all Triton kernels, the operator's benchmark, whole models beside Swin-T,
# ConvNeXt-T and DeiT, and the kernels' launch settings. Needs a CUDA GPU, torch and triton, and this
# checkout, which need not be installed. pytest, timm and flash-linear-attention are used if they
# are there. What the benchmarks need is compiled in other processes beside the tests.
#
#   bash tools/benchmark/run_gpu.sh [STEP ...]     steps: tests operator models variants fla rest profile
#
# `fla` (the comparison with flash-linear-attention), `rest` (what the time limits left out of
# operator and models) and `profile` run only if they are named. A step named alone gets the time of
# all. Files go to $OUT, or to work_dirs/benchmark_gpu, as the figures come. PYTHON names another
# interpreter than python3. A step that fails does not stop the next ones. Exit status: 0 if all went
# well, 1 if a test or another step failed, 2 if nothing could be run.
set -uo pipefail

readonly LIMIT=455 # seconds for all steps; the rest of eight minutes is for stopping the last one
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
python="${PYTHON:-python3}"
out="${OUT:-$root/work_dirs/benchmark_gpu}"
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests operator models variants)
# seconds for the tests and for each benchmark, of which `rest` measures what is left
test_share=150 operator_share=80 share=75
[ ${#steps[@]} -gt 1 ] || test_share=$LIMIT operator_share=$LIMIT share=$((LIMIT / 2))
workers="$(nproc)"
[ "$workers" -le 8 ] || workers=8

fail() {
    echo "run_gpu.sh: $1" >&2
    exit 2
}

for step in "${steps[@]}"; do
    case "$step" in
        tests | operator | models | variants | fla | rest | profile) ;;
        *) fail "unknown step '$step'; the steps are tests operator models variants fla rest profile" ;;
    esac
done
command -v "$python" >/dev/null || fail "no interpreter '$python'; name one in PYTHON"
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$python" -c '
import sys
try:
    import torch, triton
except ImportError as error:
    sys.exit(f"run_gpu.sh: {sys.executable} lacks a package: {error}")
if not torch.cuda.is_available():
    sys.exit("run_gpu.sh: needs a CUDA GPU, and torch sees none")
import common
print(common.machine("cuda"))
' || exit 2

mkdir -p "$out" || fail "cannot write to $out"
out="$(cd "$out" && pwd)"
: >"$out/run.log"
tree="$(mktemp -d)"
trap 'rm -rf "$tree"' EXIT
"$python" "$here/source_tree.py" "$tree" || fail "cannot make the package importable"
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
    local files=() processes=() name i status=0
    if ! "$python" -c 'import pytest' 2>/dev/null; then
        echo "pytest is not installed: no tests (the benchmark checks every shape it measures)"
        return 0
    fi
    for name in test_triton test_locality_gate test_block_parts test_feed_forward; do
        [ ! -f "$root/tests/test_kernels/$name.py" ] || files+=("$root/tests/test_kernels/$name.py")
    done
    # from outside the checkout, whose vig_mm lacks the kernels as long as it is not installed
    cd "$tree" || return 1
    export PYTHONPATH="$PYTHONPATH:$here" # of the plugins without_mm and shard
    # each process compiles what its tests need
    for ((i = 0; i < workers; i++)); do
        TEST_SHARD=$i/$workers limited "$test_share" "$python" -m pytest -c "$root/pyproject.toml" \
            --rootdir "$root" -p without_mm -p shard -p no:cacheprovider -v --tb=short \
            --durations=3 "${files[@]}" >"$out/tests_$i.log" 2>&1 &
        processes+=($!)
    done
    for i in "${!processes[@]}"; do
        wait "${processes[i]}" || status=$?
        cat "$out/tests_$i.log"
    done
    return "$status"
}

# what the benchmarks run, once, beside the tests; the first of them waits for its end
ahead=
compile_ahead() {
    [[ " ${steps[*]}" == *" tests "* ]] || return 0
    "$python" "$here/compile_ahead.py" --seconds "$test_share" >"$out/compile_ahead.log" 2>&1 &
    ahead=$!
}

compiled() {
    [ -z "$ahead" ] || wait "$ahead" || echo "compile_ahead.py failed, see compile_ahead.log"
    ahead=
}

# benchmark SECONDS SCRIPT STEM OPTION...: its own guard ends it before it would be killed
benchmark() {
    local seconds=$1 script=$2 stem=$3 minutes
    shift 3
    [ "$seconds" -le $((LIMIT - SECONDS)) ] || seconds=$((LIMIT - SECONDS))
    [ "$seconds" -ge 30 ] || seconds=30
    [[ " $* " == *" --resume "* ]] || rm -f "$out/$stem".{json,md} # nothing old in the summary
    minutes="$("$python" -c "print(($seconds - 30) / 60)")"
    limited "$seconds" "$python" "$here/$script" --device cuda --minutes "$minutes" \
        --out "$out/$stem.json" "$@"
}

run_fla() {
    if ! "$python" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("fla") is None)'; then
        echo "flash-linear-attention is not installed: not compared with"
        return 0
    fi
    local third=$(((LIMIT - SECONDS) / 3))
    limited $((third + 20)) "$python" "$here/fla_warm.py" --seconds $third
    benchmark "$LIMIT" bidirectional_gla.py bidirectional_gla_gpu_fla --fla
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

compile_ahead
operator=(bidirectional_gla.py bidirectional_gla_gpu)
models=(backbones.py backbones_gpu)
for name in "${steps[@]}"; do
    [ "$name" = tests ] || compiled
    case "$name" in
        tests) step tests run_tests ;;
        operator) step operator benchmark "$operator_share" "${operator[@]}" ;;
        models)
            step dense benchmark "$share" dense_backbones.py dense_backbones_gpu
            step models benchmark "$share" "${models[@]}"
            ;;
        variants) step variants benchmark $((LIMIT - SECONDS)) gpu_variants.py gpu_variants ;;
        fla) step fla run_fla ;;
        rest)
            step operator_rest benchmark $(((LIMIT - SECONDS) * 6 / 10)) "${operator[@]}" --resume
            step models_rest benchmark $((LIMIT - SECONDS - 30)) "${models[@]}" --resume
            ;;
        profile)
            step profile limited 60 "$python" "$here/backbones.py" --device cuda --profile 1024 \
                --out "$out/profile_vig-t_1024_gpu.json"
            ;;
    esac
done

"$python" "$here/summary.py" "$out" "${statuses[@]}" 2>&1 | tee -a "$out/run.log"
