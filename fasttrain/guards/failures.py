"""What ends a process becomes one message: memory that did not suffice, other processes that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .. import distributed
from ..config import Run
from ..errors import DistributedError, OutOfMemoryError


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Errors of torch that are no faults of the program become a `RunError`.

    Raises:
        OutOfMemoryError: of the GPU or of the machine.
        DistributedError: a collective failed.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(run) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise _out_of_memory(run) from error
        if distributed.is_collectives(error):
            raise DistributedError(
                "another process of the run died or was out of reach; the same command goes on from the last "
                f"checkpoint ({distributed.first_line(error)[:200]})"
            ) from error
        raise


def _out_of_memory(run: Run) -> OutOfMemoryError:
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    where = f"out of GPU memory at {peak:.1f} GiB" if peak else "out of memory"
    return OutOfMemoryError(
        f"{where} with run.batch {run.batch}, {run.batch // distributed.processes()} images per process; "
        "lower --run.batch, raise --run.accumulate, or in an evaluation lower --evaluation.batch"
    )
