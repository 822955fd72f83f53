"""The stem's batch norm + ReLU + max-pool: correctness, and speed at ResNet-50's stem."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.kernels.batchnorm_act_pool import batch_norm_act_pool
from fasttrain.kernels.runtime import Kernels

from ..accuracy import Comparison
from ..case import Case, Check
from . import batchnorm_act
from .batchnorm_act import Inputs, Setting, compare_operation, compiled, run

SETTINGS = (
    Setting(shape=(3, 16, 9, 11)),
    Setting(shape=(4, 64, 8, 6), dtype=torch.bfloat16, groups=2, tracked_group=1),
    Setting(shape=(2, 100, 7, 5), dtype=torch.float16, training=False),
    Setting(shape=(4, 24, 1, 5), groups=4, tracked_group=None),
    Setting(shape=(3, 32, 6, 1), dtype=torch.bfloat16, groups=3, tracked_group=2),
    Setting(shape=(2, 24, 5, 8), training=False, groups=2),
    Setting(shape=(9, 64, 4, 4), dtype=torch.float16),
)


def compare(setting: Setting, device: torch.device) -> list[Comparison]:
    """Every result of one setting on random inputs."""
    torch.manual_seed(0)
    return compare_operation(batch_norm_act_pool, inputs(setting, device), setting)


def inputs(setting: Setting, device: torch.device) -> Inputs:
    """Random ones, in channels_last."""
    given = batchnorm_act.inputs(setting, device)
    return given._replace(grad=given.grad[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last))


def checks(device: torch.device) -> list[Check]:
    """Every setting above."""
    return [Check(setting.label, partial(compare, setting, device)) for setting in SETTINGS]


def cases(device: torch.device) -> list[Case]:
    """ResNet-50's stem at batch 256 and crops 224 and 96; forward and backward."""
    stem = Setting(shape=(256, 64, 112, 112), dtype=torch.bfloat16)
    return [case(setting, device) for setting in (stem, replace(stem, shape=(256, 64, 48, 48)))]


def case(setting: Setting, device: torch.device) -> Case:
    """One setting, timed."""
    n, c, h, w = setting.shape
    full = n * c * h * w * setting.dtype.itemsize
    pooled = full // 4
    index = n * c * h * w // 4
    # forward: x for the statistics; x again, the output, the winners' indices. Backward: the sums need the
    # gradient and x at the winners, in whatever form; then the gradient, the indices, x, and x's gradient
    moved = full + (full + pooled + index) + 2 * pooled + (pooled + index + 2 * full)
    triton: Kernels = "triton"
    return Case(
        shape=setting.label,
        moved=moved,
        prepare=lambda: _prepared(setting, device),
        calls={
            "triton": partial(_run, partial(batch_norm_act_pool, training=True, kernels=triton)),
            "eager": partial(_run, eager),
            "compile": partial(_run, compiled(eager)),
        },
    )


def eager(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """What a model does without the fused operation."""
    return F.max_pool2d(batchnorm_act.eager(x, weight, bias, running_mean, running_var), 3, 2, 1)


def _prepared(setting: Setting, device: torch.device) -> Inputs:
    given = inputs(setting, device)
    for tensor in (given.x, given.weight, given.bias):
        tensor.requires_grad_()
    return given


def _run(operation: batchnorm_act.Operation, given: Inputs) -> tuple[Tensor, ...]:
    x, weight, bias, running_mean, running_var, _, grad = given
    return run(operation, (x, weight, bias, running_mean, running_var, grad))
