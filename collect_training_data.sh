#!/usr/bin/env bash
# STAGE 1: questions → trees of latent paths → prm_data/*.pt
# Edit a line below, or type it in front:  NUM_PATHS=8 bash collect_training_data.sh
# What is not listed here goes at the end:  bash collect_training_data.sh --shard_size 100
set -euo pipefail
given=$(export -p)

# Reasoner and questions. Left empty: Qwen/Qwen3-0.6B and GSM8K with CUDA, else the built-in ones.
MODEL_PATH=""                      # a Hugging Face folder or hub name, or "builtin"
TASK=""                            # arithmetic, search, several with commas, or a .jsonl file
SPLIT="train"                      # train, validation or test; a .jsonl file is its own split
MAX_SAMPLES=1000                   # questions
OUTPUT_DIR="prm_data"

# Paths
NUM_PATHS=16                       # noisy paths per question
LATENT_STEPS=""                    # latents per path; empty: the reasoner's own
NOISE=""                           # relative Gaussian noise; empty: the reasoner's own
TEMPERATURE=0.0                    # of the decoded answer
BATCH_SIZE=""                      # questions grown together; empty: as many as memory holds easily

# Device
DEVICE="auto"                      # cuda, cpu or auto
SEED=42

eval "$given" # what was typed in front wins over the lines above

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=python3
if [[ -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

cuda=false
if [[ $DEVICE != cpu && (-z $MODEL_PATH || -z $TASK) ]] && command -v nvidia-smi >/dev/null &&
    "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then cuda=true; fi
if [[ -z $MODEL_PATH ]]; then
    if $cuda; then MODEL_PATH="Qwen/Qwen3-0.6B"; else MODEL_PATH="builtin"; fi
    echo "MODEL_PATH is not set: $MODEL_PATH, because CUDA is $($cuda || echo "not ")in use."
fi
if [[ -z $TASK ]]; then
    if $cuda && [[ $MODEL_PATH != builtin ]]; then TASK="data/gsm8k/$SPLIT.jsonl"; else TASK="arithmetic,search"; fi
    if [[ $TASK == *.jsonl && ! -f $TASK ]]; then
        echo "✗ ERROR: TASK is not set, and there is no $TASK" >&2
        echo "Name a file with GSM8K's questions:  TASK=gsm8k/$SPLIT.jsonl bash $0" >&2
        echo "or stay with the built-in reasoner:  MODEL_PATH=builtin bash $0" >&2
        exit 2
    fi
    echo "TASK is not set: $TASK."
fi

options=(--model_path "$MODEL_PATH" --task "$TASK" --split "$SPLIT" --max_samples "$MAX_SAMPLES"
    --output_dir "$OUTPUT_DIR" --num_paths "$NUM_PATHS" --temperature "$TEMPERATURE"
    --device "$DEVICE" --seed "$SEED")
if [[ -n $LATENT_STEPS ]]; then options+=(--latent_steps "$LATENT_STEPS"); fi
if [[ -n $BATCH_SIZE ]]; then options+=(--batch_size "$BATCH_SIZE"); fi
if [[ -n $NOISE ]]; then options+=(--noise "$NOISE"); fi

echo "Collect: $MAX_SAMPLES questions of $TASK ($SPLIT), $NUM_PATHS paths each, by $MODEL_PATH → $OUTPUT_DIR/"
"$python" -m latent_prm collect "${options[@]}" "$@"

echo
echo "Written: $OUTPUT_DIR/*.pt and *_metadata.json"
if [[ $SPLIT == train ]]; then next="bash train_latent_prm.sh"; else next="bash evaluate_latent_prm.sh"; fi
if [[ $OUTPUT_DIR != prm_data && $SPLIT == train || $OUTPUT_DIR != prm_data_test && $SPLIT != train ]]; then
    next="DATA_DIR=$OUTPUT_DIR $next"
fi
echo "Next:    $next"
