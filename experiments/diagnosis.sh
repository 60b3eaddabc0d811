#!/usr/bin/env bash
# Sec. 4.1, Fig. 3: what is wrong with a weak net's features, seen from a strong one? Blind spots: what of the strong
# net's they cannot reconstruct. Unreliable features: what of them the strong net's cannot reconstruct. Both are
# tested: the weak net's upper layers are tuned with the blind spots added, and with the unreliable features removed.
# With all blind spots added they read the strong net's feature; so beside it stand that feature itself, and the same
# with noise as large as the blind spots in their place.
# python -m experiments.figures $OUT draws both.
#
#   experiments/diagnosis.sh [--dry-run]
#
# Needs $DATA/CUB200. Settings of its own: ARCHS="alexnet resnet34" (weak, strong) SEEDS=0 (a pair each) EPOCHS=300
# WEAK_SAMPLE=50par_A: the weak net saw a half of the images; its feature has to have as many channels as the strong one's.
# The paper's accuracies can only be those of nets that began with ImageNet weights: PRETRAINED=1.
# The upper layers meet features that are new to them: of the two documented rates, 1e-5 and 1e-4, they get the higher.
REFINE_LR=${REFINE_LR:-0.0001}
source "$(dirname "$0")/common.sh"
read -r weak strong <<<"${ARCHS:-alexnet${PRETRAINED:+_ft} resnet34${PRETRAINED:+_ft}}"
SEEDS=${SEEDS:-0} EPOCHS=${EPOCHS:-300} half=${WEAK_SAMPLE:+_$WEAK_SAMPLE}

weak_layer=$(layers "$weak") strong_layer=$(layers "$strong")
weak_layer=${weak_layer##* } strong_layer=${strong_layer##* } # alexnet: conv5
nets=$OUT/model_checkpoints/checkpoint_CUB200
archs=$weak-$strong layers=$weak_layer-$strong_layer
reverse_archs=$strong-$weak reverse_layers=$strong_layer-$weak_layer
if [[ $weak == "$strong" ]]; then archs=$weak reverse_archs=$weak; fi
if [[ $weak_layer == "$strong_layer" ]]; then layers=$weak_layer reverse_layers=$weak_layer; fi
transnets=$OUT/model_checkpoints/CUB200_$archs/checkpoint_L$layers
column=$weak${half}_L$weak_layer-${strong}_L$strong_layer

blind_spots() { # SEED
  local weak_net=${nets}_${weak}_sd$1$half.pth.tar strong_net=${nets}_${strong}_sd$1.pth.tar input
  local features=$OUT/convOuts/CUB200_$archs/CUB200_L${layers}_sd$1
  local fitted=${transnets}_blind_spots_sd$1_a0.1.pth.tar tails=check/CUB200_$archs/checkpoint
  local pair=(--net_A "$weak_net" --net_B "$strong_net" $(at "$weak_layer") $(at "$strong_layer" 2))
  fit "blind_spots_sd$1" "$features" "blind_spots_sd$1_a0.1" --alpha '[0.1,0.1]'
  variance "measure_blind_spots_sd$1" "$OUT/results/diagnosis/blind_spots/$column/sd$1.json" --net_in "$weak_net" \
    --net_tar "$strong_net" --transnet "$fitted" $(at "$weak_layer") $(at "$strong_layer" 2)
  calibrate "blind_spots_sd$1" "$features" "$fitted" diagnosis_blind_spots "sd$1"
  for input in residual_added noise_added; do
    tune "${input/residual/blind_spots}_sd$1" CUB200 "sd$1" "${pair[@]}" --resume_Ys "$fitted" --input "$input" --tail A
    keep "diagnosis/${input/residual/blind_spots}/$column" \
      "${tails}_${input}_111_tailA_sd$1_L$layers.pth.tar"
  done
  tune "strong_raw_sd$1" CUB200 "sd$1" "${pair[@]}" --input raw_B --tail A
  keep "diagnosis/strong_raw/$column" "${tails}_raw_B_tailA_sd$1_L$layers.pth.tar"
}

unreliable_features() { # SEED
  local weak_net=${nets}_${weak}_sd$1$half.pth.tar strong_net=${nets}_${strong}_sd$1.pth.tar
  local features=$OUT/convOuts/CUB200_$archs/CUB200_L${layers}_sd$1
  local fitted=${transnets}_unreliable_sd$1_a0.1.pth.tar
  fit "unreliable_sd$1" "$features" "unreliable_sd$1_a0.1" --alpha '[0.1,0.1]' --reverse
  variance "measure_unreliable_sd$1" "$OUT/results/diagnosis/unreliable/$column/sd$1.json" --net_in "$strong_net" \
    --net_tar "$weak_net" --transnet "$fitted" $(at "$strong_layer") $(at "$weak_layer" 2)
  calibrate "unreliable_sd$1" "$features" "$fitted" diagnosis_unreliable "sd$1" --reverse
  tune "unreliable_removed_sd$1" CUB200 "sd$1" --net_A "$strong_net" --net_B "$weak_net" --resume_Ys "$fitted" \
    $(at "$strong_layer") $(at "$weak_layer" 2)
  keep "diagnosis/unreliable_removed/$column" \
    "check/CUB200_$reverse_archs/checkpoint_111_sd$1_L$reverse_layers.pth.tar"
}

raw_features() { # SEED
  tune "raw_sd$1" CUB200 "sd$1" --net_A "${nets}_${weak}_sd$1$half.pth.tar" $(at "$weak_layer") --input raw_A
  keep "diagnosis/raw/$column" "check/CUB200_$weak/checkpoint_raw_A_sd$1_L$weak_layer.pth.tar"
}

for seed in $SEEDS; do
  together train CUB200 "$weak" "sd$seed$half" --seed "$seed" ${WEAK_SAMPLE:+--sample_num "$WEAK_SAMPLE"}
  together train CUB200 "$strong" "sd$seed" --seed "$seed"
done
wait_all
for seed in $SEEDS; do
  together store "$archs-sd$seed" --arch1 "$weak" --arch2 "$strong" --resume1 "${nets}_${weak}_sd$seed$half.pth.tar" \
    --resume2 "${nets}_${strong}_sd$seed.pth.tar" --dataset CUB200 $(at "$weak_layer") $(at "$strong_layer" 2) \
    --suffix "sd$seed"
done
wait_all
for seed in $SEEDS; do
  together blind_spots "$seed"
  together unreliable_features "$seed"
  together raw_features "$seed"
done
wait_all
tables diagnosis diagnosis_instability
