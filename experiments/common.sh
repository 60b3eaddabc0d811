# Sourced by the sections' scripts: the settings that the environment can change, and the functions that they are
# written with. Paths are relative to the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DATA=${DATA:-${KC_DATA:-data}} # data root, as PrepareData.py makes it
OUT=${OUT:-runs}               # everything that is written; what sections have in common is made once
PYTHON=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
IMAGE_SIZE=${IMAGE_SIZE:-224} BATCH=${BATCH:-} LR=${LR:-0.01}
TRANS_EPOCHS=${TRANS_EPOCHS:-1000} TRANS_LR=${TRANS_LR:-0.0001}
REFINE_EPOCHS=${REFINE_EPOCHS:-100} REFINE_LR=${REFINE_LR:-0.00001}
DEVICE_IDS=${DEVICE_IDS:-} # [0,1]: every step on both GPUs, or with JOBS=2 each chain of steps on one of them
JOBS=${JOBS:-1}            # chains of steps that run side by side

section=$(basename "$0" .sh)
results=$OUT/results # results/TABLE/ROW/COLUMN/*.json: what experiments/tables.py reads
dry_run= failed= started=0 slots=()
device=(${DEVICE_IDS:+--device_ids "$DEVICE_IDS"})
IFS=', ' read -ra gpus <<<"${DEVICE_IDS//[\[\]]/}"
case ${1:-} in
  '') ;;
  --dry-run) dry_run=yes ;;
  *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

# step NAME SCRIPT OPTION…: run a script; its output goes to a log, whose end is shown if it fails.
step() {
  local name=$1 log=$OUT/steps/$section/$1.log words
  shift
  words=("$PYTHON" "$@" "${device[@]}")
  if [[ $dry_run ]]; then
    print "${words[@]}"
    return
  fi
  mkdir -p "$(dirname "$log")"
  echo "$section: $name"
  "${words[@]}" >"$log" 2>&1 && return
  {
    tail -n 20 "$log"
    echo "$section: $name failed; the whole log is $log, the command was"
    print "${words[@]}"
  } >&2
  exit 1
}

# print WORD…: the command on one line, quoted so that it can be pasted.
print() {
  local word line=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,+-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  echo "${line% }"
}

# together FUNCTION ARGUMENT…: a chain of steps, beside JOBS - 1 others. A failed one lets those that run end.
together() {
  local slot=$((started++ % JOBS))
  until [[ $dry_run ]] || ! kill -0 "${slots[slot]:-none}" 2>/dev/null; do
    sleep 0.2
    slot=$(((slot + 1) % JOBS))
  done
  ...
}
