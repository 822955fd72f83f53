"""One walk over the tree evaluates and re-estimates every subnet as if each ran alone."""

from __future__ import annotations

import copy
from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fasttrain.errors import DataError
from fasttrain.evaluation import (
    Accuracy,
    NodeStatistics,
    estimate_statistics,
    evaluate,
    evaluate_subnets,
    tally,
    use_statistics,
)
from fasttrain.hardware import Precision
from fasttrain.models import StagedNetwork, create_model
from fasttrain.subnets import Subnet, ordered_space, sample_distinct, sampling_space
from tests.networks import TINY, tiny_images

FP32 = Precision("fp32", "cpu")
LAYERS = (2, 2, 3)
Labelled = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(params=TINY)
def network(request: pytest.FixtureRequest) -> StagedNetwork:
    """A network whose running statistics are those of some training passes."""
    network = TINY[request.param](LAYERS).train()
    for seed in range(3):
        network(tiny_images(8, 32, seed))
    return network


def labelled(count: int) -> Labelled:
    return [(tiny_images(6, 32, 50 + i), torch.arange(6) % 7) for i in range(count)]


def alone(
    network: StagedNetwork, subnet: Subnet, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> Accuracy:
    """One subnet's accuracy, written out plainly."""
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        logits = torch.cat([network(images, subnet) for images, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    order = logits.argsort(dim=1, descending=True)
    top1 = (order[:, 0] == targets).double().mean()
    top5 = (order[:, :5] == targets[:, None]).any(1).double().mean()
    loss = F.cross_entropy(logits, targets)
    return Accuracy(float(100 * top1), float(100 * top5), float(loss), len(targets))


def close(ours: Accuracy, theirs: Accuracy) -> bool:
    return astuple(ours) == pytest.approx(astuple(theirs), rel=1e-5)


def test_the_loss_may_see_normalized_logits(network: StagedNetwork) -> None:
    batches = labelled(2)
    raw, normalized = (
        evaluate(network, [network.full], batches, FP32, normalize=kind)[0] for kind in ("none", "layer_norm")
    )
    with torch.no_grad():
        logits = torch.cat([network.eval()(images) for images, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    expected = F.cross_entropy(F.layer_norm(logits, (7,), eps=1e-7), targets)
    assert normalized.loss == pytest.approx(float(expected), rel=1e-4)
    assert (normalized.top1, normalized.top5) == (raw.top1, raw.top5)
    assert normalized.loss != pytest.approx(raw.loss, rel=1e-3)


@pytest.mark.parametrize("sampling", ["ordered", "stochastic"])
def test_the_walk_equals_one_by_one(network: StagedNetwork, sampling: str) -> None:
    space = sampling_space(sampling, "default", LAYERS)
    subnets = sample_distinct(space, 8, seed=1)
    batches = labelled(2)
    for subnet, result in zip(subnets, evaluate(network, subnets, batches, FP32), strict=True):
        assert close(result, alone(network, subnet, batches))


def with_own_statistics(network: StagedNetwork, subnet: Subnet, batches: list[torch.Tensor]) -> StagedNetwork:
    """A copy whose running statistics are one subnet's: cumulative averages over whole-batch passes."""
    own = copy.deepcopy(network)
    sums: dict[_BatchNorm, list[torch.Tensor]] = {}

    def record(layer: nn.Module, args: tuple[torch.Tensor]) -> None:
        assert isinstance(layer, _BatchNorm)
        x = args[0]
        mean = x.mean((0, 2, 3))
        variance = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
        sums.setdefault(layer, []).append(torch.stack((mean, variance)) * len(x))

    for layer in own.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(record)
    own.train()
    with torch.no_grad():
        for batch in batches:
            own(batch, subnet)
    count = sum(map(len, batches))
    for layer, moments in sums.items():
        layer.running_mean, layer.running_var = torch.stack(moments).sum(0) / count
    return own


def test_statistics_of_all_subnets_in_one_walk_equal_each_ones_own(network: StagedNetwork) -> None:
    subnets = list(ordered_space("default", LAYERS))
    calibration = [tiny_images(count, 32, 90 + count) for count in (8, 8, 5)]
    batches = labelled(1)
    statistics = estimate_statistics(network, subnets, calibration, FP32)
    for subnet, result in zip(subnets, evaluate(network, subnets, batches, FP32, statistics), strict=True):
        assert close(result, alone(with_own_statistics(network, subnet, calibration), subnet, batches))


def walk_logits(
    network: StagedNetwork,
    subnets: list[Subnet],
    images: torch.Tensor,
    statistics: NodeStatistics | None = None,
) -> list[torch.Tensor]:
    """Logits [B, C] of each subnet in evaluation mode, from one walk."""
    seen: list[torch.Tensor] = []

    def keep(logits: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        seen.extend(logits)
        return torch.zeros(1)

    batches = [(images, torch.zeros(len(images), dtype=torch.int64))]
    assert tally(network, subnets, batches, FP32, keep, (1,), statistics)[1] == len(images)
    return seen


@torch.no_grad()
def check_logits(network: StagedNetwork, images: torch.Tensor, calibration: torch.Tensor) -> None:
    """Those of one walk are each subnet's alone, with the main network's statistics and with its own."""
    subnets = list(ordered_space("default", network.depths))
    own = estimate_statistics(network, subnets, [calibration], FP32)
    with_main = walk_logits(network, subnets, images)
    with_own = walk_logits(network, subnets, images, own)
    for subnet, main, mine in zip(subnets, with_main, with_own, strict=True):
        torch.testing.assert_close(main, network.eval()(images, subnet), rtol=1e-9, atol=1e-9)
        single = with_own_statistics(network, subnet, [calibration]).eval()
        torch.testing.assert_close(mine, single(images, subnet), rtol=1e-9, atol=1e-9)


def test_logits_of_the_walk_are_each_subnets_own(network: StagedNetwork) -> None:
    check_logits(network, tiny_images(4, 32), tiny_images(8, 32, 7))


@pytest.mark.heavy
def test_logits_of_all_216_subnets_of_resnet50() -> None:
    network = create_model("resnet50", 1000).double().train()
    network(tiny_images(8, 64))  # so that the running statistics fit
    check_logits(network, tiny_images(4, 64, 1), tiny_images(8, 64, 2))


def test_reestimating_the_main_network_writes_its_running_statistics(network: StagedNetwork) -> None:
    calibration = [tiny_images(8, 32, 7)]
    expected = with_own_statistics(network, network.full, calibration)
    use_statistics(network, estimate_statistics(network, [network.full], calibration, FP32))
    for ours, theirs in zip(network.buffers(), expected.buffers(), strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_evaluation_leaves_the_network_as_it_was(network: StagedNetwork) -> None:
    before = copy.deepcopy(network.state_dict())
    evaluate_subnets(
        network,
        list(ordered_space("default", LAYERS)),
        lambda: labelled(1),
        lambda: [tiny_images(8, 32)],
        FP32,
        "both",
    )
    assert network.training
    assert all(module.training for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_both_kinds_of_statistics_are_reported_and_differ(network: StagedNetwork) -> None:
    own, main = evaluate_subnets(
        network,
        list(ordered_space("default", LAYERS)),
        lambda: labelled(8),
        lambda: [tiny_images(16, 32)],
        FP32,
        "both",
    )
    assert (own.statistics, main.statistics) == ("reestimated", "main")
    assert len(own.top1) == len(own.depths) == 12
    assert own.worst <= own.mean <= max(own.top1)
    assert own.top1 != main.top1


def test_empty_batches_count_nothing_and_no_images_is_an_error(network: StagedNetwork) -> None:
    empty = (torch.empty(0, 3, 32, 32, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    batches = labelled(1)
    assert evaluate(network, [network.full], [*batches, empty], FP32) == evaluate(
        network, [network.full], batches, FP32
    )
    with pytest.raises(DataError, match="no validation images"):
        evaluate(network, [network.full], [empty], FP32)
    with pytest.raises(DataError, match="no training images"):
        estimate_statistics(network, [network.full], [], FP32)
