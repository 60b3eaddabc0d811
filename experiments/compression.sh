#!/usr/bin/env bash
# Sec. 4.4, Fig. 4 left: what does a net lose when it is compressed (Han et al. 2016)? The compressed net's features
# reconstruct the original's; Var(x_Δ) of what they cannot is set against the accuracy, for several pruning thresholds.
#
#   experiments/compression.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS=vgg16_bn SEEDS=0 EPOCHS=300 PRUNE_EPOCHS=20 SHARE_BITS=0 (with
# PRETRAINED, which the compressed net that the authors provide can only have been: 5)
# THRESHOLDS="0.2-1 …": of convolutions and of linear layers, in standard deviations of a layer's weights. The paper
# names none but says where they end: 93.3 % of the parameters removed, about what 1.2-2 removes of VGG-16.
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn${PRETRAINED:+_ft}} SEEDS=${SEEDS:-0} EPOCHS=${EPOCHS:-300} PRUNE_EPOCHS=${PRUNE_EPOCHS:-20}
SHARE_BITS=${SHARE_BITS:-$([[ $PRETRAINED ]] && echo 5 || echo 0)}
THRESHOLDS=${THRESHOLDS:-0.2-1 0.4-1.25 0.6-1.5 0.9-1.75 1.2-2}
check_archs

compress() { # ARCH THRESHOLD SEED
  local layers layer name=checkpoint_CUB200_$1_$3 original pruned features fitted
  original=$OUT/model_checkpoints/$name.pth.tar pruned=$OUT/model_checkpoints/${name}_pruned$2.pth.tar
  step "prune_$1_$2_$3" Pruning.py --resume "$original" --s_conv "${2%-*}" --s_fc "${2#*-}" --lr 0.0001 \
    --epochs "$PRUNE_EPOCHS" --share_bits "$SHARE_BITS" --batch_size "${BATCH:-128}" --dataset CUB200 --suffix "$3" \
    --data_root "$DATA" --out "$OUT"
  keep "compression/$1_$2/pruning" "model_checkpoints/${name}_pruned$2.json"
  layers=$(layers "$1")
  for layer in $layers; do
    features=$OUT/convOuts/CUB200_$1/CUB200_L${layer}_$3_pruned$2
    fitted=$OUT/model_checkpoints/CUB200_$1/checkpoint_L${layer}_$3_pruned$2_a0.1.pth.tar
    store "$1_L${layer}_$2_$3" --arch "$1" --resume1 "$pruned" --resume2 "$original" --dataset CUB200 \
      $(at "$layer") --suffix "$3_pruned$2"
    fit "$1_L${layer}_$2_$3" "$features" "$3_pruned$2_a0.1" --alpha '[0.1,0.1]'
    variance "measure_$1_L${layer}_$2_$3" "$OUT/results/compression/$1_$2/L$layer/$3.json" --arch_in "$1" \
      --arch_tar "$1" --net_in "$pruned" --net_tar "$original" --transnet "$fitted" --dataset CUB200 $(at "$layer")
    calibrate "$1_L${layer}_$2_$3" "$features" "$fitted" "$1_L${layer}_pruned$2" "$3"
  done
}

for arch in $ARCHS; do
  for seed in $SEEDS; do together train CUB200 "$arch" "sd$seed" --seed "$seed"; done
done
wait_all
for arch in $ARCHS; do
  for threshold in $THRESHOLDS; do
    for seed in $SEEDS; do together compress "$arch" "$threshold" "sd$seed"; done
  done
done
wait_all
tables compression
