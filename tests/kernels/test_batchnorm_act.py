"""Fused batch norm + residual addition + ReLU: accuracy, statistics, gradients, launches, refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.accuracy import Comparison
from bench.kernels.batchnorm_act import SETTINGS, Setting, case, compare, compare_operation, inputs, results
from fasttrain.kernels import runtime
from fasttrain.kernels.batchnorm_act import batch_norm_act, batch_statistics, op
from fasttrain.kernels.batchnorm_act import triton as fused
from fasttrain.kernels.batchnorm_act.reference import moments

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPERATION = torch.ops.fasttrain.batch_norm_act.default
TRAINING = [setting for setting in SETTINGS if setting.training]


def arguments(*shape: int, **setting: Any) -> dict[str, Any]:
    """Random tensors for one call, by the operation's names, and `grad`."""
    return inputs(Setting(shape=shape, **setting), DEVICE)._asdict()


def leaves(given: dict[str, Any]) -> dict[str, Tensor]:
    """The differentiable ones, asking for gradients."""
    names = [name for name in ("x", "weight", "bias", "residual") if given[name] is not None]
    return {name: given[name].detach().requires_grad_() for name in names}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
@pytest.mark.usefixtures("poisoned_memory")
def test_as_accurate_as_plain_pytorch(setting: Setting) -> None:
    for comparison in compare(setting, DEVICE):
        comparison.check()


def with_known_statistics(x: Tensor, *args: Any, groups: int = 1, **options: Any) -> Tensor:
    """The operation, told what it would find out."""
    known = moments(x.detach(), groups)
    return batch_norm_act(x, *args, groups=groups, statistics=known, **options)


@pytest.mark.parametrize("setting", TRAINING, ids=lambda setting: setting.label)
@pytest.mark.usefixtures("poisoned_memory")
def test_known_statistics_spare_a_pass_and_nothing_else(setting: Setting) -> None:
    """Output, gradients and running statistics; in float64 those of the batch norm that takes its own."""
    given = inputs(setting, DEVICE)
    known, own = (partial(each, relu=setting.relu) for each in (with_known_statistics, batch_norm_act))
    for comparison in compare_operation(known, given, setting):
        comparison.check()
    for name, expected in results(own, given, setting, exact=True).items():
        result = results(known, given, setting, exact=True)[name]
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10, msg=name)


def test_given_statistics_are_used() -> None:
    """As they are, and for the tracked group's running statistics: seen where they are not those of x."""
    x = arguments(4, 16, 3, 5)["x"]
    one, mean, var = torch.ones(16, device=DEVICE), *torch.randn(2, 2, 16, device=DEVICE)
    running, var = (one * 0, one.clone()), var.abs() + 1
    y = batch_norm_act(
        x,
        one,
        one,
        *running,
        training=True,
        groups=2,
        tracked_group=1,
        statistics=(mean, var),
        kernels="triton",
    )
    expected = [
        F.batch_norm(part, m, v, one, one).relu() for part, m, v in zip(x.chunk(2), mean, var, strict=True)
    ]
    torch.testing.assert_close(y, torch.cat(expected))
    torch.testing.assert_close(running, (0.1 * mean[1], 0.9 + 0.1 * var[1] * 30 / 29))


@pytest.mark.parametrize("setting", TRAINING, ids=lambda setting: setting.label)
@pytest.mark.usefixtures("poisoned_memory")
def test_statistics_alone(setting: Setting) -> None:
    given = inputs(setting, DEVICE)

    def statistics(kernels: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
        x, *running = (t.to(dtype or t.dtype, copy=True) for t in (given.x, *given[3:5]))
        options: dict[str, Any] = {"groups": setting.groups, "tracked_group": setting.tracked_group}
        version = running[0]._version
        result = batch_statistics(x.requires_grad_(), *running, kernels=kernels, **options)
        assert not any(each.requires_grad for each in result)
        assert (running[0]._version > version) == (setting.tracked_group is not None)
        return [*result, *running]

    names = ("mean", "inverse deviation", "running mean", "running variance")
    three = statistics("triton"), statistics("reference"), statistics("reference", torch.float64)
    for row in zip(names, *three, strict=True):
        Comparison(*row).check()


@pytest.mark.parametrize("training", [True, False])
def test_groups_equal_separate_calls(training: bool) -> None:
    given = inputs(Setting(shape=(6, 24, 5, 7), residual=True), DEVICE)
    assert given.residual is not None

    def call(x: Tensor, residual: Tensor, **options: Any) -> Tensor:
        mean, var = given.running_mean.clone(), given.running_var.clone()
        options |= {"training": training, "kernels": "triton"}
        return batch_norm_act(x, given.weight, given.bias, mean, var, residual, **options)

    whole = call(given.x, given.residual, groups=3, tracked_group=1)
    parts = zip(given.x.chunk(3), given.residual.chunk(3), strict=True)
    alone = torch.cat([call(x, residual) for x, residual in parts])
    torch.testing.assert_close(whole, alone, rtol=0, atol=0)


def test_running_statistics_follow_the_tracked_group_alone() -> None:
    for tracked in (None, 0, 1):
        given = inputs(Setting(shape=(4, 16, 3, 5)), DEVICE)
        expected = [given.running_mean.clone(), given.running_var.clone()]
        options: dict[str, Any] = {"groups": 2, "tracked_group": tracked, "momentum": 0.3}
        batch_norm_act(*given[:5], training=True, kernels="triton", **options)
        if tracked is not None:
            part = given.x.chunk(2)[tracked]
            F.batch_norm(part, expected[0], expected[1], training=True, momentum=0.3)
        torch.testing.assert_close([given.running_mean, given.running_var], expected)


def test_large_means_do_not_cancel() -> None:
    """Mean 1000, deviation 0.01: a sum of squares in float32 would have no correct digit of the variance."""
    x = (1000 + 0.01 * torch.randn(4096, 16, device=DEVICE, dtype=torch.float64)).float()
    mean, rstd = fused.statistics(x, 1, 0.0)
    exact = x.double()
    torch.testing.assert_close(mean[0].double(), exact.mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(rstd[0].double(), exact.var(0, correction=0).rsqrt(), rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, in the interpreter
def test_nan_and_infinity_give_nan_in_their_channel_alone() -> None:
    given = arguments(3, 16, 4, 5)
    x = given["x"]
    x[0, 3, 1, 1], x[2, 5, 0, 0] = float("nan"), float("inf")
    del given["grad"]
    y = batch_norm_act(**given, training=True, kernels="triton")
    bad = ~torch.isfinite(y).all(dim=(0, 2, 3))
    assert bad.nonzero().flatten().tolist() == [3, 5]
    assert y[:, 3].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_agree_to_the_bit(dtype: torch.dtype) -> None:
    setting = Setting(shape=(6, 130, 5, 5), dtype=dtype, residual=True, groups=2)
    given = inputs(setting, DEVICE)
    for operation in (batch_norm_act, with_known_statistics):
        first, second = (results(partial(operation, kernels="triton"), given, setting) for _ in range(2))
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)


def test_several_parts_are_merged_and_counters_left_zero() -> None:
    x = torch.randn(3000, 16, device=DEVICE) + 3
    assert fused.layout(x, 1).parts > 2
    mean, rstd = fused.statistics(x, 1, 1e-5)
    torch.testing.assert_close(mean[0], x.mean(0))
    torch.testing.assert_close(rstd[0], (x.var(0, correction=0) + 1e-5).rsqrt())
    assert not runtime.counters(DEVICE, 1).any()


class _Operations(TorchDispatchMode):
    """Records what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("residual", "relu", "known"), [*product([True, False], repeat=3)])
def test_two_launches_forward_and_two_backward_and_nothing_else(
    residual: bool, relu: bool, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[str] = []

    def count(kernel: Any, *args: Any, **options: Any) -> None:
        launches.append(kernel.__name__)
        runtime.launch(kernel, *args, **options)

    monkeypatch.setattr(fused, "launch", count)
    given = arguments(4, 16, 3, 5, residual=residual)
    given |= leaves(given)
    grad = given.pop("grad")
    runtime.counters(DEVICE, 1)
    operation = with_known_statistics if known else batch_norm_act
    y = operation(**given, training=True, relu=relu, kernels="triton")
    assert launches == ["statistics_kernel"] * (not known) + ["apply_kernel"]
    launches.clear()
    with _Operations() as operations:
        torch.autograd.grad(y, [given["x"], given["weight"]], grad)
    assert launches == ["gradient_sums_kernel", "input_gradient_kernel"]
    assert set(operations.names) <= {"fasttrain::batch_norm_act_backward", "aten::detach"}


def test_nothing_but_allocations_besides_the_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "launch", lambda *_args, **_options: None)
    given = inputs(Setting(shape=(4, 16, 3, 5), residual=True), DEVICE)
    moments = torch.zeros(2, 16, device=DEVICE), torch.zeros(2, 16, device=DEVICE)
    none = (None, None)
    parameters = (given.weight, given.bias)
    running = (given.running_mean, given.running_var)
    runtime.counters(DEVICE, 1)
    with _Operations() as operations:
        for residual, training, known in product([given.residual, None], [True, False], [moments, none]):
            arguments = (*parameters, *running, residual, *known, training, 0.1, 1e-5, True, 2, 0)
            y = op._forward_kernels(given.x, *arguments)[0]
            op._statistics_kernels(given.x, *running, 0.1, 1e-5, 2, 0)
            saved = None if residual is None else y
            spread = moments if training else running
            op._backward_kernels(given.grad, given.x, saved, *spread, *parameters, training, 1e-5, True, 2)
    allocations = {"aten::empty_like", "aten::new_empty", "aten::empty.memory_format"}
    assert set(operations.names) <= allocations, set(operations.names) - allocations


def test_gradients_flow_through_a_chain() -> None:
    def chain(given: dict[str, Tensor], kernels: Any, dtype: torch.dtype) -> list[Tensor]:
        values = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in given.items()}
        zeros = torch.zeros(24, dtype=dtype, device=DEVICE)
        running = (zeros.clone(), zeros + 1)

        def layer(x: Tensor, residual: Tensor | None, groups: int) -> Tensor:
            options: dict[str, Any] = {"training": True, "kernels": kernels, "groups": groups}
            return batch_norm_act(x, values["weight"], values["bias"], *running, residual, **options)

        y = layer(layer(values["x"], None, 1), values["x"], 2)
        return list(torch.autograd.grad(y.square().mean(), [values["x"], values["weight"], values["bias"]]))

    given = leaves(arguments(4, 24, 5, 3))
    out, exact = chain(given, "triton", torch.float32), chain(given, "reference", torch.float64)
    for gradient, expected in zip(out, exact, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)


def test_other_layouts_are_copied() -> None:
    given = arguments(4, 16, 3, 5, residual=True)
    grad = given.pop("grad")
    expected = batch_norm_act(**(given | leaves(given)), training=True, kernels="triton")
    contiguous: dict[str, Any] = {name: t.contiguous() for name, t in given.items() if t is not None}
    contiguous |= leaves(contiguous)
    y = batch_norm_act(**contiguous, training=True, kernels="triton")
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.backward(grad.contiguous())
    assert contiguous["x"].grad.shape == y.shape


@pytest.mark.parametrize(
    ("training", "residual", "known"),
    [
        (True, True, False),
        (True, False, False),
        (False, True, False),
        (False, False, False),
        (True, True, True),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch itself reads it of a non-leaf
def test_opcheck(training: bool, residual: bool, known: bool) -> None:
    given = arguments(4, 16, 3, 5, residual=residual)
    given |= leaves(given)
    names = ("x", "weight", "bias", "running_mean", "running_var", "residual")
    tensors = [given[name] for name in names]
    statistics = moments(given["x"].detach(), 2) if known else (None, None)
    torch.library.opcheck(OPERATION, (*tensors, *statistics, training, 0.1, 1e-5, True, 2, 0))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_opcheck_of_the_statistics_alone() -> None:
    given = arguments(4, 16, 3, 5)
    tensors = given["x"].requires_grad_(), given["running_mean"], given["running_var"]
    torch.library.opcheck(torch.ops.fasttrain.batch_statistics.default, (*tensors, 0.1, 1e-5, 2, 0))


@pytest.mark.parametrize(
    ("training", "residual", "known"), [(True, True, False), (True, False, True), (False, True, False)]
)
def test_the_reference_passes_gradcheck(training: bool, residual: bool, known: bool) -> None:
    given = arguments(4, 3, 2, 3, residual=residual)
    values = {name: tensor.detach().double() for name, tensor in given.items() if tensor is not None}

    def function(*tensors: Tensor) -> Tensor:
        x, weight, bias, *added = tensors
        running = (values["running_mean"].clone(), values["running_var"].clone())
        operation = with_known_statistics if known else batch_norm_act
        return operation(x, weight, bias, *running, *added, training=training, groups=2)

    names = ["x", "weight", "bias"] + ["residual"] * residual
    assert torch.autograd.gradcheck(function, [values[name].requires_grad_() for name in names])


def _call(**changes: Any) -> Callable[[], Tensor]:
    given: dict[str, Any] = arguments(4, 16, 3, 5)
    del given["grad"]
    return lambda: batch_norm_act(**(given | {"training": True, "kernels": "triton"} | changes))


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(4, 16, 3, 5, device=DEVICE)
    one = torch.zeros(16, device=DEVICE)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"x": x[0]}, r"allowed: \[N, C\] and \[N, C, H, W\]"),
        ({"weight": None}, "weight or bias is None"),
        ({"weight": one[:8]}, r"weight is \(8,\), torch.float32; allowed for x .*: \[16\]"),
        ({"bias": one.double()}, "bias is .*float64; allowed"),
        ({"running_var": None}, "allowed: both or neither"),
        ({"running_mean": None, "running_var": None, "training": False}, "running_mean is None in eval"),
        ({"running_mean": one.to("meta")}, "running_mean is on meta"),
        ({"groups": 3}, "groups is 3; allowed: divisors of the 4 images"),
        ({"groups": 0}, "groups is 0"),
        ({"groups": 2, "tracked_group": 2}, "tracked_group is 2; allowed: None, 0 to 1"),
        ({"residual": x[:2]}, r"residual is \(2, 16, 3, 5\)"),
        ({"residual": x.bfloat16()}, "residual is .*bfloat16"),
        ({"x": x[:, :, :1, :1], "groups": 4}, "more than 1 value per channel"),
        ({"x": x.int()}, "torch.int32"),
        (
            {"statistics": (one[None], one[None]), "training": False},
            "statistics are given in evaluation mode",
        ),
        ({"statistics": (one, one[None])}, r"statistics' mean is \(16,\), .*: \[1, 16\], contiguous"),
        ({"statistics": (one[None], one[None].double())}, "statistics' variance is .*float64; allowed"),
        ({"kernels": "cuda"}, "allowed: triton, reference"),
    ]
    for changes, message in refusals:
        with pytest.raises(ValueError, match=message):
            _call(**changes)()


def test_statistics_of_what_does_not_fit_are_refused() -> None:
    x, one = torch.zeros(4, 16, 3, 5, device=DEVICE), torch.zeros(16, device=DEVICE)
    refusals: list[tuple[tuple[Tensor | None, ...], dict[str, Any], str]] = [
        ((x[0], None, None), {}, r"allowed: \[N, C\] and \[N, C, H, W\]"),
        ((x, one, None), {}, "allowed: both or neither"),
        ((x, one[:8], one[:8]), {}, r"running_mean is \(8,\)"),
        ((x, None, None), {"groups": 3}, "groups is 3; allowed: divisors of the 4 images"),
        ((x[:1, :, :1, :1], None, None), {}, "more than 1 value per channel"),
        ((x.double(), None, None), {}, "torch.float64"),
    ]
    for arguments, options, message in refusals:
        with pytest.raises(ValueError, match=message):
            batch_statistics(*arguments, **options, kernels="triton")  # type: ignore[arg-type]


def test_a_second_derivative_is_refused() -> None:
    x = arguments(4, 16, 3, 5)["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(_call(x=x)().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_backward_after_its_running_statistics_changed_is_refused() -> None:
    given = arguments(4, 16, 3, 5)
    del given["grad"]
    given |= leaves(given)
    y = batch_norm_act(**given, training=False, kernels="triton")
    batch_norm_act(**given, training=True, kernels="triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_bench_times_the_same_computation() -> None:
    timed = case(Setting(shape=(4, 16, 3, 5), residual=True), DEVICE)
    given = timed.prepare()
    torch.testing.assert_close(
        timed.calls["triton"](given), timed.calls["eager"](given), rtol=1e-4, atol=1e-5
    )


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("where", ["x", "bias", "residual"])
@pytest.mark.parametrize("training", [True, False])
def test_nan_is_not_hidden(where: str, training: bool) -> None:
    """As PyTorch's ReLU does, a NaN output passes the gradient on: a divergence shows in every gradient."""
    tensors = {"x": op.channels_last(torch.randn(4, 16, 5, 5, device=DEVICE))}
    tensors |= {"weight": torch.ones(16, device=DEVICE), "bias": torch.zeros(16, device=DEVICE)}
    tensors["residual"] = op.channels_last(torch.randn(4, 16, 5, 5, device=DEVICE))
    tensors[where][(0,) * tensors[where].ndim] = torch.nan
    results = []
    for kernels in ("triton", "reference"):
        given = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        running = torch.zeros(16, device=DEVICE), torch.ones(16, device=DEVICE)
        y = batch_norm_act(
            given["x"],
            given["weight"],
            given["bias"],
            *running,
            given["residual"],
            training=training,
            kernels=kernels,
        )
        results.append(torch.autograd.grad(y, list(given.values()), torch.ones_like(y)))
    for own, right in zip(*results, strict=True):
        assert torch.equal(own.isnan(), right.isnan())
        torch.testing.assert_close(own, right, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernels", ["triton", "reference"])
def test_empty_batches_and_senseless_numbers(kernels: runtime.Kernels) -> None:
    weight, bias, mean, var = (torch.ones(5, device=DEVICE) for _ in range(4))
    empty = torch.zeros(0, 5, 4, 4, device=DEVICE)
    assert (
        batch_norm_act(empty, weight, bias, mean, var, training=False, kernels=kernels).shape == empty.shape
    )
    x = torch.randn(2, 5, 4, 4, device=DEVICE)
    for eps in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="allowed: above 0, below 1"):
            batch_norm_act(x, weight, bias, mean, var, training=True, eps=eps, kernels=kernels)
    with pytest.raises(ValueError, match=r"x is torch\.int64; allowed: torch\.float64"):
        batch_norm_act(x.long(), weight, bias, mean, var, training=True, kernels=kernels)
    none = torch.zeros(2, 0, 4, 4, device=DEVICE)
    with pytest.raises(ValueError, match="C at least 1"):
        batch_norm_act(none, *(torch.ones(0, device=DEVICE),) * 4, training=False, kernels=kernels)
