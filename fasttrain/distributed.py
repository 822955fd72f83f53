"""One process or many: torchrun's environment, DDP, and the few collectives the trainer needs.

Tensors of the training are reduced over NCCL on GPUs; flags and bytes go over a gloo group of their own,
which no GPU has to wait for.
"""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from .config import Run
from .errors import ConfigError, DistributedError, Interrupted, Preempted, RunError, encodable, error_of
from .guards.watchdog import PATIENCE
from .hardware import choose_device
from .launch import place
from .launch.address import resolved
from .models import Auxiliary, StagedNetwork, TreeForward, batch_norms


@dataclass(frozen=True, slots=True)
class Process:
    """One process among all of a run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


class _Joined:
    """What belongs to the process group that this process is in.

    Attributes:
        host: the gloo group for flags and bytes.
        store: torch's key-value store, through which the first failure is told.
    """

    host: dist.ProcessGroup | None = None
    store: dist.Store | None = None


def start(run: Run) -> Process:
    """Join torchrun's process group (NCCL on GPUs, gloo on CPUs), or run alone outside of torchrun.

    Raises:
        ConfigError: no device for this process, or variables that torchrun would not have set.
        DistributedError: the processes did not find each other within `run.start_timeout`.
    """
    rank, world, local_rank = _place()
    device = choose_device(run.device, local_rank)
    if world > 1 and not dist.is_initialized():
        _check_master()
        # The watchdog, which prints where a process hangs, is to be first.
        timeout = timedelta(seconds=30 + max(run.start_timeout, PATIENCE * run.step_timeout))
        store, rank, world = next(
            iter(dist.rendezvous("env://", timeout=timedelta(seconds=0.9 * run.start_timeout)))
        )
        _Joined.store = dist.PrefixStore("fasttrain", store)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("torch", store),
            rank=rank,
            world_size=world,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        _Joined.host = dist.new_group(backend="gloo", timeout=timeout)  # type: ignore[assignment]
    return Process(rank, world, device)


def _place() -> tuple[int, int, int]:
    """Rank among all processes, their number, and rank on this machine, as torchrun tells them.

    Raises:
        ConfigError: they are not torchrun's, but left over from something else.
    """
    world = place.world()
    found = place.rank(), world, place.local_rank()
    place.local_world()
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT") if world > 1 else ()
    for name in needed:
        if not os.environ.get(name):
            raise place.not_ours(f"WORLD_SIZE is {world} and {name} is not set")
    if needed:
        place.number("MASTER_PORT", 0, 1, 65535)
    return found


def _check_master() -> None:
    """Torch would try a name that stands for nothing until the time to start is over.

    Raises:
        DistributedError: MASTER_ADDR does not resolve.
    """
    try:
        resolved(os.environ["MASTER_ADDR"], family=socket.AF_UNSPEC)
    except socket.gaierror as error:
        raise DistributedError(
            f"{error.strerror}; allowed: MASTER_ADDR, the name or address of rank 0"
        ) from None


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _Joined.host = _Joined.store = None


def is_collectives(error: BaseException) -> bool:
    """Whether an error tells that another process died or did not come, rather than of a fault here."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "connection closed by peer", "connection reset by peer", "timed out waiting")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def told(error: Exception) -> Exception:
    """Tell all processes why this one ends, unless another has told; the error to end with.

    The first to tell speaks. One that only noticed ends with the reason that was told.
    """
    if isinstance(error, Preempted | Interrupted) or getattr(error, "speaks", None) is False:
        return error  # all processes end with it together
    status = error.exit_status if isinstance(error, RunError) else RunError.exit_status
    ours = encodable(f"{status} {dist.get_rank() if dist.is_initialized() else 0} {first_line(error)}")
    try:
        first = _Joined.store.compare_set("failure", "", ours).decode() if _Joined.store else ""
    except RuntimeError:  # the process that holds the store is gone
        first = ""
    if not first or not isinstance(error, RunError):
        return error
    if isinstance(error, DistributedError):
        cause, _, message = first.split(" ", 2)
        error = error_of(int(cause), message)
    error.speaks = first == ours
    return error


def first_line(error: BaseException) -> str:
    """Of an error's message; its type's name where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def from_main(work: Callable[[], bytes], process: Process) -> bytes:
    """What `work` returns on rank 0, on every process.

    Raises:
        RunError: that of rank 0, on every process.
    """
    if process.world == 1:
        return work()
    status, content = 0, b""
    failure: RunError | None = None
    if process.is_main:
        try:
            content = work()
        except RunError as error:
            failure, status, content = error, error.exit_status, str(error).encode()
    header = torch.tensor([status, len(content)])
    dist.broadcast(header, 0, group=_Joined.host)
    status, length = header.tolist()
    if process.is_main:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0)
    else:
        data = torch.empty(length, dtype=torch.uint8)
    if length:
        dist.broadcast(data, 0, group=_Joined.host)
    if failure is not None:
        raise failure
    content = data.numpy().tobytes() if length else b""
    if status:
        failure = error_of(status, content.decode())
        failure.speaks = False
        raise failure
    return content


def to_main(content: bytes, process: Process) -> list[bytes]:
    """The bytes of every process in the order of their ranks, on rank 0; nothing on the others."""
    if process.world == 1:
        return [content]
    length = torch.tensor([len(content)])
    lengths = [torch.zeros_like(length) for _ in range(process.world)]
    dist.all_gather(lengths, length, group=_Joined.host)
    sizes = [int(each) for each in lengths]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    parts = [torch.empty_like(padded) for _ in sizes] if process.is_main else None
    dist.gather(padded, parts, 0, group=_Joined.host)
    return [part[:size].numpy().tobytes() for part, size in zip(parts or [], sizes, strict=False)]


class Agreement:
    """The greatest of a number that each process gives at each step, known to all one step later.

    The reduction runs over gloo while the next step is computed: no device and no process is waited for.
    """

    def __init__(self) -> None:
        """Nothing is under way."""
        self._pending: tuple[Tensor, dist.Work] | None = None

    def follow(self, number: int) -> int:
        """Give this step's number; the greatest of the step before (of this one, if the run is alone)."""
        if not dist.is_initialized():
            return number
        before = self.settle()
        flag = torch.tensor([number], dtype=torch.int32)
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=_Joined.host, async_op=True)
        assert work is not None
        self._pending = flag, work
        return before

    def now(self, number: int) -> int:
        """The greatest of all processes' numbers, at once; all wait."""
        before = self.follow(number)
        return max(before, self.settle()) if dist.is_initialized() else before

    def settle(self) -> int:
        """The greatest of the step before; 0 if it is known already."""
        if self._pending is None:
            return 0
        flag, work = self._pending
        self._pending = None
        work.wait()
        return int(flag)


def processes() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_batch(batch: int, world: int) -> int:
    """Images per process of a global batch.

    Raises:
        ConfigError: the batch does not divide.
    """
    if batch % world:
        raise ConfigError(f"run.batch is {batch}; allowed: a multiple of the {world} processes")
    return batch // world


def wrap(
    network: StagedNetwork,
    process: Process,
    *,
    auxiliary: Auxiliary | None = None,
    joint: bool = True,
    compression: str = "none",
) -> nn.Module:
    """The module whose call is a step's forward pass: `TreeForward`, through DDP if there are more processes.

    Every step runs the whole main network, so that each parameter has a gradient. Not `joint`: a step has
    several backward passes, which DDP does not know; `average_gradients` follows them.

    Args:
        network: on its device.
        process: this one.
        auxiliary: what is trained with it.
        joint: whether a step has one backward pass.
        compression: of the gradients on their way: none or bf16.

    Raises:
        ConfigError: compression of what DDP does not reduce.
    """
    if compression != "none" and not joint:
        raise ConfigError(
            f"run.gradient_compression is {compression!r} with method.backward 'split'; allowed: "
            "none, or joint"
        )
    module = TreeForward(network, auxiliary)
    if process.world == 1 or not joint:
        return module
    ddp = DistributedDataParallel(module, gradient_as_bucket_view=True, **_BUFFERS_APART)  # type: ignore[arg-type]
    if compression == "bf16":
        ddp.register_comm_hook(None, bf16_compress_hook)
    return ddp


_BUFFERS_APART = (
    {"forward_sync_buffers": False}  # torch 2.15's name for it
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)
"""DDP's option that leaves each process its own running statistics."""


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the mean of their gradients, in one all-reduce per dtype."""
    if not dist.is_initialized():
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        assert parameter.grad is not None  # the main network's pass reaches every parameter
        by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
        )


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Add up each tensor over all processes, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def gather_over_processes(values: Mapping[str, float], device: torch.device) -> list[dict[str, float]]:
    """The numbers of every process, by rank; all processes give the same names."""
    own = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    rows = [own]
    if dist.is_initialized():
        rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, own)
    return [dict(zip(values, row, strict=True)) for row in torch.stack(rows).tolist()]


def average_running_statistics(network: nn.Module) -> None:
    """Give all processes the mean of their batch-norm running statistics, which DDP here leaves apart."""
    if not dist.is_initialized():
        return
    buffers = [each for layer in batch_norms(network) for each in (layer.running_mean, layer.running_var)]
    statistics = [each for each in buffers if each is not None]
    if not statistics:
        return
    # In float64 the mean of equal numbers is that number: doing it again, after a resume, changes nothing.
    flat = torch.cat([each.double() for each in statistics])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(statistics, flat.split([len(each) for each in statistics]), strict=True):
        buffer.copy_(mean)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
