#!/usr/bin/env bash
# Train a recipe on this machine, on the nodes of a SLURM job, or on nodes that are started by hand.
#
# check the command line, in one process
# until the run has ended:
#     all nodes meet and agree on a new start         # fasttrain.launch.rally; one node agrees with itself
#     torchrun, or one process                        # signals are passed on to it
#     exit status <- the cause, from the status file  # torchrun makes 1 of every failure
#     again, after a crash or a hang that gained a step
# under SLURM the batch script runs this on each node by srun, and requeues the job if it was preempted
set -euo pipefail

# A stream that is closed would be the next file's, and is this one's by now: nothing comes from or goes there.
closed() { [[ ! -e /dev/fd/$1 || /dev/fd/$1 -ef ${BASH_SOURCE[0]} ]]; }
! closed 0 || exec < /dev/null
! closed 1 || exec > /dev/null
! closed 2 || exec 2> /dev/null

usage() {
    cat << 'EOF'
usage: ./launch.sh [--dry-run] RECIPE [--section.field value ...]

Trains RECIPE on all GPUs of this machine, one process each, or on the CPU where there is none; in a SLURM job
(sbatch, salloc or srun) on all its nodes; elsewhere on the nodes where it is started with NNODES, NODE_RANK
and MASTER_ADDR. The same command goes on with a run that was ended. `fasttrain recipes` lists the recipes,
`fasttrain train RECIPE --help` every field. --dry-run prints the commands and trains nothing.

  PROCESSES      processes per node (default: one per GPU, else 1); CUDA_VISIBLE_DEVICES limits the GPUs
  PYTHON         the interpreter (default: .venv/bin/python, else python3)
  RESTARTS       new starts after crashes or hangs in a row (default: 3)
  NNODES         number of nodes (default: 1, under SLURM the job's)
  NODE_RANK      this node, 0 to NNODES - 1
  MASTER_ADDR    host name or IPv4 address of node 0
  MASTER_PORT    where the nodes meet on node 0 (default: 29400, under SLURM from the job's number)
  JOIN_TIMEOUT   seconds that a node waits for the others (default: 300)
  REQUEUES       times that a preempted SLURM job is requeued (default: 50)

Exit status: 0 done, 2 command line, 3 data, 4 checkpoint, 5 loss not finite, 6 out of memory, 7 a process or
node was lost, 75 preempted (start it again), 130 interrupted, 1 anything else.
EOF
}

say() { echo "launch.sh: $*" >&2; }

fail() { # STATUS MESSAGE
    say "$2"
    exit "$1"
}

whole() { # NAME VALUE LOWEST [HIGHEST]: end unless VALUE is a whole number in that range
    if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3 || $2 > ${4:-999999999})); then
        fail 2 "$1 is '$2'; allowed: $3 to ${4:-999999999}"
    fi
}

show() { # COMMAND ...: print it, ready for a shell
    printf '%q ' "$@"
    echo
}

# Processes and signals

child=''   # the process that gets the signals
stopped='' # the signal that is to end the run
missed=''  # a signal that came while there was no child

# shellcheck disable=SC2317 # the traps call it
pass_on() { # SIGNAL
    stopped=$1
    if [[ $child ]]; then
        kill -s "$1" "$child" 2> /dev/null || true
    else
        missed=$1
    fi
}

run() { # COMMAND ...: its exit status; it is a process group of its own, so that Ctrl-C reaches it once
    local status=0
    set -m
    "$@" &
    child=$!
    set +m
    [[ -z $missed ]] || pass_on "$missed" # once: what runs after a signal tells the other nodes of the end
    missed=''
    wait "$child" || status=$?
    while kill -0 "$child" 2> /dev/null; do # a signal ended the wait
        status=0
        wait "$child" || status=$?
    done
    child=''
    return "$status"
}

meaning() { # STATUS: the exit status of a command that told no cause, in which a signal may have ended it
    case $1:$stopped in
        0:*) echo 0 ;;
        *:INT) echo 130 ;;
        *:?*) echo 75 ;;
        *) echo $(($1 < 126 ? $1 : 1)) ;;
    esac
}

# What there is

find_python() {
    local find='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("fasttrain", "torch"))))'
    python=${PYTHON:-$([[ -x $here/.venv/bin/python ]] && echo "$here/.venv/bin/python" || echo python3)}
    [[ $python != '~/'* ]] || python=$HOME/${python:2} # it was quoted
    "$python" -c "$find" 2> /dev/null ||
        fail 2 "$python has no fasttrain: run make demo in $here once, or let PYTHON name one that has it"
}

slurm() { # NAME ...: end unless SLURM has set all of them, the last to a whole number
    local name
    for name; do
        [[ ${!name:-} ]] || fail 2 "SLURM_JOB_ID is set and $name is not; allowed: both, as in a job, or neither"
    done
    [[ ${!name} =~ ^(0|[1-9][0-9]{0,17})$ ]] || fail 2 "$name is '${!name}'; allowed: a whole number"
}

find_nodes() {
    local list
    if in_slurm; then
        [[ ${SLURM_LOCALID:-0} == 0 ]] || fail 2 "more than one task per node; allowed: srun --ntasks-per-node=1"
        nodes=${SLURM_STEP_NUM_NODES:-${SLURM_NNODES:-1}} node=${SLURM_NODEID:-0}
        whole SLURM_NNODES "$nodes" 1 65536
        whole SLURM_NODEID "$node" 0 $((nodes - 1))
        [[ ${SLURM_STEP_NODELIST:-} ]] || slurm SLURM_JOB_NODELIST SLURM_JOB_ID
        list=$(scontrol show hostnames "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}") ||
            fail 1 "scontrol does not tell the job's nodes; allowed: a SLURM job, or no SLURM_JOB_ID"
        master=${list%%$'\n'*}
        port=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))} # below those that the kernel gives away
    else
        nodes=${NNODES:-1} node=${NODE_RANK:-0} master=${MASTER_ADDR:-} port=${MASTER_PORT:-29400}
        whole NNODES "$nodes" 1 65536
        whole NODE_RANK "$node" 0 $((nodes - 1))
        ((nodes == 1)) || [[ ${NODE_RANK:-} && $master ]] ||
            fail 2 "NNODES is $nodes; allowed: with NODE_RANK and MASTER_ADDR, node 0's address"
        [[ $master != *:* ]] || fail 2 "MASTER_ADDR is '$master'; allowed: a host name or an IPv4 address, without a port"
    fi
    whole MASTER_PORT "$port" 1 65535
}

find_processes() {
    local facts cores
    mapfile -t facts < <("$python" -m fasttrain.launch.torchrun)
    ((${#facts[@]})) || fail 1 "$python -m fasttrain.launch.torchrun failed"
    processes=${PROCESSES:-${facts[0]}}
    whole PROCESSES "$processes" 1 65536
    options=("${facts[@]:1}")
    cores=$(nproc)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
}

# A run on this node, with all others

status=0     # exit status of the last start
again=yes    # whether this node would start (again)
met=''       # whether the nodes have met
leaving=60   # seconds at most that a node waits for the others to tell them of its end
restarts=0   # in a row
last_step='' # where the last start began
resume=()    # what a later start adds to the command line

check() { # TRAINER'S ARGUMENTS ...: one process finds mistakes, so that they are told once
    local command=("$python" -m fasttrain check "$@" --processes "$processes" --nodes "$nodes")
    if [[ $dry ]]; then
        show "${command[@]}"
    elif ((node == 0)); then
        run "${command[@]}"
    else
        run "${command[@]}" > "$scratch/check" 2>&1 # told if it is this node's fault
    fi
}

meet() { # TRAINER'S ARGUMENTS ...: whether to start; sets where, or status
    if [[ $again && $stopped ]]; then
        again='' status=$(meaning 1)
    fi
    if ((nodes == 1)); then
        [[ $again ]]
        return
    fi
    [[ $again ]] || missed='' # this node ends anyhow
    [[ ! $stopped || $met ]] || leaving=10 # nobody has anything to save
    local command=("$python" -m fasttrain.launch.rally --nodes "$nodes" --node "$node" --master "$master" --port "$port"
        --timeout "$join_timeout" --status "$status" ${again:+--again} --leaving "$leaving" -- "$processes" "$@")
    local words=(start RENDEZVOUS ADDRESS PORT INTERFACE) ended=0
    if [[ $dry ]]; then
        show "${command[@]}"
    else
        run "${command[@]}" > "$scratch/decision" || ended=$?
        if ! read -ra words < "$scratch/decision"; then
            if [[ $again && $stopped ]]; then # a signal ended the wait: the others are to know
                meet "$@"
                return
            fi
            words=(end "$(meaning "$ended")" "$node")
        fi
    fi
    if [[ ${words[0]} == end ]]; then
        status=${words[1]}
        [[ ${words[2]} != "$node" || ! -s $scratch/check ]] || cat "$scratch/check" >&2
        return 1
    fi
    met=yes
    where=(--nnodes="$nodes" --node-rank="$node" --rdzv-id="${words[1]}"
        --rdzv-conf="timeout=$join_timeout" --master-addr="${words[2]}" --master-port="${words[3]}")
    network=(GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-${words[4]}}"
        NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-${words[4]}}")
}

start() { # TRAINER'S ARGUMENTS ...: train until it ends; sets status
    local command=("$python" -m fasttrain train) ended=0
    if ((nodes * processes > 1)); then # after `--` torchrun leaves the trainer's flags alone
        command=("$python" -m fasttrain.launch.torchrun "${where[@]}" --nproc-per-node="$processes"
            --max-restarts=0 "${options[@]}" --module -- fasttrain train)
    fi
    command=(env OMP_NUM_THREADS="$OMP_NUM_THREADS" FASTTRAIN_STATUS="$scratch/status" "${network[@]}"
        "${command[@]}" "$@" "${resume[@]}")
    if [[ $dry ]]; then
        show "${command[@]}"
        exit
    fi
    missed=${missed:-$stopped} # a signal that came when the nodes had met
    rm -rf "$scratch/status"
    mkdir "$scratch/status"
    run "${command[@]}" || ended=$?
    status=$(meaning "$ended")
    [[ ! -s $scratch/status/exit ]] || read -r status < "$scratch/status/exit"
}

judge() { # SECONDS: decide whether to start again after a start of so many seconds; sets again
    local step='' what
    again=''
    [[ $stopped || ($status != 1 && $status != 7) ]] && return
    [[ ! -s $scratch/status/start ]] || read -r step < "$scratch/status/start"
    what="exit status $status${step:+ of a start at step $step}"
    (($1 < 3600)) || restarts=0
    if [[ $step && $step == "$last_step" ]]; then
        say "$what, as the one before: nothing gained, not started again"
    elif ((restarts >= restarts_allowed)); then
        say "$what: not started again after $restarts restarts (RESTARTS)"
    else
        restarts=$((restarts + 1)) again=yes last_step=$step
        say "$what: restart $restarts of $restarts_allowed"
    fi
}

enter() { # TRAINER'S ARGUMENTS ...: a later start may enter the run folder that the first one made
    case " $* " in
        *" --run.resume never "* | *" --run.resume=never "*) resume=(--run.resume auto) ;;
    esac
}

on_this_node() { # TRAINER'S ARGUMENTS ...
    local began
    find_nodes
    find_processes
    where=(--standalone --local-addr=127.0.0.1)
    network=(GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}") # one literal name: gloo knows no NCCL patterns
    ((${SLURM_RESTART_COUNT:-0} == 0)) || enter "$@"
    check "$@" "${resume[@]}" || {
        status=$(meaning $?)
        again=''
    }
    while meet "$@"; do
        began=$SECONDS
        start "$@"
        judge $((SECONDS - began))
        enter "$@"
    done
    exit "$status"
}

# SLURM

in_slurm() { [[ ${SLURM_JOB_ID:-} ]]; }

in_step() { # the two largest numbers are the batch script's step and that of salloc
    [[ ${SLURM_STEP_ID:-} ]] && ((SLURM_STEP_ID < 4294967290))
}

on_all_nodes() { # TRAINER'S ARGUMENTS ...: this script as one task on each node of the job
    local command=(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} bash "$here/launch.sh" "$@")
    if [[ $dry ]]; then
        show "${command[@]}"
        exit
    fi
    run "${command[@]}" || status=$?
    ((status < 126)) || status=$(meaning "$status") # srun itself was ended
    # Only after the signal that announces the end: a job that was cancelled must not come back.
    if [[ $status == 75 && $stopped == USR1 ]]; then
        if ((${SLURM_RESTART_COUNT:-0} >= requeues)); then
            say "preempted, and not requeued after $SLURM_RESTART_COUNT times (REQUEUES)"
        else
            scontrol requeue "$SLURM_JOB_ID" || say "preempted; SLURM does not requeue job $SLURM_JOB_ID"
        fi
    fi
    exit "$status"
}

# Start

trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT
trap 'pass_on USR1' USR1
dry=''
case "${1:-}" in
    -h | --help)
        usage
        exit
        ;;
    --dry-run)
        dry=yes
        shift
        ;;
esac
if (($# == 0)); then
    usage >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ -d $here/fasttrain ]] || here=${SLURM_SUBMIT_DIR:-$here} # sbatch runs a copy of this file
restarts_allowed=${RESTARTS:-3} join_timeout=${JOIN_TIMEOUT:-300} requeues=${REQUEUES:-50}
whole RESTARTS "$restarts_allowed" 0
whole JOIN_TIMEOUT "$join_timeout" 1
whole REQUEUES "$requeues" 0
whole SLURM_RESTART_COUNT "${SLURM_RESTART_COUNT:-0}" 0
if in_slurm; then
    slurm SLURM_JOB_ID
    [[ ! ${SLURM_STEP_ID:-} ]] || slurm SLURM_STEP_ID
    in_step || slurm SLURM_NNODES
fi
find_python
for argument in "${@:2}"; do
    case $argument in
        -h | --help) exec "$python" -m fasttrain train "$@" ;;
        --dry-run) fail 2 "--dry-run is behind $1; allowed: before the recipe" ;;
    esac
done
scratch=$(mktemp -d 2> /dev/null) ||
    fail 2 "TMPDIR is '${TMPDIR:-/tmp}'; allowed: a folder that can be written to and has room"
trap '[[ $BASHPID != "$$" ]] || rm -rf "$scratch"' EXIT # not in a child that a signal ends before its command
if in_slurm && ! in_step; then
    on_all_nodes "$@"
fi
on_this_node "$@"
