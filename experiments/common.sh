# Sourced by the sections' scripts: the settings from the environment, and the functions that the scripts are written
# with. Paths are relative to the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DATA=${DATA:-${KC_DATA:-data}} # data root, as PrepareData.py writes it
OUT=${OUT:-runs}               # everything that is written; sections share the nets that they have in common
PYTHON=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
JOBS=${JOBS:-1}                # chains of steps side by side, for instance one for each GPU
read -ra gpus <<<"$(tr -s '[], ' ' ' <<<"${DEVICE_IDS:-}")"
BIRDS=${BIRDS:-$DATA/CUB200} DOGS=${DOGS:-$DATA/DOG120} # the halves of mix320

section=$(basename "$0" .sh)
case ${1:-} in
"") dry_run= ;;
--dry-run) dry_run=yes ;;
*) sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0" && exit 2 ;;
esac
device=() slots=() started=0 failed=
[[ ${#gpus[@]} == 0 ]] || device=(--device_ids "[$(IFS=,; echo "${gpus[*]}")]")

images=(--image_size "${IMAGE_SIZE:-224}" --out "$OUT")
classifier=(--lr "${LR:-0.01}" --momentum 0.9 -b "${BATCH:-128}") # SGD, 1e-2 to about 1e-4: five steps of 0.3
trans_net=(--lr "${TRANS_LR:-0.0001}" --logspace 2 --epochs "${TRANS_EPOCHS:-1000}" -b "${BATCH:-64}")
