#!/usr/bin/env bash
# Sec. 4.6, Fig. 5: net A tells 320 species apart, net B only birds from dogs. Which of the two can reconstruct more of
# the other's features? Both see the same photos. python -m experiments.figures $OUT draws the maps.
#
#   experiments/tasks.sh [--dry-run]
#
# Needs $BIRDS and $DOGS: folders with train/ and test/, by default $DATA/CUB200 and $DATA/DOG120; any two will do.
# The two classes of net B are links to them. Settings of its own: ARCHS=vgg16_bn SEEDS=0 (a pair each)
# EPOCHS=300
# The paper does not name the layer; the documented command lines use conv4_3.
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn} SEEDS=${SEEDS:-0} EPOCHS=${EPOCHS:-300}
check_archs
mix_birds_and_dogs
DATA=$mix

compare() { # ARCH LAYER SEED
  local nets=$OUT/model_checkpoints/checkpoint features=$OUT/convOuts/mix320_$1/mix320_L$2_tasks_$3
  local fine=${nets}_mix320_$1_$3.pth.tar binary=${nets}_bird_dog_$1_$3.pth.tar
  store "$1_$3" --arch "$1" --resume1 "$fine" --resume2 "$binary" --dataset mix320 $(at "$2") --suffix "tasks_$3"
  measure "$1" "$2" "$3" fine-binary "$fine" "$binary"
  measure "$1" "$2" "$3" binary-fine "$binary" "$fine" --reverse
}

measure() { # ARCH LAYER SEED DIRECTION NET_IN NET_TAR [--reverse]
  local fitted=$OUT/model_checkpoints/mix320_$1/checkpoint_L$2_$4_$3_a0.1.pth.tar
  fit "$1_$4_$3" "$features" "$4_$3_a0.1" --alpha '[0.1,0.1]' "${@:7}"
  variance "measure_$1_$4_$3" "$OUT/results/tasks/$4/$1_L$2/$3.json" --arch_in "$1" --arch_tar "$1" --net_in "$5" \
    --net_tar "$6" --transnet "$fitted" --dataset mix320 $(at "$2")
  calibrate "$1_$4_$3" "$features" "$fitted" "tasks_$1_L$2_$4" "$3" "${@:7}"
}

for arch in $ARCHS; do
  for seed in $SEEDS; do
    together train mix320 "$arch" "sd$seed" --seed "$seed"
    together train folder "$arch" "sd$seed" --seed "$seed" --train_path "$mix/bird_dog/train" \
      --val_path "$mix/bird_dog/test"
  done
done
wait_all
for arch in $ARCHS; do
  layers=$(layers "$arch")
  for seed in $SEEDS; do together compare "$arch" "${layers%% *}" "sd$seed"; done
done
wait_all
tables tasks
