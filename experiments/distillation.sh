#!/usr/bin/env bash
# Sec. 4.5, Fig. 4 right: does a series of born-again nets (Furlanello et al. 2018) know more from one generation to the
# next? Each generation's features reconstruct the newest net's; Var(x_Δ) of what they cannot is their blind spots.
#
#   experiments/distillation.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS=vgg16_bn EPOCHS=300 GENERATIONS=5, generation 0 included
# The paper does not name the layer; the documented command lines use conv4_3.
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn} EPOCHS=${EPOCHS:-300} GENERATIONS=${GENERATIONS:-5}
check_archs

distil() { # ARCH
  train CUB200 "$1" sd0 --seed 0
  step "born_again_$1" BornAgain.py --save_epoch 50 --start_gen 1 --generations "$GENERATIONS" --seed 10 \
    --resume "$OUT/model_checkpoints/checkpoint_CUB200_$1_sd0.pth.tar" --arch "$1" --dataset CUB200 \
    --optim "$OPTIM" --lr "$LR" --epochs "$EPOCHS" --epoch_step $(((EPOCHS + 4) / 5)) --logspace 0 \
    --tau 1 --lambd 0.5 --lambd_end 0.5 --batch_size "${BATCH:-128}" --suffix sd0 --data_root "$DATA" --out "$OUT"
}

measure() { # ARCH LAYER GENERATION
  local net=$OUT/model_checkpoints/checkpoint_CUB200_$1_sd0 old newest
  old=${net}_gen$3.pth.tar newest=${net}_gen$((GENERATIONS - 1)).pth.tar
  if (($3 == 0)); then old=$net.pth.tar; fi
  step "store_$1_gen$3" ConvOutput.py --arch "$1" --batch_size "${BATCH:-128}" --resume1 "$old" --resume2 "$newest" \
    --dataset CUB200 --conv_layer "$2" --suffix "gen$3" --data_root "$DATA" --out "$OUT"
  fit "$1_gen$3" "$OUT/convOuts/CUB200_$1/CUB200_L$2_gen$3" "gen$3_a0.1" --alpha '[0.1,0.1]'
  step "measure_$1_gen$3" Variance.py --arch_in "$1" --arch_tar "$1" --net_in "$old" --net_tar "$newest" \
    --transnet "$OUT/model_checkpoints/CUB200_$1/checkpoint_L$2_gen$3_a0.1.pth.tar" --dataset CUB200 \
    --conv_layer "$2" --data_root "$DATA" --json "$OUT/results/distillation/$1_L$2_gen$3/variance/variance.json"
}

for arch in $ARCHS; do together distil "$arch"; done
wait_all
for arch in $ARCHS; do
  layers=$(layers_of "$arch")
  for ((generation = 0; generation < GENERATIONS - 1; generation++)); do
    together measure "$arch" "${layers%% *}" "$generation"
  done
done
wait_all
tables distillation
