"""What launch.sh asks of this machine and its torch: `python -m fasttrain.torchrun`.

Prints the number of processes (one per GPU, else 1), then options of the installed torchrun, one per line.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch.distributed.run import get_args_parser

SHUTDOWN = 120
"""Seconds that the workers have for their checkpoint after a signal, before they are killed."""


def options(gpus: int, nodes: Path = Path("/sys/devices/system/node")) -> list[str]:
    """Options of torchrun for this machine, as far as the installed torchrun has them.

    Without `--signals-to-handle`, SIGUSR1 kills torchrun and leaves its workers. Workers are bound to their
    GPU's NUMA node where there are several, by torchrun and `numactl`.

    Args:
        gpus: how many torch sees.
        nodes: where the kernel lists the machine's NUMA nodes.
    """
    wanted = {
        "--signals-to-handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        "--shutdown-timeout": str(SHUTDOWN),
    }
    if gpus and len(list(nodes.glob("node[0-9]*"))) > 1 and shutil.which("numactl"):
        wanted["--numa-binding"] = "node"
    known = get_args_parser()._option_string_actions
    return [f"{name}={value}" for name, value in wanted.items() if name in known]


if __name__ == "__main__":
    print(max(1, torch.cuda.device_count()))
    print(*options(torch.cuda.device_count()), sep="\n")
