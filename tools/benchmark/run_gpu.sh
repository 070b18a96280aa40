#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most nine minutes, what is worth most first:
# correctness of the Triton kernels, the operator's benchmark, whole models, the comparison with
# flash-linear-attention, then the rest of the first two, and a profile. Needs a CUDA GPU, torch and
# triton, and this checkout, which need not be installed. pytest, timm (for DeiT) and
# flash-linear-attention are used if they are there.
#
#   bash tools/benchmark/run_gpu.sh [STEP ...]     steps: variants tests operator models fla rest profile
#
# `variants` times the kernels' launch settings, in four minutes, and runs only if it is named.
# Without steps: all the others; a step named alone gets the time of all. Files go to $OUT, or to
# work_dirs/benchmark_gpu. PYTHON names another interpreter than python3. A step that fails does not
# stop the next ones. Exit status: 0 if all went well, 1 if a test or another step failed, 2 if
# nothing could be run.
set -uo pipefail

readonly LIMIT=525 # seconds for all steps; the rest of nine minutes is for stopping the last one
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
python="${PYTHON:-python3}"
out="${OUT:-$root/work_dirs/benchmark_gpu}"
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests operator models fla rest profile)
# seconds for the tests and for each of the first benchmarks, of which `rest` measures what is left
test_share=170 share=140
[ ${#steps[@]} -gt 1 ] || test_share=$LIMIT share=$LIMIT

fail() {
    echo "run_gpu.sh: $1" >&2
    exit 2
}

for step in "${steps[@]}"; do
    case "$step" in
        variants | tests | operator | models | fla | rest | profile) ;;
        *) fail "unknown step '$step'; the steps are variants tests operator models fla rest profile" ;;
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
    local files=() workers=() name
    if ! "$python" -c 'import pytest' 2>/dev/null; then
        echo "pytest is not installed: no tests (the benchmark checks every shape it measures)"
        return 0
    fi
    for name in test_triton test_locality_gate; do
        [ ! -f "$root/tests/test_kernels/$name.py" ] || files+=("$root/tests/test_kernels/$name.py")
    done
    "$python" -c 'import xdist' 2>/dev/null && workers=(-n 6)
    # from outside the checkout, whose vig_mm lacks the kernels as long as it is not installed
    cd "$tree" || return 1
    export PYTHONPATH="$PYTHONPATH:$here" # of the plugin without_mm
    limited "$test_share" "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" \
        -p without_mm -p no:cacheprovider -v --tb=short --durations=5 "${workers[@]}" "${files[@]}"
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

operator=(bidirectional_gla.py bidirectional_gla_gpu)
models=(backbones.py backbones_gpu)
for name in "${steps[@]}"; do
    case "$name" in
        variants) step variants limited 260 "$python" "$here/gpu_variants.py" --minutes 4 \
            --out "$out/gpu_variants.json" ;;
        tests) step tests run_tests ;;
        operator) step operator benchmark "$share" "${operator[@]}" ;;
        models)
            step models benchmark "$share" "${models[@]}"
            step dense benchmark "$share" dense_backbones.py dense_backbones_gpu
            ;;
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
