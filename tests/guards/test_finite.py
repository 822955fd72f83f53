"""Gradients that are not finite change nothing, and are told a step late."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fasttrain import build
from fasttrain.config import Config, Data, Method, Optim, Run
from fasttrain.distributed import Process
from fasttrain.errors import NonFiniteError
from fasttrain.guards.finite import LateCheck, gradient_norm
from fasttrain.hardware import Precision
from fasttrain.step import StepResult, TrainStep
from tests.networks import tiny_images, tiny_resnet
from tests.test_optim import IMPLEMENTATIONS

FP32 = Precision("fp32", "cpu")


def build_step(allowed: int = 0, precision: Precision = FP32, **optim: object) -> TrainStep:
    config = Config(
        data=Data(crop=32, val_crop=32, val_resize=32),
        method=Method(subnets=2, normalize="layer_norm"),
        optim=Optim(lr=0.01, **optim),  # type: ignore[arg-type]
        run=Run(batch=4, epochs=2, skip_nonfinite=allowed),
    )
    network = tiny_resnet((2, 2)).float().train()
    return build.build_step(config, network, Process(0, 1, torch.device("cpu")), precision, 4)


def train(step: TrainStep, index: int, *, poison: bool = False) -> StepResult:
    images = tiny_images(4, 32, seed=index).float()
    if poison:
        images[1, 0, 5, 5] = float("nan")
    return step(images, [], torch.arange(4), epoch=0, step=index, global_step=index)


def state(step: TrainStep) -> list[Tensor]:
    """Copies of weights, and of all that the optimizer keeps: moments, counts of steps."""
    moments = [each for entry in step.optimizer.state.values() for each in entry.values()]
    counts = [group["step"] for group in step.optimizer.param_groups if "step" in group]
    tensors = [*step.forward.parameters(), *moments, *counts]
    return [torch.as_tensor(each).detach().clone() for each in tensors]


@pytest.mark.parametrize(("name", "impl"), IMPLEMENTATIONS)
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_poisoned_batch_changes_no_weight_and_is_told_a_step_late(
    name: str, impl: str, clip: float
) -> None:
    step = build_step(name=name, impl=impl, clip=clip)
    train(step, 0)
    before = state(step)
    assert torch.isnan(train(step, 1, poison=True).gradient_norm)
    for ours, theirs in zip(state(step), before, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(NonFiniteError, match="norm became nan at step 2,"):
        train(step, 2)


def test_the_last_step_is_judged_when_the_trainer_reports() -> None:
    step = build_step()
    train(step, 0)
    step.check.settle()
    train(step, 1, poison=True)
    with pytest.raises(NonFiniteError, match="step 2"):
        step.check.settle()
    step.check.settle()  # told once


def test_finite_steps_are_the_optimizers_own() -> None:
    """The guard changes nothing where nothing is wrong, with either implementation."""
    fused, foreach = build_step(impl="fused"), build_step(impl="foreach")
    for index in range(3):
        norms = [train(step, index).gradient_norm for step in (fused, foreach)]
        torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)
        assert norms[0] > 0
    for ours, theirs in zip(state(fused), state(foreach), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_norm_is_that_of_all_gradients() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    weights[0].grad, weights[1].grad = torch.tensor([1.0, 2.0, 2.0]), torch.full((2, 2), 2.0)
    assert gradient_norm([*weights, torch.nn.Parameter(torch.zeros(1))]).item() == 5.0


def test_updates_may_be_left_out_up_to_so_many_in_a_row() -> None:
    """What they did to the running statistics is taken back; the count goes on."""
    step = build_step(allowed=1)
    train(step, 0)
    before = state(step), [each.clone() for each in step.forward.buffers() if each.is_floating_point()]
    train(step, 1, poison=True)
    after = state(step), [each for each in step.forward.buffers() if each.is_floating_point()]
    for ours, theirs in zip([*after[0], *after[1]], [*before[0], *before[1]], strict=True):
        assert torch.equal(ours, theirs)
    train(step, 2)
    train(step, 3, poison=True)
    train(step, 4, poison=True)
    assert step.check.skipped == 2
    with pytest.raises(NonFiniteError, match=r"nan at step 5 \(2 in a row\)"):
        step.check.settle()


def test_infinity_is_told_too() -> None:
    check = LateCheck()
    check.follow(torch.tensor(float("inf")), 6)
    with pytest.raises(NonFiniteError, match="inf at step 7"):
        check.follow(torch.tensor(1.0), 7)


def test_overflows_in_a_row_end_once_the_loss_scale_cannot_be_to_blame() -> None:
    """fp16: those that the scale answers are no faults and not counted; a good step starts anew."""
    check, nan, good = LateCheck(allowed=1, overflows=3), torch.tensor(float("nan")), torch.tensor(1.0)
    for step, norm in enumerate([nan, nan, nan, good, nan, nan, nan, nan]):
        check.follow(norm, step)
    assert check.skipped == 0
    check.follow(nan, 8)
    assert check.skipped == 1
    with pytest.raises(NonFiniteError, match=r"nan at step 9 \(5 in a row\)"):
        check.settle()
