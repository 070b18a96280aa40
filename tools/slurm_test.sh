#!/usr/bin/env bash
# Test under Slurm: tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [arguments of tools/test.py]
# From the environment: GPUS (8), GPUS_PER_NODE (8 or GPUS), CPUS_PER_TASK (5), SRUN_ARGS, MASTER_PORT.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "tools/$(basename "$0"): error: 4 arguments are needed, got $#. $(sed -n '2s/^# //p' "$0")" >&2
    sed -n '3s/^# //p' "$0" >&2
    exit 2
fi
partition=$1 job=$2 config=$3 checkpoint=$4
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
srun -p "$partition" \
    --job-name="$job" \
    --gres=gpu:"$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher slurm "${@:5}"
