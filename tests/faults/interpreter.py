"""Stands in for Python when launch.sh alone is tested: notes each call, and ends starts as it is told.

STARTS tells how the starts of the trainer end, in their order, the last one again and again: `STEP:CODE:EXIT`
with the step that the start begins at, the process's exit code, and what the status file says; `-` leaves a
file out. `wait` waits for a signal, saves, and says so in the status file. CHECK is the check's exit status.
SIGNAL_AT is a moment, `find`, `facts` or `check`, at which launch.sh gets the signal SIGNAL.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

CALLS = Path(os.environ["CALLS"])


def main(arguments: list[str]) -> None:
    """Do as the interpreter would for `arguments`."""
    module = arguments[1] if arguments[0] == "-m" else ""
    if os.environ.get("SIGNAL_AT") == _moment(arguments):
        os.kill(os.getsid(0), int(os.environ["SIGNAL"]))  # the harness made launch.sh lead a session
    if module in ("", "fasttrain.launch.rally"):
        os.execv(sys.executable, [sys.executable, *arguments])
    if arguments == ["-m", "fasttrain.launch.torchrun"]:
        print("2\n--known=1")
        return
    names = ("FASTTRAIN_STATUS", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    call = {"arguments": arguments, **{name: os.environ.get(name, "") for name in names}}
    with CALLS.open("a") as file:
        file.write(json.dumps(call) + "\n")
    if arguments[:3] == ["-m", "fasttrain", "check"]:
        status = int(os.environ.get("CHECK", "0"))
        if status:
            print("fasttrain: what is wrong", file=sys.stderr)
        sys.exit(status)
    started = sum("check" not in line for line in CALLS.read_text().splitlines())
    starts = os.environ["STARTS"].split()
    train(starts[min(started, len(starts)) - 1])


def _moment(arguments: list[str]) -> str:
    """Which part of a start calls the interpreter."""
    moments = {"-m fasttrain.launch.torchrun": "facts", "-m fasttrain check": "check"}
    return "find" if arguments[0] == "-c" else moments.get(" ".join(arguments[:3]), "")


def train(how: str) -> NoReturn:
    """One start of the trainer."""
    status = Path(os.environ["FASTTRAIN_STATUS"])
    if how == "wait":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda number, _: save(status, signal.Signals(number)))
        print("ready", flush=True)
        while True:
            time.sleep(0.05)
    step, code, told = how.split(":")
    if step != "-":
        (status / "start").write_text(f"{step}\n")
    if told != "-":
        (status / "exit").write_text(f"{told}\nthe cause\n")
    sys.exit(int(code))


def save(status: Path, number: signal.Signals) -> NoReturn:
    """What a run does at the end of the step after a signal."""
    print(f"got {number.name}", flush=True)
    time.sleep(0.3)
    (status / "exit").write_text(f"{130 if number == signal.SIGINT else 75}\n{number.name}\n")
    print(f"saved after {number.name}", flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
