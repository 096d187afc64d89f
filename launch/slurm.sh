#!/usr/bin/env bash
# Submit and forget: raw text to a scored report on any number of nodes, without ssh between them.
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh configs/llama-8b.yaml [--out DIR] [a.b=value …]
#
# Submit from the project's directory, on a file system that all nodes share, after `make setup`. Every rank is one
# task: one per GPU, or as many per node as --ntasks-per-node says, or one. The data is prepared and the result scored
# on the first node. Submitting the same line again continues; so does Slurm itself after it lost a node (--requeue).
# The job's exit code is the training's, or 1 when a gate of the recipe failed.
#SBATCH --job-name=replica
#SBATCH --output=replica-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --requeue
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}
say() { echo "[$(date +%H:%M:%S)] $*"; }

[ -n "${SLURM_JOB_ID:-}" ] || fail "this is a batch script; submit it with: sbatch --nodes=2 launch/slurm.sh RECIPE …"
[ $# -ge 1 ] || fail "which recipe? sbatch launch/slurm.sh RECIPE [--out DIR] [a.b=value …]"
cd "$SLURM_SUBMIT_DIR"
bin=$PWD/.venv/bin
[ -x "$bin/replica" ] || fail "$bin/replica is not there; run \`make setup\` and submit from the project's directory"
export PATH=$bin:$PATH

nodes=$SLURM_JOB_NUM_NODES
ranks=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
cpus=${SLURM_CPUS_ON_NODE:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# The address Slurm itself reaches the node at; a node's name need not be one that the others can resolve.
MASTER_ADDR=$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$first} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

on_first() { srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$first" "$@"; }
on_each() { srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "$@"; }

started=$(on_each printenv SLURMD_NODENAME | sort -u | wc -l)
[ "$started" -eq "$nodes" ] || fail "$nodes nodes were asked for, but processes start on $started only"

run=$(replica show --run-directory "$@")
say "data on $first"
on_first replica data "$@"
on_each test -f "$run/recipe.yaml" ||
    fail "$run is not visible on every node; choose a run directory on a shared file system with --out"

say "training on $nodes nodes x $ranks ranks, rendezvous at $MASTER_ADDR:$MASTER_PORT"
srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task=$((cpus > ranks ? cpus / ranks : 1)) \
    --kill-on-bad-exit=1 python -u pretrain/train.py --recipe "$run/recipe.yaml" --out "$run" "train.ranks=$ranks"

say "evaluation on $first"
on_first replica eval "$run"
on_first replica report "$run" --gate
