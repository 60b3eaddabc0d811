#!/usr/bin/env bash
# Sec. 4.1, Fig. 3: what is wrong with a weak net's features, seen from a strong one? Blind spots: what of the strong
# net's they cannot reconstruct. Unreliable features: what of them the strong net's cannot reconstruct. Both are
# tested: the weak net's upper layers are tuned with the blind spots added, and with the unreliable features removed.
# python -m experiments.figures $OUT draws both.
#
#   experiments/diagnosis.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS="alexnet resnet34" (weak, strong) EPOCHS=300
# The upper layers meet features that are new to them: of the two documented rates, 1e-5 and 1e-4, they get the higher.
REFINE_LR=${REFINE_LR:-0.0001}
source "$(dirname "$0")/common.sh"
read -r weak strong <<<"${ARCHS:-alexnet resnet34}"
EPOCHS=${EPOCHS:-300}

weak_layer=$(layers_of "$weak") strong_layer=$(layers_of "$strong")
weak_layer=${weak_layer##* } strong_layer=${strong_layer##* } # alexnet: conv5
weak_net=$OUT/model_checkpoints/checkpoint_CUB200_${weak}_sd0.pth.tar
strong_net=$OUT/model_checkpoints/checkpoint_CUB200_${strong}_sd0.pth.tar
features=$OUT/convOuts/CUB200_$weak-$strong/CUB200_L$weak_layer-${strong_layer}_sd0
transnets=$OUT/model_checkpoints/CUB200_$weak-$strong/checkpoint_L$weak_layer-$strong_layer
column=${weak}_L$weak_layer-${strong}_L$strong_layer

blind_spots() {
  fit blind_spots "$features" blind_spots_a0.1 --alpha '[0.1,0.1]'
  step measure_blind_spots Variance.py --net_in "$weak_net" --net_tar "$strong_net" \
    --transnet "${transnets}_blind_spots_a0.1.pth.tar" --conv_layer "$weak_layer" --conv_layer2 "$strong_layer" \
    --data_root "$DATA" --json "$OUT/results/diagnosis/blind_spots/$column/variance.json"
  tune blind_spots_added CUB200 sd0 --net_A "$weak_net" --net_B "$strong_net" \
    --resume_Ys "${transnets}_blind_spots_a0.1.pth.tar" --conv_layer "$weak_layer" --conv_layer2 "$strong_layer" \
    --input residual_added --tail A
  keep "diagnosis/blind_spots_added/$column" \
    "check/CUB200_$weak-$strong/checkpoint_residual_added_111_tailA_sd0_L$weak_layer-$strong_layer.pth.tar"
}

unreliable_features() {
  fit unreliable "$features" unreliable_a0.1 --alpha '[0.1,0.1]' --reverse
  step measure_unreliable Variance.py --net_in "$strong_net" --net_tar "$weak_net" \
    --transnet "${transnets}_unreliable_a0.1.pth.tar" --conv_layer "$strong_layer" --conv_layer2 "$weak_layer" \
    --data_root "$DATA" --json "$OUT/results/diagnosis/unreliable/$column/variance.json"
  tune unreliable_removed CUB200 sd0 --net_A "$strong_net" --net_B "$weak_net" \
    --resume_Ys "${transnets}_unreliable_a0.1.pth.tar" --conv_layer "$strong_layer" --conv_layer2 "$weak_layer"
  keep "diagnosis/unreliable_removed/$column" \
    "check/CUB200_$strong-$weak/checkpoint_111_sd0_L$strong_layer-$weak_layer.pth.tar"
}

raw_features() {
  tune raw CUB200 sd0 --net_A "$weak_net" --conv_layer "$weak_layer" --input raw_A
  keep "diagnosis/raw/$column" "check/CUB200_$weak/checkpoint_raw_A_sd0_L$weak_layer.pth.tar"
}

for arch in "$weak" "$strong"; do together train CUB200 "$arch" sd0 --seed 0; done
wait_all
step "store_$weak-$strong" ConvOutput.py --arch1 "$weak" --arch2 "$strong" --batch_size "${BATCH:-128}" \
  --resume1 "$weak_net" --resume2 "$strong_net" --dataset CUB200 --conv_layer "$weak_layer" \
  --conv_layer2 "$strong_layer" --suffix sd0 --data_root "$DATA" --out "$OUT"
together blind_spots
together unreliable_features
together raw_features
wait_all
tables diagnosis diagnosis_instability
