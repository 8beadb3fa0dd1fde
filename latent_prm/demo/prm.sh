#!/usr/bin/env bash
# How the built-in PRM was made: the two commands of the guide, on many more paths than the demo has minutes for.
# bash latent_prm/demo/prm.sh    (from the project's folder; about ten minutes on two cores)
set -euo pipefail
scratch=${1:-prm_builtin}                 # a folder for the data and the run; it can be deleted afterwards
python=python3
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; fi

"$python" -m latent_prm collect --task arithmetic,search --max_samples 12000 --seed 7 --dtype float32 \
    --output_dir "$scratch/prm_data"
"$python" -m latent_prm collect --task arithmetic,search --split validation --max_samples 2000 --seed 0 --dtype float32 \
    --output_dir "$scratch/validation"
"$python" -m latent_prm collect --task arithmetic,search --split test --max_samples 2400 --seed 0 --dtype float32 \
    --output_dir "$scratch/test"
"$python" -m latent_prm train --data_dir "$scratch/prm_data" --output_dir "$scratch/run" \
    --num_epochs 1 --batch_size 64 --learning_rate 3e-4 --no-mixed_precision --pooling_strategy last \
    --loss bce+0.5*listwise --supervise steps --seed 1 --val_size 0.05 --save_steps 100000 --logging_steps 50

# Probabilities are calibrated, and the rule that chooses is picked, on the validation split; what both are worth is
# measured on the test split.
"$python" -m latent_prm evaluate --checkpoint "$scratch/run/best" --data_dir "$scratch/test" \
    --calibrate_on "$scratch/validation" --rivals_on "$scratch/prm_data"

# What scoring needs, without the optimizer.
mkdir -p latent_prm/demo/prm
for file in pytorch_model.bin config.json calibration.json tokenizer.json tokenizer_config.json questions.json training_state.json; do
    cp "$scratch/run/best/$file" latent_prm/demo/prm/
done
