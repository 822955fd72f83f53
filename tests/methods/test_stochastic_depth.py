"""Stochastic depth: its loss against a plain float64 reference, and its draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain import build
from fasttrain.config import Config, Data, Method, Model, Run
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision
from fasttrain.methods import StochasticDepth, build_method
from fasttrain.models import StagedNetwork, TreeForward, set_survival, survivals

from ..networks import tiny_images, tiny_mobilenet, tiny_resnet

TARGETS = torch.tensor([1, 4, 0, 6])
OPTIONS = Config(method=Method(name="stochastic_depth", survival=0.4))


def dropping(network: StagedNetwork) -> StagedNetwork:
    set_survival(network, 0.4)
    return network


def drawn(network: StagedNetwork, *, images: int = 4, epoch: int = 0, step: int = 0, rank: int = 0) -> Tensor:
    """The factors [branches, images] of one step."""
    method = build_method(OPTIONS, network, rank=rank)
    method.plan(tiny_images(images, 32), (), epoch=epoch, step=step)
    factors = [each.factors for each in survivals(network)]
    assert all(each is not None for each in factors)
    return torch.stack(factors)  # type: ignore[arg-type]


def test_loss_and_gradients_are_the_definition() -> None:
    """ReLU(shortcut + branch * survives / p) for each image and block, in training mode."""
    network, plain = dropping(tiny_resnet((2, 2))), tiny_resnet((2, 2))
    method, images = build_method(OPTIONS, network), tiny_images(4, 32)
    plan = method.plan(images, (), epoch=3, step=5)
    loss = method.loss(TreeForward(network)(plan.inputs, plan.trees), plan, TARGETS)
    loss.total.backward()
    x = plain.stem(images)
    blocks: list[Any] = [block for stage in plain.stages for block in stage]
    for survival, block in zip(survivals(network), blocks, strict=True):
        assert survival.factors is not None
        branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        shortcut = x if block.downsample is None else block.downsample(x)
        x = F.relu(shortcut + branch * survival.factors.double().view(-1, 1, 1, 1))
    own = F.cross_entropy(plain.head(x), TARGETS)
    own.backward()
    assert abs(loss.total.item() - own.item()) < 1e-6  # factors are float32
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8)


def test_survival_falls_linearly_to_the_last_block() -> None:
    probabilities = [each.probability for each in survivals(dropping(tiny_resnet((2, 1, 2))))]
    assert probabilities == pytest.approx([0.88, 0.76, 0.64, 0.52, 0.4])


def test_branches_survive_as_often_as_they_should() -> None:
    network = dropping(tiny_resnet((2, 2)))
    factors = drawn(network, images=4000)
    for own, survival in zip(factors, survivals(network), strict=True):
        p = survival.probability
        assert own.unique().tolist() == [0.0, pytest.approx(1 / p)]
        assert abs((own > 0).float().mean().item() - p) < 4 * (p * (1 - p) / 4000) ** 0.5
        assert abs(own.mean().item() - 1) < 0.1


def test_draws_depend_on_seed_epoch_step_and_rank() -> None:
    network = dropping(tiny_resnet((2, 2)))
    first = drawn(network, images=64, epoch=1, step=2)
    assert torch.equal(first, drawn(network, images=64, epoch=1, step=2))
    for other in ({"epoch": 2, "step": 2}, {"epoch": 1, "step": 3}, {"epoch": 1, "step": 2, "rank": 1}):
        assert not torch.equal(first, drawn(network, images=64, **other))


def test_parts_of_a_batch_draw_on() -> None:
    """Two halves have together what the batch has, drawn part after part."""
    network = dropping(tiny_resnet((2, 2)))
    method = build_method(OPTIONS, network)
    halves = []
    for _ in range(2):
        method.plan(tiny_images(64, 32), (), epoch=0, step=0)
        halves.append(torch.stack([each.factors for each in survivals(network)]))  # type: ignore[misc]
    assert not torch.equal(*halves)


def test_evaluation_and_weights_are_the_plain_networks() -> None:
    network, plain = dropping(tiny_resnet((2, 2))), tiny_resnet((2, 2))
    drawn(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(network.eval()(tiny_images(2, 32)), plain.eval()(tiny_images(2, 32)))


def test_blocks_without_a_shortcut_always_run() -> None:
    network = dropping(tiny_mobilenet((2, 2)))
    assert len(survivals(network)) == 4 - len(network.without_shortcut) < 4


def test_steps_learn_and_fused_batch_norms_stay_right() -> None:
    config = Config(
        data=Data(crop=32, val_crop=32, val_resize=32, num_classes=7),
        model=Model(name="cifar_resnet20", batch_norm="reference"),
        method=Method(name="stochastic_depth", survival=0.8),
        run=Run(epochs=4, batch=4, device="cpu"),
    )
    cpu = torch.device("cpu")
    network = build.build_network(config, 7, cpu).train()
    assert len(survivals(network)) == 9
    step = build.build_step(config, network, Process(0, 1, cpu), Precision("fp32", "cpu"), 2)
    assert isinstance(step.method, StochasticDepth)
    step.schedule = lambda _: 0.02  # type: ignore[assignment]
    images = tiny_images(4, 32).float()
    losses = [
        step(images, (), TARGETS, epoch=0, step=index, global_step=index).loss.total.item()
        for index in range(10)
    ]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.drop_path is 0\.1; allowed: 0 with .* stochastic_depth"):
        Config(model=Model(drop_path=0.1), method=Method(name="stochastic_depth"))
    with pytest.raises(ConfigError, match=r"method\.survival is 0\.0; allowed: 0\.01 to 1"):
        Method(name="stochastic_depth", survival=0.0)
