#!/usr/bin/env bash
# Sec. 4.3 Exp. 1, Table 3: is a feature better without what the other net cannot reconstruct? B's upper layers are
# tuned on x(0), x(0) + x(1) and x(0) + x(1) + x(2) of net A, nets and Trans-Net frozen; the baselines are A's and B's
# own upper layers, tuned as long on their own raw features.
#
#   experiments/refinement.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS="vgg16_bn resnet18 resnet34 resnet50" EPOCHS=300
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn resnet18 resnet34 resnet50} EPOCHS=${EPOCHS:-300}
check_archs

refine() { # ARCH LAYER
  local net=$OUT/model_checkpoints/checkpoint_CUB200_$1 check=check/CUB200_$1/checkpoint end=_sd0-sd5_L$2.pth.tar
  local transnet=model_checkpoints/CUB200_$1/checkpoint_L$2_sd0-sd5_a0.1.pth.tar raw orders
  local nets=(--arch "$1" --net_A "${net}_sd0.pth.tar" --net_B "${net}_sd5.pth.tar" --conv_layer "$2")
  step "store_$1_L$2" ConvOutput.py --arch "$1" --batch_size "${BATCH:-128}" --resume1 "${net}_sd0.pth.tar" \
    --resume2 "${net}_sd5.pth.tar" --dataset CUB200 --conv_layer "$2" --suffix sd0-sd5 --data_root "$DATA" --out "$OUT"
  fit "$1_L$2" "$OUT/convOuts/CUB200_$1/CUB200_L$2_sd0-sd5" sd0-sd5_a0.1 --alpha '[0.1,0.1]'
  keep "table3/settings/$1_L$2" "model_checkpoints/checkpoint_CUB200_$1_sd0.pth.tar"
  keep "table3/settings/$1_L$2" "$transnet"
  for raw in A B; do
    tune "$1_L$2_$raw" CUB200 sd0-sd5 "${nets[@]}" --input "raw_$raw" --tail "$raw"
    keep "table3/$raw/$1_L$2" "${check}_raw_$raw$end"
  done
  for orders in 1,0,0 1,1,0 1,1,1; do
    tune "$1_L$2_$orders" CUB200 sd0-sd5 "${nets[@]}" --resume_Ys "$OUT/$transnet" --in_mode "[$orders]"
    keep "table3/${orders//,/}/$1_L$2" "${check}_${orders//,/}$end"
  done
}

for arch in $ARCHS; do
  for seed in 0 5; do together train CUB200 "$arch" "sd$seed" --seed "$seed"; done
done
wait_all
for arch in $ARCHS; do
  layers=$(layers_of "$arch")
  for layer in $layers; do together refine "$arch" "$layer"; done
done
wait_all
tables table3
