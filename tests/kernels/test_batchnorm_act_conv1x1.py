"""The fused 1x1 convolution: accuracy, statistics, every gradient, launches, repeats, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.accuracy import Comparison
from bench.kernels.batchnorm_act_conv1x1 import (
    SETTINGS,
    Setting,
    compare,
    eager,
    inputs,
    plain,
    prepared,
    results,
    run,
    statistics,
    triton,
)
from fasttrain.kernels import runtime
from fasttrain.kernels.batchnorm_act_conv1x1 import Norm, batch_norm_act_conv1x1
from fasttrain.kernels.batchnorm_act_conv1x1 import triton as launches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Setting(shape=(4, 24, 9, 7), outputs=40, groups=2)


@pytest.fixture(autouse=True)
def _ieee() -> Iterator[None]:
    """Float32 is multiplied as such, on a GPU too."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    yield
    conv.fp32_precision = before


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
def test_results_are_as_accurate_as_plain_pytorch(setting: Setting, poisoned_memory: None) -> None:
    for comparison in compare(setting, DEVICE):
        comparison.check()


@pytest.mark.parametrize("dtype", runtime.DTYPES)
def test_a_chain_of_two_convolutions_is_plain_pytorch(dtype: torch.dtype) -> None:
    """Conv -> batch norm -> ReLU -> conv -> batch norm, every gradient through both batch norms."""
    x = torch.randn(6, 16, 7, 5, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)
    first = torch.randn(24, 16, 1, 1, device=DEVICE) / 4
    second = torch.randn(40, 24, 1, 1, device=DEVICE) / 5
    affine = [torch.randn(channels, device=DEVICE) for channels in (24, 24, 40, 40)]
    given = [x, first, second, *affine]
    target = torch.randn(6, 40, 7, 5, device=DEVICE).to(dtype)

    def normed(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(y, None, None, weight, bias, training=True)

    def unfused(x: Tensor, first: Tensor, second: Tensor, *affine: Tensor) -> Tensor:
        z = F.relu(normed(F.conv2d(x, first.to(x.dtype)), *affine[:2]))
        return normed(F.conv2d(z, second.to(x.dtype)), *affine[2:])

    def fused(x: Tensor, first: Tensor, second: Tensor, *affine: Tensor) -> Tensor:
        y, mean, var = triton(x, first, None)
        norm = Norm(affine[0], affine[1], mean, (var + 1e-5).rsqrt())
        y, *moments = triton(y, second, norm)
        for own, expected in zip(moments, statistics(y.detach().float()), strict=True):
            torch.testing.assert_close(own, expected)
        return normed(y, *affine[2:])

    def gradients(chain: Any, dtype: torch.dtype | None) -> list[Tensor]:
        leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in given]
        y = chain(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, target.to(y.dtype))]

    names = ("y", "x", "first", "second", "weight", "bias", "last weight", "last bias")
    rows = zip(
        names,
        gradients(fused, None),
        gradients(unfused, None),
        gradients(unfused, torch.float64),
        strict=True,
    )
    for row in rows:
        Comparison(*row).check()


@pytest.mark.parametrize("dtype", runtime.DTYPES)
def test_statistics_are_those_of_the_stored_output(dtype: torch.dtype) -> None:
    """Also where the mean is a hundred times the deviation: nothing cancels."""
    given = inputs(replace(SMALL, dtype=dtype, norm=False, mean=100.0), DEVICE)
    y, mean, var = batch_norm_act_conv1x1(given.x, given.conv_weight, groups=2, kernels="triton")
    exact = statistics(y.double(), groups=2)
    torch.testing.assert_close(mean, exact[0].float())
    torch.testing.assert_close(var, exact[1].float())
    assert mean is not None
    assert not mean.requires_grad


@pytest.mark.parametrize(("programs", "images"), [(1, 5), (3, 9), (64, 9)])
def test_parts_of_any_length_are_merged(
    programs: int, images: int, monkeypatch: pytest.MonkeyPatch, poisoned_memory: None
) -> None:
    """One program over all tiles, several with a shorter last one, one per tile."""
    monkeypatch.setattr(launches, "multiprocessors", lambda device, on_cpu: programs)
    setting = Setting(shape=(images, 16, 11, 7), outputs=24)
    for comparison in compare(setting, DEVICE):
        comparison.check()


def test_repeats_are_bit_equal_and_counters_stay_zero() -> None:
    setting = replace(SMALL, dtype=torch.bfloat16)
    given = inputs(setting, DEVICE)
    first, second = (results("triton", given, setting) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(counter.any() for counter in runtime._counters.values())


def test_a_tensor_that_is_not_channels_last_gives_the_same() -> None:
    given = inputs(SMALL, DEVICE)
    other = given._replace(x=given.x.contiguous(), grad=given.grad.contiguous())
    first, second = results("triton", given, SMALL), results("triton", other, SMALL)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_nan_stays_one() -> None:
    x, conv_weight, norm, _ = prepared(replace(SMALL, groups=1), DEVICE)
    with torch.no_grad():
        x[1, 2, 3, 4] = torch.nan
    y, mean, _ = triton(x, conv_weight, norm)
    assert y[1, :, 3, 4].isnan().all()
    assert y.isnan().sum() == 40
    assert mean.isnan().all()


@pytest.mark.parametrize("frozen", ["x", "conv_weight", "norm"])
def test_only_gradients_asked_for_are_computed(frozen: str) -> None:
    given = prepared(replace(SMALL, groups=1), DEVICE)
    assert given.norm is not None
    leaves = {"x": given.x, "conv_weight": given.conv_weight, "norm": given.norm.weight}
    expected = torch.autograd.grad(triton(*given[:3])[0], list(leaves.values()), given.grad)
    leaves[frozen].requires_grad_(False)
    if frozen == "norm":
        given.norm.bias.requires_grad_(False)
    triton(*given[:3])[0].backward(given.grad)
    for (name, leaf), gradient in zip(leaves.items(), expected, strict=True):
        if name == frozen:
            assert leaf.grad is None
        else:
            assert leaf.grad is not None
            assert torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (
            SMALL,
            "conv_fwd_kernel conv_bwd_kernel norm_bwd_kernel weight_bwd_kernel weight_sum_kernel",
        ),
        (replace(SMALL, norm=False), "conv_fwd_kernel"),
        (replace(SMALL, norm=False, statistics=False), ""),
    ],
)
def test_launches(setting: Setting, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def counted(kernel: Any, *args: Any, **options: Any) -> None:
        launched.append(kernel.__name__)
        runtime.launch(kernel, *args, **options)

    monkeypatch.setattr(launches, "launch", counted)
    results("triton", inputs(setting, DEVICE), setting)
    assert launched == expected.split()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # PyTorch's check accesses it
@pytest.mark.parametrize("setting", [SMALL, replace(SMALL, norm=False, stride=2, dtype=torch.bfloat16)])
def test_opcheck(setting: Setting) -> None:
    x, conv_weight, weight, bias, mean, rstd, _ = inputs(setting, DEVICE)
    norm = [None if t is None else t.float() for t in (weight, bias, mean, rstd)]
    leaves = [t if t is None else t.requires_grad_() for t in (x, conv_weight, *norm[:2])]
    arguments = (*leaves, *norm[2:], True, True, setting.stride, setting.groups)
    torch.library.opcheck(torch.ops.fasttrain.batch_norm_act_conv1x1.default, arguments)


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_of_the_reference(training: bool) -> None:
    """The statistics are functions of x in training: numerically they follow it, by autograd too."""
    x = torch.randn(4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    parameters = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3, 1, 1), (3,), (3,))
    ]
    constants = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64) + 0.5

    def operation(x: Tensor, conv_weight: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean, rstd = constants
        if training:
            mean, var = statistics(x.detach(), groups=2)
            rstd = (var + 1e-5).rsqrt()
        norm = Norm(weight, bias, mean, rstd)
        return batch_norm_act_conv1x1(x, conv_weight, norm, training=training, groups=2)[0]

    assert torch.autograd.gradcheck(operation, (x, *parameters))


@pytest.mark.parametrize("norm", [True, False])
def test_the_measured_baselines_compute_the_same(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":  # PyTorch has this kernel on GPUs alone

        def batch_norm_stats(y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
            mean, var = statistics(y.float())
            return mean[0], (var[0] + eps).rsqrt()

        monkeypatch.setattr(torch, "batch_norm_stats", batch_norm_stats)
    given = prepared(replace(SMALL, groups=1, norm=norm), DEVICE)
    for baseline in (eager, plain):
        for own, other in zip(baseline(*given[:3])[:2], triton(*given[:3])[:2], strict=True):
            torch.testing.assert_close(own.flatten(), other.flatten(), rtol=1e-4, atol=1e-5)
        gradients = zip(run(baseline, given), run(triton, given), strict=True)
        for index, (own, other) in enumerate(gradients):
            if index or not norm:  # the baselines take the statistics for constants
                torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def refuse(match: str, **changed: Any) -> None:
    given: dict[str, Any] = {
        "x": torch.randn(4, 3, 2, 2),
        "conv_weight": torch.randn(5, 3, 1, 1),
        "norm": Norm(torch.ones(3), torch.ones(3), torch.ones(2, 3), torch.ones(2, 3)),
        "groups": 2,
    }
    with pytest.raises(ValueError, match=match):
        batch_norm_act_conv1x1(**given | changed)


def test_refusals() -> None:
    norm = partial(Norm, torch.ones(3), torch.ones(3))
    refuse(r"x has shape \(4, 3\)", x=torch.randn(4, 3))
    refuse(r"x has shape \(0, 3, 2, 2\)", x=torch.randn(0, 3, 2, 2))
    refuse(
        r"conv_weight has shape \(5, 3, 3, 3\); allowed: \[Cout, 3, 1, 1\]",
        conv_weight=torch.ones(5, 3, 3, 3),
    )
    refuse(r"conv_weight has shape \(5, 4, 1, 1\)", conv_weight=torch.ones(5, 4, 1, 1))
    refuse(r"x is torch\.int64; allowed: torch\.float64", x=torch.ones(4, 3, 2, 2, dtype=torch.int64))
    refuse("3 groups of 4 images; allowed: divisors", groups=3)
    refuse("0 groups of 4 images", groups=0)
    refuse("stride is 2; allowed: 1 with a norm", stride=2)
    refuse("stride is 0", stride=0, norm=None)
    refuse(r"norm.mean is torch.float32 \(1, 3\)", norm=norm(torch.ones(1, 3), torch.ones(2, 3)))
    refuse("norm.rstd is torch.float16", norm=norm(torch.ones(2, 3), torch.ones(2, 3).half()))
    refuse("a tensor is on meta; x is on cpu", conv_weight=torch.ones(5, 3, 1, 1, device="meta"))
    refuse("kernels is 'cuda'; allowed: triton, reference", kernels="cuda")


def test_triton_refuses_float64() -> None:
    x, conv_weight = torch.randn(2, 3, 2, 2, device=DEVICE).double(), torch.randn(5, 3, 1, 1, device=DEVICE)
    with pytest.raises(ValueError, match=r"a tensor is torch.float64; allowed for Triton kernels"):
        batch_norm_act_conv1x1(x, conv_weight, kernels="triton")
