"""Learning-rate schedule, optimizer and weight average."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from fasttrain.config import Optim
from fasttrain.errors import ConfigError
from fasttrain.optim import build_ema, build_optimizer, build_schedule


def test_cosine_equals_torchs_stepped_per_iteration() -> None:
    """The published code: CosineAnnealingLR over epochs * steps, stepped after each iteration."""
    schedule = build_schedule(Optim(lr=0.2), epochs=4, steps_per_epoch=5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for step in range(20):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        reference.step()


def test_warm_up_and_floor() -> None:
    schedule = build_schedule(Optim(lr=0.4, warmup_epochs=2, min_lr=0.1), epochs=10, steps_per_epoch=10)
    assert [schedule(step) for step in (0, 9, 19)] == pytest.approx([0.02, 0.2, 0.4])
    assert schedule(20) == pytest.approx(0.4)
    assert schedule(60) == pytest.approx(0.2)
    assert schedule(99) == 0.1


@pytest.mark.parametrize("impl", ["fused", "foreach"])
def test_sgd_is_nesterovs_with_decay_on_everything(impl: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer([weight], Optim(lr=0.1, weight_decay=0.01, impl=impl), torch.device("cpu"))  # type: ignore[arg-type]
    expected, velocity = weight.detach().clone(), torch.zeros(2)
    for step in range(3):
        gradient = torch.tensor([0.5, float(step)])
        decayed = gradient + 0.01 * expected
        velocity = 0.9 * velocity + decayed
        expected = expected - 0.1 * (decayed + 0.9 * velocity)
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_ema_follows_weights_and_statistics() -> None:
    network = torch.nn.BatchNorm1d(2)
    ema = build_ema(network, 0.9)
    assert ema is not None
    assert build_ema(network, 0.0) is None
    ema.update_parameters(network)
    with torch.no_grad():
        network.weight.fill_(2.0)
        assert network.running_mean is not None
        network.running_mean.fill_(10.0)
    ema.update_parameters(network)
    averaged = ema.module
    assert isinstance(averaged, torch.nn.BatchNorm1d)
    torch.testing.assert_close(averaged.weight.detach(), torch.full((2,), 1.1))
    torch.testing.assert_close(averaged.running_mean, torch.full((2,), 1.0))
    assert math.isclose(float(ema.n_averaged), 2)


def test_apex_is_asked_for_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, cuda = torch.nn.Parameter(torch.zeros(2)), torch.device("cuda")
    with pytest.raises(ConfigError, match=r"allowed here: auto, fused, foreach"):
        build_optimizer([weight], Optim(impl="apex"), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"optim\.impl is 'apex', but .*not installed.*PyPI's 'apex'"):
        build_optimizer([weight], Optim(impl="apex"), cuda)
    given: dict[str, Any] = {}
    apex, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    optimizers.FusedSGD = lambda parameters, **options: given.update(options) or parameters  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    assert build_optimizer([weight], Optim(lr=0.3, impl="apex"), cuda) == [weight]
    assert given == {
        "lr": 0.3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "nesterov": True,
        "set_grad_none": True,
    }
