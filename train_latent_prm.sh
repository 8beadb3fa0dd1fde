#!/usr/bin/env bash
# STAGE 2: prm_data/*.pt → checkpoints/qwen_prm_<timestamp>/
# Edit a line below, or type it in front:  NUM_EPOCHS=1 bash train_latent_prm.sh
# What is not listed here goes at the end:  bash train_latent_prm.sh --context none
# A run that was cut off goes on:           bash train_latent_prm.sh --resume auto
set -euo pipefail
given=$(export -p)

# Data and model
DATA_DIR="prm_data"
OUTPUT_DIR=""                      # empty: checkpoints/qwen_prm_<timestamp>
MODEL_PATH=""                      # the backbone; empty: Qwen/Qwen3-0.6B with CUDA, else "builtin"

# Training
TUNING="full"                      # all layers; lora: small matrices beside them; head: the score head alone
NUM_EPOCHS=5
BATCH_SIZE=4                       # labelled paths per batch
LEARNING_RATE=2e-5
WEIGHT_DECAY=0.01
WARMUP_RATIO=0.1
GRADIENT_ACCUMULATION_STEPS=4      # batches per optimizer step
MAX_GRAD_NORM=1.0

# Model
POOLING_STRATEGY="mean"            # mean, last or max
DROPOUT_PROB=0.1
MAX_SEQ_LENGTH=512                 # latents of a chain that are read
USE_PRM_SCORE=true                 # false: learn the label-free score
LOSS="bce+0.5*listwise"            # mse, bce, listwise, pairwise, order, or a weighted sum of them
SUPERVISE="paths"                  # a path's target at its last latent; steps: at every latent
READS="fed,answer"                 # of a path: fed, hidden, tip, answer, with commas
SEES="chain"                       # tree: a path is judged beside its siblings

# Logging and saving
RESUME=""                          # auto, or a run's folder: go on with a run that was stopped
SAVE_STEPS=100                     # a checkpoint every so many optimizer steps
LOGGING_STEPS=10
LOG_LEVEL="INFO"

# Device
DEVICE="auto"                      # cuda, cpu, or auto: CUDA when there is one
MIXED_PRECISION=true
SEED=42
OPTIMIZER="adamw"                  # for less memory: adamw8bit, or adamw_bf16_sr
GRADIENT_CHECKPOINTING=false       # true: less memory, a third more time

eval "$given" # what was typed in front wins over the lines above

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=python3
if [[ -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

if [[ " $* " == *" --help "* ]]; then exec "$python" -m methods.latent_prm.trainer --help; fi
if ! compgen -G "$DATA_DIR/*.pt" >/dev/null; then
    echo "✗ ERROR: No .pt files found in $DATA_DIR" >&2
    echo "Run \"bash collect_training_data.sh\" first, or set DATA_DIR." >&2
    exit 1
fi

flag() { # the name of a variable that is true or false → --name or --no-name
    case ${!1} in
    true) tr A-Z a-z <<<"--$1" ;;
    false) tr A-Z a-z <<<"--no-$1" ;;
    *) echo "✗ ERROR: $1 is \"${!1}\": type true or false." >&2 && return 2 ;;
    esac
}
use_prm_score=$(flag USE_PRM_SCORE)
mixed_precision=$(flag MIXED_PRECISION)
gradient_checkpointing=$(flag GRADIENT_CHECKPOINTING)

if [[ -z $MODEL_PATH ]]; then
    MODEL_PATH="builtin"
    if [[ $DEVICE != cpu ]] && command -v nvidia-smi >/dev/null &&
        "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
        MODEL_PATH="Qwen/Qwen3-0.6B"
    fi
    echo "MODEL_PATH is not set: $MODEL_PATH, because CUDA is $([[ $MODEL_PATH != builtin ]] || echo "not ")in use."
fi
if [[ -z $OUTPUT_DIR && -z $RESUME && " $*" != *" --resume"* ]]; then # a run that is resumed has its folder
    OUTPUT_DIR="checkpoints/qwen_prm_$(date +%Y%m%d_%H%M%S)"
fi

echo "Train: $MODEL_PATH on $DATA_DIR/ → ${OUTPUT_DIR:-checkpoints/qwen_prm_…}/"
echo "       $NUM_EPOCHS epochs, $BATCH_SIZE × $GRADIENT_ACCUMULATION_STEPS paths a step, learning rate $LEARNING_RATE, device $DEVICE"
"$python" -m methods.latent_prm.trainer \
    --model_path "$MODEL_PATH" \
    --data_dir "$DATA_DIR" \
    ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} \
    ${RESUME:+--resume "$RESUME"} \
    --tuning "$TUNING" \
    --num_epochs "$NUM_EPOCHS" \
    --batch_size "$BATCH_SIZE" \
    --learning_rate "$LEARNING_RATE" \
    --weight_decay "$WEIGHT_DECAY" \
    --warmup_ratio "$WARMUP_RATIO" \
    --gradient_accumulation_steps "$GRADIENT_ACCUMULATION_STEPS" \
    --max_grad_norm "$MAX_GRAD_NORM" \
    --pooling_strategy "$POOLING_STRATEGY" \
    --dropout_prob "$DROPOUT_PROB" \
    --max_seq_length "$MAX_SEQ_LENGTH" \
    "$use_prm_score" \
    --loss "$LOSS" \
    --supervise "$SUPERVISE" --reads "$READS" --sees "$SEES" \
    --save_steps "$SAVE_STEPS" \
    --logging_steps "$LOGGING_STEPS" \
    --log_level "$LOG_LEVEL" \
    --device "$DEVICE" \
    "$mixed_precision" \
    --optimizer "$OPTIMIZER" \
    "$gradient_checkpointing" \
    --seed "$SEED" \
    "$@"
