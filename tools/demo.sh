#!/usr/bin/env bash
# From nothing to a trained detector: sets up, makes the digits data, trains a Mask R-CNN with a
# small HierViG backbone, scores it, and draws its predictions beside the ground truth.
#
#   bash tools/demo.sh [--fresh]
#
# What is there already is used again; an interrupted training goes on. --fresh trains anew.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
config=configs/mmdet/mask-rcnn_vig-h-mini_fpn_digits.py
work=work_dirs/demo
case ${1:-} in
  '') ;;
  --fresh) rm -rf "$work" ;;
  *) echo "demo.sh: unknown argument '$1' (only --fresh)" >&2; exit 2 ;;
esac

bash tools/setup_env.sh
export PATH="$(realpath "${VIG_MM_VENV:-.venv}")/bin:$PATH" PYTHONUNBUFFERED=1
mkdir -p "$work"

# logged LOG COMMAND...: all output to LOG, its progress and scores to the screen.
logged() {
  local log=$1
  shift
  if ! "$@" 2>&1 | tee "$log" | sed -u -nE \
    -e 's/.*Epoch\(train\) *\[([0-9]+)\]\[ *([0-9]+\/[0-9]+)\].* eta: (([0-9]+ days?, )?[0-9:]+).* loss: ([0-9.]+|nan).*/  epoch \1, step \2, loss \5, \3 to go/p' \
    -e 's/.*Epoch\((val|test)\).*bbox_mAP: (-?[0-9.]+) *coco\/bbox_mAP_50: (-?[0-9.]+).*segm_mAP: (-?[0-9.]+) *coco\/segm_mAP_50: (-?[0-9.]+).*/  on the validation images: box AP \2 (AP50 \3), mask AP \4 (AP50 \5)/p'; then
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
  logged "$work/train.log" python tools/train.py "$config" --work-dir "$work" --seed 0 --resume
fi

printf '\n3/4 evaluation (COCO metrics)\n'
rm -rf "$work/pictures"
logged "$work/test.log" python tools/test.py "$config" "$checkpoint" --work-dir "$work/test" \
  --show-dir "$PWD/$work/pictures"

printf '\n4/4 picture\n'
python tools/picture_grid.py "$work/pictures" "$work/predictions.png" --count 8

printf '\nDone.\n  checkpoint   %s\n  scores       %s\n  predictions  %s (all of them: %s)\n' \
  "$checkpoint" "$work/test.log" "$work/predictions.png" "$work/pictures"
