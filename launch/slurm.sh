#!/usr/bin/env bash
# Runs all stages, from raw text to a scored report, on any number of Slurm nodes, without ssh between them.
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh configs/llama-8b.yaml [--out DIR] [--trust DIR] [a.b=value …]
#
# With --stage NAME it runs that stage of the recipe, once the stages before it have finished.
#
# Submit from the project's directory, on a file system that all nodes share, after `make setup`. Every rank is one task:
# --ntasks-per-node of them per node, else one per GPU, else one. The first node prepares the data. All ranks score the
# result.
#
# The job requeues itself and continues later in three cases: shortly before its time limit (Slurm sends USR1, see --signal
# below, and the state is saved), after ranks crashed or were killed, and after a node failed. It does not requeue after a
# user error or a cancellation. REPLICA_RESTARTS (100) is the maximum number of restarts, REPLICA_STALLS (3) that of
# consecutive restarts without a newer checkpoint. Submitting the same line again also continues.
# The job's exit code is that of the step that ended it, or 1 when a gate of the recipe failed.
#SBATCH --job-name=replica
#SBATCH --output=replica-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}
say() { echo "[$(date +%H:%M:%S)] $*"; }

[ -n "${SLURM_JOB_ID:-}" ] || fail "this is a batch script; submit it with: sbatch --nodes=2 launch/slurm.sh RECIPE …"
[ $# -ge 1 ] || fail "give a recipe: sbatch launch/slurm.sh RECIPE [--out DIR] [a.b=value …]"
cd "$SLURM_SUBMIT_DIR"
bin=$PWD/.venv/bin
[ -x "$bin/replica" ] || fail "$bin/replica is missing; run \`make setup\` and submit from the project's directory"
export PATH=$bin:$PATH

nodes=$SLURM_JOB_NUM_NODES
ranks=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
cpus=${SLURM_CPUS_ON_NODE:-1}
restarts=${SLURM_RESTART_COUNT:-0}
[ "$restarts" -le "${REPLICA_RESTARTS:-100}" ] || fail "restarted $restarts times, more than REPLICA_RESTARTS allows"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Use the address that Slurm uses, because other nodes may not be able to resolve the node's name.
MASTER_ADDR=$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
# This script runs on the first node. Take the first free port from 20000 + job id on, below the ephemeral ports of the
# system.
free_port='import socket, sys
for port in (20000 + (int(sys.argv[1]) + more) % 10000 for more in range(1000)):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            continue
        sys.exit(print(port))'
MASTER_PORT=$("$bin/python" -c "$free_port" "$SLURM_JOB_ID")
export MASTER_ADDR=${MASTER_ADDR:-$first} MASTER_PORT

# Steps run in the background, so that signals to this script are handled at once. USR1: time is nearly up; TERM: the
# job is cancelled. Either way the running step is asked to save and end (cancelling already asks by itself).
ending="" cancelled=""
trap 'ending=1; say "time is nearly up: saving"; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap 'cancelled=1' TERM
# srun waits forever when a node's part of the step died without a message. So when srun still runs GRACE seconds after
# the first failed task, the other tasks are killed.
grace=${REPLICA_GRACE:-90}
# Signals are sent to steps by number: SIGKILL to the whole job would also end this script.
kill_steps() {
    local id
    for id in $(squeue --steps --noheader --jobs="$SLURM_JOB_ID" --format=%i); do
        if [[ $id =~ \.[0-9]+$ ]]; then scancel --signal=KILL "$id"; fi
    done
}
step() { # runs a command with srun; returns its exit code
    local code=0 failed notes pid since=""
    notes=$(mktemp)
    "$@" 2> >(tee >(grep --line-buffered '^srun: error:' >"$notes") >&2) &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1 &
        wait -n "$pid" $! || true # a trapped signal ends `wait` as well
        failed=$(grep -c 'task' "$notes" || true)
        [ "$failed" -eq 0 ] || since=${since:-$SECONDS}
        [ -z "$since" ] || [ $((SECONDS - since)) -lt "$grace" ] || {
            say "some tasks failed $grace s ago and the others do not end: killing them"
            kill_steps
            kill -KILL "$pid"
            since=""
        }
    done
    wait "$pid" || code=$?
    rm -f "$notes"
    return "$code"
}
on_first() { step srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$first" "$@"; }
on_each() { srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "$@"; }
on_ranks() {
    step srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" \
        --cpus-per-task=$((cpus > ranks ? cpus / ranks : 1)) --kill-on-bad-exit=1 "$@"
}

# Number of consecutive restarts without a newer checkpoint, stored in the run directory. Bash arithmetic would run code in
# the file, so only digits are accepted. The file may be a link to anywhere, so it is replaced, not written into.
stalls_so_far() {
    local text=0
    [ ! -f "$run/.stalls" ] || text=$(head -c 20 "$run/.stalls")
    [[ $text =~ ^[0-9]{1,6}$ ]] || text=0
    echo "$((10#$text))"
}
note_stalls() { # number
    local file
    file=$(mktemp "$run/.stalls.XXXXXX")
    echo "$1" >"$file"
    mv -fT "$file" "$run/.stalls"
}
newest() { cat "$run/checkpoints/latest" 2>/dev/null || true; }
# Ends the job with an exit code, or requeues it. Codes 1 and 2 (gate, user error) would repeat, so they end the job.
finish() { # exit code
    local code=$1 stalls=0
    [ "$code" -ne 0 ] || exit 0
    [ -z "$cancelled" ] && { [ -n "$ending" ] || [ "$code" -gt 2 ]; } || exit "$code"
    [ "$restarts" -lt "${REPLICA_RESTARTS:-100}" ] || { say "restarted $restarts times: no more"; exit "$code"; }
    [ "$(newest)" != "$began_at" ] || stalls=$(($(stalls_so_far) + 1))
    [ "$stalls" -le "${REPLICA_STALLS:-3}" ] || { say "$stalls times no newer checkpoint: no more"; exit "$code"; }
    note_stalls "$stalls"
    say "exit code $code: back to the queue (restart $((restarts + 1)))"
    scontrol requeue "$SLURM_JOB_ID" || exit "$code"
    sleep 60 # until Slurm ends this script
    exit "$code"
}

started=$(on_each printenv SLURMD_NODENAME | sort -u | wc -l)
[ "$started" -eq "$nodes" ] || fail "$nodes nodes were asked for, but processes start on $started only"

run=$(replica show --run-directory "$@")
trust=() before=""
for word in "$@"; do
    case $before,$word in
    --trust,*) trust+=(--trust "$word") ;;
    *,--trust=*) trust+=("$word") ;;
    esac
    before=$word
done
began_at=$(newest)
say "data on $first"
on_first replica data "$@" || finish $?
on_each test -f "$run/recipe.yaml" ||
    fail "$run is not visible on every node; choose a run directory on a shared file system with --out"

say "looking at $nodes nodes"
on_ranks replica doctor "$run/recipe.yaml" --out "$run" --quick --nodes "$nodes" || finish $?

say "training on $nodes nodes x $ranks ranks, rendezvous at $MASTER_ADDR:$MASTER_PORT"
on_ranks python -u pretrain/train.py --recipe "$run/recipe.yaml" --out "$run" "${trust[@]}" "train.ranks=$ranks" || finish $?
# Success also needs the checkpoint of the last step, whatever the exit code.
python -m launch.training_finished "$run" || finish 70
rm -f "$run/.stalls"

say "evaluation on $nodes nodes x $ranks ranks"
on_ranks replica eval "$run" "${trust[@]}" || finish $?
on_first replica report "$run" --gate || finish $?
