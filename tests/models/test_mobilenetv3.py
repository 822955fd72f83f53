"""MobileNetV3: its subnets, parts of its blocks, statistics of its head, and training by every method."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fasttrain import build
from fasttrain.config import Config, Data, Method, Optim, Run
from fasttrain.distributed import Process
from fasttrain.evaluation import estimate_statistics
from fasttrain.hardware import Precision
from fasttrain.methods import build_method
from fasttrain.methods.stimulative import Stimulative
from fasttrain.models import MobileNetV3, StagedNetwork, batch_norms, create_model
from fasttrain.subnets import BlockRef, Part, PrefixTree, RawSpace, Subnet, ordered_space, sample_distinct
from tests.networks import tiny_images, tiny_mobilenet

LARGE = "mobilenetv3_large_100"
NAMES = timm.list_models("mobilenetv3_*", module="mobilenetv3")
FP32 = Precision("fp32", "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_every_block_that_a_subnet_may_drop_has_a_shortcut(name: str) -> None:
    network = create_model(name, 3)
    assert isinstance(network, MobileNetV3)
    assert network.without_shortcut
    assert all(ref.block == 0 for ref in network.without_shortcut)


def test_large_has_the_papers_144_subnets() -> None:
    network = create_model(LARGE, 1000)
    assert network.depths == (1, 2, 3, 4, 2, 3)
    assert len(ordered_space("default", network.depths)) == 144
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(5.48e6, rel=0.01)


def test_weights_go_to_timm_and_back() -> None:
    network, reference = create_model(LARGE, 10), timm.create_model(LARGE, num_classes=10)
    network.load_state_dict(reference.state_dict())
    state = network.state_dict()
    assert list(state) == list(reference.state_dict())
    other = timm.create_model(LARGE, num_classes=10)
    other.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other.eval()(images), network.eval()(images))


def test_the_variant_for_small_images_keeps_their_resolution() -> None:
    """32 pixels end as 8; the weights are those of the network for ImageNet."""
    network = create_model("cifar_mobilenetv3_large", 10)
    network.load_state_dict(timm.create_model(LARGE, num_classes=10).state_dict())
    sides: list[int] = []
    for stage in network.stages:
        stage[-1].register_forward_hook(lambda _m, _a, out: sides.append(out.shape[-1]))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sides == [32, 32, 32, 16, 16, 8]
    assert network.reduction == 4


def gradients(network: StagedNetwork, logits: list[Tensor]) -> list[Tensor]:
    """Of a fixed random function of all logits."""
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(each.shape, generator=random, dtype=each.dtype) for each in logits]
    total = torch.stack([(each * own).sum() for each, own in zip(logits, weights, strict=True)]).sum()
    return list(torch.autograd.grad(total, list(network.parameters())))


def test_tree_equals_separate_passes() -> None:
    network = create_model(LARGE, 10).double().train()
    depths = [network.depths, (1, 2, 3, 4, 2, 2), (1, 1, 3, 2, 1, 3), (1, 1, 3, 4, 2, 1), (1, 1, 1, 1, 1, 1)]
    images = tiny_images(4, 64)
    ours, theirs = network.forward_tree(images, depths), [network(images, each) for each in depths]
    for tree, alone in zip(ours, theirs, strict=True):
        torch.testing.assert_close(tree, alone, rtol=1e-10, atol=1e-12)
    for shared, separate in zip(gradients(network, ours), gradients(network, theirs), strict=True):
        torch.testing.assert_close(shared, separate, rtol=1e-10, atol=1e-11)  # some are 0 but for rounding


def flops(network: StagedNetwork, subnet: Subnet) -> dict[str, int]:
    """FLOPs of a subnet's forward pass by module."""
    with FlopCounterMode(display=False, depth=9) as counter:
        network(torch.empty(1, 3, 224, 224, device="meta"), subnet)
    return {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}


def test_a_subnet_costs_what_its_blocks_do() -> None:
    network = create_model(LARGE, 1000).to("meta").eval()
    full = flops(network, network.full)
    blocks = {ref: full[f"MobileNetV3.blocks.{ref.stage}.{ref.block}"] for ref in network.full}
    rest = full["Global"] - sum(blocks.values())  # stem and head
    assert min(rest, *blocks.values()) > 0
    for subnet in sample_distinct(ordered_space("default", network.depths), 12, seed=0):
        assert flops(network, subnet)["Global"] == rest + sum(blocks[ref] for ref in subnet)


def test_st_costs_what_was_planned() -> None:
    """Expected FLOPs of ST with one subnet over those of common training, in passes apart and as a tree."""
    network = create_model(LARGE, 1000).to("meta").eval()
    full = flops(network, network.full)
    blocks = {ref: full[f"MobileNetV3.blocks.{ref.stage}.{ref.block}"] for ref in network.full}
    stem = full["MobileNetV3.conv_stem"]
    head = full["Global"] - stem - sum(blocks.values())
    apart, together = [], []
    for subnet in ordered_space("default", network.depths):
        tree = PrefixTree([network.full, subnet])
        apart.append(1 + (stem + head + sum(blocks[ref] for ref in subnet)) / full["Global"])
        calls = sum(blocks[node.ref] for node in tree.nodes)
        together.append((stem + head * len(set(tree.leaves)) + calls) / full["Global"])
    assert fmean(apart) == pytest.approx(1.73, abs=0.01)
    assert fmean(together) == pytest.approx(1.49, abs=0.01)


def test_branch_and_shortcut_add_up_to_the_block() -> None:
    network = tiny_mobilenet((2, 2)).eval()
    assert network.without_shortcut == {BlockRef(1, 0)}
    for ref, channels in ((BlockRef(0, 0), 8), (BlockRef(0, 1), 8), (BlockRef(1, 1), 16)):
        x = tiny_images(2, 8).mean(1, keepdim=True).repeat(1, channels, 1, 1)
        branch, shortcut = (
            network.run_block(ref._replace(part=part), x) for part in (Part.BRANCH, Part.SHORTCUT)
        )
        torch.testing.assert_close(branch + x, network.run_block(ref, x), rtol=0, atol=0)
        assert torch.equal(shortcut, x)


@pytest.mark.parametrize("part", [Part.BRANCH, Part.SHORTCUT])
def test_a_block_without_a_shortcut_runs_whole_or_not_at_all(part: Part) -> None:
    network = tiny_mobilenet((1, 2))
    subnet = tuple(ref._replace(part=part) if ref == (1, 0, Part.WHOLE) else ref for ref in network.full)
    with pytest.raises(ValueError, match="block 0 of stage 1 has no shortcut; allowed"):
        network(tiny_images(2, 16), subnet)


def test_raw_sampling_takes_no_part_of_blocks_without_a_shortcut() -> None:
    network = create_model("mobilenetv3_small_050", 3).eval()
    method = build_method(Config(method=Method(sampling="raw")), network)
    assert isinstance(method, Stimulative)
    assert isinstance(method.space, RawSpace)
    assert method.space.without_shortcut == network.without_shortcut
    subnet = method.space.draw(np.random.default_rng(0))
    assert network(torch.randn(2, 3, 32, 32), subnet).shape == (2, 3)


def test_the_heads_statistics_are_those_of_the_main_networks_pass() -> None:
    """Subnets that are prefixes of the main network end within its pass, with a head pass of their own."""
    network = tiny_mobilenet((1, 3)).train()
    (layer,) = (layer for module in network.head_modules for layer in batch_norms(module))
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0].var((0, 2, 3))))
    network.forward_tree(tiny_images(4, 32), [(1, 3), (1, 1), (1, 2)])
    assert len(seen) == 3
    assert layer.num_batches_tracked == 1
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * seen[-1], rtol=1e-12, atol=0)


def test_each_leaf_has_statistics_of_the_head() -> None:
    """All subnets in one walk, against each estimated alone: prefixes of one another included."""
    network = create_model("mobilenetv3_small_050", 5).double().train()
    subnets = list(ordered_space("1,1-2,3,2,1-3", network.depths))
    batches = [tiny_images(4, 64, seed) for seed in range(2)]
    tree = PrefixTree(subnets)
    shared = estimate_statistics(network, subnets, batches, FP32)
    head = {layer for module in network.head_modules for layer in batch_norms(module)}
    assert {node for node, layer in shared.sums if layer in head} == set(tree.leaves)
    for subnet, leaf in zip(subnets, tree.leaves, strict=True):
        alone = estimate_statistics(network, [subnet], batches, FP32)
        for layer in shared.layers[leaf]:
            ours, theirs = shared.sums[leaf, layer], alone.sums[len(subnet) - 1, layer]
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


METHODS: dict[str, dict[str, Any]] = {
    "common": {"name": "common", "subnets": 0},
    "ST": {"subnets": 1},
    "ST++": {"subnets": 3, "subnet_inputs": "downscaled", "sizes": (32, 48), "normalize": "layer_norm"},
    "cascaded": {"subnets": 2, "subnet_inputs": "cascaded", "sizes": (32, 48), "normalize": "layer_norm"},
}


@pytest.mark.parametrize("method", METHODS)
def test_ten_steps_lower_the_loss(method: str) -> None:
    """On a fixed batch, of the main network."""
    config = Config(
        data=Data(crop=64, val_crop=64, val_resize=64),
        method=Method(**METHODS[method]),
        optim=Optim(lr=0.005, warmup_epochs=0),
        run=Run(batch=4, epochs=2),
    )
    network = create_model(LARGE, 4).train()
    step = build.build_step(config, network, Process(0, 1, torch.device("cpu")), FP32, 10)
    images, targets = torch.randn(4, 3, 64, 64), torch.arange(4)
    losses = []
    for index in range(10):
        side = config.method.sizes[index % 2] if config.method.sizes else 64
        small = [nn.functional.interpolate(images, (side, side), mode="bilinear")]
        result = step(images, small, targets, epoch=0, step=index, global_step=index)
        losses.append(float(result.loss.main))
    assert max(losses[-3:]) < 0.6 * losses[0]
