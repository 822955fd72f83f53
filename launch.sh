#!/usr/bin/env bash
# Train a recipe on this machine: one process per GPU, or one process on the CPU.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: ./launch.sh RECIPE [--resume] [--section.field value ...]

Trains RECIPE on all GPUs of this machine, one process each, or on the CPU where there is none.
CUDA_VISIBLE_DEVICES limits the GPUs. PYTHON names the interpreter (default: .venv/bin/python, else python3).
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

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -lt 2 ]; then
    exec "$python" -m fasttrain train "$@"
fi
# After `--` torchrun leaves the trainer's flags alone.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / gpus > 0 ? $(nproc) / gpus : 1))}
exec "$python" -m torch.distributed.run --standalone --nproc-per-node="$gpus" -- \
    "$here/fasttrain/__main__.py" train "$@"
