#!/usr/bin/env bash
# Training, or an evaluation, on the machines of a hostfile (`host slots=N` a line), by DeepSpeed's launcher on each.
#
#   launch/hostfile.sh HOSTFILE RECIPE [--out DIR] [--trust DIR] [a.b=value …]
#                                                                      on the first host, which starts the others by ssh
#   launch/hostfile.sh --node-rank N HOSTFILE RECIPE …                 without ssh: on every host, N = 0, 1, … in the
#                                                                      file's order
#   launch/hostfile.sh HOSTFILE eval RUN [--step N] [--best] [--again] [--trust DIR] [evaluation.a=value …]
#                                                                      an evaluation, in the same ways
#
# All hosts need the project and the run directory on a shared file system, the same environment, and prepared data
# (`replica data RECIPE`). MASTER_ADDR (default: the first host's name) and MASTER_PORT (29500) set the rendezvous.
# Exit codes: 0 only when the checkpoint of the last step (the new results) exists, because DeepSpeed's launcher also exits with 0 after it
# has lost ranks. 75: stopped by a signal after saving, or not finished. 76: a rank of any host is gone or stuck. After 75
# and 76, the same command continues. Processes that the launcher leaves on this host are ended.
#
# Over ssh, all hosts end when one fails, or when this command ends, even by kill -9 or a lost connection. REPLICA_SSH
# (default: "ssh") may contain options and must not ask for a password. Hosts get the variables MASTER_ADDR, MASTER_PORT,
# and those that begin with NCCL_, GLOO_, UCX_, TORCH_, OMP_, CUDA_, REPLICA_ or PYTHON.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ ! -x "$root/.venv/bin/deepspeed" ] || PATH=$root/.venv/bin:$PATH
command -v deepspeed >/dev/null || fail "the command \`deepspeed\` is missing; run \`make setup\` in $root"

node=""
if [ "${1:-}" = --node-rank ]; then
    node=${2:-}
    [[ $node =~ ^[0-9]+$ ]] || fail "--node-rank expects a number: this host's line in the hostfile, from 0"
    shift 2
fi
[ $# -ge 2 ] || fail "give a hostfile and a recipe: launch/hostfile.sh [--node-rank N] HOSTFILE RECIPE …"
hosts=$1
shift
words=("$@")
[ -r "$hosts" ] || fail "there is no hostfile $hosts"
mapfile -t lines < <(sed 's/#.*//' "$hosts" | grep -E 'slots *= *[0-9]+' || true)
[ ${#lines[@]} -gt 0 ] || fail "$hosts names no host; a line is: host slots=8"
[ -z "$node" ] || [ "$node" -lt ${#lines[@]} ] || fail "--node-rank $node, but $hosts names ${#lines[@]} hosts"
read -r first _ <<<"${lines[0]}"
evaluates=""
if [ "$1" = eval ]; then
    evaluates=1 run=${2:-} settings=("${@:3}")
    [ -d "$run" ] || [[ $run != *:* ]] || run=${run%:*}/stages/${run##*:}
    [ -f "$run/recipe.yaml" ] || fail "there is no run directory ${2:-}; give one: launch/hostfile.sh HOSTFILE eval RUN"
    set --
    beats=$run/scores/ranks
else
    run=$(replica show --run-directory "$@")
    recipe="" settings=() beats=$run/ranks
fi
while [ $# -gt 0 ]; do
    case $1 in
    --out) shift ;;
    --out=*) ;;
    --trust) settings+=(--trust "${2:-}"); shift ;;
    *=*) settings+=("$1") ;;
    *) recipe=$1 ;;
    esac
    shift
done

# Ranks inherit this mark from the launcher, so that ranks which outlive it are found.
mark=REPLICA_HOSTFILE=$run:$node
ours() { grep -lszxF "$mark" /proc/[0-9]*/environ 2>/dev/null | sed 's|/proc/\([0-9]*\)/.*|\1|' | grep -vx $$ || true; }
end_all() {
    local signal pids
    for signal in TERM KILL; do
        mapfile -t pids < <(ours)
        [ ${#pids[@]} -gt 0 ] || return 0
        echo "ending what DeepSpeed's launcher left here: ${pids[*]}" >&2
        kill -s "$signal" "${pids[@]}" 2>/dev/null || true
        for _ in $(seq "${REPLICA_GRACE:-60}"); do
            [ -n "$(ours)" ] || return 0
            sleep 1
        done
    done
}
# A stopped rank (SIGSTOP) cannot end itself, and its launcher waits for it. When a rank of this start, on any host, has
# ended because of another rank (the text is in pretrain/phases.py), the ranks on this host have some seconds to end.
given_up() {
    find "$beats" -name 'rank_*.json' -newer "$started" -exec grep -l 'ended because of another rank' {} + 2>/dev/null |
        grep -q .
}
watch_launcher() { # its process
    while kill -0 "$1" 2>/dev/null; do
        if given_up; then
            sleep 5
            kill -0 "$1" 2>/dev/null || return 0
            echo "ranks have given the run up, and not all of this host have ended" >&2
            end_all
            return 0
        fi
        sleep 2
    done
}
# Every host runs this script with --node-rank. Its `cat` reads from pipe 3, whose only writer is this process. When this
# process ends, `cat` gets the end of file and stops its host.
# shellcheck disable=SC2016 # for the other side
watch='exec 4<&0; (cat <&4; kill -TERM $$) >/dev/null 2>&1 & exec 4<&- </dev/null; exec'
start_on() { # number
    local host line
    read -r host _ <<<"${lines[$1]}"
    line=$(printf '%q ' env "${along[@]}" "$root/launch/hostfile.sh" --node-rank "$1" "$(realpath "$hosts")" "${words[@]}")
    line="cd $(printf %q "$PWD") || exit 2; PATH=$(printf %q "$(dirname "$(command -v deepspeed)")"):\$PATH; $watch $line"
    [ "$1" -gt 0 ] || exec bash -c "$line"
    # shellcheck disable=SC2086 # it may carry options
    exec ${REPLICA_SSH:-ssh} -o BatchMode=yes -o ServerAliveInterval=15 "$host" bash -c "$(printf %q "$line")"
}
run_over_ssh() {
    local pipe number one code=0
    mapfile -d '' -t along < <(env -0 | grep -zE '^(NCCL_|GLOO_|UCX_|TORCH_|OMP_|CUDA_|REPLICA_|PYTHON)' || true)
    along+=("MASTER_ADDR=${MASTER_ADDR:-$first}" "MASTER_PORT=${MASTER_PORT:-29500}")
    pipe=$(mktemp -u)
    mkfifo -m 600 "$pipe"
    exec 3<>"$pipe"
    exec 5<"$pipe"
    rm "$pipe"
    for ((number = 0; number < ${#lines[@]}; number++)); do
        (start_on "$number") <&5 3>&- 5<&- &
    done
    for _ in "${lines[@]}"; do
        one=0
        wait -n || one=$?
        [ "$one" -eq 0 ] || [ "$code" -ne 0 ] || {
            code=$one
            echo "a host ended with exit code $code: ending the others" >&2
            exec 3>&-
        }
    done
    return "$code"
}
how=(--hostfile "$hosts" --master_addr "${MASTER_ADDR:-$first}" --master_port "${MASTER_PORT:-29500}")
[ -z "$node" ] || how+=(--no_ssh --node_rank "$node")
code=0 started=""
# shellcheck disable=SC2317,SC2329 # called by the trap
leave() {
    exec 3>&-
    [ -z "$started" ] || rm -f "$started"
    [ -n "$node" ] || wait
    end_all
}
trap leave EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
mkdir -p "$beats"
started=$(mktemp "$beats/.started.XXXXXX")
if [ -z "$node" ] && [ ${#lines[@]} -gt 1 ]; then
    run_over_ssh || code=$?
else
    if [ -n "$evaluates" ]; then
        command=(--no_local_rank --module launch.cli eval "$run" "${settings[@]}")
    else
        command=("$root/pretrain/train.py" --recipe "$recipe" --out "$run" "${settings[@]}")
    fi
    env "$mark" deepspeed "${how[@]}" "${command[@]}" &
    launcher=$!
    watch_launcher "$launcher" &
    watcher=$!
    wait "$launcher" || code=$?
    kill "$watcher" 2>/dev/null || true
    [ "$code" -eq 0 ] || ! given_up || code=76
fi
end_all
if [ -n "$evaluates" ]; then
    [ "$code" -ne 0 ] || [ ! "$run/results.json" -nt "$started" ] || exit 0
else
    python -m launch.training_finished "$run" && exit 0
fi
[ "$code" -ne 0 ] || echo "DeepSpeed's launcher reported success, but the work is not finished" >&2
exit $((code == 0 ? 75 : code))
