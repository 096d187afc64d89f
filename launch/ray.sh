#!/usr/bin/env bash
# Starts, queries and stops a Ray cluster for data preparation, training and evaluation, and submits commands to it.
#
#   launch/ray.sh start                          first machine: the head
#   launch/ray.sh start --address HOST:6379      every other machine, now or later
#   replica data RECIPE --ray-address HOST:6379  on any of these machines
#   launch/ray.sh train RECIPE [--nodes N] [--out DIR] [--restarts K] [--pause SECONDS] [a.b=value …]
#   launch/ray.sh eval RUN [--nodes N] [--step N | --best] [--again] [evaluation.a=value …]
#   launch/ray.sh submit -- COMMAND              one of these three as a Ray job, which continues after logout
#   launch/ray.sh status | stop                  on this machine
#
# `train` runs one training on N nodes (default: all) by Ray Train. Each node has `train.ranks` ranks, or one per GPU. Ray
# reserves one CPU and the GPUs of every node. After the loss of a rank or a node, it restarts on the remaining nodes. It
# ends after K consecutive restarts without a newer checkpoint. SIGTERM, SIGUSR1, Ctrl-C and `ray job stop` let all ranks
# save and end (exit code 75, Ctrl-C: 130) within REPLICA_GRACE (60) seconds. Ranks get the command's variables that begin
# with NCCL_, GLOO_, UCX_, TORCH_, OMP_ or REPLICA_.
#
#   sbatch --nodes=4 launch/ray.sh run -- replica data RECIPE --out DIR    under Slurm: a cluster for one command
#
# All machines need the project and the data directory on a shared file system, and the same environment. `start` passes
# further options to `ray start` (--num-cpus, --node-ip-address, --min-worker-port …). RAY_PORT (6379) and
# RAY_DASHBOARD_PORT (8265, loopback only) set the ports. Connections need a token, which `start` creates on the first
# machine in ~/.ray/auth_token (mode 0600). If home directories are not shared, copy that file to the other machines.
# RAY_AUTH_MODE=disabled turns tokens off: then everyone who reaches the ports can run code. `stop` ends only the Ray that
# `start` started on this machine. REPLICA_RAY=NAME distinguishes several clusters on one machine.
#SBATCH --job-name=replica-ray
#SBATCH --output=replica-ray-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --requeue
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}
say() { echo "[$(date +%H:%M:%S)] $*"; }
usage() { sed -n 's/^#   /  /p' "$0" >&2; exit 2; }

# Slurm runs a copy of this file from its spool directory. In this case use the directory of submission.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -e "$root/launch/ray.sh" ] || root=${SLURM_SUBMIT_DIR:-$PWD}
[ ! -x "$root/.venv/bin/ray" ] || PATH=$root/.venv/bin:$PATH
command -v ray >/dev/null || fail "the command \`ray\` is missing; run \`make setup\` in $root"
export PATH RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_USAGE_STATS_ENABLED=0 OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
# These settings detect a dead node within about five seconds instead of a minute.
export RAY_health_check_initial_delay_ms=${RAY_health_check_initial_delay_ms:-2000}
export RAY_health_check_period_ms=${RAY_health_check_period_ms:-1000}
export RAY_health_check_timeout_ms=${RAY_health_check_timeout_ms:-3000}
export RAY_health_check_failure_threshold=${RAY_health_check_failure_threshold:-4}
# Ranks save before they end: `ray job stop` waits for this, and ranks get SIGTERM when their worker has ended.
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-60}
export RAY_kill_child_processes_on_worker_exit=${RAY_kill_child_processes_on_worker_exit:-false}
mark=REPLICA_RAY_CLUSTER=${REPLICA_RAY:-replica}
port=${RAY_PORT:-6379}
dashboard=${RAY_DASHBOARD_PORT:-8265}

has_dashboard() { python -c 'import opencensus, aiohttp_cors' 2>/dev/null; } # packages of ray[default], needed for jobs

# Everyone who can read the token can run code, and Ray creates the file with the mode of the umask.
keep_token_private() {
    [ ! -O ~/.ray/auth_token ] || chmod 600 ~/.ray/auth_token
}
make_token() {
    [ "$RAY_AUTH_MODE" = token ] || return 0
    [ -n "${RAY_AUTH_TOKEN:-}" ] || (umask 077 && ray get-auth-token --generate >/dev/null)
    keep_token_private
}

start_node() { # options of `ray start`
    keep_token_private
    local options=(--disable-usage-stats --object-store-memory 100000000)
    case " $* " in
    *" --address"*) ;;
    *)
        make_token
        options+=(--head --port "$port")
        if has_dashboard; then
            options+=(--include-dashboard true --dashboard-port "$dashboard")
        else
            options+=(--include-dashboard false)
        fi
        ;;
    esac
    env "$mark" setsid --wait ray start "${options[@]}" "$@"
}

sessions() { # session ids of the processes that `start` started (they inherit the mark), separated by commas
    { grep -lszxF "$mark" /proc/[0-9]*/environ 2>/dev/null || true; } | sed 's|/proc/\([0-9]*\)/.*|\1|' |
        while read -r pid; do ps -o sid= -p "$pid" || true; done | sort -un | xargs | tr ' ' ','
}

stop() {
    local ids signal pids
    ids=$(sessions)
    for signal in TERM KILL; do
        for _ in $(seq 20); do
            pids=()
            [ -z "$ids" ] || mapfile -t pids < <(pgrep -s "$ids")
            [ ${#pids[@]} -gt 0 ] || break 2
            kill -s "$signal" "${pids[@]}" 2>/dev/null || true
            sleep 0.25
        done
    done
    say "this machine has left the cluster"
}

start() {
    local output
    output=$(start_node "$@" 2>&1) || {
        echo "$output" >&2
        fail "Ray did not start here"
    }
    case " $* " in
    *" --address"*) say "this machine works for the cluster now" ;;
    *)
        local address
        address=$(sed -n "s/.*ray start --address='\([^']*\)'.*/\1/p" <<<"$output" | head -n 1)
        say "head at $address"
        echo "  other machines:  launch/ray.sh start --address $address"
        echo "  data:            replica data RECIPE --ray-address $address"
        echo "  training:        launch/ray.sh train RECIPE"
        ;;
    esac
}

submit() {
    [ "${1:-}" != -- ] || shift
    [ $# -ge 1 ] || fail "give a command: launch/ray.sh submit -- replica data RECIPE …, or launch/ray.sh train RECIPE …"
    has_dashboard || fail "Ray jobs need Ray's dashboard on the head: pip install 'ray[default]' there and here, then" \
        "launch/ray.sh stop and start; or run the command on a node with --ray-address"
    local command=("$@")
    case " $* " in
    *" --ray-address"*) ;;
    *) command+=(--ray-address auto) ;;
    esac
    local line
    line="cd $(printf %q "$PWD") && exec$(printf ' %q' "${command[@]}")"
    local server=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:$dashboard}
    exec ray job submit --address "$server" -- bash -c "$line" # Ray quotes the arguments itself
}

run_under_slurm() {
    [ "${1:-}" != -- ] || shift
    [ -n "${SLURM_JOB_ID:-}" ] || fail "run is for Slurm: sbatch --nodes=4 launch/ray.sh run -- replica data RECIPE …"
    [ $# -ge 1 ] || fail "give a command: sbatch --nodes=4 launch/ray.sh run -- replica data RECIPE …"
    cd "$SLURM_SUBMIT_DIR"
    local cpus=${SLURM_CPUS_ON_NODE:-1} first address node nodes
    pids=() # not local: read when the script ends
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    first=${nodes[0]}
    # Use the address that Slurm uses, because other nodes may not be able to resolve the node's name.
    address=$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    address=$(getent ahostsv4 "${address:-$first}" | awk 'NR == 1 { print $1 }')
    [ -n "$address" ] || fail "the address of node $first cannot be found"
    port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
    make_token
    on() { # node, options of `ray start`
        local where=$1
        shift
        srun --nodes=1 --ntasks=1 --overlap --cpus-per-task="$cpus" --nodelist="$where" \
            ray start --disable-usage-stats --object-store-memory 100000000 --num-cpus "$cpus" --block "$@" >/dev/null &
        pids+=($!)
    }
    trap 'kill "${pids[@]}" 2>/dev/null || true; wait "${pids[@]}" 2>/dev/null || true' EXIT
    say "head on $first ($address:$port)"
    on "$first" --head --node-ip-address "$address" --port "$port" --include-dashboard false
    for _ in $(seq 60); do
        ray status --address "$address:$port" >/dev/null 2>&1 && break
        kill -0 "${pids[0]}" 2>/dev/null || fail "Ray did not start on $first"
        sleep 1
    done
    for node in "${nodes[@]:1}"; do
        say "worker on $node"
        on "$node" --address "$address:$port"
    done
    say "$*"
    srun --nodes=1 --ntasks=1 --overlap --cpus-per-task=1 --nodelist="$first" "$@" --ray-address "$address:$port"
}

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
start) start "$@" ;;
submit) submit "$@" ;;
run) run_under_slurm "$@" ;;
"eval") PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec python -m launch.cluster.ray_eval "$@" ;;
train) PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec python -m launch.cluster.ray_train "$@" ;;
status) ray status --address "${RAY_ADDRESS:-auto}" "$@" ;;
stop) stop ;;
*) usage ;;
esac
