#!/usr/bin/env bash
# STAGE 3: checkpoint + trees of questions it never saw → numbers and curves
# Edit a line below, or type it in front:  CHECKPOINT=builtin bash evaluate_latent_prm.sh
set -euo pipefail
given=$(export -p)

CHECKPOINT=""                      # a checkpoint folder, or "builtin"; empty: best/ of the newest training run
DATA_DIR="prm_data_test"           # questions that the PRM was not trained on
OUTPUT_DIR=""                      # empty: <checkpoint>/evaluation, or reports for the built-in PRM
NUM_BOOTSTRAP=2000                 # resamplings behind each interval
DEVICE="auto"                      # cuda, cpu, or auto: CUDA when there is one
SEED=42

eval "$given" # what was typed in front wins over the lines above

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=python3
if [[ -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

if [[ " $* " == *" --help "* ]]; then exec "$python" -m latent_prm evaluate --help; fi
if ! compgen -G "$DATA_DIR/*.pt" >/dev/null; then
    echo "✗ ERROR: No .pt files found in $DATA_DIR" >&2
    echo "Run \"SPLIT=test OUTPUT_DIR=$DATA_DIR bash collect_training_data.sh\" first, or set DATA_DIR." >&2
    exit 1
fi
if [[ -z $CHECKPOINT ]]; then
    runs=(checkpoints/qwen_prm_*/best) # named by time: the last is the newest
    CHECKPOINT=${runs[${#runs[@]} - 1]}
    if [[ ! -d $CHECKPOINT ]]; then
        echo "✗ ERROR: No checkpoint found in checkpoints" >&2
        echo "Run \"bash train_latent_prm.sh\" first, or set CHECKPOINT (\"builtin\" is always there)." >&2
        exit 1
    fi
fi

if [[ -z $OUTPUT_DIR ]]; then
    if [[ $CHECKPOINT == builtin ]]; then OUTPUT_DIR="reports"; else OUTPUT_DIR=$CHECKPOINT/evaluation; fi
fi

echo "Evaluate: $CHECKPOINT on $DATA_DIR/ → $OUTPUT_DIR/"
"$python" -m latent_prm evaluate --checkpoint "$CHECKPOINT" --data_dir "$DATA_DIR" --output_dir "$OUTPUT_DIR" \
    --num_bootstrap "$NUM_BOOTSTRAP" --device "$DEVICE" --seed "$SEED" "$@"
