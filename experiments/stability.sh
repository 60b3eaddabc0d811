#!/usr/bin/env bash
# Sec. 4.2, Tables 1 and 2: how much do nets share that differ in their initialisation (case 1) or in their training
# data (case 2, two halves)? Instability is the mean over all pairs of nets, A → B and B → A.
#
#   experiments/stability.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS="alexnet vgg16_bn resnet34" SEEDS="0 5" HALF_SEEDS=0 EPOCHS=300
# RELEASED_EPOCHS: with FIT, fit case 1 by the released procedure besides, for so many epochs.
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-alexnet vgg16_bn resnet34} SEEDS=${SEEDS:-0 5} HALF_SEEDS=${HALF_SEEDS-0} EPOCHS=${EPOCHS:-300}

layers_of() {
  case $1 in
  alexnet) echo 8 10 ;;   # conv4, conv5
  vgg16_bn) echo 30 40 ;; # conv4_3, conv5_3
  vgg11_bn) echo 18 25 ;; # conv4_2, conv5_2
  resnet*) echo 4 ;;      # last conv
  *) other_layers "$1" ;;
  esac
}
check_archs

compare() { # CASE ARCH LAYER A B
  local case=$1 arch=$2 layer=$3 a=$4 b=$5 alpha=0.1 nets=$OUT/model_checkpoints/checkpoint_CUB200_$2
  local features=$OUT/convOuts/CUB200_$arch/CUB200_L${layer}_$a-$b
  local fitted=$OUT/model_checkpoints/CUB200_$arch/checkpoint_L$layer
  if [[ $arch == alexnet ]]; then alpha=8.0; fi
  # Fitted on all training images: the paper does not say on which, and the nets of case 2 have none in common.
  store "${arch}_L${layer}_$a-$b" --arch "$arch" --resume1 "${nets}_$a.pth.tar" --resume2 "${nets}_$b.pth.tar" \
    --dataset CUB200 $(at "$layer") --suffix "$a-$b"
  both_ways "table1/$case"
  calibrate "${arch}_L${layer}_$a-$b" "$features" "${fitted}_$a-${b}_a$alpha.pth.tar" "${arch}_L${layer}_$case" "$a-$b"
  if [[ ${RELEASED_EPOCHS:-} && $case == case1 ]]; then
    FIT='' TRANS_EPOCHS=$RELEASED_EPOCHS TRANS_LR=0.001 both_ways table1/case1_released _released
  fi
}

both_ways() { # ROW [SUFFIX], of what compare compares
  local direction
  fit "${arch}_L${layer}_$a-$b${2:-}" "$features" "$a-${b}_a$alpha${2:-}" --alpha "[$alpha,$alpha]"
  fit "${arch}_L${layer}_$b-$a${2:-}" "$features" "$b-${a}_a$alpha${2:-}" --alpha "[$alpha,$alpha]" --reverse
  for direction in "$a-$b" "$b-$a"; do
    variance "measure_${arch}_L${layer}_$direction${2:-}" "$OUT/results/$1/${arch}_L$layer/$direction.json" \
      --arch_in "$arch" --arch_tar "$arch" --net_in "${nets}_${direction%-*}.pth.tar" \
      --net_tar "${nets}_${direction#*-}.pth.tar" --transnet "${fitted}_${direction}_a$alpha${2:-}.pth.tar" \
      --dataset CUB200 $(at "$layer")
  done
}

for arch in $ARCHS; do
  for seed in $SEEDS; do together train CUB200 "$arch" "sd$seed" --seed "$seed"; done
  # The same seed, so that only the data differ.
  for seed in $HALF_SEEDS; do
    for half in A B; do
      together train CUB200 "$arch" "sd${seed}_50par_$half" --seed "$seed" --sample_num "50par_$half"
    done
  done
done
wait_all
for arch in $ARCHS; do
  layers=$(layers "$arch")
  for layer in $layers; do
    while read -r a b; do together compare case1 "$arch" "$layer" "sd$a" "sd$b"; done < <(pairs_of $SEEDS)
    for seed in $HALF_SEEDS; do
      together compare case2 "$arch" "$layer" "sd${seed}_50par_A" "sd${seed}_50par_B"
    done
  done
done
wait_all
tables table1 table2
