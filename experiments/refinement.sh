#!/usr/bin/env bash
# Sec. 4.3 Exp. 1, Table 3: is a feature better without what the other net cannot reconstruct? B's upper layers are
# tuned on x(0), x(0) + x(1) and x(0) + x(1) + x(2) of net A, nets and Trans-Net frozen; the baselines are A's and B's
# own upper layers, tuned as long on their own raw features.
#
#   experiments/refinement.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS="vgg16_bn resnet18 resnet34 resnet50" SEEDS="0 5" (all pairs)
# EPOCHS=300
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn resnet18 resnet34 resnet50} SEEDS=${SEEDS:-0 5} EPOCHS=${EPOCHS:-300}
check_archs

refine() { # ARCH LAYER A B
  local net=$OUT/model_checkpoints/checkpoint_CUB200_$1 check=check/CUB200_$1/checkpoint pair=$3-$4 raw orders
  local transnet=model_checkpoints/CUB200_$1/checkpoint_L$2_${pair}_a0.1.pth.tar end=_${pair}_L$2.pth.tar
  local nets=(--arch "$1" --net_A "${net}_$3.pth.tar" --net_B "${net}_$4.pth.tar" $(at "$2"))
  store "$1_L$2_$pair" --arch "$1" --resume1 "${net}_$3.pth.tar" --resume2 "${net}_$4.pth.tar" --dataset CUB200 \
    $(at "$2") --suffix "$pair"
  fit "$1_L$2_$pair" "$OUT/convOuts/CUB200_$1/CUB200_L$2_$pair" "${pair}_a0.1" --alpha '[0.1,0.1]'
  keep "table3/settings/$1_L$2" "model_checkpoints/checkpoint_CUB200_$1_$3.pth.tar"
  keep "table3/settings/$1_L$2" "$transnet"
  for raw in A B; do
    tune "$1_L$2_${pair}_$raw" CUB200 "$pair" "${nets[@]}" --input "raw_$raw" --tail "$raw"
    keep "table3/$raw/$1_L$2" "${check}_raw_$raw$end"
  done
  for orders in 1,0,0 1,1,0 1,1,1; do
    tune "$1_L$2_${pair}_$orders" CUB200 "$pair" "${nets[@]}" --resume_Ys "$OUT/$transnet" --in_mode "[$orders]"
    keep "table3/${orders//,/}/$1_L$2" "${check}_${orders//,/}$end"
  done
}

for arch in $ARCHS; do
  for seed in $SEEDS; do together train CUB200 "$arch" "sd$seed" --seed "$seed"; done
done
wait_all
for arch in $ARCHS; do
  layers=$(layers "$arch")
  for layer in $layers; do
    while read -r a b; do together refine "$arch" "$layer" "sd$a" "sd$b"; done < <(pairs_of $SEEDS)
  done
done
wait_all
tables table3
