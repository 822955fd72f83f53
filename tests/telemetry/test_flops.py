"""FLOPs block by block are those that a whole step counts."""

from __future__ import annotations

import pytest
import torch

from fasttrain import flops
from fasttrain.methods import Pass, Plan
from fasttrain.models import TreeForward
from fasttrain.subnets import Part, PrefixTree, Subnet, ordered_subnet
from fasttrain.telemetry.peak import matrix_rate


def part_of(subnet: Subnet, index: int, part: Part) -> Subnet:
    return (*subnet[:index], subnet[index]._replace(part=part), *subnet[index + 1 :])


@pytest.mark.parametrize("name", ["cifar_resnet20", "mobilenetv3_small_100"])
def test_a_plan_costs_what_a_whole_step_counts(name: str) -> None:
    network = flops.meta_network(name, 10)
    full = network.full
    droppable = [index for index, ref in enumerate(full) if ref not in network.without_shortcut]
    subnets = [part_of(full, droppable[0], Part.BRANCH), part_of(full, droppable[-1], Part.SHORTCUT)]
    short = ordered_subnet([1] * len(network.depths))
    trees = PrefixTree([full, short, short, *subnets]), PrefixTree([short, full])
    inputs = torch.empty(4, 3, 64, 64, device="meta"), torch.empty(2, 3, 32, 32, device="meta")
    plan = Plan(inputs, trees)

    def step() -> None:
        logits = TreeForward(network)(plan.inputs, plan.trees)
        torch.stack([each.sum() for tree in logits for each in tree]).sum().backward()

    assert plan.passes == (Pass(4, 64, trees[0]), Pass(2, 32, trees[1]))
    assert flops.passes_flops(network, plan.passes) == flops.count(step)


def test_counting_draws_no_random_numbers() -> None:
    flops.meta_network.cache_clear()
    before = torch.get_rng_state()
    network = flops.meta_network("cifar_resnet20", 7)
    flops.SideCosts(network, 40).tree(PrefixTree([network.full]))
    assert torch.equal(before, torch.get_rng_state())


def test_known_gpus_have_a_rate_and_no_others() -> None:
    assert matrix_rate("NVIDIA H100 80GB HBM3") == matrix_rate("NVIDIA H200") == 989e12
    assert matrix_rate("NVIDIA H100 PCIe", "fp16") == 756e12
    assert matrix_rate("NVIDIA A100-SXM4-80GB", "fp32") == 156e12
    assert matrix_rate("NVIDIA A100-SXM4-80GB", "fp32", tf32=False) == 19.5e12
    for name in ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA RTX A1000", "NVIDIA GeForce RTX 4090", ""):
        assert matrix_rate(name) is None
