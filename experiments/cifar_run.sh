#!/usr/bin/env bash
# The paper's sections on nets that learned: ResNet-20 of CIFAR-10, five seeds of each kind (experiments/cifar_nets.sh
# trains them into the same $OUT). Every pair is compared in both directions at the ends of the three stages, beside its
# null within the class (Compare.py: one linear layer in closed form). The images are test images, which no net was
# trained on: regressions are fitted to one half of them and judged on the other. 4.1 and 4.3 tune tails, too, on
# Trans-Nets of three layers after stage 2.
#
#   experiments/cifar_run.sh [--dry-run]
#
# Needs $DATA/CIFAR10 and the sets that python -m experiments.cifar_sets $DATA links.
# Settings of its own: SEEDS="0 1 2 3 4"
# SECTIONS="stability compression diagnosis generations refinement tasks": which
# ZOO=FOLDER: checkpoints resnet20-*.th … resnet56-*.th of akamaster/pytorch_resnet_cifar10 and FACTORIES=FILE.py with
# functions resnet20 … resnet56, for pairs of depths that others trained
# It ends with python -m experiments.cifar_findings $OUT, which prints the verdicts; SEEDS count from 0 on for it.
source "$(dirname "$0")/common.sh"
SEEDS=${SEEDS:-0 1 2 3 4} SECTIONS=${SECTIONS:-stability compression diagnosis generations refinement tasks}
REFINE_EPOCHS=4 REFINE_LR=0.001 LEVELS="0.8 1.6"
nets=$OUT/model_checkpoints/checkpoint_CIFAR10_resnet20 two=$OUT/model_checkpoints/checkpoint_CIFAR10_two_resnet20
some=$DATA/CIFAR10_some layer=layer2
images=(--dataset CIFAR10 --train_path "$some/train" --val_path "$some/test" --image_size 32 -j 0 --amp bf16)
fitted=$OUT/model_checkpoints/CIFAR10_resnet20/checkpoint_L$layer check=check/CIFAR10_resnet20/checkpoint

# compare NAME OPTION…: Compare.py; a result that is there is kept.
compare() {
  [[ ! $dry_run && -e $OUT/compare/$1/compare.json ]] ||
    step "compare_$1" Compare.py "${@:2}" --images "$DATA/CIFAR10/test" -j 0 --out "$OUT/compare/$1"
}

# of_seeds FORMAT…: names of nets, for every seed; "%s" is the seed.
of_seeds() {
  local seed format
  for seed in $SEEDS; do
    for format; do printf "$format.pth.tar\n" "$seed"; done
  done
}

stability() {
  together compare seeds $(of_seeds "${nets}_sd%s")
  together compare halves $(of_seeds "${nets}_sd%s_50par_A" "${nets}_sd%s_50par_B")
  [[ ! ${ZOO:-} ]] || depths
}

depths() {
  local a b
  while read -r a b; do
    together compare "depths_$a-$b" "$(echo "$ZOO/resnet$a"-*.th)" "$(echo "$ZOO/resnet$b"-*.th)" \
      --arch_A "$FACTORIES:resnet$a" --arch_B "$FACTORIES:resnet$b" --normalisation imagenet
  done < <(pairs_of 20 32 44 56)
}

compression() {
  local seed level formats=()
  for level in $LEVELS; do formats+=("${nets}_sd%s_pruned$level-$level"); done
  for seed in $SEEDS; do SEEDS=$seed together compare "compressed_sd$seed" $(of_seeds "${nets}_sd%s" "${formats[@]}"); done
}

diagnosis() {
  local seed
  together compare weak $(of_seeds "${nets}_sd%s" "${nets}_sd%s_short")
  for seed in $SEEDS; do together diagnose "$seed"; done
}

# fit_pair NAME A B: features of both nets after stage 2, and both Trans-Nets.
fit_pair() {
  local features=$OUT/convOuts/CIFAR10_resnet20/CIFAR10_L${layer}_$1
  step "store_$1" ConvOutput.py --resume1 "$2" --resume2 "$3" --layers "$layer" "${images[@]}" --t_or_v both \
    --suffix "$1" --out "$OUT"
  step "fit_$1" Training_TransNet.py --convOut_path "$features" --standardise --solve --hidden 0 --alpha '[0.1,0.1]' \
    --amp bf16 -j 0 --suffix "$1" --out "$OUT" --resume auto
  [[ $dry_run ]] || rm -r "$features"
}

# tune_tail NAME SUFFIX OPTION…: a tail.
tune_tail() {
  step "tune_$1_$2" transClassifier.py "${images[@]}" --lr "$REFINE_LR" --logspace 2 --epochs "$REFINE_EPOCHS" \
    --val_epoch "$REFINE_EPOCHS" -b 64 --suffix "$2" --out "$OUT" --resume auto "${@:3}"
}

diagnose() { # SEED: blind spots of the weak net, and its unreliable features
  local name=weak_sd$1 weak=${nets}_sd$1_short.pth.tar strong=${nets}_sd$1.pth.tar input
  local pair=(--net_A "$weak" --net_B "$strong" --layer "$layer" --tail A)
  fit_pair "$name" "$weak" "$strong"
  tune_tail raw "$name" --net_A "$weak" --layer "$layer" --input raw_A
  keep diagnosis/raw/resnet20 "${check}_raw_A_${name}_L$layer.pth.tar"
  for input in residual_added noise_added; do
    tune_tail "$input" "$name" "${pair[@]}" --input "$input" --resume_Ys "${fitted}_$name.pth.tar"
    keep "diagnosis/$input/resnet20" "${check}_${input}_111_tailA_${name}_L$layer.pth.tar"
  done
  tune_tail raw_B "$name" "${pair[@]}" --input raw_B
  keep diagnosis/raw_B/resnet20 "${check}_raw_B_tailA_${name}_L$layer.pth.tar"
  # What the strong net reconstructs of the weak net's feature, read by the weak net's tail
  tune_tail reliable "$name" --net_A "$strong" --net_B "$weak" --layer "$layer" \
    --resume_Ys "${fitted}_${name}_reverse.pth.tar"
  keep diagnosis/reliable/resnet20 "${check}_111_${name}_L$layer.pth.tar"
}

generations() {
  together compare generations $(of_seeds "${nets}_sd%s" "${nets}_sd%s_gen1" "${nets}_sd%s_gen2")
}

refinement() {
  local all=($SEEDS) i
  # Every net once as A and once as B
  for i in "${!all[@]}"; do together refine "${all[i]}" "${all[(i + 1) % ${#all[@]}]}"; done
}

refine() { # A B
  local name=sd$1-sd$2 orders raw net_A=${nets}_sd$1.pth.tar net_B=${nets}_sd$2.pth.tar
  local pair=(--net_A "$net_A" --net_B "$net_B" --layer "$layer")
  fit_pair "$name" "$net_A" "$net_B"
  for raw in A B; do
    tune_tail "raw_$raw" "$name" "${pair[@]}" --input "raw_$raw" --tail "$raw"
    keep "refinement/raw_$raw/resnet20" "${check}_raw_${raw}_${name}_L$layer.pth.tar"
  done
  for orders in 1,0,0 1,1,0 1,1,1; do
    tune_tail "$orders" "$name" "${pair[@]}" --resume_Ys "${fitted}_$name.pth.tar" --in_mode "[$orders]"
    keep "refinement/${orders//,/}/resnet20" "${check}_${orders//,/}_${name}_L$layer.pth.tar"
  done
}

tasks() {
  together compare tasks $(of_seeds "${nets}_sd%s" "${two}_sd%s")
}

for name in $SECTIONS; do "$name"; done
wait_all
findings=("$PYTHON" -m experiments.cifar_findings "$OUT" --seeds "$(wc -w <<<"$SEEDS")")
if [[ $dry_run ]]; then show "${findings[@]}"; else "${findings[@]}"; fi
