"""Learning-rate schedule, optimizers, their parameters' groups, and weight average."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from fasttrain.config import Optim
from fasttrain.errors import ConfigError
from fasttrain.models import StagedNetwork, create_model
from fasttrain.optim import (
    build_ema,
    build_optimizer,
    build_schedule,
    choose_impl,
    layer_numbers,
    load_optimizer,
    parameter_groups,
)
from tests.networks import tiny_images, tiny_resnet, tiny_swin

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IMPLEMENTATIONS = [
    ("sgd", "fused"),
    ("sgd", "foreach"),
    ("adamw", "fused"),
    ("adamw", "foreach"),
    ("lamb", "foreach"),
]
"""What runs on a CPU."""


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


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_a_cosine_to_the_floor_equals_timms(unit: str) -> None:
    """With the warm-up before the cosine, not over its start (`warmup_prefix`)."""
    epochs, steps, warmup = 12, 7, 3
    optim = Optim(
        lr=4e-3,
        warmup_epochs=warmup,
        warmup_lr=1e-6,
        min_lr=1e-5,
        schedule="cosine_to_floor",
        schedule_unit=unit,  # type: ignore[arg-type]
    )
    schedule = build_schedule(optim, epochs, steps)
    per = steps if unit == "step" else 1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=4e-3)
    reference = CosineLRScheduler(
        optimizer,
        t_initial=(epochs - warmup) * per,
        lr_min=1e-5,
        warmup_t=warmup * per,
        warmup_lr_init=1e-6,
        warmup_prefix=True,
    )
    assert schedule(0) == 1e-6
    for step in range(epochs * steps):
        reference.step(step if unit == "step" else step // steps)
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_a_rate_that_stays_for_an_epoch() -> None:
    optim = Optim(lr=0.4, warmup_epochs=2, schedule_unit="epoch")
    schedule = build_schedule(optim, epochs=4, steps_per_epoch=3)
    rates = [schedule(step) for step in range(12)]
    assert rates == pytest.approx([0.2] * 3 + [0.4] * 3 + [0.4] * 3 + [0.2] * 3)


def sgd(optim: Optim) -> Callable[[Tensor, Tensor], Tensor]:
    """Nesterov's momentum with an L2 penalty, as Sutskever et al. 2013 and torch's documentation have it."""
    velocity: Any = 0.0

    def update(weight: Tensor, gradient: Tensor) -> Tensor:
        nonlocal velocity
        decayed = gradient + optim.weight_decay * weight
        velocity = optim.momentum * velocity + decayed
        return weight - optim.lr * (decayed + optim.momentum * velocity)

    return update


def adam_step(optim: Optim) -> Callable[[Tensor], Tensor]:
    """Adam's step without its learning rate (Kingma and Ba 2015, algorithm 1)."""
    (first, second), count = optim.betas, 0
    mean: Any = 0.0
    square: Any = 0.0

    def step(gradient: Tensor) -> Tensor:
        nonlocal count, mean, square
        count += 1
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        return mean / (1 - first**count) / ((square / (1 - second**count)).sqrt() + optim.eps)

    return step


def adamw(optim: Optim) -> Callable[[Tensor, Tensor], Tensor]:
    """Loshchilov and Hutter 2019, algorithm 2: decay times the learning rate beside Adam's step."""
    step = adam_step(optim)
    return lambda weight, gradient: weight - optim.lr * (step(gradient) + optim.weight_decay * weight)


def lamb(optim: Optim) -> Callable[[Tensor, Tensor], Tensor]:
    """You et al. 2020, algorithm 2: Adam's step and decay, as long as the weights, with phi the identity."""
    step = adam_step(optim)

    def update(weight: Tensor, gradient: Tensor) -> Tensor:
        direction = step(gradient) + optim.weight_decay * weight
        return weight - optim.lr * weight.norm() / direction.norm() * direction

    return update


FORMULAS = {"sgd": sgd, "adamw": adamw, "lamb": lamb}


@pytest.mark.parametrize(("name", "impl"), IMPLEMENTATIONS)
def test_updates_follow_the_formulas(name: str, impl: str) -> None:
    """Five steps on two tensors in float64, against formulas written from the papers."""
    optim = Optim(
        name=name,  # type: ignore[arg-type]
        lr=0.02,
        weight_decay=0.05,
        betas=(0.8, 0.95),
        eps=1e-6,
        impl=impl,  # type: ignore[arg-type]
    )
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [nn.Parameter(draw(3, 4)), nn.Parameter(draw(5))]
    expected = [weight.detach().clone() for weight in weights]
    optimizer = build_optimizer(weights, optim, CPU)
    updates = [FORMULAS[name](optim) for _ in weights]
    for _ in range(5):
        for index, weight in enumerate(weights):
            weight.grad = 10 * draw(*weight.shape)
            expected[index] = updates[index](expected[index], weight.grad)
        optimizer.step()
    for weight, own in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), own, rtol=1e-10, atol=1e-12)


def test_auto_takes_what_there_is() -> None:
    chosen = {(name, impl): choose_impl(Optim(name=name, impl=impl), CUDA) for name, impl in IMPLEMENTATIONS}  # type: ignore[arg-type]
    assert chosen == {(name, impl): impl for name, impl in IMPLEMENTATIONS}
    assert [choose_impl(Optim(name=name), CUDA) for name in ("sgd", "adamw", "lamb")] == [
        "fused",
        "fused",
        "foreach",
    ]
    assert {choose_impl(Optim(name=name), CPU) for name in FORMULAS} == {"foreach"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, r"optim\.name is 'adam'; did you mean adamw\? allowed: sgd, adamw, lamb"),
        ({"name": "lamb", "impl": "fused"}, r"optim\.impl is 'fused'; allowed: auto, foreach with lamb"),
        ({"name": "adamw", "impl": "apex"}, "'apex'; allowed: auto, fused, foreach with adamw"),
        ({"betas": (0.9, 1.0)}, r"optim\.betas is 1\.0; allowed: 0 to 0\.999999"),
        ({"betas": (0.9,)}, r"optim\.betas is \(0\.9,\); allowed: 2 values of type float"),
        ({"eps": 0.0}, r"optim\.eps is 0\.0"),
        ({"layer_decay": 0.0}, r"optim\.layer_decay is 0\.0; allowed: 0\.01 to 1"),
        ({"layer_decay": 1.1}, r"optim\.layer_decay is 1\.1"),
        ({"lr": 0.1, "warmup_lr": 0.2}, r"optim\.warmup_lr is 0\.2; allowed: 0 to 0\.1"),
        ({"decay_on": "some"}, "'some'; allowed: all, matrices"),
        ({"schedule": "step"}, "'step'; allowed: cosine, cosine_to_floor"),
        ({"schedule_unit": "image"}, "'image'; allowed: step, epoch"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Optim(**options)


def names_of(network: nn.Module, groups: Any) -> dict[str, dict[str, float]]:
    """Parameter's name to its group's options."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        names[parameter]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for parameter in group["params"]
    }


def test_without_exclusions_there_is_one_group() -> None:
    network = tiny_resnet((2, 2))
    optimizer = build_optimizer(parameter_groups(network, network, Optim()), Optim(), CPU)
    (group,) = optimizer.param_groups
    assert group["params"] == list(network.parameters())


@pytest.mark.parametrize("name", ["cifar_resnet20", "mobilenetv3_small_100"])
def test_vectors_embeddings_and_tokens_need_not_decay(name: str) -> None:
    """As timm leaves them out: biases, batch norms, and what a network names."""
    network = create_model(name, 10)
    network.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
    groups = names_of(
        network, parameter_groups(network, network, Optim(weight_decay=0.02, decay_on="matrices"))
    )
    assert set(groups) == {own for own, _ in network.named_parameters()}
    for own, parameter in network.named_parameters():
        expected = 0.02 if parameter.ndim > 1 and own != "pos_embed" else 0.0
        assert groups[own] == {"weight_decay": expected, "lr_scale": 1.0}, own
    assert {group["weight_decay"] for group in groups.values()} == {0.0, 0.02}


def numbers_of(network: StagedNetwork) -> dict[str, int]:
    """Parameter's name to its layer."""
    numbers = layer_numbers(network)
    return {name: numbers[parameter] for name, parameter in network.named_parameters()}


def test_layers_are_stem_blocks_in_order_and_head() -> None:
    """What lies between two stages is of the block after it; a network's own parameters of the stem."""
    network = tiny_resnet((2, 1))
    network.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
    numbers = numbers_of(network)
    prefixes = {"cls_token": 0, "conv1": 0, "bn1": 0, "layer1.0": 1, "layer1.1": 2, "layer2.0": 3, "fc": 4}
    assert set(numbers) == {name for name, _ in network.named_parameters()}
    for name, number in numbers.items():
        assert number == next(own for prefix, own in prefixes.items() if name.startswith(prefix)), name

    mobile = create_model("mobilenetv3_large_100", 10)
    numbers = numbers_of(mobile)
    assert numbers["conv_stem.weight"] == 0
    assert numbers["blocks.5.2.conv_pw.weight"] == sum(mobile.depths) == 15
    assert {numbers[f"{name}.weight"] for name in ("blocks.6.0.conv", "conv_head", "classifier")} == {16}


def test_rates_fall_by_layer_in_closed_form() -> None:
    """Of a stem, three blocks and a head: 0.5^4, 0.5^3, 0.5^2, 0.5, 1, and the update is as much smaller."""
    network = tiny_resnet((2, 1))
    optim = Optim(name="adamw", layer_decay=0.5, weight_decay=0.05, decay_on="matrices")
    groups = names_of(network, parameter_groups(network, network, optim))
    scales = {"conv1.weight": 1 / 16, "bn1.bias": 1 / 16, "layer1.0.conv2.weight": 1 / 8}
    scales |= {"layer1.1.bn1.weight": 1 / 4, "layer2.0.downsample.0.weight": 1 / 2, "fc.weight": 1.0}
    for name, scale in scales.items():
        assert groups[name]["lr_scale"] == scale
    assert groups["bn1.bias"]["weight_decay"] == 0
    assert groups["conv1.weight"]["weight_decay"] == 0.05


def test_what_is_trained_beside_the_network_is_of_the_heads_layer() -> None:
    network = tiny_resnet((1, 1))
    both = nn.ModuleDict({"network": network, "more": nn.Linear(3, 2)})
    groups = names_of(both, parameter_groups(both, network, Optim(layer_decay=0.5, decay_on="matrices")))
    assert groups["more.weight"] == groups["network.fc.weight"] == {"weight_decay": 1e-4, "lr_scale": 1.0}
    assert groups["network.conv1.weight"]["lr_scale"] == 1 / 8


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
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match=r"allowed here: auto, fused, foreach"):
        build_optimizer([weight], Optim(impl="apex"), CPU)
    with pytest.raises(ConfigError, match=r"optim\.impl is 'apex', but .*not installed.*PyPI's 'apex'"):
        build_optimizer([weight], Optim(impl="apex"), CUDA)
    given: dict[str, Any] = {}
    apex, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")

    def fused_sgd(parameters: list[nn.Parameter], *, set_grad_none: bool, **options: Any) -> Any:
        given.update(options, set_grad_none=set_grad_none)
        return torch.optim.SGD(parameters, **options)

    optimizers.FusedSGD = fused_sgd  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    optimizer = build_optimizer([weight], Optim(lr=0.3, impl="apex"), CUDA)
    assert optimizer.param_groups[0]["params"] == [weight]
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.zeros(2))  # before the first step
    assert given == {
        "lr": 0.3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "nesterov": True,
        "set_grad_none": True,
    }


def test_tables_of_indices_are_not_averaged() -> None:
    """Swin's relative positions, as buffers of whole numbers: an average of them would be cut off."""
    network = tiny_swin().float().eval()
    ema = build_ema(network, 0.9999)
    assert ema is not None
    for _ in range(20):
        ema.update_parameters(network)
    for name, buffer in network.named_buffers():
        assert torch.equal(ema.module.get_buffer(name), buffer), name
    images = tiny_images(2, 32).float()
    torch.testing.assert_close(ema.module(images), network(images))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(("before", "after"), [("fused", "foreach"), ("foreach", "fused")])
def test_a_loaded_optimizer_keeps_its_implementation(name: Any, before: Any, after: Any) -> None:
    def made(impl: Any) -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return layer, build_optimizer(layer.parameters(), Optim(name=name, impl=impl, lr=0.1), CPU)

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
        optimizer.step()

    (old, optimizer), (new, other) = made(before), made(after)
    step(old, optimizer)
    new.load_state_dict(old.state_dict())
    load_optimizer(other, copy.deepcopy(optimizer.state_dict()))
    assert [bool(other.param_groups[0][key]) for key in ("fused", "foreach")] == [
        after == "fused",
        after == "foreach",
    ]
    step(old, optimizer)
    step(new, other)
    torch.testing.assert_close(new.weight, old.weight)


def test_a_state_of_other_shapes_is_refused() -> None:
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer.parameters(), Optim(lr=0.1), CPU)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["momentum_buffer"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"momentum_buffer has shape \(1,\), the parameter \(2, 3\)"):
        load_optimizer(optimizer, state)
