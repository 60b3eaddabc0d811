#!/usr/bin/env bash
# Sec. 4.4, Fig. 4 left: what does a net lose when it is compressed (Han et al. 2016)? The compressed net's features
# reconstruct the original's; Var(x_Δ) of what they cannot is set against the accuracy, for several pruning thresholds.
#
#   experiments/compression.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS=vgg16_bn EPOCHS=300 PRUNE_EPOCHS=20
# THRESHOLDS="0.2-1 …": of convolutions and of linear layers, in standard deviations of a layer's weights. The paper
# names none but says where they end: 93.3 % of the parameters removed, about what 1.2-2 removes of VGG-16.
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn} EPOCHS=${EPOCHS:-300} PRUNE_EPOCHS=${PRUNE_EPOCHS:-20}
THRESHOLDS=${THRESHOLDS:-0.2-1 0.4-1.25 0.6-1.5 0.9-1.75 1.2-2}
check_archs

compress() { # ARCH THRESHOLD
  local layers layer name=checkpoint_CUB200_$1_sd0 original pruned
  original=$OUT/model_checkpoints/$name.pth.tar pruned=$OUT/model_checkpoints/${name}_pruned$2.pth.tar
  step "prune_$1_$2" Pruning.py --resume "$original" --s_conv "${2%-*}" --s_fc "${2#*-}" --lr 0.0001 \
    --epochs "$PRUNE_EPOCHS" --batch_size "${BATCH:-128}" --dataset CUB200 --suffix sd0 --data_root "$DATA" --out "$OUT"
  keep "compression/$1_$2/pruning" "model_checkpoints/${name}_pruned$2.json"
  layers=$(layers_of "$1")
  for layer in $layers; do
    step "store_$1_L${layer}_$2" ConvOutput.py --arch "$1" --batch_size "${BATCH:-128}" --resume1 "$pruned" \
      --resume2 "$original" --dataset CUB200 --conv_layer "$layer" --suffix "pruned$2" --data_root "$DATA" --out "$OUT"
    fit "$1_L${layer}_$2" "$OUT/convOuts/CUB200_$1/CUB200_L${layer}_pruned$2" "pruned$2_a0.1" --alpha '[0.1,0.1]'
    step "measure_$1_L${layer}_$2" Variance.py --arch_in "$1" --arch_tar "$1" --net_in "$pruned" --net_tar "$original" \
      --transnet "$OUT/model_checkpoints/CUB200_$1/checkpoint_L${layer}_pruned$2_a0.1.pth.tar" --dataset CUB200 \
      --conv_layer "$layer" --data_root "$DATA" --json "$OUT/results/compression/$1_$2/L$layer/variance.json"
  done
}

for arch in $ARCHS; do together train CUB200 "$arch" sd0 --seed 0; done
wait_all
for arch in $ARCHS; do
  for threshold in $THRESHOLDS; do together compress "$arch" "$threshold"; done
done
wait_all
tables compression
