#!/usr/bin/env bash
# The nets of the findings on CIFAR-10, a short recipe: ResNet-20, one cycle, label smoothing, bfloat16. Five seeds of
# each kind, so that every finding has an interval over nets:
#   sdS            all images; _gen1 and _gen2 born again from it; _pruned0.8-0.8 and 1.6-1.6 compressed
#   sdS_long       the same, four epochs more
#   sdS_50par_A/B  the two halves of the images
#   sdS_short      two epochs: a weak net
#   two, first5    animals against vehicles; the first five classes
#   random         labels drawn at random
#   alone, kd, dcm, hsakd   students of one ResNet-56 with branches (HSAKD's teacher), by four methods
#
#   experiments/cifar_nets.sh [--dry-run]
#
# Needs $DATA/CIFAR10 (PrepareData.py CIFAR10, or the PNG edition: {train,test}/CLASS/*.png) and the sets that
# python -m experiments.cifar_sets $DATA links. Settings of its own: SEEDS="0 1 2 3 4" EPOCHS=14 RANDOM_EPOCHS=30
# GENERATIONS=3 TEACHER_EPOCHS=12 STUDENT_EPOCHS=10
# KINDS="series halves short two first5 random": which nets; "students" are made where they are named.
source "$(dirname "$0")/common.sh"
SEEDS=${SEEDS:-0 1 2 3 4} EPOCHS=${EPOCHS:-14} RANDOM_EPOCHS=${RANDOM_EPOCHS:-30} GENERATIONS=${GENERATIONS:-3}
TEACHER_EPOCHS=${TEACHER_EPOCHS:-12} STUDENT_EPOCHS=${STUDENT_EPOCHS:-10} BATCH=${BATCH:-256}
KINDS=${KINDS:-series halves short two first5 random}
nets=$OUT/model_checkpoints plain=$OUT/model_checkpoints/checkpoint_CIFAR10_resnet20 hsakd_runs=$OUT/checkpoint
teacher=$hsakd_runs/train_teacher_cifar_arch_resnet56_aux_dataset_cifar10_seed1/resnet56_aux.pth.tar
images=(--image_size 32 --amp bf16 -j 0 --batch_size "$BATCH" --data_root "$DATA" --out "$OUT")
recipe=(--lr 0.6 --weight_decay 5e-4 --one_cycle --augment zero4 --label_smoothing 0.1)

# train SET SEED SUFFIX EPOCHS OPTION…: a ResNet-20; options that follow come after the recipe's and so override them.
train() {
  step "train_$1_$3" Training.py --arch resnet20 "${images[@]}" "${recipe[@]}" --epochs "$4" --val_epoch "$4" \
    --seed "$2" --suffix "$3" --resume auto $(on_set "$1") "${@:5}"
}

on_set() { # NAME: options of all images, or of one of the linked sets
  [[ $1 != all ]] || { echo --dataset CIFAR10 && return; }
  echo --dataset folder --name "CIFAR10_$1" --train_path "$DATA/CIFAR10_$1/train" --val_path "$DATA/CIFAR10_$1/test"
}

# after CHAIN: wait for a chain of steps that was begun before, if it runs beside this one.
after() { [[ ! ${1:-} ]] || tail --pid="$1" -f /dev/null; }

born_again() { # SEED: the generations after the net of that seed
  after "${trained[$1]:-}"
  step "born_again_sd$1" BornAgain.py --start_gen 1 --generations "$GENERATIONS" --resume "${plain}_sd$1.pth.tar" \
    --arch resnet20 --dataset CIFAR10 "${images[@]}" "${recipe[@]}" --epochs "$EPOCHS" --val_epoch "$EPOCHS" \
    --tau 1 --lambd 0.5 --lambd_end 0.5 --seed $(($1 + 10)) --suffix "sd$1"
}

compress() { # SEED: its compressed forms
  after "${trained[$1]:-}"
  step "prune_sd$1" Pruning.py --resume "${plain}_sd$1.pth.tar" --s_conv 0.4 --s_fc 0.4 --sweep '[2,4]' \
    --dataset CIFAR10 "${images[@]}" --augment zero4 --lr 0.05 --logspace 2 --weight_decay 5e-4 --epochs 1 \
    --val_epoch 1 --seed "$1" --suffix "sd$1"
}

prolong() { # SEED: four more epochs, without label smoothing
  after "${trained[$1]:-}"
  step "long_sd$1" Training.py --arch resnet20 --weights "${plain}_sd$1.pth.tar" --dataset CIFAR10 "${images[@]}" \
    --augment zero4 --lr 0.1 --weight_decay 5e-4 --one_cycle --epochs 4 --val_epoch 4 --seed $(($1 + 20)) \
    --suffix "sd$1_long" --resume auto
}

# hsakd COMMAND SEED EPOCHS OPTION…: one of its runs; two falls of the rate, after half and five sixths.
hsakd() {
  step "hsakd_$1_sd$2" HSAKD.py "$1" --data "$DATA" --dataset cifar10 --manual "$2" --epochs "$3" \
    --milestones $(($3 / 2)) $(($3 * 5 / 6)) --init-lr 0.1 --batch-size "$BATCH" --num_workers 0 --amp bf16 \
    --checkpoint-dir "$hsakd_runs" --out "$OUT" --resume "${@:4}"
}

teach() {
  hsakd teacher 1 "$TEACHER_EPOCHS" --arch resnet56_aux
}

alone() { # SEED
  hsakd baseline "$1" "$STUDENT_EPOCHS" --arch resnet20
}

by_hsakd() { # SEED
  after "$teaching"
  hsakd student "$1" "$STUDENT_EPOCHS" --arch resnet20_aux --tarch resnet56_aux --tcheckpoint "$teacher"
}

by_kd() { # SEED
  after "$teaching"
  step "kd_sd$1" BornAgain.py --start_gen 1 --generations 2 --resume "$teacher" --student_arch resnet20 --tau 3 \
    --lambd 1 --lambd_end 1 --seed "$1" --suffix "kd_sd$1" --dataset CIFAR10 "${images[@]}" --augment zero4 \
    --epochs "$STUDENT_EPOCHS" --val_epoch "$STUDENT_EPOCHS" --lr 0.1 --weight_decay 5e-4 --one_cycle
}

by_dcm() { # SEED
  step "dcm_sd$1" DCM.py --net1 resnet20 --net2 resnet56 --seed "$1" --dataset CIFAR10 --augment zero4 --amp bf16 \
    --normalisation cifar --epochs "$STUDENT_EPOCHS" --lr 0.1 --lr_decay_ratio 0.1 --keep_momentum --nthread 0 \
    --epoch_step "[$((STUDENT_EPOCHS / 2 + 1)),$((STUDENT_EPOCHS * 5 / 6 + 1))]" --batch_size "$BATCH" \
    --dataroot "$DATA" --save "$nets/dcm_sd$1" --resume auto
}

wanted() { [[ " $KINDS " == *" $1 "* ]]; }
trained=() teaching=
# The longest chains begin first.
if wanted students; then together teach && teaching=${!:-}; fi
if wanted series; then
  for seed in $SEEDS; do together train all "$seed" "sd$seed" "$EPOCHS" && trained[seed]=${!:-}; done
  for seed in $SEEDS; do together born_again "$seed"; done
fi
if wanted random; then
  together train random 0 random_sd0 "$RANDOM_EPOCHS" --augment none --label_smoothing 0 --weight_decay 0
fi
for seed in $SEEDS; do
  # The same seed, so that only the data differ.
  if wanted halves; then
    for half in A B; do
      together train all "$seed" "sd${seed}_50par_$half" "$EPOCHS" --sample_num "50par_$half"
    done
  fi
  if wanted first5; then together train first5 "$seed" "sd$seed" "$EPOCHS"; fi
  if wanted two; then together train two "$seed" "sd$seed" "$((EPOCHS / 2))"; fi
  if wanted short; then together train all "$seed" "sd${seed}_short" 2; fi
done
if wanted series; then
  for seed in $SEEDS; do together compress "$seed"; done
  for seed in $SEEDS; do together prolong "$seed"; done
fi
if wanted students; then
  for method in alone by_dcm by_hsakd by_kd; do
    for seed in $SEEDS; do together "$method" "$seed"; done
  done
fi
wait_all
