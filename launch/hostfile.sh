#!/usr/bin/env bash
# Training on the machines of a hostfile (`host slots=N` a line), by DeepSpeed's launcher.
#
#   launch/hostfile.sh HOSTFILE RECIPE [--out DIR] [a.b=value …]       on the first host, which reaches the others by ssh
#   launch/hostfile.sh --node-rank N HOSTFILE RECIPE …                 without ssh: on every host, N = 0, 1, … in the
#                                                                      file's order
#
# All hosts need the project and the run directory on a file system they share, the same environment, and the data
# prepared (`replica data RECIPE`). MASTER_ADDR (the first host's name) and MASTER_PORT (29500) say where the ranks
# meet. Exit code 0 only when the checkpoint of the last step lies there, whatever DeepSpeed's launcher says: it reports
# success for ranks that it lost. What it leaves running on this host is ended. 75: stopped by a signal after saving, or
# not finished; the same command continues.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ ! -x "$root/.venv/bin/deepspeed" ] || PATH=$root/.venv/bin:$PATH
command -v deepspeed >/dev/null || fail "the command \`deepspeed\` is not there; run \`make setup\` in $root"

node=""
if [ "${1:-}" = --node-rank ]; then
    node=${2:-}
    [[ $node =~ ^[0-9]+$ ]] || fail "--node-rank wants a number: this host's line in the hostfile, from 0"
    shift 2
fi
[ $# -ge 2 ] || fail "which hosts, which recipe? launch/hostfile.sh [--node-rank N] HOSTFILE RECIPE …"
hosts=$1
shift
[ -r "$hosts" ] || fail "there is no hostfile $hosts"
mapfile -t lines < <(sed 's/#.*//' "$hosts" | grep -E 'slots *= *[0-9]+' || true)
[ ${#lines[@]} -gt 0 ] || fail "$hosts names no host; a line is: host slots=8"
[ -z "$node" ] || [ "$node" -lt ${#lines[@]} ] || fail "--node-rank $node, but $hosts names ${#lines[@]} hosts"
read -r first _ <<<"${lines[0]}"
run=$(replica show --run-directory "$@")
recipe="" settings=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) shift ;;
    --out=*) ;;
    *=*) settings+=("$1") ;;
    *) recipe=$1 ;;
    esac
    shift
done

# Ranks inherit the mark from the launcher on this host; so those that outlived it are found.
mark=REPLICA_HOSTFILE=$run
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
how=(--hostfile "$hosts" --master_addr "${MASTER_ADDR:-$first}" --master_port "${MASTER_PORT:-29500}")
[ -z "$node" ] || how+=(--no_ssh --node_rank "$node")
code=0
trap end_all EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
env "$mark" deepspeed "${how[@]}" "$root/pretrain/train.py" --recipe "$recipe" --out "$run" "${settings[@]}" &
wait $! || code=$?
end_all
python -m launch.completion "$run" && exit 0
[ "$code" -ne 0 ] || echo "DeepSpeed's launcher reported success, but training is not finished" >&2
exit $((code == 0 ? 75 : code))
