#!/usr/bin/env bash
# DCM and HSAKD at a size for one CPU core: the first CLASSES classes of an archive of CIFAR-100 (or of a part of it), small
# networks, few epochs. It shows that every run works and what its tables look like; it is far too small to confirm
# the papers' numbers.
#
#   experiments/small_distil.sh cifar-100-python.tar.gz [--dry-run]
#
# Settings of its own: CLASSES=10 EPOCHS=5 SEEDS="0 1"; STUDENT=wrn_16_1 TEACHER=resnet20
# MobileNet has an eighth of its channels. Everything is written to $OUT, by default runs/small_distil.
set -euo pipefail
case ${1:-} in
--help) ;;
'' | -*) set -- --usage ;;
*) archive=$(realpath -m "$1") && shift ;;
esac
export OUT=${OUT:-runs/small_distil} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export DATA=$OUT/data EPOCHS=${EPOCHS:-5} SEEDS=${SEEDS:-0 1} BATCH=${BATCH:-32}
export STUDENT=${STUDENT:-wrn_16_1} TEACHER=${TEACHER:-resnet20}
source "$(dirname "$0")/common.sh"
export PYTHON

command=("$PYTHON" PrepareData.py CIFAR100 --src "$archive" --classes "${CLASSES:-10}" --out "$DATA")
if [[ $dry_run ]]; then show "${command[@]}"; else "${command[@]}"; fi
# Of the three falls of 200 epochs the last two remain, after three and four fifths of a run.
export EPOCH_STEP="[$((EPOCHS * 3 / 5 + 1)),$((EPOCHS * 4 / 5 + 1))]"
PAIRS=${PAIRS:-wrn_16_1-wrn_16_1 wrn_16_1-mobilenet8} experiments/distil_cifar.sh ${dry_run:+--dry-run}
experiments/distillation_knowledge.sh ${dry_run:+--dry-run}
command=("$PYTHON" -m experiments.accuracies "$OUT" --data_root "$DATA" --markdown "$OUT/accuracies.md"
  --csv "$OUT/accuracies.csv")
if [[ $dry_run ]]; then show "${command[@]}"; else "${command[@]}"; fi
