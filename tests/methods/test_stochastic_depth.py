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
from fasttrain.models import Drop, FusedBatchNorm, StagedNetwork, TreeForward, batch_norms, fuse_batch_norms

from ..networks import tiny_images, tiny_mobilenet, tiny_resnet

TARGETS = torch.tensor([1, 4, 0, 6])
OPTIONS = Config(method=Method(name="stochastic_depth", survival=0.4))
CPU = torch.device("cpu")


def drop_of(network: StagedNetwork, **at: int) -> Drop:
    """What one step drops."""
    method = build_method(OPTIONS, network, rank=at.pop("rank", 0))
    (drop,) = method.plan(tiny_images(4, 32), (), **{"epoch": 0, "step": 0, **at}).drops
    assert drop is not None
    return drop


def factors(network: StagedNetwork, images: int = 64, **at: int) -> Tensor:
    """What each block's branch is multiplied by [blocks, images] in one step."""
    blocks: list[Any] = [block for stage in network.stages for block in stage]
    with drop_of(network, **at).within(network):
        return torch.stack([block.drop_path(torch.ones(images, 1))[:, 0] for block in blocks])


@pytest.mark.parametrize("fused", [False, True])
def test_loss_and_gradients_are_the_definition(fused: bool) -> None:
    """ReLU(shortcut + branch * survives / p) for each image and block, in training mode."""
    network, plain = tiny_resnet((2, 2)).train(), tiny_resnet((2, 2)).train()
    for norm in [*batch_norms(network), *batch_norms(plain)]:  # zero in the last of each block at first
        torch.nn.init.ones_(norm.weight)
    if fused:
        fuse_batch_norms(network, "reference")
    method, images = build_method(OPTIONS, network), tiny_images(4, 32)
    plan = method.plan(images, (), epoch=3, step=5)
    loss = method.loss(TreeForward(network)(plan.inputs, plan.trees, plan.drops), plan, TARGETS)
    loss.total.backward()
    generator = drop_of(network, epoch=3, step=5).generator
    x = plain.stem(images)
    blocks: list[Any] = [block for stage in plain.stages for block in stage]
    for index, block in enumerate(blocks, start=1):
        p = 1 - index / 4 * (1 - 0.4)
        survives = x.new_empty(4, 1, 1, 1).bernoulli_(p, generator=generator)
        branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        shortcut = x if block.downsample is None else block.downsample(x)
        x = F.relu(shortcut + branch * survives / p)
    own = F.cross_entropy(plain.head(x), TARGETS)
    own.backward()
    torch.testing.assert_close(loss.total, own, rtol=1e-11, atol=0)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-11)


def test_survival_falls_linearly_to_the_last_block() -> None:
    network: Any = tiny_resnet((2, 1, 2))
    with drop_of(network).within(network):
        probabilities = [block.drop_path.keep for stage in network.stages for block in stage]
    assert probabilities == pytest.approx([0.88, 0.76, 0.64, 0.52, 0.4])


def test_branches_survive_as_often_as_they_should() -> None:
    for own, p in zip(factors(tiny_resnet((2, 2)), images=4000), (0.85, 0.7, 0.55, 0.4), strict=True):
        assert own.unique().tolist() == [0.0, pytest.approx(1 / p)]
        assert abs((own > 0).float().mean().item() - p) < 4 * (p * (1 - p) / 4000) ** 0.5
        assert abs(own.mean().item() - 1) < 0.1


def test_draws_depend_on_epoch_step_rank_and_part() -> None:
    network = tiny_resnet((2, 2))
    first = factors(network, epoch=1, step=2)
    torch.rand(3)  # from the generator that everybody shares
    assert torch.equal(first, factors(network, epoch=1, step=2))
    for other in ({"epoch": 2}, {"step": 3}, {"rank": 1}, {"part": 1}, {"rank": 1, "part": 1}):
        assert not torch.equal(first, factors(network, **{"epoch": 1, "step": 2, **other}))


def test_evaluation_and_weights_are_the_plain_networks() -> None:
    network, plain = tiny_resnet((2, 2)), tiny_resnet((2, 2))
    drop = drop_of(network)
    network.forward_trees([tiny_images(4, 32)], [build_method(OPTIONS, network).tree], [drop])  # type: ignore[attr-defined]
    assert network.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(tiny_images(2, 32)), plain.eval()(tiny_images(2, 32)))


def test_blocks_without_a_shortcut_always_run() -> None:
    network = tiny_mobilenet((2, 2)).eval()
    (ref,) = network.without_shortcut
    x = torch.ones(2, 8, 4, 4, dtype=torch.float64)
    plain = network.run_block(ref, x)
    with Drop("path", rate=0.99, generator=torch.Generator()).within(network):
        assert torch.equal(network.run_block(ref, x), plain)


def test_steps_learn_on_fused_batch_norms() -> None:
    config = Config(
        data=Data(crop=32, val_crop=32, val_resize=32, num_classes=7),
        model=Model(name="cifar_resnet20", batch_norm="reference"),
        method=Method(name="stochastic_depth", survival=0.8),
        run=Run(epochs=4, batch=4, device="cpu"),
    )
    network = build.build_network(config, 7, CPU).train()
    assert all(isinstance(norm, FusedBatchNorm) for norm in batch_norms(network))
    step = build.build_step(config, network, Process(0, 1, CPU), Precision("fp32", "cpu"), 2)
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
