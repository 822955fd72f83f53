"""Torchrun as launch.sh starts it, in few words: `python -m fasttrain.launch.torchrun ARGUMENTS`.

Without arguments it prints what launch.sh wants to know of this machine and its torch: the number of
processes (one per GPU, else 1), then the options that are right here, one per line. Torch is imported late:
a Ctrl-C meanwhile ends it without a traceback.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..streams import open_streams
from .orphans import end_with_launcher

SHUTDOWN = 120
"""Seconds that the workers have for their checkpoint after a signal, before they are killed."""


def options(gpus: int, nodes: Path = Path("/sys/devices/system/node")) -> list[str]:
    """Options for this machine, as far as the installed torchrun has them.

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
    from torch.distributed import run

    known = run.get_args_parser()._option_string_actions
    return [f"{name}={value}" for name, value in wanted.items() if name in known]


def main(arguments: Sequence[str]) -> None:
    """Run the workers; the exit status is 0 or 1, and the workers themselves tell why they failed."""
    end_with_launcher()
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    try:
        with tempfile.TemporaryDirectory(prefix="torchrun-") as logs:  # its own would stay for ever
            run.main([f"--log-dir={logs}", *arguments])
    except SignalException:  # they were told, and have ended
        sys.exit(1)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode < 0:  # it cannot tell any more
            print(f"launch.sh: process {first.pid} was killed by {first.signal_name()}", file=sys.stderr)
        sys.exit(1)
    except (DistError, RendezvousError) as error:
        print(f"launch.sh: torchrun: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(1)


def _facts() -> None:
    """Print what launch.sh wants to know."""
    import torch

    print(max(1, torch.cuda.device_count()))
    print(*options(torch.cuda.device_count()), sep="\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until torchrun has its own answer
    open_streams()
    if len(sys.argv) > 1:
        main(sys.argv[1:])
    else:
        _facts()
