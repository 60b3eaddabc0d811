#!/usr/bin/env bash
# Sec. 4.3 Exp. 2, Table 4: two nets know more than a new task needs. The Trans-Net is fitted on the new task's images
# alone, without labels; B's upper layers are then tuned for that task on g(x_A), and the baselines on raw x_A and x_B.
#
#   experiments/redundancy.sh [--dry-run]
#
# VOC-animal needs $DATA/VOC2012_crop and $DATA/VOC2012_animal, Mix-CUB and Mix-Dogs need $BIRDS and $DOGS: folders with
# train/ and test/, by default $DATA/CUB200 and $DATA/DOG120. Settings of its own: ARCHS="vgg16_bn resnet18 resnet34"
# TARGETS="VOC-animal Mix-CUB Mix-Dogs" SEEDS (all pairs; "0 5" for VOC-animal, "0 16" for the others) EPOCHS (150, 300)
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn resnet18 resnet34} TARGETS=${TARGETS:-VOC-animal Mix-CUB Mix-Dogs}
data=$DATA epochs=${EPOCHS:-} own_seeds=${SEEDS:-}
check_archs

choose() { # TARGET: what its nets were trained for, how, and the new task's images
  case $1 in
  VOC-animal) known=VOC2012_crop seeds=${own_seeds:-0 5} EPOCHS=${epochs:-150} task=VOC2012_animal DATA=$data ;;
  Mix-CUB) known=mix320 seeds=${own_seeds:-0 16} EPOCHS=${epochs:-300} task=mix320-cub DATA=$mix ;;
  Mix-Dogs) known=mix320 seeds=${own_seeds:-0 16} EPOCHS=${epochs:-300} task=mix320-dog DATA=$mix ;;
  *) echo "$section: TARGETS are VOC-animal, Mix-CUB and Mix-Dogs, not $1" >&2 && exit 2 ;;
  esac
  if [[ $DATA == "$mix" ]]; then mix_birds_and_dogs; fi
}

refine() { # TARGET ARCH LAYER A B, the target that is chosen
  local net=$OUT/model_checkpoints/checkpoint_${known}_$2 check=check/${task}_$2/checkpoint end=_$4-$5_L$3.pth.tar raw
  local nets=(--arch "$2" --net_A "${net}_$4.pth.tar" --net_B "${net}_$5.pth.tar" $(at "$3"))
  store "$1_$2_L$3_$4-$5" --arch "$2" --resume1 "${net}_$4.pth.tar" --resume2 "${net}_$5.pth.tar" --dataset "$task" \
    $(at "$3") --suffix "$4-$5"
  fit "$1_$2_L$3_$4-$5" "$OUT/convOuts/${task}_$2/${task}_L$3_$4-$5" "$4-$5_a0.1" --alpha '[0.1,0.1]'
  keep "table4/settings/$2_L$3_$1" "model_checkpoints/checkpoint_${known}_$2_$4.pth.tar"
  keep "table4/settings/$2_L$3_$1" "model_checkpoints/${task}_$2/checkpoint_L$3_$4-$5_a0.1.pth.tar"
  for raw in A B; do
    tune "$1_$2_L$3_$4-$5_$raw" "$task" "$4-$5" "${nets[@]}" --input "raw_$raw" --tail "$raw"
    keep "table4/$2_L$3_$1/$raw" "${check}_raw_$raw$end"
  done
  tune "$1_$2_L$3_$4-$5_111" "$task" "$4-$5" "${nets[@]}" --in_mode '[1,1,1]' \
    --resume_Ys "$OUT/model_checkpoints/${task}_$2/checkpoint_L$3_$4-$5_a0.1.pth.tar"
  keep "table4/$2_L$3_$1/111" "${check}_111$end"
}

for target in $TARGETS; do
  choose "$target"
  for arch in $ARCHS; do
    for seed in $seeds; do together train "$known" "$arch" "sd$seed" --seed "$seed"; done
  done
  wait_all
  for arch in $ARCHS; do
    layers=$(layers "$arch")
    for layer in $layers; do
      while read -r a b; do together refine "$target" "$arch" "$layer" "sd$a" "sd$b"; done < <(pairs_of $seeds)
    done
  done
  wait_all
done
tables table4
