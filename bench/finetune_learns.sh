#!/usr/bin/env bash
# Whether a model learns a format it does not know: valid answers to held-out prompts before and after, time, memory, and
# the held-out loss of the trainer beside that of the served adapter.
#
#   bench/finetune_learns.sh MODEL FOLDER [STEPS]      everything is written below FOLDER; PYTHON is the interpreter
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=$1 folder=$2 steps=${3:-60}
python=${PYTHON:-python}
$python "$here/finetune_task.py" make "$folder"
$python "$here/finetune_task.py" ask "$folder" "$model"
time $python -m pagoda finetune "$model" --data "$folder/train.jsonl" -o "$folder/adapter" --rank 8 --max-steps "$steps" \
  --batch 4 --learning-rate 4e-4 --eval-every 20 --held-out 0.03 --force
$python "$here/finetune_task.py" ask "$folder" "$model" "$folder/adapter"
$python "$here/finetune_agreement.py" "$folder/adapter"
