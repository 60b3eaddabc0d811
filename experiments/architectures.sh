#!/usr/bin/env bash
# Networks of different architectures (beyond the paper): how much of each one's feature does the other one's give, in both
# directions, calibrated? Features are two maps, two sets of tokens or two vectors.
#
#   experiments/architectures.sh [--dry-run]
#
# Settings of its own: PAIRS="alexnet:10/resnet18:3 vit_b_16:getitem_5/resnet18:flatten", ARCH:LAYER by number or name;
# SEEDS="0" EPOCHS=300 OPTIM_vit_b_16=Adam
CALIBRATE=${CALIBRATE:---brief}
source "$(dirname "$0")/common.sh"
PAIRS=${PAIRS:-alexnet:10/resnet18:3 vit_b_16:getitem_5/resnet18:flatten} SEEDS=${SEEDS:-0} EPOCHS=${EPOCHS:-300}

compare() { # ARCH:LAYER/ARCH:LAYER SEED
  local first=${1%/*} second=${1#*/} features nets=$OUT/model_checkpoints/checkpoint_CUB200 fitted name
  local a=${first%%:*} b=${second%%:*} layer_a=${first#*:} layer_b=${second#*:}
  name=${a}_L${layer_a}-${b}_L$layer_b
  features=$OUT/convOuts/CUB200_$a-$b/CUB200_L$layer_a-${layer_b}_$2
  fitted=$OUT/model_checkpoints/CUB200_$a-$b/checkpoint_L$layer_a-${layer_b}_$2_a0.1
  store "${name}_$2" --arch1 "$a" --arch2 "$b" --resume1 "${nets}_${a}_$2.pth.tar" \
    --resume2 "${nets}_${b}_$2.pth.tar" --dataset CUB200 $(at "$layer_a") $(at "$layer_b" 2) --suffix "$2"
  fit "${name}_$2" "$features" "$2_a0.1" --alpha '[0.1,0.1]' --both_directions
  calibrate "${name}_$2" "$features" "$fitted.pth.tar" "${a}_L${layer_a}_to_${b}_L$layer_b" "$2"
  calibrate "${name}_$2_reverse" "$features" "${fitted}_reverse.pth.tar" "${b}_L${layer_b}_to_${a}_L$layer_a" "$2" --reverse
}

archs=$(printf '%s\n' ${PAIRS//\// } | cut -d: -f1 | sort -u)
for arch in $archs; do
  for seed in $SEEDS; do together train CUB200 "$arch" "sd$seed" --seed "$seed"; done
done
wait_all
for pair in $PAIRS; do
  for seed in $SEEDS; do together compare "$pair" "sd$seed"; done
done
wait_all
tables calibration
