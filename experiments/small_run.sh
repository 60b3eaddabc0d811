#!/usr/bin/env bash
# All sections at a size for two CPU cores, about 45 minutes: the first 10 classes of CUB200 at 64 × 64 pixels, small
# networks, few epochs. It shows that every step works and what the tables look like; it is too small to confirm the
# paper's numbers.
#
#   experiments/small_run.sh CUB_200_2011 [--dry-run]
#
# CUB_200_2011: the official archive or its folder. Only birds are needed: the dogs of Sec. 4.3 and 4.6 are played by
# the second five of the ten classes, and the tables say so. Everything is written to $OUT, by default runs/small.
set -euo pipefail
case ${1:-} in
--help) ;;
'' | -*) set -- --usage ;;
*) cub=$(realpath -m "$1") && shift ;;
esac
export OUT=${OUT:-runs/small} JOBS=${JOBS:-2} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export DATA=$OUT/data BIRDS=$OUT/data/birds DOGS=$OUT/data/dogs IMAGE_SIZE=64 BATCH=16
export EPOCHS=${EPOCHS:-15} PRUNE_EPOCHS=${PRUNE_EPOCHS:-5}
export TRANS_EPOCHS=${TRANS_EPOCHS:-30} TRANS_LR=0.001 REFINE_EPOCHS=${REFINE_EPOCHS:-15} REFINE_LR=0.0001
source "$(dirname "$0")/common.sh"
export PYTHON

stand_ins() { # bird classes 1 to 5 as $BIRDS, 6 to 10 as $DOGS
  local classes=("$DATA"/CUB200/train/*) class half split i
  for i in "${!classes[@]}"; do
    class=$(basename "${classes[i]}") half=$BIRDS
    if ((i >= 5)); then half=$DOGS; fi
    for split in train test; do
      mkdir -p "$half/$split"
      ln -sfn "../../CUB200/$split/$class" "$half/$split/$class"
    done
  done
}

note() { # TABLE TEXT
  mkdir -p "$OUT/results/$1"
  echo "$2" >"$OUT/results/$1/note.txt"
}

if [[ ! $dry_run ]]; then
  "$PYTHON" PrepareData.py CUB200 --src "$cub" --classes 10 --out "$DATA"
  stand_ins
  for table in table4 tasks; do note $table 'Of the ten bird classes, 1 to 5 play the birds and 6 to 10 the dogs.'; done
  for table in diagnosis table1; do note $table 'AlexNet was trained with Adam, learning rate 2e-4.'; done
fi
# AlexNet has no BatchNorm and was still at chance after two epochs of SGD; Adam begins to learn at once.
export ALEXNET_OPTIM=Adam ALEXNET_LR=0.0002
ARCHS='alexnet resnet18' experiments/stability.sh "${dry_run:+--dry-run}"
ARCHS='alexnet resnet18' experiments/diagnosis.sh "${dry_run:+--dry-run}"
ARCHS=resnet18 experiments/refinement.sh "${dry_run:+--dry-run}"
ARCHS=resnet18 TARGETS='Mix-CUB Mix-Dogs' experiments/redundancy.sh "${dry_run:+--dry-run}"
ARCHS=resnet18 experiments/compression.sh "${dry_run:+--dry-run}"
# Each generation waits for the one before it: one chain, on both cores.
ARCHS=resnet18 JOBS=1 OMP_NUM_THREADS=2 experiments/distillation.sh "${dry_run:+--dry-run}"
ARCHS=resnet18 experiments/tasks.sh "${dry_run:+--dry-run}"
if [[ ! $dry_run ]]; then
  "$PYTHON" -m experiments.tables "$OUT" --markdown "$OUT/tables.md" --csv "$OUT/tables.csv" >"$OUT/tables.log"
  "$PYTHON" -m experiments.figures "$OUT" --data_root "$DATA"
fi
