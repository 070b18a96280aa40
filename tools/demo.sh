#!/usr/bin/env bash
# From nothing to a trained detector: sets up, makes the digits data, trains a Mask R-CNN with a
# small HierViG backbone, scores it, and draws its predictions beside the ground truth.
#
#   bash tools/demo.sh [--fresh]
#
# What is there already is used again; an interrupted training goes on. --fresh trains anew.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
config=configs/mmdet/mask-rcnn_vig-h-mini_fpn_5e_digits.py
work=work_dirs/demo
case ${1:-} in
  '') ;;
  --fresh) rm -rf "$work" ;;
  *) echo "demo.sh: unknown argument '$1' (only --fresh)" >&2; exit 2 ;;
esac

bash tools/setup_env.sh
export PATH="$(realpath "${VIG_MM_VENV:-.venv}")/bin:$PATH" PYTHONUNBUFFERED=1
# One thread: of several, each waits for the slowest, which on a busy machine is for ever.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$work"

# shown LOG COMMAND...: all output to LOG, a progress bar to the screen.
shown() {
  local log=$1
  shift
  if ! "$@" --cfg-options default_hooks.progress.type=vig_mm.ProgressBarHook \
    default_hooks.progress.fd=3 3>&1 >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    printf '\ndemo failed: %s (the whole log: %s)\n' "$*" "$log" >&2
    exit 1
  fi
}

printf '\n1/4 data\n'
python tools/data/make_digits.py data/digits

printf '\n2/4 training\n'
read_epochs='import sys; from mmengine.config import Config
print(Config.fromfile(sys.argv[1], import_custom_modules=False).train_cfg.max_epochs)'
epochs=$(python -c "$read_epochs" "$config")
checkpoint=$work/epoch_$epochs.pth
if [[ -e $checkpoint ]]; then
  echo "  $checkpoint is there: not trained again (bash tools/demo.sh --fresh trains anew)"
else
  echo "  $config, $epochs epochs; whole log: $work/train.log"
  shown "$work/train.log" python tools/train.py "$config" --work-dir "$work" --seed 0 --resume
fi

printf '\n3/4 evaluation (COCO metrics)\n'
rm -rf "$work/pictures" "$work/test"
shown "$work/test.log" python tools/test.py "$config" "$checkpoint" --work-dir "$work/test" \
  --show-dir "$PWD/$work/pictures"

printf '\n4/4 picture\n'
python tools/picture_grid.py "$work/pictures" "$work/predictions.png" --count 8

read_scores='import json, sys
scores = json.load(open(sys.argv[1]))
print(", ".join("%s AP %.1f (AP50 %.1f)" % (
    name, 100 * scores["coco/%s_mAP" % key], 100 * scores["coco/%s_mAP_50" % key]
) for name, key in (("box", "bbox"), ("mask", "segm"))))'
printf '\nDone.\n  scores       '
python -c "$read_scores" "$work"/test/*/*.json
cat <<EOF
  picture      $work/predictions.png (all of them: $work/pictures)
  checkpoint   $checkpoint
  logs         $work/train.log, $work/test.log

Next:
  . ${VIG_MM_VENV:-.venv}/bin/activate
  python tools/visualize.py data/digits/ade/images/validation $config \\
      $checkpoint --out-dir work_dirs/drawn         # any folder of pictures, a video, one file
  python tools/train.py configs/mmseg/vig-h-mini_upernet_digits.py     # segmentation, the same data
  python tools/data/check_dataset.py CONFIG          # before training on your own: docs/custom_data.md
EOF
