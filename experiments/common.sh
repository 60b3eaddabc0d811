# shellcheck shell=bash
# Sourced by the sections' scripts: the settings that the environment can change, and the functions that they are
# written with. Paths are relative to the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Data root as PrepareData.py makes it, the halves of mix320, and where everything is written: what sections have in
# common is made once. What is there already is kept where it was made from the same files.
DATA=${DATA:-${KC_DATA:-data}} OUT=${OUT:-runs}
BIRDS=${BIRDS:-$DATA/CUB200} DOGS=${DOGS:-$DATA/DOG120}
PYTHON=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}

# The paper's, for smaller runs to change; BATCH, too (128 for nets, 64 for Trans-Nets and tails).
IMAGE_SIZE=${IMAGE_SIZE:-224} OPTIM=${OPTIM:-SGD} LR=${LR:-0.01}
TRANS_EPOCHS=${TRANS_EPOCHS:-1000} TRANS_LR=${TRANS_LR:-0.0001}
REFINE_EPOCHS=${REFINE_EPOCHS:-100} REFINE_LR=${REFINE_LR:-0.00001}

# FIT="--standardise --solve": options of every Trans-Net; default: the released procedure. CALIBRATE="--brief": store
# the test images' features too, and measure with these options what every instability is worth (nulls, ceilings, other
# similarities).
# PRETRAINED=1: nets begin with ImageNet weights, those of $WEIGHTS/ARCH.pth where WEIGHTS names a folder.
FIT=${FIT:-} CALIBRATE=${CALIBRATE:-} CALIBRATE_PAIRS=${CALIBRATE_PAIRS:-*} PRETRAINED=${PRETRAINED:-} WEIGHTS=${WEIGHTS:-}

# JOBS chains of steps run side by side. DEVICE_IDS=[0,1]: every step on both GPUs; with JOBS=2, each chain on one.
JOBS=${JOBS:-1} DEVICE_IDS=${DEVICE_IDS:-}

section=$(basename "$0" .sh) started=0 chains=() dry_run=
IFS=', ' read -ra gpus <<<"${DEVICE_IDS//[\[\]]/}"
device=(${DEVICE_IDS:+--device_ids "$DEVICE_IDS"})
case ${1:-} in
'') ;;
--dry-run) dry_run=yes ;;
*) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "experiments/$section.sh" && [[ $1 == --help ]] && exit 0 || exit 2 ;;
esac
command -v "$PYTHON" >/dev/null ||
  { echo "$section: there is no $PYTHON; name the one with torch by PYTHON" >&2 && exit 1; }

# layers_of ARCH: the paper's layers, as --conv_layer numbers them; `at` takes names, too.
layers_of() {
  case ${1%_ft} in
  vgg16_bn) echo 30 37 ;; # conv4_3, conv5_2
  vgg11_bn) echo 18 25 ;; # conv4_2, conv5_2
  alexnet) echo 8 10 ;;   # conv4, conv5
  resnet*) echo 3 ;;      # the last 14×14 map
  *) other_layers "$1" ;;
  esac
}

other_layers() { # ARCH
  [[ ${LAYERS:-} ]] || { echo "$section: the paper has no layer of $1; name one by LAYERS" >&2 && exit 2; }
  echo "$LAYERS"
}

# layers ARCH: LAYERS_arch where it is set, else the section's own.
layers() {
  local named=LAYERS_$1
  [[ ! ${!named:-} ]] || { echo "${!named}" && return; }
  layers_of "$1"
}

# at LAYER [2]: the option that names a layer, by number or name; 2: net B's own.
at() {
  if [[ $1 == [0-9]* ]]; then echo "--conv_layer${2:-} $1"; else echo "--layer${2:-} $1"; fi
}

# setting NAME ARCH: $NAME_arch where it is set, else $NAME.
setting() {
  local named=$1_$2
  echo "${!named:-${!1}}"
}

# check_archs: end before anything is done where the layers of one of $ARCHS are not known.
check_archs() {
  local arch
  for arch in $ARCHS; do layers "$arch" >/dev/null; done
}

# train DATASET ARCH SUFFIX OPTION…: a classifier for $EPOCHS, learning rate 1e-2 → about 1e-4; from scratch, or an _ft.
# OPTIM_arch, LR_arch and EPOCHS_arch are an architecture's own.
train() {
  local optim lr epochs start=()
  optim=$(setting OPTIM "$2") lr=$(setting LR "$2") epochs=$(setting EPOCHS "$2")
  if [[ $2 == *_ft && $WEIGHTS ]]; then start=(--weights "$WEIGHTS/${2%_ft}.pth"); fi
  step "train_$1_$2_$3" Training.py --arch "$2" --dataset "$1" --optim "$optim" --lr "$lr" --epochs "$epochs" \
    --epoch_step $(((epochs + 4) / 5)) --batch_size "${BATCH:-128}" --save_epoch 50 --suffix "$3" "${@:4}" "${start[@]}" \
    --image_size "$IMAGE_SIZE" --data_root "$DATA" --out "$OUT" --resume auto
}

# pairs_of A B C: every two of them, one "A B" on a line.
pairs_of() {
  local i j all=("$@")
  for ((i = 0; i < $#; i++)); do
    for ((j = i + 1; j < $#; j++)); do echo "${all[i]} ${all[j]}"; done
  done
}

# fit NAME FEATURES SUFFIX OPTION…: a Trans-Net, learning rate 1e-4 → 1e-6; FIT="--standardise --solve" fits to the end.
# A → B alone unless an OPTION says otherwise.
fit() {
  local more way=(--one_direction)
  read -ra more <<<"$FIT"
  if [[ " ${*:4} " == *" --both_directions "* || " ${*:4} " == *" --reverse "* ]]; then way=(); fi
  step "fit_$1" Training_TransNet.py --convOut_path "$2" --lr "$TRANS_LR" --logspace 2 --epochs "$TRANS_EPOCHS" \
    --batch_size "${BATCH:-64}" --suffix "$3" "${@:4}" "${way[@]}" "${more[@]}" --out "$OUT" --resume auto
}

# store NAME OPTION…: both nets' features of the training images; with CALIBRATE those of the test images too.
store() {
  step "store_$1" ConvOutput.py --batch_size "${BATCH:-128}" "${@:2}" ${CALIBRATE:+--t_or_v both} \
    --data_root "$DATA" --out "$OUT"
}

# variance NAME RESULT OPTION…: measure a Trans-Net on the test images; a result that is there is kept.
variance() {
  [[ ! $dry_run && -e $2 ]] || step "$1" Variance.py "${@:3}" --data_root "$DATA" --json "$2"
}

# calibrate NAME FEATURES TRANSNET ROW PAIR OPTION…: with CALIBRATE, say what the Trans-Net's instability is worth. It is
# the longest step, and its result is kept where it is there.
calibrate() {
  local more result=$OUT/results/calibration/$4/calibrate/$5.json
  [[ $CALIBRATE && $5 == $CALIBRATE_PAIRS ]] || return 0
  [[ $dry_run || ! -e $result ]] || return 0
  read -ra more <<<"$CALIBRATE"
  step "calibrate_$1" Calibrate.py --convOut_path "$2" --transnet "$3" --one_direction "${@:6}" "${more[@]}" --json "$result"
}

# tune NAME DATASET SUFFIX OPTION…: the layers above a feature, learning rate 1e-5 → 1e-7.
tune() {
  step "tune_$1" transClassifier.py --dataset "$2" --suffix "$3" --lr "$REFINE_LR" --logspace 2 \
    --epochs "$REFINE_EPOCHS" --batch_size "${BATCH:-64}" "${@:4}" --data_root "$DATA" --out "$OUT" --resume auto
}

# step NAME SCRIPT OPTION…: run a script. Its output is added to a log, whose end is shown if it fails; that stops all.
step() {
  local log=$OUT/steps/$section/$1.log command=("$PYTHON" "${@:2}" "${device[@]}")
  if [[ $dry_run ]]; then
    show "${command[@]}"
    return
  fi
  echo "$section: $1"
  mkdir -p "$(dirname "$log")"
  "${command[@]}" >>"$log" 2>&1 && return
  tail -n 20 "$log" >&2
  printf '%s\n' "$section: $1 failed; its log is $log, its command was" "$(show "${command[@]}")" >&2
  exit 1
}

# link TARGET NAME: a symbolic link, in place of a copy; a relative TARGET counts from NAME's folder.
link() {
  if [[ $dry_run ]]; then
    printf '%s && %s\n' "$(show mkdir -p "$(dirname "$2")")" "$(show ln -sfn "$1" "$2")"
    return
  fi
  mkdir -p "$(dirname "$2")" && ln -sfn "$1" "$2"
  [[ -e $2 ]] || { echo "$section: $2 needs $1, which is not there" >&2 && exit 1; }
}

# keep TABLE/ROW/COLUMN FILE: put what a step wrote below $OUT where tables.py reads it.
keep() {
  link "../../../../$2" "$OUT/results/$1/$(basename "$2")"
}

# mix_birds_and_dogs: at $mix, links that make $BIRDS and $DOGS the halves of mix320, and the two classes of bird_dog.
mix=$OUT/mix
mix_birds_and_dogs() {
  local split
  link "$(realpath -m "$BIRDS")" "$mix/CUB200"
  link "$(realpath -m "$DOGS")" "$mix/DOG120"
  for split in train test; do
    link "../../CUB200/$split" "$mix/bird_dog/$split/bird"
    link "../../DOG120/$split" "$mix/bird_dog/$split/dog"
  done
}

# tables NAME…: print these tables with the paper's numbers beside ours.
tables() {
  local command=("$PYTHON" -m experiments.tables "$OUT" "$@")
  if [[ $dry_run ]]; then show "${command[@]}"; else "${command[@]}"; fi
}

# show WORD…: print a command on one line that can be pasted.
show() {
  local word line=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,+-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  echo "${line% }"
}

# together FUNCTION ARGUMENT…: run a chain of steps beside JOBS - 1 others, each on its own GPU if there are several.
together() {
  if ((JOBS == 1)); then
    "$@"
    return
  fi
  local slot=$((started++ % JOBS))
  while kill -0 "${chains[slot]:-none}" 2>/dev/null; do
    sleep 0.2
    slot=$(((slot + 1) % JOBS))
  done
  [[ -z ${chains[slot]:-} ]] || wait "${chains[slot]}" || { wait && exit 1; } # nothing new begins after a failure
  (
    ((${#gpus[@]} == 0)) || device=(--gpu "${gpus[slot % ${#gpus[@]}]}")
    "$@"
  ) &
  chains[slot]=$!
  [[ ! $dry_run ]] || wait $! # one after the other, so that the lines stay in order
}

# wait_all: wait for every chain that was begun.
wait_all() {
  local chain failed=
  for chain in "${chains[@]}"; do wait "$chain" || failed=yes; done
  chains=()
  [[ ! $failed ]] || exit 1
}
