#!/usr/bin/env bash
# What a student takes over, and in which stage. One teacher (HSAKD's joint one), and students that are trained alone, by
# KD (Hinton et al. 2014, BornAgain.py's loss), by DCM and by HSAKD, all with one recipe: is what the teacher's features
# give of the student's, and the student's of the teacher's, more for a method that raises the accuracy?
#
#   experiments/distillation_knowledge.sh [--dry-run]
#
# Needs $DATA/CIFAR100. Settings of its own: TEACHER=wrn_40_2 STUDENT=wrn_16_2 SEEDS="0 1 2" METHODS="alone kd dcm hsakd"
# EPOCHS=240, of students; TEACHER_EPOCHS; the rate falls once, to a tenth after two thirds; BATCH=64
# DCM has no teacher: its students learn with a net of the teacher's architecture. They are compared with the common
# teacher as all others are, and (dcm_partner) with the net that they learned with.
# Trans-Nets are one linear layer in closed form. Features are removed once they are measured.
source "$(dirname "$0")/common.sh"
TEACHER=${TEACHER:-wrn_40_2} STUDENT=${STUDENT:-wrn_16_2} SEEDS=${SEEDS:-0 1 2} METHODS=${METHODS:-alone kd dcm hsakd}
EPOCHS=${EPOCHS:-240} TEACHER_EPOCHS=${TEACHER_EPOCHS:-$EPOCHS} BATCH=${BATCH:-64} DATASET=CIFAR100
checkpoints=$OUT/checkpoint nets=$OUT/model_checkpoints
teacher=$checkpoints/train_teacher_cifar_arch_${TEACHER}_aux_dataset_cifar100_seed1/${TEACHER}_aux.pth.tar

stages_of() { # ARCH: the stages that both methods' heads take, from the shallowest on
  case $1 in
  wrn_*) echo group0 group1 group2 ;;
  resnet*) echo layer1 layer2 layer3 ;;
  *) echo "$section: the stages of $1 are not known here; take WRNs and ResNets" >&2 && return 2 ;;
  esac
}
teacher_stages=($(stages_of "$TEACHER"))
student_stages=($(stages_of "$STUDENT"))

# hsakd NAME EPOCHS OPTION…: one run with the common recipe.
hsakd() {
  step "$1" HSAKD.py "${@:3}" --data "$DATA" --epochs "$2" --milestones $(($2 * 2 / 3)) --init-lr 0.05 \
    --batch-size "$BATCH" --checkpoint-dir "$checkpoints" --out "$OUT" --resume
}

alone() { # SEED
  hsakd "alone_sd$1" "$EPOCHS" baseline --arch "$STUDENT" --manual "$1"
}

kd() { # SEED
  step "kd_sd$1" BornAgain.py --start_gen 1 --generations 2 --resume "$teacher" --student_arch "$STUDENT" --tau 3 \
    --lambd 1 --lambd_end 1 --seed "$1" --suffix "kd_sd$1" --dataset "$DATASET" --augment zero4 --epochs "$EPOCHS" \
    --lr 0.05 --weight_decay 5e-4 --epoch_step $((EPOCHS * 2 / 3)) --decay_factor 0.1 --batch_size "$BATCH" \
    --data_root "$DATA" --out "$OUT"
}

dcm() { # SEED
  step "dcm_sd$1" DCM.py --net1 "$STUDENT" --net2 "$TEACHER" --seed "$1" --dataset "$DATASET" --augment zero4 \
    --normalisation cifar --epochs "$EPOCHS" --lr 0.05 --epoch_step "[$((EPOCHS * 2 / 3 + 1))]" --lr_decay_ratio 0.1 \
    --keep_momentum --batch_size "$BATCH" --dataroot "$DATA" --save "$nets/dcm_sd$1" --resume auto
}

distil() { # SEED
  hsakd "hsakd_sd$1" "$EPOCHS" student --tarch "${TEACHER}_aux" --arch "${STUDENT}_aux" --tcheckpoint "$teacher" \
    --manual "$1"
}

# net_of METHOD SEED: the student's file below $OUT.
net_of() {
  case $1 in
  alone) echo "checkpoint/train_baseline_cifar_arch_${STUDENT}_dataset_cifar100_seed$2/$STUDENT.pth.tar" ;;
  kd) echo "model_checkpoints/checkpoint_${DATASET}_${STUDENT}_kd_sd$2_gen1.pth.tar" ;;
  dcm*) echo "model_checkpoints/dcm_sd$2/net1.pth.tar" ;;
  hsakd) echo "checkpoint/train_student_cifar_tarch_${TEACHER}_aux_arch_${STUDENT}_aux_dataset_cifar100_seed$2/${STUDENT}_aux.pth.tar" ;;
  esac
}

train() { # METHOD SEED
  if [[ $1 == hsakd ]]; then distil "$2"; else "$1" "$2"; fi
  link "../../../../$(net_of "$1" "$2")" "$OUT/results/accuracy/$1/$STUDENT/sd$2.pth.tar"
}

teach() {
  hsakd teacher "$TEACHER_EPOCHS" teacher --arch "${TEACHER}_aux" --manual 1
  link "../../../../${teacher#"$OUT/"}" "$OUT/results/accuracy/teacher/$STUDENT/sd1.pth.tar"
}

# train_all METHOD…: the students of those that $METHODS names.
train_all() {
  local method seed
  for method; do
    [[ " $METHODS " == *" $method "* ]] || continue
    for seed in $SEEDS; do together train "$method" "$seed"; done
  done
}

# measure METHOD SEED TEACHER: what teacher and student share in every stage, in both directions.
measure() {
  local stage direction reverse label features trans_net name=$1_sd$2 result
  for stage in "${!student_stages[@]}"; do
    result=$OUT/results/knowledge/$1
    if [[ -e $result/student-teacher_$((stage + 1))/sd$2.npz ]]; then continue; fi
    label=${teacher_stages[stage]}-${student_stages[stage]}
    if [[ ${teacher_stages[stage]} == "${student_stages[stage]}" ]]; then label=${student_stages[stage]}; fi
    features=$OUT/convOuts/${DATASET}_$both/${DATASET}_L${label}_$name
    step "store_${name}_$stage" ConvOutput.py --resume1 "$3" --resume2 "$OUT/$(net_of "$1" "$2")" \
      --layer "${teacher_stages[stage]}" --layer2 "${student_stages[stage]}" --t_or_v both --batch_size "$BATCH" \
      --suffix "$name" --data_root "$DATA" --out "$OUT"
    step "fit_${name}_$stage" Training_TransNet.py --convOut_path "$features" --both_directions --layers 1 --standardise \
      --solve --epochs 0 --suffix "$name" --out "$OUT" --resume auto
    trans_net=$nets/${DATASET}_$both/checkpoint_L${label}_$name
    for direction in teacher-student student-teacher; do
      reverse=() && if [[ $direction == student-teacher ]]; then reverse=(--reverse); fi
      step "calibrate_${name}_${stage}_$direction" Calibrate.py --convOut_path "$features" \
        --transnet "$trans_net${reverse:+_reverse}.pth.tar" "${reverse[@]}" --one_direction --brief --permutations 0 \
        --json "$result/${direction}_$((stage + 1))/sd$2.json" --sums "$result/${direction}_$((stage + 1))/sd$2.npz"
    done
    if [[ $dry_run ]]; then show rm -r "$features"; else rm -r "$features"; fi
  done
}

both=$TEACHER-$STUDENT
if [[ $TEACHER == "$STUDENT" ]]; then both=$TEACHER; fi
together teach
train_all alone dcm # beside their teacher-to-be; the others need it
wait_all
train_all kd hsakd
wait_all
for method in $METHODS; do
  for seed in $SEEDS; do
    together measure "$method" "$seed" "$teacher"
    if [[ $method == dcm ]]; then together measure dcm_partner "$seed" "$nets/dcm_sd$seed/net2.pth.tar"; fi
  done
done
wait_all
command=("$PYTHON" -m experiments.knowledge "$OUT" --data_root "$DATA" --markdown "$OUT/knowledge.md"
  --csv "$OUT/knowledge.csv" --figure "$OUT/figures/knowledge.png")
if [[ $dry_run ]]; then show "${command[@]}"; else "${command[@]}"; fi
