#!/usr/bin/env bash
# Sec. 4.5, Fig. 4 right: does a series of born-again nets (Furlanello et al. 2018) know more from one generation to the
# next? Each generation's features reconstruct the newest net's; Var(x_Δ) of what they cannot is their blind spots.
#
#   experiments/distillation.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS=vgg16_bn SEEDS=0 (a series each) EPOCHS=300
# GENERATIONS=5, generation 0 included
# The paper does not name the layer; the documented command lines use conv4_3.
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn} SEEDS=${SEEDS:-0} EPOCHS=${EPOCHS:-300} GENERATIONS=${GENERATIONS:-5}
check_archs

distil() { # ARCH SEED
  local optim lr epochs
  optim=$(setting OPTIM "$1") lr=$(setting LR "$1") epochs=$(setting EPOCHS "$1")
  train CUB200 "$1" "sd$2" --seed "$2"
  step "born_again_$1_sd$2" BornAgain.py --save_epoch 50 --start_gen 1 --generations "$GENERATIONS" \
    --seed $(($2 + 10)) --resume "$OUT/model_checkpoints/checkpoint_CUB200_$1_sd$2.pth.tar" --arch "$1" --dataset CUB200 \
    --optim "$optim" --lr "$lr" --epochs "$epochs" --epoch_step $(((epochs + 4) / 5)) --logspace 0 \
    --tau 1 --lambd 0.5 --lambd_end 0.5 --batch_size "${BATCH:-128}" --suffix "sd$2" --data_root "$DATA" --out "$OUT"
}

measure() { # ARCH LAYER GENERATION SEED
  local net=$OUT/model_checkpoints/checkpoint_CUB200_$1_sd$4 old newest name=sd$4_gen$3
  local features=$OUT/convOuts/CUB200_$1/CUB200_L$2_$name
  local fitted=$OUT/model_checkpoints/CUB200_$1/checkpoint_L$2_${name}_a0.1.pth.tar
  old=${net}_gen$3.pth.tar newest=${net}_gen$((GENERATIONS - 1)).pth.tar
  if (($3 == 0)); then old=$net.pth.tar; fi
  store "$1_$name" --arch "$1" --resume1 "$old" --resume2 "$newest" --dataset CUB200 $(at "$2") --suffix "$name"
  fit "$1_$name" "$features" "${name}_a0.1" --alpha '[0.1,0.1]'
  variance "measure_$1_$name" "$OUT/results/distillation/$1_L$2_gen$3/variance/sd$4.json" --arch_in "$1" \
    --arch_tar "$1" --net_in "$old" --net_tar "$newest" --transnet "$fitted" --dataset CUB200 $(at "$2")
  calibrate "$1_$name" "$features" "$fitted" "$1_L$2_gen$3" "sd$4"
}

for arch in $ARCHS; do
  for seed in $SEEDS; do together distil "$arch" "$seed"; done
done
wait_all
for arch in $ARCHS; do
  layers=$(layers "$arch")
  for ((generation = 0; generation < GENERATIONS - 1; generation++)); do
    for seed in $SEEDS; do together measure "$arch" "${layers%% *}" "$generation" "$seed"; done
  done
done
wait_all
tables distillation
