"""The command `fasttrain`, and `python -m fasttrain`, as torchrun starts it."""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C in these imports ends it without a traceback

from .errors import INTERRUPTED
from .guards import signals
from .streams import open_streams


def main() -> None:
    """Run one command. Training answers signals before anything is imported that takes time; any other
    command ends by them, as programs do.
    """
    open_streams()  # before anything is opened
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    training = sys.argv[1:2] in (["train"], ["nips22"])
    try:
        with signals.caught() if training else nullcontext():
            from .cli import main as run

            run()
    except KeyboardInterrupt:  # in an import: the command itself answers the others
        print("fasttrain: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
