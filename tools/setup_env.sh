#!/usr/bin/env bash
# Makes one virtual environment with everything vig_mm needs, in the tested versions.
#
#   bash tools/setup_env.sh [--line upstream|onedl] [--mmcv lite|compiled] [--venv DIR]
#
# --line upstream (the default) takes OpenMMLab's own packages, --line onedl their maintained forks.
# --mmcv lite takes mmcv without compiled operators, which vig_mm.ops serves through torchvision: no
# compiler, no CUDA toolkit; every program of the environment finds them, mmdet's own tools as well.
# --mmcv compiled builds mmcv's own, which takes 10 minutes or more. The default is lite, or compiled
# where the environment has that already. The forks are always compiled.
# DIR is $VIG_MM_VENV where that is set, else .venv in the repository, with -onedl added for the forks;
# an environment that exists is completed, not replaced. $VIG_MM_PYTHON names the Python that makes it.
# A run with nothing to do returns at once. Everything pip and the compiler print goes to DIR/setup.log.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
line=upstream
mmcv=
venv=
while (($#)); do
  case $1 in
    --line) line=${2:?--line needs upstream or onedl}; shift 2 ;;
    --mmcv) mmcv=${2:?--mmcv needs lite or compiled}; shift 2 ;;
    --venv) venv=${2:?--venv needs a folder}; shift 2 ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "setup_env.sh: unknown argument '$1' (only --line, --mmcv, --venv)" >&2; exit 2 ;;
  esac
done
forks='onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmsegmentation onedl-mmpretrain'
originals='mmengine mmcv mmcv-lite mmdet mmsegmentation mmpretrain'
case $line in
  upstream)
    default_venv=${VIG_MM_VENV:-$root/.venv}
    constraints=requirements/constraints.txt packages=requirements/mm.txt
    pythons='3.10, 3.11 or 3.12' other_line=$forks
    ;;
  onedl)
    default_venv=${VIG_MM_VENV:-$root/.venv}-onedl
    constraints=requirements/constraints-onedl.txt packages=requirements/onedl.txt
    pythons='3.11, 3.12 or 3.13' other_line=$originals
    ;;
  *) echo "setup_env.sh: unknown line '$line' (upstream or onedl)" >&2; exit 2 ;;
esac
case $line-$mmcv in
  *- | *-compiled | upstream-lite) ;;
  onedl-lite) echo "setup_env.sh: --mmcv lite: the forks have no mmcv-lite; leave it out" >&2; exit 2 ;;
  *) echo "setup_env.sh: unknown mmcv '$mmcv' (lite or compiled)" >&2; exit 2 ;;
esac
venv=${venv:-$default_venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
cd "$root"
py=$venv/bin/python
log=$venv/setup.log
stamp=$venv/.vig_mm-ready
build_dir=$venv/build
steps=6
step_number=0
child=

say() { printf '%s\n' "$*"; }
fail() { # fail WHAT WHAT-TO-DO
  printf '\nsetup failed: %s\n  what to do: %s\n' "$1" "$2" >&2
  exit 1
}
clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }
pin() { sed -n "s/^\($1==[^ ;]*\).*/\1/p" "$constraints"; }
supported() {
  "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1])' \
    "$pythons" 2>/dev/null
}

stop_child() { [[ -z $child ]] || kill -- "-$child" 2>/dev/null || true; }
trap stop_child EXIT
trap 'exit 130' INT TERM

why_failed() { # the usual causes, read from what the failed step printed
  local output
  output=$(awk '/^### / {text = ""} {text = text $0 "\n"} END {printf "%s", text}' "$log")
  case $output in
    *'No space left on device'*) echo 'free some disk space, then run this again: it goes on from here' ;;
    *'Killed signal'* | *'cannot allocate memory'* | *'Cannot allocate memory'*)
      echo 'memory ran out: MAX_JOBS=1 bash tools/setup_env.sh' ;;
    *'Temporary failure in name resolution'* | *'Connection'*' broken'* | *'timed out'* | *'Max retries'*)
      echo 'check the network (or the index that pip is set to), then run this again: it goes on from here' ;;
    *'No matching distribution'* | *'ResolutionImpossible'*)
      echo 'pip does not find a pinned version: check the network and the index (pip config list)' ;;
    *) echo 'read the log, mend the cause, then run this again: it goes on from here' ;;
  esac
}

# step TITLE COMMAND...: one line with the time it takes; what it prints goes to the log.
step() {
  local title start=$SECONDS note tick=0
  title="[$((++step_number))/$steps] $1"
  shift
  printf '\n### %s\n' "$title" >>"$log"
  # A job of its own group, so that an interrupt here also ends the compilers that pip started.
  set -m
  "$@" >>"$log" 2>&1 </dev/null &
  child=$!
  set +m
  [[ -t 1 ]] || say "$title ..."
  while kill -0 "$child" 2>/dev/null; do
    sleep 1
    note=$(progress)
    if [[ -t 1 ]]; then
      printf '\r\033[K%s ... %s%s' "$title" "$(clock $((SECONDS - start)))" "$note"
    elif ((++tick % 60 == 0)); then
      say "    $(clock $((SECONDS - start)))$note"
    fi
  done
  if wait "$child"; then child=; else
    child=
    printf '\n\n' >&2
    tail -n 20 "$log" >&2
    fail "$title (the whole log: $log)" "$(why_failed)"
  fi
  [[ -t 1 ]] && printf '\r\033[K'
  say "$title: done in $(clock $((SECONDS - start)))"
}

# While mmcv compiles: how many of its source files are through. While pip downloads torch: how much.
progress() {
  local source total
  if [[ -n $(find "$build_dir"/pip-unpack-* -name '*.whl' -print -quit 2>/dev/null) ]]; then
    printf ', %d MB downloaded' "$(du -sm "$build_dir" | cut -f 1)"
    return
  fi
  for source in "$build_dir"/pip-*/*mmcv_*/mmcv/ops/csrc/pytorch; do
    [[ -d $source/cpu ]] || return 0
  done
  total=$(find "$source" "$source/cpu" -maxdepth 1 -name '*.cpp' | wc -l)
  [[ -z $with_cuda ]] || total=$((total + $(find "$source/cuda" -name '*.c*' | wc -l)))
  printf ', compiled %d of %d files' "$(find "$build_dir" -name '*.o' | wc -l)" "$total"
}
with_cuda=

installed() { # installed DISTRIBUTION...: those of them that the environment has
  "$py" - "$@" <<'PY'
import importlib.metadata, sys
found = {dist.name.lower().replace("_", "-") for dist in importlib.metadata.distributions()}
print(*(name for name in sys.argv[1:] if name in found))
PY
}

has() { "$py" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

make_venv() {
  local python candidates=(python3 python3.13 python3.12 python3.11 python3.10)
  [[ -z ${VIG_MM_PYTHON:-} ]] || candidates=("$VIG_MM_PYTHON")
  for python in "${candidates[@]}" ''; do
    supported "$python" && break
  done
  [[ -n $python ]] || fail "none of '${candidates[*]}' is Python $pythons" \
    'apt-get install python3 python3-venv python3-dev, or set VIG_MM_PYTHON=/path/to/python'
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module" 'apt-get install python3-venv'
  if [[ ! -e $venv/pyvenv.cfg && -n $(ls -A "$venv" 2>/dev/null) ]]; then
    fail "$venv holds something else than a virtual environment" 'name another folder with --venv'
  fi
  "$python" -m venv --clear "$venv"
}

check_machine() {
  local free header
  if ! has torch; then
    free=$(df -Pk "$venv" | awk 'NR == 2 {print int($4 / 1048576)}')
    ((free >= 8)) || fail "only $free GB are free for $venv, and about 8 GB are needed" \
      'free some space, or name a folder on another disk with --venv'
  fi
  if [[ $mmcv == compiled ]] && ! has mmcv; then
    command -v "${CXX:-g++}" >/dev/null ||
      fail "no C++ compiler (${CXX:-g++}), and mmcv has to be compiled" "apt-get install g++$or_lite"
    header=$("$py" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
    [[ -e $header ]] ||
      fail "no $header, and mmcv has to be compiled" "apt-get install python3-dev$or_lite"
  fi
}

pip_install() {
  "$py" -m pip install --disable-pip-version-check --no-compile -c "$constraints" "$@"
}

# Compiled operators: for the GPU where torch sees one (or FORCE_CUDA=1) and nvcc can compile for it.
choose_operators() {
  local gpu=
  [[ ${FORCE_CUDA:-0} != 1 ]] || gpu=1
  [[ -n $gpu || ! -e /dev/nvidiactl ]] ||
    gpu=$("$py" -c 'import torch; print("1" if torch.cuda.is_available() else "")')
  if [[ -n $gpu ]] && command -v nvcc >/dev/null; then
    with_cuda=1
  elif [[ -n $gpu ]]; then
    say 'NOTE: a GPU but no nvcc: mmcv is compiled for the CPU, so detectors cannot train on this GPU.'
    say "      Install a CUDA toolkit, delete $stamp and run this again${or_lite}."
  fi
}

compile_mmcv() { # compile_mmcv PIP-OPTIONS...
  local memory_jobs jobs headers
  memory_jobs=$(awk '/MemAvailable/ {print int($2 / 2097152)}' /proc/meminfo) # 2 GB for each
  jobs=$(nproc)
  ((jobs <= memory_jobs)) || jobs=$((memory_jobs > 0 ? memory_jobs : 1))
  export MAX_JOBS=${MAX_JOBS:-$jobs} MMCV_WITH_OPS=1
  if [[ -n $with_cuda ]]; then
    # Toolkits without the maths libraries' headers: torch's own packages carry them.
    headers=$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13/include
    export CPATH=$headers${CPATH:+:$CPATH}
  else
    export CUDA_VISIBLE_DEVICES=
  fi
  if [[ $line == onedl ]]; then
    # Its torch needs C++20 and its setup.py asks for C++17: the option that comes last counts.
    printf '#!/bin/sh\nexec %s "$@" -std=c++20\n' "${CXX:-g++}" >"$build_dir/cxx20"
    chmod +x "$build_dir/cxx20"
    export CXX=$build_dir/cxx20 NVCC_APPEND_FLAGS=-std=c++20
  fi
  pip_install --no-build-isolation --no-deps "$@" "$(pin "$mmcv_name")"
}

# OpenCV's ordinary wheel needs libGL, which servers and containers lack; the headless one does not.
choose_opencv() {
  "$py" -c 'import cv2' && return
  "$py" -m pip uninstall --yes opencv-python
  pip_install --force-reinstall --no-deps opencv-python-headless
  "$py" -c 'import cv2'
}

install_vig_mm() {
  pip_install --no-build-isolation --no-deps -e .
  # for programs that start without vig_mm: the libraries' own tools, mim, inferencers, notebooks
  "$py" -m vig_mm.ops "$([[ $line == upstream ]] && echo enable || echo disable)"
}

# Where only the tests of these libraries look: mmpretrain does not start beside transformers 5.
install_hosts() {
  rm -rf "$venv/hosts"
  pip_install --no-deps --target "$venv/hosts" -r requirements/hosts.txt
}

mmcv_works() {
  WITH_CUDA=$with_cuda "$py" - <<'PY' >>"$log" 2>&1
import os
from mmcv.ops import get_compiling_cuda_version, nms  # noqa: F401
assert not os.environ["WITH_CUDA"] or get_compiling_cuda_version() != "not available"
PY
}

# Images of containers often forbid Python to keep what it compiles: here it may, once, or every start
# of a tool would compile 4000 modules again, in seven seconds. The operator's machine code is kept, too.
import_all() {
  env -u PYTHONDONTWRITEBYTECODE "$py" -c '
import vig_mm.ops, mmcv.ops, vig_mm.kernels
import mmdet.utils, mmpretrain.utils, mmseg.utils
for library in mmdet, mmseg, mmpretrain:
    library.utils.register_all_modules(init_default_scope=False)
import torch
x = torch.randn(1, 20000, 1, 16, requires_grad=True)
for tokens in 64, len(x[0]):
    vig_mm.kernels.bidirectional_gla(*[x[:, :tokens]] * 5).sum().backward()
'
}

[[ $(uname -s) == Linux ]] || fail "this is $(uname -s)" 'use Linux (on Windows: WSL 2)'
"$py" -V >/dev/null 2>&1 || make_venv
# Both lines' packages have the same import names: in one environment they overwrite each other.
strangers=$(installed $other_line)
[[ -z $strangers ]] || fail "$venv holds packages of the other line: $strangers" \
  "name another folder with --venv, or drop --venv and VIG_MM_VENV for the line's own"
supported "$py" || fail "$py is $("$py" -V), not Python $pythons, as the line $line needs" \
  'name another folder with --venv, and a Python with VIG_MM_PYTHON'
exec 9>"$venv/.vig_mm-lock"
flock -n 9 || { say "another setup of $venv is running: waiting for it"; flock 9; }

mmcv_name=mmcv or_lite=
[[ $line == upstream ]] || mmcv_name=onedl-mmcv mmcv=compiled
there=$(installed mmcv mmcv-lite)
if [[ -z $mmcv ]]; then
  mmcv=lite
  [[ $there != mmcv ]] || mmcv=compiled
fi
[[ $line != upstream || $mmcv != compiled ]] ||
  or_lite=', or take mmcv without a compiler: bash tools/setup_env.sh --mmcv lite'
# Both write the same files: one that is not wanted goes first, and takes the other's files along.
wrong=mmcv
[[ $mmcv == lite ]] || wrong=mmcv-lite
if [[ $line == upstream && " $there " == *" $wrong "* ]]; then
  [[ $there != *' '* ]] || say "NOTE: $venv has both mmcv and mmcv-lite, which overwrite each other's files."
  say "removing ${there// / and }: this environment takes $([[ $mmcv == lite ]] && echo mmcv-lite || echo mmcv)"
  "$py" -m pip uninstall --quiet --yes $there
fi

# What the environment was made from; the path is part of it, as the install is an editable one.
key=$({
  "$py" -V
  printf '%s\n' "$root" "$mmcv"
  [[ $mmcv == lite ]] ||
    printf '%s\n' "$(command -v nvcc || true)" "$(ls /dev/nvidiactl 2>/dev/null)" "${FORCE_CUDA:-}"
  cat requirements/{build,core,cpu,tools,tests,docs,mim,hosts}.txt "$packages" "$constraints" setup.py
  cat tools/setup_env.sh
} | sha256sum)
if [[ $(cat "$stamp" 2>/dev/null) == "$key" ]]; then
  say "environment: $venv is ready"
  exit 0
fi

say "environment: $venv (line $line, mmcv $mmcv, $("$py" -V), about 8 GB); log: $log"
: >"$log"
# Everything on one disk (a small /tmp would not hold torch), and where progress() can look.
rm -rf "$build_dir"
mkdir -p "$build_dir"
export TMPDIR=$build_dir
check_machine
[[ $mmcv == lite ]] || ((++steps))
[[ $line != upstream ]] || ((++steps))
step 'build tools' pip_install -r requirements/build.txt
has torch && note='there already' || note='about 2.7 GB to download'
step "torch and torchvision ($note)" pip_install torch torchvision numpy
if [[ $mmcv == compiled ]]; then
  choose_operators
  if has mmcv; then
    note='there already'
  elif [[ -n $with_cuda ]]; then
    note='compiled for CPU and GPU, about 42 minutes of one core, once: pip keeps the wheel'
  else
    note='compiled for the CPU, 9 to 14 minutes on 2 cores, once: pip keeps the wheel'
  fi
  step "mmcv ($note)" compile_mmcv
  # Without mmcv-lite, whose files would overwrite the compiled one's.
  sed '/^mmcv-lite/d' "$packages" >"$build_dir/packages.txt"
  packages=$build_dir/packages.txt
fi
step 'mmengine, mmcv, mmdet, mmsegmentation, mmpretrain, tools, tests' \
  pip_install -r "$packages" -r requirements/cpu.txt -r requirements/tools.txt -r requirements/tests.txt \
  -r requirements/docs.txt -r requirements/mim.txt
[[ $line != upstream ]] || step 'libraries that ViG is tried in, apart' install_hosts
step 'vig_mm, editable' install_vig_mm
step 'OpenCV' choose_opencv
# pip may have taken a wheel of mmcv that it kept from another torch, or one without CUDA.
if [[ $mmcv == compiled ]] && ! mmcv_works; then
  ((++steps))
  step 'mmcv again: the one that is there does not fit' \
    compile_mmcv --no-cache-dir --force-reinstall
fi
step 'every package imports' import_all
rm -rf "$build_dir"
say "$key" >"$stamp"
[[ $line != upstream ]] || say "enabled in every program of it, by vig_mm_ops.pth in site-packages:" \
  "mmengine's checkpoints on this torch$([[ $mmcv != lite ]] || echo ', and mmcv'\''s operators from torchvision')" \
  '(python -m vig_mm.ops disable takes that back)'
say "environment: $venv is ready"
