#!/usr/bin/env bash
# Test on several GPUs: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# More machines, from the environment: NNODES, NODE_RANK, MASTER_ADDR and PORT (docs/distributed.md).
set -euo pipefail
fail() {
    echo "tools/$(basename "$0"): error: $1. $(sed -n '2s/^# //p' "$0")" >&2
    sed -n '3s/^# //p' "$0" >&2
    exit 2
}
[ $# -ge 3 ] || fail "3 arguments are needed, got $#"
config=$1 checkpoint=$2 gpus=$3
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "GPUS must be a number, got '$gpus'"
if [ "${NNODES:-1}" != 1 ] && [ -z "${NODE_RANK:-}" -o -z "${MASTER_ADDR:-}" ]; then
    fail "NNODES=$NNODES needs NODE_RANK (0 to $((NNODES - 1))) and MASTER_ADDR (of rank 0)"
fi
python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
