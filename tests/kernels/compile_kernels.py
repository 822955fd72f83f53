"""Compile every kernel for a GPU that is not there: `python -m tests.kernels.compile_kernels 90 bfloat16`.

Runs each operation forward and backward on CPU tensors with its own launches, each of which is compiled as
that launch would be on a GPU, but not executed. Prints one JSON object per binary. Needs a process without
TRITON_INTERPRET, since that is decided where a kernel is defined.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fasttrain.kernels import runtime

_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class AbsentGPU:
    """What the compiler asks a driver for."""

    def __init__(self, architecture: int) -> None:
        """`architecture`: 80 for an A100, 90 for an H100 or H200."""
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        """Of the compiled kernels' cache."""
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        """Nothing is launched."""
        return 0


def normalized_loss(dtype: torch.dtype) -> None:
    """One block, the largest one, and the loop; supervisions and kinds of targets."""
    from fasttrain.kernels.normalized_loss import stimulative_loss

    for classes, subnets, options, soft in (
        (1000, 6, {}, False),
        (1000, 0, {"normalize": "none"}, False),
        (1000, 1, {"normalize": "l2", "normalize_main": False, "supervision": "ce_target"}, True),
        (1000, 2, {"supervision": "ce_teacher", "normalize": "none", "label_smoothing": 0.1}, False),
        (8192, 6, {}, False),
        (21841, 6, {}, False),
        (21841, 1, {"supervision": "ce_teacher"}, True),
    ):
        logits = [torch.randn(2, classes, dtype=dtype, requires_grad=True) for _ in range(subnets + 1)]
        targets = torch.rand(2, classes) if soft else torch.randint(classes, (2,))
        weights = [1.0] * subnets
        stimulative_loss(
            logits[0],
            logits[1:],
            targets,
            weights=weights,
            kernels="triton",
            **options,
        ).total.backward()


def batchnorm_act(dtype: torch.dtype) -> None:
    """Some of ResNet-50's channels, with and without residual, ReLU and statistics of its own, or given."""
    from fasttrain.kernels.batchnorm_act import batch_norm_act

    for channels in (64, 256, 2048):
        known = torch.zeros(1, channels), torch.ones(1, channels)
        for residual, statistics in product((False, True), (None, known)):
            operation = partial(batch_norm_act, statistics=statistics)
            _batch_norm(operation, channels, dtype, residual=residual, training=True)
    _batch_norm(batch_norm_act, 256, dtype, relu=False, training=True)
    _batch_norm(batch_norm_act, 64, dtype, training=False)


def batchnorm_act_pool(dtype: torch.dtype) -> None:
    """The stem of ResNets."""
    from fasttrain.kernels.batchnorm_act_pool import batch_norm_act_pool

    _batch_norm(batch_norm_act_pool, 64, dtype, training=True)
    _batch_norm(batch_norm_act_pool, 64, dtype, training=False)


def _batch_norm(
    operation: Callable[..., Tensor],
    channels: int,
    dtype: torch.dtype,
    *,
    residual: bool = False,
    **options: Any,
) -> None:
    x, other = (activations(channels, dtype) for _ in range(2))
    weight, bias = (torch.ones(channels, requires_grad=True) for _ in range(2))
    running = torch.zeros(channels), torch.ones(channels)
    arguments = [x, weight, bias, *running] + ([other] if residual else [])
    y = operation(*arguments, kernels="triton", **options)
    y.backward(torch.ones_like(y))


def batchnorm_act_conv1x1(dtype: torch.dtype) -> None:
    """ResNet-50's 1x1 convolutions: with a batch norm before them, with statistics alone, with a stride."""
    from fasttrain.kernels.batchnorm_act_conv1x1 import Norm, batch_norm_act_conv1x1

    for inputs, outputs, with_norm, stride in (
        (64, 256, True, 1),
        (256, 64, False, 1),
        (512, 2048, True, 1),
        (2048, 512, False, 1),
        (256, 512, False, 2),
    ):
        x = activations(inputs, dtype)
        weight = torch.randn(outputs, inputs, 1, 1, requires_grad=True)
        gamma, beta = (torch.ones(inputs, requires_grad=True) for _ in range(2))
        norm = Norm(gamma, beta, torch.zeros(1, inputs), torch.ones(1, inputs)) if with_norm else None
        y = batch_norm_act_conv1x1(x, weight, norm, stride=stride, kernels="triton")[0]
        y.backward(torch.ones_like(y))


def activations(channels: int, dtype: torch.dtype) -> Tensor:
    """Two small images [2, C, 8, 8], channels_last: only C and the dtype matter to the compiler."""
    x = torch.randn(2, channels, 8, 8).to(dtype=dtype, memory_format=torch.channels_last)
    return x.requires_grad_()


EXAMPLES = (normalized_loss, batchnorm_act, batchnorm_act_pool, batchnorm_act_conv1x1)


def compile_all(architecture: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Each binary's operation, kernel, threads, registers and spilled bytes."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))
        return compiled[-1]

    JITFunction.run = compile_only
    runtime.runs_triton = lambda device: True
    driver.set_active(AbsentGPU(architecture))
    for example in EXAMPLES:
        compiled.clear()
        example(dtype)
        for binary in {each.hash: each for each in compiled}.values():
            yield {
                "operation": example.__name__,
                "kernel": binary.metadata.name,
                "threads": 32 * binary.metadata.num_warps,
                "shared": binary.metadata.shared,
                **resources(binary.asm["cubin"]),
            }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of stack and local memory, which is where spilled registers go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [_BINARIES / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spilled": stack + local}


if __name__ == "__main__":
    for binary in compile_all(int(sys.argv[1]), getattr(torch, sys.argv[2])):
        print(json.dumps(binary), flush=True)
