#!/usr/bin/env bash
# All sections at a size for two CPU cores, in two hours: the first 10 classes of CUB200 at 64 × 64 pixels,
# nets that learn them from scratch, three seeds and so three pairs, Trans-Nets that are solved without spare channels
# and calibrated. Begun again, it goes on.
# It is too small to confirm the paper's numbers; it shows which findings hold for such nets.
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
export DATA=$OUT/data BIRDS=$OUT/data/birds DOGS=$OUT/data/dogs IMAGE_SIZE=${IMAGE_SIZE:-64} BATCH=16
export SEEDS=${SEEDS:-0 5 10} EPOCHS=${EPOCHS:-12} PRUNE_EPOCHS=${PRUNE_EPOCHS:-4} GENERATIONS=${GENERATIONS:-3}
export FIT='--standardise --solve --hidden 0 --logspace 1' TRANS_EPOCHS=${TRANS_EPOCHS:-5} TRANS_LR=0.0003
export CALIBRATE=${CALIBRATE:---brief --permutations 99} THRESHOLDS=${THRESHOLDS:-0.4-1.25 1.2-2}
export REFINE_EPOCHS=${REFINE_EPOCHS:-4} REFINE_LR=0.0001
# A ResNet-18 and a ShuffleNet that reaches as much; the weak net is a ResNet-18 that saw half of the images. Of all,
# layers with at least as many positions as a patch has entries: 300 images of 8×8 and 4×4. (VGG-11 and AlexNet have
# nothing left of 64 pixels, or take ten times as long: 40 s an epoch, and their 512 channels 16 times the fit.)
export LR_shufflenet_v2_x1_0=0.02 EPOCHS_shufflenet_v2_x1_0=${EPOCHS_shufflenet_v2_x1_0:-15}
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
fi
run() { "experiments/$1.sh" "${dry_run:+--dry-run}"; }
ARCHS=resnet18 LAYERS_resnet18=2 HALF_SEEDS=$SEEDS RELEASED_EPOCHS=${RELEASED_EPOCHS:-30} run stability
export CALIBRATE_PAIRS='sd0?(-sd5)' # of what follows, the first pair's
ARCHS=resnet18 LAYERS_resnet18=3 HALF_SEEDS='' run stability
ARCHS=shufflenet_v2_x1_0 LAYERS_shufflenet_v2_x1_0='stage2 stage3' HALF_SEEDS='' run stability
ARCHS=resnet18 run refinement
WEAK_SAMPLE=50par_A ARCHS='resnet18 resnet18' run diagnosis
ARCHS=resnet18 run tasks
ARCHS=resnet18 CALIBRATE='' run compression
ARCHS=shufflenet_v2_x1_0 LAYERS_shufflenet_v2_x1_0=stage3 CALIBRATE='' run distillation
ARCHS=resnet18 TARGETS='Mix-CUB Mix-Dogs' run redundancy
if [[ ! $dry_run ]]; then
  "$PYTHON" -m experiments.tables "$OUT" --markdown "$OUT/tables.md" --csv "$OUT/tables.csv" >"$OUT/tables.log"
  "$PYTHON" -m experiments.figures "$OUT" --data_root "$DATA"
fi
