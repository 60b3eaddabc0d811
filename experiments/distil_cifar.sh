#!/usr/bin/env bash
# DCM (Yao and Sun 2020) on CIFAR-100: test errors of two networks that are trained alone, that teach each other by their
# final layers (DML, Zhang et al. 2018), and that teach each other across layers; five seeds, as in the paper.
#
#   experiments/distil_cifar.sh [--dry-run]
#
# Needs $DATA/CIFAR100. Settings of its own: PAIRS="wrn_28_10-wrn_28_10 …" METHODS="alone dml dcm" SEEDS="1 2 3 4 5"
# EPOCHS=200, with the learning rate's falls before EPOCH_STEP=[60,120,160]
# Alone, the networks of a pair do not touch each other: one run trains both.
source "$(dirname "$0")/common.sh"
PAIRS=${PAIRS:-wrn_28_10-wrn_28_10 wrn_28_10-mobilenet} METHODS=${METHODS:-alone dml dcm} SEEDS=${SEEDS:-1 2 3 4 5}
EPOCHS=${EPOCHS:-200} EPOCH_STEP=${EPOCH_STEP:-[60,120,160]}

distil() { # METHOD PAIR SEED
  local net save=model_checkpoints/dcm/$2_$1_sd$3
  step "$1_$2_sd$3" DCM.py --net1 "${2%-*}" --net2 "${2#*-}" --method "$1" --seed "$3" --epochs "$EPOCHS" \
    --epoch_step "$EPOCH_STEP" --batch_size "${BATCH:-128}" --dataroot "$DATA" --save "$OUT/$save" --resume auto
  link "../../../../$save/checkpoint.pth.tar" "$OUT/results/distil_cifar/$1/$2/sd$3.pth.tar"
  for net in net1 net2; do # for experiments/accuracies.py
    link "../../../../$save/$net.pth.tar" "$OUT/results/accuracy/$1/$2_$net/sd$3.pth.tar"
  done
}

for pair in $PAIRS; do
  for method in $METHODS; do
    for seed in $SEEDS; do together distil "$method" "$pair" "$seed"; done
  done
done
wait_all
tables distil_cifar
