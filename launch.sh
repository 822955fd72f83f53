#!/usr/bin/env bash
# Train a recipe on this machine: one process per GPU, or one process on the CPU.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: ./launch.sh RECIPE [--resume] [--section.field value ...]

Trains RECIPE on all GPUs of this machine, one process each, or on the CPU where there is none.
CUDA_VISIBLE_DEVICES limits the GPUs, PROCESSES sets the number of processes (also on a CPU, to try things
out). PYTHON names the interpreter (default: .venv/bin/python, else python3).
`fasttrain recipes` lists the recipes, `fasttrain train RECIPE --help` every field.
EOF
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    "") usage >&2; exit 2 ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}

# One process checks the command line, so that a mistake is told once and not by every rank.
if ! "$python" -m fasttrain show "$@" > /dev/null; then
    exit 2
fi

processes=${PROCESSES:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "launch.sh: PROCESSES is '$processes'; allowed: 1, 2, ..." >&2
    exit 2
fi
if [ "$processes" = 1 ]; then
    exec "$python" -m fasttrain train "$@"
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / processes > 0 ? $(nproc) / processes : 1))}
# After `--` torchrun leaves the trainer's flags alone.
exec "$python" -m torch.distributed.run --standalone --local-addr=127.0.0.1 \
    --nproc-per-node="$processes" --module -- fasttrain train "$@"
