#!/usr/bin/env bash
# HSAKD (IJCAI 2021; online TNNLS 2022), Tables on CIFAR-100, STL-10, TinyImageNet and ImageNet: its documented command
# lines. Teachers with a frozen backbone have seed 0 and joint ones seed 1, as the README has them.
#
#   experiments/hsakd.sh [--dry-run]
#
# Needs $DATA/CIFAR100; for PROBES $DATA/STL10 and $DATA/TinyImageNet; with IMAGENET=FOLDER that of train/ and val/.
# Settings of its own: PAIRS="teacher:student …" ONLINE="X_X …" RATIOS="0.25 0.5 0.75" PROBES="STL-10 TinyImageNet"
# BACKBONES=FOLDER of the authors' {arch}.pth, in place of baselines trained here; EPOCHS, of every run
source "$(dirname "$0")/common.sh"
PAIRS=${PAIRS-wrn_40_2:wrn_16_2 wrn_40_2:wrn_40_1 wrn_40_2:ShuffleV1 resnet32x4:resnet8x4 resnet32x4:ShuffleV2 \
resnet56:resnet20 vgg13_bn:mobilenetV2 ResNet50:mobilenetV2}
ONLINE=${ONLINE-WRN_40_2_WRN_40_2 WRN_40_1_WRN_40_1 resnet56_resnet56 resnet32x4_resnet32x4 vgg13_vgg13 mbv2_mbv2 \
shufflev1_shufflev1 shufflev2_shufflev2}
RATIOS=${RATIOS-0.25 0.5 0.75} PROBES=${PROBES-STL-10 TinyImageNet}
IMAGENET=${IMAGENET:-} BACKBONES=${BACKBONES:-} EPOCHS=${EPOCHS:-}
checkpoints=$OUT/checkpoint

# hsakd NAME OPTION…: one run; a smaller number of epochs takes the place of the documented one.
hsakd() {
  step "$1" HSAKD.py "${@:2}" --checkpoint-dir "$checkpoints" --out "$OUT" --resume ${EPOCHS:+--epochs "$EPOCHS"}
}

# slowly ARCH: the smaller first rate of the light networks.
slowly() {
  case $1 in Shuffle* | shuffle* | mobilenet* | mbv2*) echo --init-lr 0.01 ;; esac
}

baseline() { # ARCH
  hsakd "baseline_$1" baseline --arch "$1" $(slowly "$1") --data "$DATA"
}

teach() { # ARCH
  local backbone=$checkpoints/train_baseline_cifar_arch_$1_dataset_cifar100_seed0/$1.pth.tar
  if [[ $BACKBONES ]]; then backbone=$BACKBONES/$1.pth; fi
  hsakd "teacher_frozen_$1" teacher --arch "$1_aux" --milestones 30 60 90 --epochs 100 --data "$DATA" --manual 0 \
    --pretrained-backbone "$backbone" --freezed
  hsakd "teacher_joint_$1" teacher --arch "$1_aux" --data "$DATA" --manual 1
}

student() { # TEACHER STUDENT OPTION…
  local seed
  for seed in 0 1; do
    hsakd "student_$1_$2_teacher$seed" student --tarch "$1_aux" --arch "$2_aux" $(slowly "$2") --tcheckpoint \
      "$checkpoints/train_teacher_cifar_arch_$1_aux_dataset_cifar100_seed$seed/$1_aux.pth.tar" --data "$DATA" \
      --manual 0 --suffix "$([[ $seed == 0 ]] || echo joint)"
  done
}

few_shot() { # RATIO
  hsakd "few_shot_$1" student --tarch resnet56_aux --arch resnet20_aux --tcheckpoint \
    "$checkpoints/train_teacher_cifar_arch_resnet56_aux_dataset_cifar100_seed0/resnet56_aux.pth.tar" --data "$DATA" \
    --few-ratio "$1" --manual 0
}

online() { # PAIR
  hsakd "online_$1" online --arch "$1" $(slowly "$1") --data "$DATA"
}

probe() { # DATASET
  local student=$checkpoints/train_student_cifar_tarch_vgg13_bn_aux_arch_mobilenetV2_aux_dataset_cifar100_seed0
  hsakd "probe_$1" probe --arch mobilenetV2 --dataset "$1" --data "$DATA" --s-path "$student/mobilenetV2_aux.pth.tar"
}

on_imagenet() {
  local common=(--dataset imagenet --data "$IMAGENET") backbone=${BACKBONES:-pretrained_backbones} seed teacher
  hsakd imagenet_teacher_frozen teacher "${common[@]}" --pretrained-backbone "$backbone/resnet34-333f7ec4.pth" \
    --freezed --manual_seed 0
  hsakd imagenet_teacher_joint teacher "${common[@]}" --manual_seed 1
  for seed in 0 1; do
    teacher=$checkpoints/train_teacher_imagenet_arch_resnet34_imagenet_aux_dataset_imagenet_seed$seed
    hsakd "imagenet_student_$seed" student "${common[@]}" --arch resnet18_imagenet_aux --tarch resnet34_imagenet_aux \
      --tcheckpoint "$teacher/resnet34_imagenet_aux_best.pth.tar" --manual_seed "$seed"
  done
  hsakd imagenet_online online "${common[@]}" --arch resnet18_resnet18
}

teachers=$(printf '%s\n' $PAIRS | cut -d: -f1 | sort -u)
students=$(printf '%s\n' $PAIRS | cut -d: -f2 | sort -u)
for arch in $(printf '%s\n' $teachers $students | sort -u); do together baseline "$arch"; done
wait_all
for arch in $teachers; do together teach "$arch"; done
wait_all
for names in $PAIRS; do together student "${names%:*}" "${names#*:}"; done
if [[ " $PAIRS " == *resnet56:resnet20* ]]; then for ratio in $RATIOS; do together few_shot "$ratio"; done; fi
for names in $ONLINE; do together online "$names"; done
wait_all
if [[ " $PAIRS " == *vgg13_bn:mobilenetV2* ]]; then for name in $PROBES; do together probe "$name"; done; fi
wait_all
if [[ $IMAGENET ]]; then on_imagenet; fi
