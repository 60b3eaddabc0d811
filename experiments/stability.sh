#!/usr/bin/env bash
# Sec. 4.2, Tables 1 and 2: how much do nets share that differ in their initialisation (case 1) or in their training
# data (case 2, two halves)? Instability is the mean over all pairs of nets, A → B and B → A.
#
#   experiments/stability.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS="alexnet vgg16_bn resnet34" SEEDS="0 5" EPOCHS=300
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-alexnet vgg16_bn resnet34} SEEDS=${SEEDS:-0 5} EPOCHS=${EPOCHS:-300}

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
  local case=$1 arch=$2 layer=$3 a=$4 b=$5 alpha=0.1 direction
  local features=$OUT/convOuts/CUB200_$arch/CUB200_L${layer}_$a-$b nets=$OUT/model_checkpoints/checkpoint_CUB200_$arch
  if [[ $arch == alexnet ]]; then alpha=8.0; fi
  # Fitted on all training images: the paper does not say on which, and the nets of case 2 have none in common.
  step "store_${arch}_L${layer}_$a-$b" ConvOutput.py --arch "$arch" --batch_size "${BATCH:-128}" \
    --resume1 "${nets}_$a.pth.tar" --resume2 "${nets}_$b.pth.tar" --dataset CUB200 --conv_layer "$layer" \
    --suffix "$a-$b" --data_root "$DATA" --out "$OUT"
  fit "${arch}_L${layer}_$a-$b" "$features" "$a-${b}_a$alpha" --alpha "[$alpha,$alpha]"
  fit "${arch}_L${layer}_$b-$a" "$features" "$b-${a}_a$alpha" --alpha "[$alpha,$alpha]" --reverse
  for direction in "$a-$b" "$b-$a"; do
    step "measure_${arch}_L${layer}_$direction" Variance.py --arch_in "$arch" --arch_tar "$arch" \
      --net_in "${nets}_${direction%-*}.pth.tar" --net_tar "${nets}_${direction#*-}.pth.tar" \
      --transnet "$OUT/model_checkpoints/CUB200_$arch/checkpoint_L${layer}_${direction}_a$alpha.pth.tar" \
      --dataset CUB200 --conv_layer "$layer" --data_root "$DATA" \
      --json "$OUT/results/table1/$case/${arch}_L$layer/$direction.json"
  done
}

for arch in $ARCHS; do
  for seed in $SEEDS; do together train CUB200 "$arch" "sd$seed" --seed "$seed"; done
  # The same seed, so that only the data differ.
  for half in A B; do together train CUB200 "$arch" "sd0_50par_$half" --seed 0 --sample_num "50par_$half"; done
done
wait_all
for arch in $ARCHS; do
  layers=$(layers_of "$arch")
  for layer in $layers; do
    for a in $SEEDS; do
      for b in $SEEDS; do
        if ((a < b)); then together compare case1 "$arch" "$layer" "sd$a" "sd$b"; fi
      done
    done
    together compare case2 "$arch" "$layer" sd0_50par_A sd0_50par_B
  done
done
wait_all
tables table1 table2
