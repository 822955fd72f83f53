"""Stands in for srun: a task for each node, signals passed on, the highest exit status in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def main(words: list[str]) -> int:
    """Run `--ntasks=N ... COMMAND ...`."""
    options = [word for word in words if word.startswith("--")]
    options = options[: next(i for i, word in enumerate(words) if not word.startswith("--"))]
    count = int(next(word for word in options if word.startswith("--ntasks=")).split("=")[1])
    tasks = []
    for rank in range(count):
        place = {"SLURM_STEP_ID": "0", "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
        environment = {**os.environ, **place, "SLURM_STEP_NUM_NODES": str(count), "SLURM_PROCID": str(rank)}
        prefix = os.environ.get(f"ON_NODE_{rank}", "").split()  # how a test comes to that node
        command = [*prefix, *words[len(options) :]]
        tasks.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def pass_on(number: int, _: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, pass_on)
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
