#!/usr/bin/env bash
# STAGE 1: questions → trees of latent paths → prm_data/*.pt
# Edit a line below, or type it in front:  NUM_PATHS=8 bash collect_training_data.sh
# What is not listed here goes at the end:  bash collect_training_data.sh --shard_size 100
set -euo pipefail
given=$(export -p)

# Reasoner and questions. Left empty: Qwen/Qwen3-0.6B and GSM8K with CUDA, else the built-in ones.
MODEL_PATH=""                      # a Hugging Face folder or hub name, or "builtin"
TASK=""                            # arithmetic, search, gsm8k, ..., gym:NAME, a file, or several with commas
SPLIT="train"                      # train, validation or test; a file is its own split
MAX_SAMPLES=1000                   # questions; -1: all there are
OUTPUT_DIR="prm_data"

# Trees
PIPELINE="solo"                    # who thinks: solo, sequential, hierarchical, or a .yaml file
NUM_PATHS=""                       # leaves per question; empty: what the branches make, else 16
BRANCHES=""                        # paths that begin at each agent, as 8,2,2; empty: spread over all agents
LATENT_STEPS=""                    # latents per agent; empty: the reasoner's own
UNTIL_MIXED=false                  # true: stop clear questions half-way, go on with undecided ones

# Diversity and answers
DIVERSITY_STRATEGY="noise"         # noise, temperature, dropout or hybrid
NOISE=""                           # relative Gaussian noise; empty: the reasoner's own
ANSWERS_PER_LEAF=1                 # more of them need a temperature
TEMPERATURE=0.0                    # of the decoded answer

# Device
BATCH_SIZE=""                      # questions grown together; empty: as many as fit
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
    if $cuda && [[ $MODEL_PATH != builtin ]]; then TASK="gsm8k"; else TASK="arithmetic,search"; fi
    echo "TASK is not set: $TASK."
fi

options=(--model_path "$MODEL_PATH" --task "$TASK" --split "$SPLIT" --max_samples "$MAX_SAMPLES"
    --output_dir "$OUTPUT_DIR" --pipeline "$PIPELINE" --diversity_strategy "$DIVERSITY_STRATEGY"
    --answers_per_leaf "$ANSWERS_PER_LEAF" --temperature "$TEMPERATURE" --device "$DEVICE" --seed "$SEED")
for name in NUM_PATHS BRANCHES LATENT_STEPS NOISE BATCH_SIZE; do
    if [[ -n ${!name} ]]; then options+=("--$(tr A-Z a-z <<<"$name")" "${!name}"); fi
done
case $UNTIL_MIXED in
true) options+=(--until_mixed) ;;
false) ;;
*) echo "✗ ERROR: UNTIL_MIXED is \"$UNTIL_MIXED\": type true or false." >&2 && exit 2 ;;
esac

echo "Collect: $MAX_SAMPLES questions of $TASK ($SPLIT), by $MODEL_PATH ($PIPELINE) → $OUTPUT_DIR/"
"$python" -m latent_prm collect "${options[@]}" "$@"
