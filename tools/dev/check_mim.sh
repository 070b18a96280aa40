#!/usr/bin/env bash
# Shows that OpenMMLab's `mim` works with this package: installs it as a user would (a regular
# install, not an editable one), then lists, searches, trains, tests, runs tools and downloads.
#
#   bash tools/dev/check_mim.sh
#
# Needs an active environment that tools/setup_env.sh made and 150 MB in $TMPDIR; changes neither that
# environment nor the checkout. Everything happens in a temporary virtual environment on top, from a
# folder outside the checkout. openmim is fetched unless it is installed; nothing else is. Addresses
# are those of a server on 127.0.0.1. About 2 minutes on one core.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
config=vig-h-mini_digits.py # trained and tested
model=vig-t_8xb128_in1k     # downloaded
weights=https://huggingface.co/hustvl/ViG/resolve/main
unset PYTHONPATH
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
export CUDA_VISIBLE_DEVICES= # predictions below are compared bit by bit

fail() { # fail WHAT WHAT-TO-DO
  printf 'check_mim.sh: %s\n  what to do: %s\n' "$1" "$2" >&2
  exit 1
}

(($# == 0)) || { echo "check_mim.sh: unknown argument '$1' (there are none)" >&2; exit 2; }
python -c 'import mmengine, mmcv, mmpretrain, pip' 2>/dev/null ||
  fail "$(command -v python || echo python) lacks mmengine, mmcv, mmpretrain or pip" \
    'bash tools/setup_env.sh, then . .venv/bin/activate'

work=$(mktemp -d "${TMPDIR:-/tmp}/vig_mm-mim.XXXXXX")
server=
clean() {
  [[ -z $server ]] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM
export TMPDIR=$work # pip and torch leave folders there
log=$work/log

# pip keeps what the environment has; for what comes on top, the tested versions.
pinned=constraints.txt
python -m pip show --quiet onedl-mmcv 2>/dev/null && pinned=constraints-onedl.txt
export PIP_CONSTRAINT=$work/constraints.txt
python - "$root/requirements/$pinned" >"$PIP_CONSTRAINT" <<'PY'
import re, sys
from importlib.metadata import distributions
from pathlib import Path

def canonical(name): return re.sub("[-_.]+", "-", name).lower()

lines = [line for line in Path(sys.argv[1]).read_text().splitlines() if line[:1] not in ("", "#")]
pins = {canonical(line.partition("==")[0]): line for line in lines}
pins |= {canonical(d.name): f"{d.name}=={d.version}" for d in distributions()}
pins.pop("vig-mm", None)
print("\n".join(pins.values()))
PY
py=$work/venv/bin/python

# check WHAT PATTERN COMMAND...: COMMAND has to succeed and print PATTERN (extended regular expression)
check() {
  local what=$1 pattern=$2 start=$SECONDS
  shift 2
  if "$@" >"$log" 2>&1 </dev/null && grep -qE -- "$pattern" "$log"; then
    echo "ok: $what ($((SECONDS - start)) s)"
  else
    tail -n 30 "$log" >&2
    printf 'FAILED: %s\n  command: %s\n  expected to succeed and print: %s\n' "$what" "$*" "$pattern" >&2
    exit 1
  fi
}
mim() { "$py" -m mim "$@"; } # a `mim` of the environment below would look there
pip() { "$py" -m pip "$@"; }

# The environment below is seen through a .pth file. Those that lie in it are not read again, so its
# editable vig_mm is out of sight; so would be setuptools' distutils, which Python 3.12 lacks.
purelib() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
new_environment() {
  python -m venv --without-pip "$work/venv" &&
    python -c 'import site; print("\n".join(site.getsitepackages()))' \
      >"$(purelib "$py")/below.pth" &&
    cp "$(purelib python)/distutils-precedence.pth" "$(purelib "$py")" &&
    pip install -r "$root/requirements/mim.txt"
}

package() { "$py" -c 'import vig_mm; print(vig_mm.__path__[0])'; }

# As mim sees the index: every model of the metafiles, each with its one config.
compare_index() {
  mim search vig_mm --json "$work/index.json" && "$py" - "$work/index.json" "$(package)/.mim" <<'PY'
import json, sys
from pathlib import Path
import yaml

configs = json.loads(Path(sys.argv[1]).read_text())["config"]
mim = Path(sys.argv[2])
metafiles = yaml.safe_load((mim / "model-index.yml").read_text())["Import"]
models = [m for path in metafiles for m in yaml.safe_load((mim / path).read_text())["Models"]]
assert configs == {m["Name"]: m["Config"] for m in models}, configs
for name, config in configs.items():
    assert [*mim.rglob(f"{name}.py")] == [mim / config], f"mim would not find {name}.py"
print(f"{len(configs)} models")
PY
}

download() {
  mim download vig_mm --config "$model" --dest downloads &&
    cmp "$work/served/vig_t_77p2acc.pth" downloads/vig_t_77p2acc.pth
}

test_downloaded() {
  mim test vig_mm "$config" --checkpoint downloads/vig_t_77p2acc.pth --gpus 0 \
    --out downloaded.pkl --cfg-options "${loaders[@]}" && "$py" - <<'PY'
import pickle
from pathlib import Path

trained, downloaded = (pickle.loads(Path(f"{x}.pkl").read_bytes()) for x in ("trained", "downloaded"))
assert len(trained) == 20
for one, other in zip(trained, downloaded, strict=True):
    assert one["img_path"] == other["img_path"] and one["pred_score"].equal(other["pred_score"])
print("20 equal predictions")
PY
}

serve() { # serve FOLDER: sets `port`
  : >"$work/server.log"
  "$py" -u -m http.server 0 --bind 127.0.0.1 --directory "$1" >"$work/server.log" 2>&1 &
  server=$!
  until port=$(sed -nE 's/^Serving .* port ([0-9]+) .*/\1/p' "$work/server.log") && [[ -n $port ]]; do
    kill -0 "$server" || fail 'no web server on 127.0.0.1' "$(cat "$work/server.log")"
    sleep 0.1
  done
}

# The build leaves its traces beside setup.py, so it gets a copy.
mkdir "$work/source" "$work/away" "$work/served"
(cd "$root" && cp -r setup.py pyproject.toml README.md LICENSE model-index.yml dataset-index.yml \
  requirements vig_mm kernels configs tools "$work/source")
cd "$work/away"

check 'a fresh environment with openmim' openmim new_environment
check 'pip install .' 'Successfully installed vig-mm' \
  pip install --no-deps --no-build-isolation "$work/source"
check 'mim install .' 'Successfully installed vig-mm' \
  mim install --no-build-isolation "$work/source"
check 'the installed package is used' "^$work/venv/.*/vig_mm$" package
version=$(sed -nE 's/^__version__ = "(.*)"$/\1/p' "$root/vig_mm/version.py")
check 'mim list' "^vig-mm +$version" mim list
check 'mim search vig_mm: all models' '^[0-9]+ models' compare_index
check 'mim search vig_mm: by size' "config id: $model" \
  mim search vig_mm --model vig --condition 'parameters<6000000' --field parameters
check 'mim search vig_mm: public weights' "^weight +$weights/vig_t_77p2acc.pth" \
  mim search vig_mm --config "$model" --field weight --display-width 200

check 'mim run vig_mm make_digits' 'digits data made in' \
  mim run vig_mm make_digits data/digits --coco 0 0 --ade 0 0 --imagenet 4 2 --imagenet-size 64 64
loaders=()
for split in train val test; do
  loaders+=("${split}_dataloader.num_workers=0" "${split}_dataloader.persistent_workers=False")
done
check "mim train vig_mm $config: two iterations" 'Training finished successfully' \
  mim train vig_mm "$config" --launcher none --gpus 0 --cfg-options "${loaders[@]}" \
  train_dataloader.batch_size=20 train_cfg.max_epochs=1 train_cfg.val_interval=1
check "mim train vig_mm $config: two processes" 'Training finished successfully' \
  mim train vig_mm "$config" --launcher pytorch --gpus 2 --work-dir two --cfg-options \
  "${loaders[@]}" train_dataloader.batch_size=20 train_cfg.max_epochs=1 train_cfg.val_interval=1
trained=work_dirs/${config%.py}/epoch_1.pth
check "mim test vig_mm $config" 'accuracy/top1: [0-9.]+' \
  mim test vig_mm "$config" --checkpoint "$trained" --gpus 0 --out trained.pkl \
  --cfg-options "${loaders[@]}"

# A real file under the name of a public one, and the installed index changed to point to it.
check 'mim run vig_mm convert_checkpoint' 'public form' \
  mim run vig_mm convert_checkpoint "$trained" "$work/served/vig_t_77p2acc.pth"
serve "$work/served"
sed -i "s|$weights|http://127.0.0.1:$port|" "$(package)/.mim/configs/mmpretrain/metafile.yml"
check "mim download vig_mm --config $model" "Successfully dumped $model.py" download
check 'mim test vig_mm with that public file: the same predictions' '^20 equal predictions' \
  test_downloaded
check 'mim run vig_mm get_flops with the downloaded config' 'parameters +5,834,536' \
  mim run vig_mm get_flops "downloads/$model.py"
echo "mim works with vig_mm $version ($SECONDS s)"
