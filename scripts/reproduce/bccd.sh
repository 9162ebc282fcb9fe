#!/usr/bin/env bash
# Trains configs/bccd.yaml from scratch and evaluates the checkpoint that was best on the validation split, once, on the
# test split. Half an hour on 2 cores.
#
#     scripts/reproduce/bccd.sh /path/to/bccd [RUN_DIR]
set -euo pipefail
data=$(realpath "${1:?the folder that holds Annotations, ImageSets and JPEGImages}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
run=${2:-runs/bccd}

scripts/setup.py
time .venv/bin/retina train configs/bccd.yaml "data.root=$data" --run-dir "$run"
.venv/bin/retina evaluate "$run" --split test --out "$run/test"
