"""Batch norm + residual addition + ReLU: correctness, and speed at ResNet-50's activation shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.kernels.batchnorm_act import batch_norm_act
from fasttrain.kernels.runtime import Kernels

from ..accuracy import Comparison
from ..case import Case, Check

Operation = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One call of the operation on random inputs.

    Attributes:
        shape: of x.
        dtype: of x.
        residual: whether one is added.
        relu: whether a ReLU follows.
        training: mode.
        groups: of the batch.
        tracked_group: the one that updates the running statistics.
        mean: of x.
        deviation: of x.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    residual: bool = False
    relu: bool = True
    training: bool = True
    groups: int = 1
    tracked_group: int | None = 0
    mean: float = 1.0
    deviation: float = 2.0

    @property
    def label(self) -> str:
        """What is set, in words."""
        words = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        words += ["residual"] * self.residual + ["relu"] * self.relu
        words += [] if self.training else ["evaluation"]
        return " ".join([*words, f"groups {self.groups}"])


SETTINGS = (
    Setting(shape=(5, 16, 9, 11)),
    Setting(shape=(3, 24, 13, 7), dtype=torch.float16, residual=True, groups=3, tracked_group=2),
    Setting(shape=(4, 64, 9, 13), dtype=torch.bfloat16, relu=False, groups=2, tracked_group=None),
    Setting(shape=(2, 100, 7, 5), residual=True, relu=False, training=False),
    Setting(shape=(3, 2048, 2, 1), dtype=torch.bfloat16, residual=True),
    Setting(shape=(4, 64, 17, 19), dtype=torch.float16, training=False, groups=2),
    Setting(shape=(8, 32, 13, 11), residual=True, groups=4, tracked_group=1),
    Setting(shape=(67, 48), dtype=torch.bfloat16, residual=True, training=False),
    Setting(shape=(70, 130), groups=2, relu=False),
    # the statistics do not cancel; no ReLU, whose sign is not certain at such inputs
    Setting(shape=(4, 24, 16, 15), mean=100.0, deviation=0.1, relu=False),
)


class Inputs(NamedTuple):
    """Arguments of one call and the gradient of its output."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    residual: Tensor | None
    grad: Tensor


def inputs(setting: Setting, device: torch.device) -> Inputs:
    """Random ones, in channels_last."""
    channels = setting.shape[1]

    def activation() -> Tensor:
        values = torch.randn(setting.shape, device=device).to(setting.dtype)
        return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values

    def parameter() -> Tensor:
        return torch.randn(channels, device=device)

    x = (activation().float() * setting.deviation + setting.mean).to(setting.dtype)
    residual = activation() if setting.residual else None
    running_var = parameter().abs() + 0.5
    return Inputs(x, parameter(), parameter(), parameter(), running_var, residual, activation())


def results(operation: Operation, given: Inputs, setting: Setting, exact: bool = False) -> dict[str, Tensor]:
    """Output, gradients and running statistics of one call; `exact`: in float64."""

    def copied(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone(memory_format=torch.preserve_format)
        return tensor.double() if exact else tensor

    names = ["x", "weight", "bias"] + ["residual"] * setting.residual
    leaves = {name: copied(getattr(given, name)).requires_grad_() for name in names}
    running = {name: copied(getattr(given, name)) for name in ("running_mean", "running_var")}
    options = {"training": setting.training, "groups": setting.groups}
    y = operation(**leaves, **running, **options, tracked_group=setting.tracked_group)
    y.backward(copied(given.grad))
    gradients = {f"{name}'s gradient": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"output": y.detach(), **gradients, **running}


def compare_operation(operation: Operation, given: Inputs, setting: Setting) -> list[Comparison]:
    """An operation that takes `kernels` against its own reference in the same dtype and in float64."""
    out = results(partial(operation, kernels="triton"), given, setting)
    native = results(partial(operation, kernels="reference"), given, setting)
    exact = results(partial(operation, kernels="reference"), given, setting, exact=True)
    return [Comparison(name, out[name], native[name], exact[name]) for name in out]


def compare(setting: Setting, device: torch.device) -> list[Comparison]:
    """Every result of one setting on random inputs."""
    torch.manual_seed(0)
    return compare_operation(partial(batch_norm_act, relu=setting.relu), inputs(setting, device), setting)


def checks(device: torch.device) -> list[Check]:
    """Every setting above."""
    return [Check(setting.label, partial(compare, setting, device)) for setting in SETTINGS]


CROPS = {224: (56, 28, 14, 7), 96: (24, 12, 6, 3)}
"""Crop to the side of each stage's activations in a ResNet-50."""


def cases(device: torch.device) -> list[Case]:
    """ResNet-50's activations at batch 256: all at crop 224, small ones at 96; forward and backward."""
    sizes = [(256, 64 << stage, side) for stage, side in enumerate(CROPS[224])]
    small = [(256, 64 << stage, side) for stage, side in enumerate(CROPS[96])][2:]
    listed = []
    for images, width, side in sizes + small:
        inner = Setting(shape=(images, width, side, side), dtype=torch.bfloat16)
        last = replace(inner, shape=(images, 4 * width, side, side), residual=True)
        listed += [case(inner, device), case(last, device)]
    return listed


def case(setting: Setting, device: torch.device) -> Case:
    """One setting, timed."""
    values = torch.Size(setting.shape).numel() * setting.dtype.itemsize
    # reads and writes of one activation: without a residual 2 + 1 forward (x twice, y) and 4 + 1 backward (x
    # and the gradient twice, x's gradient); with one 3 + 1 and 6 + 2, of which the kernels save one read
    moved = 12 * values if setting.residual else 8 * values
    return Case(
        shape=setting.label,
        moved=moved,
        prepare=lambda: prepared(setting, device),
        calls={
            "triton": partial(run, partial(batch_norm_act, training=True, kernels=_TRITON)),
            "eager": partial(run, eager),
            "compile": partial(run, compiled(eager)),
        },
    )


_TRITON: Kernels = "triton"


def eager(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """What a model does without the fused operation."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training=True)
    return F.relu(y if residual is None else y + residual)


def compiled(operation: Operation) -> Operation:
    """What `torch.compile` makes of it on the first call, for one shape; graphs of other cases are dropped,
    of which Dynamo would keep 8 and then run eagerly.
    """
    ready: list[Operation] = []

    def call(*arguments: Any) -> Tensor:
        if not ready:
            torch._dynamo.reset()
            ready.append(torch.compile(operation, dynamic=False))
        return ready[0](*arguments)

    return call


def prepared(setting: Setting, device: torch.device) -> Inputs:
    """Inputs of which the differentiable ones ask for gradients."""
    given = inputs(setting, device)
    for tensor in (given.x, given.weight, given.bias, given.residual):
        if tensor is not None:
            tensor.requires_grad_()
    return given


def run(operation: Operation, given: Any) -> tuple[Tensor, ...]:
    """One forward and backward; the gradients."""
    *arguments, grad = given
    y = operation(*arguments)
    leaves = [t for t in arguments if t is not None and t.requires_grad]
    return torch.autograd.grad(y, leaves, grad)
