"""Updates that are left out, the first among them: as if the optimizer's step had never been called.

Fresh memory holds NaN: a moment that nothing wrote would show.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fasttrain.config import Optim
from fasttrain.guards.finite import gradient_norm, guarded_step
from fasttrain.hardware import Precision
from fasttrain.optim import build_optimizer, load_optimizer
from tests.guards.test_finite import build_step, train
from tests.test_optim import CPU, FORMULAS, IMPLEMENTATIONS

LOOPS = [(name, "for-loop") for name in FORMULAS]
SKIPS = {"none": (), "first": (0,), "middle": (2,), "consecutive": (0, 1, 3, 4), "last": (5,)}
STEPS = 6

pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Gate:
    """Steps an optimizer where the gradients are finite: by the run's guard, or by torch's GradScaler."""

    def __init__(self, kind: str) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=kind == "scaler")

    def step(self, optimizer: torch.optim.Optimizer, gradients: list[Tensor], finite: bool) -> None:
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = self.scaler.scale(gradient)
        if not finite:
            parameters[0].grad.view(-1)[1] = torch.inf
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            guarded_step(optimizer, gradient_norm(parameters))
        optimizer.zero_grad()


def options_of(name: str, impl: str, **changes: Any) -> Optim:
    own = {"lr": 0.02, "weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, **changes}
    return Optim(name=name, impl="foreach" if impl == "for-loop" else impl, **own)  # type: ignore[arg-type]


def make(
    name: str, impl: str, seed: int = 0, **changes: Any
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (5,))
    weights = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
    optimizer = build_optimizer(weights, options_of(name, impl, **changes), CPU)
    if impl == "for-loop":
        for group in optimizer.param_groups:
            group["foreach"] = False
    return weights, optimizer


def gradients_of(step: int, weights: list[nn.Parameter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in weights]


@pytest.mark.parametrize("gate", ["guard", "scaler"])
@pytest.mark.parametrize("skips", SKIPS.values(), ids=SKIPS)
@pytest.mark.parametrize(("name", "impl"), [*IMPLEMENTATIONS, *LOOPS])
def test_a_step_that_is_left_out_is_none(name: str, impl: str, skips: tuple[int, ...], gate: str) -> None:
    """By the papers' formulas, applied to the other steps alone; moments and counts included."""
    weights, optimizer = make(name, impl)
    updates = [FORMULAS[name](options_of(name, impl)) for _ in weights]
    expected = [each.detach().clone() for each in weights]
    gating = Gate(gate)
    for step in range(STEPS):
        gradients = gradients_of(step, weights)
        gating.step(optimizer, gradients, step not in skips)
        if step not in skips:
            expected = [update(*pair) for update, *pair in zip(updates, expected, gradients, strict=True)]
        for ours, theirs in zip(weights, expected, strict=True):
            torch.testing.assert_close(ours.detach(), theirs, rtol=1e-10, atol=1e-12)
    counts = [entry["step"] for entry in optimizer.state.values() if "step" in entry]
    counts += [group["step"] for group in optimizer.param_groups if "step" in group]
    assert {int(count) for count in counts} <= {STEPS - len(skips)}


@pytest.mark.parametrize("optim", [{"momentum": 0.0}, {"momentum": 0.9}])
@pytest.mark.parametrize("impl", ["fused", "foreach", "for-loop"])
def test_a_first_step_is_torchs_own_to_the_bit(impl: str, optim: dict[str, Any]) -> None:
    """Whose momentum starts as the gradient: zeros before it give the same."""
    weights, optimizer = make("sgd", impl, **optim)
    copies = [nn.Parameter(each.detach().clone()) for each in weights]
    (group,) = optimizer.param_groups
    own = {key: value for key, value in group.items() if key in ("lr", "momentum", "nesterov", "fused")}
    reference = torch.optim.SGD(copies, weight_decay=group["weight_decay"], foreach=group["foreach"], **own)
    for step in range(3):
        for each, gradient in zip(weights, gradients_of(step, weights), strict=True):
            each.grad = gradient
        for each, like in zip(copies, weights, strict=True):
            each.grad = like.grad.clone()  # type: ignore[union-attr]
        optimizer.step()
        reference.step()
        for ours, theirs in zip(weights, copies, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FORMULAS)
def test_moments_on_a_gpu_are_laid_out_as_torchs_own(name: Any) -> None:
    """On tensors without memory: those of their parameter; a fused optimizer counts on the device."""
    cuda = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        weight = torch.empty(8, 3, 3, 3, device=cuda).to(memory_format=torch.channels_last)
        parameter = nn.Parameter(weight)
        state = build_optimizer([parameter], Optim(name=name), cuda).state[parameter]
    expected = {"sgd": ["momentum_buffer"], "lamb": ["exp_avg", "exp_avg_sq"]}
    assert list(state) == expected.get(name, ["step", "exp_avg", "exp_avg_sq"])
    assert {(each.device, each.dtype) for each in state.values()} == {(cuda, torch.float32)}
    moments = [each for each in state.values() if each.ndim]
    assert {(each.shape, each.stride()) for each in moments} == {(weight.shape, weight.stride())}


def older(state: dict[str, Any], form: str) -> dict[str, Any]:
    """A state from before any good step, as other versions of fasttrain and torch leave it."""
    if form == "now":
        return state
    entries = {index: {"momentum_buffer": None} for index in (0, 1)}
    return {**state, "state": {} if form == "empty" else entries}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in FORMULAS for form in ("now", "empty")),
        ("sgd", "without a buffer"),
    ],
)
@pytest.mark.parametrize("impl", ["fused", "foreach"])
def test_a_run_resumed_before_its_first_good_step(name: str, form: str, impl: str) -> None:
    """Its next step is left out, too; the implementation may have changed."""
    if (name, impl) not in IMPLEMENTATIONS:
        impl = "foreach"
    before, gating = make(name, "foreach")[1], Gate("guard")
    weights, optimizer = make(name, impl)
    gating.step(before, gradients_of(0, weights), finite=False)
    load_optimizer(optimizer, older(copy.deepcopy(before.state_dict()), form))
    expected, reference = make(name, "foreach")
    for step in range(1, 4):
        gating.step(optimizer, gradients_of(step, weights), finite=step > 1)
        if step > 1:
            gating.step(reference, gradients_of(step, weights), finite=True)
    for ours, theirs in zip(weights, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_moments_that_a_checkpoint_has_in_part_are_refused() -> None:
    _, optimizer = make("adamw", "foreach")
    state = copy.deepcopy(optimizer.state_dict())
    del state["state"][1]["exp_avg_sq"]
    with pytest.raises(ValueError, match="keeps step, exp_avg; allowed: step, exp_avg, exp_avg_sq"):
        load_optimizer(optimizer, state)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "impl"), IMPLEMENTATIONS)
def test_a_run_goes_on_as_if_such_steps_had_not_been(name: str, impl: str, precision: str) -> None:
    """Weights and running statistics; schedule and weight average count them, the latter as unchanged."""
    bad = (0, 1, 3)
    optim = {"name": name, "impl": impl, "ema": 0.5, "warmup_epochs": 1.0}
    step, reference = (
        build_step(3 if precision == "fp32" else 0, precision=Precision(precision, "cpu"), **optim)
        for _ in range(2)
    )
    scales = precision == "fp16"
    step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scales)
    assert reference.ema is not None
    for index in range(5):
        scale = step.scaler.get_scale()
        rate = train(step, index, poison=index in bad).lr
        assert rate == reference.schedule(index)
        if index in bad:
            reference.ema.update_parameters(reference.forward.network)  # type: ignore[arg-type]
        else:
            reference.scaler = torch.amp.GradScaler("cpu", scale, enabled=scales)
            train(reference, index)
    for ours, theirs in zip(tensors(step), tensors(reference), strict=True):
        assert torch.isfinite(ours).all()
        assert torch.equal(ours, theirs)


def tensors(step: Any) -> list[Tensor]:
    """Of the network and its average, but for batch norm's counts of batches, on which nothing depends."""
    modules = (step.forward, step.ema)
    every = [each for module in modules for each in (*module.parameters(), *module.buffers())]
    return [each for each in every if each.is_floating_point()]
