"""Fused batch norm + ReLU + max-pool: accuracy, ties, gradients, launches, refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.kernels.batchnorm_act import Setting, results
from bench.kernels.batchnorm_act_pool import SETTINGS, case, compare, inputs
from fasttrain.kernels import runtime
from fasttrain.kernels.batchnorm_act import triton as batch_norm
from fasttrain.kernels.batchnorm_act_pool import batch_norm_act_pool
from fasttrain.kernels.batchnorm_act_pool import triton as fused

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPERATION = torch.ops.fasttrain.batch_norm_act_pool.default


def leaves(setting: Setting) -> list[Tensor]:
    """x, weight, bias (asking for gradients), running mean and variance."""
    given = inputs(setting, DEVICE)
    return [
        tensor.detach().requires_grad_(index < 3)
        for index, tensor in enumerate(given[:5])
        if tensor is not None
    ]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
@pytest.mark.usefixtures("poisoned_memory")
def test_as_accurate_as_plain_pytorch(setting: Setting) -> None:
    for comparison in compare(setting, DEVICE):
        comparison.check()


def test_the_first_of_equal_maxima_gets_the_gradient() -> None:
    """Few distinct values, so that most windows have ties; plain PyTorch agrees on every winner."""
    x = (
        torch.randint(0, 3, (2, 16, 7, 8), device=DEVICE)
        .float()
        .contiguous(memory_format=torch.channels_last)
    )
    ones, zeros = torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    gradients = []
    for kernels in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        y = batch_norm_act_pool(
            leaf,
            ones,
            -ones,
            zeros.clone(),
            ones.clone(),
            training=False,
            kernels=kernels,
        )
        y.backward(torch.arange(y.numel(), device=DEVICE).view_as(y).float())
        gradients.append((y.detach(), leaf.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, in the interpreter
def test_nan_propagates_as_in_torch() -> None:
    x = torch.randn(2, 16, 6, 6, device=DEVICE).contiguous(memory_format=torch.channels_last)
    x[0, 3, 2, 3] = float("nan")
    ones, zeros = torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    call = partial(batch_norm_act_pool, x, ones, zeros, zeros.clone(), ones.clone(), training=False)
    torch.testing.assert_close(call(kernels="triton"), call(kernels="reference"), equal_nan=True)
    y = batch_norm_act_pool(x, ones, zeros, None, None, training=True, kernels="triton")
    assert y[:, 3].isnan().all()


def test_groups_equal_separate_calls() -> None:
    x, weight, bias, *_ = leaves(Setting(shape=(6, 24, 5, 7)))
    call = partial(batch_norm_act_pool, training=True, kernels="triton")
    whole = call(x, weight, bias, None, None, groups=3)
    alone = torch.cat([call(part, weight, bias, None, None) for part in x.chunk(3)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=0)


def test_two_runs_agree_to_the_bit() -> None:
    setting = Setting(shape=(4, 72, 5, 7), groups=2)
    given = inputs(setting, DEVICE)
    operation = partial(batch_norm_act_pool, kernels="triton")
    first, second = (results(operation, given, setting) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_two_launches_forward_and_two_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[str] = []

    def count(kernel: Any, *args: Any, **options: Any) -> None:
        launches.append(kernel.__name__)
        runtime.launch(kernel, *args, **options)

    monkeypatch.setattr(batch_norm, "launch", count)
    monkeypatch.setattr(fused, "launch", count)
    y = batch_norm_act_pool(*leaves(Setting(shape=(2, 16, 4, 5))), training=True, kernels="triton")
    assert launches == ["statistics_kernel", "pool_kernel"]
    y.sum().backward()
    assert launches[2:] == ["gradient_sums_kernel", "unpool_kernel"]


def test_the_full_size_activation_is_never_stored() -> None:
    """What the backward keeps: x, and at the pooled size one value and one byte per output."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x, *rest = leaves(Setting(shape=(2, 16, 8, 8), dtype=torch.bfloat16))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        batch_norm_act_pool(x, *rest, training=True, kernels="triton")
    large = sorted((tensor.numel(), tensor.element_size()) for tensor in kept if tensor.ndim == 4)
    assert large == [(x.numel() // 4, 1), (x.numel() // 4, 2), (x.numel(), 2)]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch itself reads it of a non-leaf
@pytest.mark.parametrize("training", [True, False])
def test_opcheck(training: bool) -> None:
    torch.library.opcheck(OPERATION, (*leaves(Setting(shape=(4, 16, 3, 5))), training, 0.1, 1e-5, 2, 0))


@pytest.mark.parametrize("training", [True, False])
def test_the_reference_passes_gradcheck(training: bool) -> None:
    tensors = [tensor.detach().double() for tensor in leaves(Setting(shape=(4, 3, 2, 3)))]
    running = tensors[3:]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean, var = (tensor.clone() for tensor in running)
        return batch_norm_act_pool(x, weight, bias, mean, var, training=training, groups=2)

    assert torch.autograd.gradcheck(function, [tensor.requires_grad_() for tensor in tensors[:3]])


def test_what_does_not_fit_is_refused() -> None:
    x, *rest = leaves(Setting(shape=(4, 16, 3, 5)))
    for kernels in ("triton", "reference"):
        call = partial(batch_norm_act_pool, training=True, kernels=kernels)
        with pytest.raises(ValueError, match=r"allowed: \[N, C, H, W\]"):
            call(x[:, :, 0, 0], *rest)
        with pytest.raises(ValueError, match="groups is 3; allowed: divisors of the 4 images"):
            call(x, *rest, groups=3)
        with pytest.raises(ValueError, match=r"weight is \(16,\)"):
            call(x[:, :8], *rest)


def test_the_bench_times_the_same_computation() -> None:
    timed = case(Setting(shape=(4, 16, 3, 5)), DEVICE)
    given = timed.prepare()
    torch.testing.assert_close(
        timed.calls["triton"](given), timed.calls["eager"](given), rtol=1e-4, atol=1e-5
    )
