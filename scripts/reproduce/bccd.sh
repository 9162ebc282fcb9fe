#!/usr/bin/env bash
# Trains configs/bccd.yaml from scratch and evaluates the checkpoint that was best on the validation split, once, on the
# test split. Half an hour on 2 cores. DATA is the folder that holds Annotations, ImageSets and JPEGImages.
#
#     scripts/reproduce/bccd.sh DATA [RUN_DIR]
set -euo pipefail
if (($# < 1 || $# > 2)) || [[ $1 == -* ]]; then
    sed -n '/^# /s/^# //p' "${BASH_SOURCE[0]}"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi
data=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
run=${2:-runs/bccd}

scripts/setup.py
time .venv/bin/retina train configs/bccd.yaml "data.root=$data" --run-dir "$run"
.venv/bin/retina evaluate "$run" --split test --out "$run/test"
