#!/usr/bin/env bash
# Trains the demo's model with two seeds, and a smaller one; compares them item by item. About 12 minutes on two CPU cores.
#   benchmarks/seeds_and_sizes.sh [DIRECTORY] [TRAINING TOKENS] [SETTING=VALUE …]
set -euo pipefail
out=${1:-runs/seeds-and-sizes}
settings=("train.tokens=${2:-1_600_000}" 'evaluation.translation=[]' 'evaluation.samples.prompts=[]' 'report.gates=[]' "${@:3}")
replica=${REPLICA:-replica}

"$replica" run demo --out "$out/seed-1" seed=1 "${settings[@]}"
"$replica" run demo --out "$out/seed-2" seed=2 "${settings[@]}"
"$replica" run demo --out "$out/small" seed=1 model.num_layers=2 model.hidden_size=96 model.num_heads=3 "${settings[@]}"
"$replica" compare "$out/seed-1" "$out/seed-2" "$out/small" --out "$out/comparison"
