#!/usr/bin/env bash
# Sec. 4.6, Fig. 5: net A tells 320 species apart, net B only birds from dogs. Which of the two can reconstruct more of
# the other's features? Both see the same photos. python -m experiments.figures $OUT draws the maps.
#
#   experiments/tasks.sh [--dry-run]
#
# Needs $BIRDS and $DOGS: folders with train/ and test/, by default $DATA/CUB200 and $DATA/DOG120; any two will do.
# The two classes of net B are links to them. Settings of its own: ARCHS=vgg16_bn EPOCHS=300
# The paper does not name the layer; the documented command lines use conv4_3.
source "$(dirname "$0")/common.sh"
ARCHS=${ARCHS:-vgg16_bn} EPOCHS=${EPOCHS:-300}
check_archs
mix_birds_and_dogs
DATA=$mix

compare() { # ARCH LAYER
  local nets=$OUT/model_checkpoints/checkpoint features=$OUT/convOuts/mix320_$1/mix320_L$2_sd0
  local fine=${nets}_mix320_$1_sd0.pth.tar binary=${nets}_bird_dog_$1_sd0.pth.tar
  step "store_$1" ConvOutput.py --arch "$1" --batch_size "${BATCH:-128}" --resume1 "$fine" --resume2 "$binary" \
    --dataset mix320 --conv_layer "$2" --suffix sd0 --data_root "$DATA" --out "$OUT"
  fit "$1_fine-binary" "$features" fine-binary_a0.1 --alpha '[0.1,0.1]'
  fit "$1_binary-fine" "$features" binary-fine_a0.1 --alpha '[0.1,0.1]' --reverse
  measure "$1" "$2" fine-binary "$fine" "$binary"
  measure "$1" "$2" binary-fine "$binary" "$fine"
}

measure() { # ARCH LAYER DIRECTION NET_IN NET_TAR
  step "measure_$1_$3" Variance.py --arch_in "$1" --arch_tar "$1" --net_in "$4" --net_tar "$5" \
    --transnet "$OUT/model_checkpoints/mix320_$1/checkpoint_L$2_$3_a0.1.pth.tar" --dataset mix320 --conv_layer "$2" \
    --data_root "$DATA" --json "$OUT/results/tasks/$3/$1_L$2/variance.json"
}

for arch in $ARCHS; do
  together train mix320 "$arch" sd0 --seed 0
  together train folder "$arch" sd0 --seed 0 --train_path "$mix/bird_dog/train" --val_path "$mix/bird_dog/test"
done
wait_all
for arch in $ARCHS; do
  layers=$(layers_of "$arch")
  together compare "$arch" "${layers%% *}"
done
wait_all
tables tasks
