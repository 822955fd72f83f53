"""One process or many: torchrun's environment, DDP, and the few collectives the trainer needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import ConfigError
from .hardware import choose_device
from .models import StagedNetwork, TreeForward, batch_norms


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


def start(device_setting: str) -> Process:
    """Join torchrun's process group (NCCL on GPUs, gloo on CPUs), or run alone outside of torchrun.

    Raises:
        ConfigError: no device for this process.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = choose_device(device_setting, int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            device_id=device if device.type == "cuda" else None,
        )
    return Process(rank, world, device)


def processes() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def local_batch(batch: int, world: int) -> int:
    """Images per process of a global batch.

    Raises:
        ConfigError: the batch does not divide.
    """
    if batch % world:
        raise ConfigError(f"run.batch is {batch}; allowed: a multiple of the {world} processes")
    return batch // world


def wrap(network: StagedNetwork, process: Process, *, joint: bool = True) -> nn.Module:
    """The module whose call is a step's forward pass: `TreeForward`, through DDP if there are more processes.

    Every step runs the whole main network, so that each parameter has a gradient. Not `joint`: a step has
    several backward passes, which DDP does not know; `average_gradients` follows them.
    """
    module = TreeForward(network)
    if process.world == 1 or not joint:
        return module
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


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
    for layer in batch_norms(network):
        for buffer in (layer.running_mean, layer.running_var):
            assert buffer is not None
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
