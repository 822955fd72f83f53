"""Stimulative training: how draws become one forward pass, weights, schedules, input modes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as tvf

from fasttrain import build
from fasttrain.config import Config, Method, Run
from fasttrain.errors import ConfigError
from fasttrain.kernels.normalized_loss import stimulative_loss
from fasttrain.methods import Common, Plan, Stimulative
from fasttrain.methods.inputs import cascade, deal, draw_windows
from fasttrain.subnets import PrefixTree
from tests.networks import tiny_images, tiny_resnet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYERS = (2, 3, 2)


def method(**options: Any) -> Stimulative:
    network = tiny_resnet(LAYERS)
    return Stimulative(Method(**options), network.full, network.depths, seed=5, epochs=10, mean=MEAN, std=STD)


def test_full_inputs_share_the_main_networks_tree() -> None:
    stimulative = method(subnets=4)
    plan = stimulative.plan(tiny_images(2, 32), (), epoch=0, step=3)
    draw = stimulative.draw(0, 3)
    assert len(plan.trees) == 1
    assert plan.trees[0].subnets == (stimulative.full, *draw.subnets)
    assert plan.places == ((0, 1), (0, 2), (0, 3), (0, 4))


def test_downscaled_subnets_are_dealt_over_the_sizes() -> None:
    stimulative = method(subnets=5, subnet_inputs="downscaled", sizes=(16, 24), sizes_per_step=2)
    small = [tiny_images(2, 16), tiny_images(2, 24)]
    plan = stimulative.plan(tiny_images(2, 32), small, epoch=0, step=0)
    drawn = stimulative.draw(0, 0).subnets
    assert [tuple(tree.subnets) for tree in plan.trees] == [(stimulative.full,), drawn[0::2], drawn[1::2]]
    assert plan.places == ((1, 0), (2, 0), (1, 1), (2, 1), (1, 2))
    for index, (tree, position) in enumerate(plan.places):
        assert plan.trees[tree].subnets[position] == drawn[index]


def test_batches_of_equal_size_are_merged() -> None:
    batches = [tiny_images(2, 16), tiny_images(2, 24), tiny_images(2, 16)]
    assert [(tuple(batch.shape[2:]), members) for batch, members in deal(6, batches)] == [
        ((16, 16), [0, 2, 3, 5]),
        ((24, 24), [1, 4]),
    ]


def test_cascaded_inputs_are_resized_and_normalized_again_and_again() -> None:
    """Against torchvision's own transforms, as the published code composes them."""
    images = tiny_images(2, 32)
    ours = cascade(images, (20, 27, 9), MEAN, STD)
    for batch, side in zip(ours, (20, 27, 9), strict=True):
        images = tvf.normalize(tvf.resize(images, [side, side], antialias=False), list(MEAN), list(STD))
        torch.testing.assert_close(batch, images, rtol=0, atol=1e-12)


def test_cascaded_draws_have_a_size_each_and_a_tree_each() -> None:
    stimulative = method(subnets=3, subnet_inputs="cascaded", sizes=tuple(range(13, 33)))
    plan = stimulative.plan(tiny_images(2, 32), (), epoch=1, step=2)
    assert len(stimulative.draw(1, 2).sizes) == 3
    assert [batch.shape[-1] for batch in plan.inputs] == [32, *stimulative.draw(1, 2).sizes]
    assert plan.places == ((1, 0), (2, 0), (3, 0))


def test_cascaded_crops_are_random_resized_crops_of_each_other() -> None:
    """Windows as torchvision's: within the image before, 8 to 100 % of it, 3:4 to 4:3; others each step."""
    stimulative = method(subnets=3, subnet_inputs="cascaded", cascade="crop", sizes=tuple(range(32, 65)))
    images = tiny_images(2, 64)
    seen = set()
    for step in range(40):
        plan = stimulative.plan(images, (), epoch=1, step=step)
        sizes = stimulative.draw(1, step).sizes
        assert [batch.shape[-1] for batch in plan.inputs] == [64, *sizes]
        crops = draw_windows([64, *sizes[:-1]], seed=5, epoch=1, step=step)
        for side, (top, left, height, width) in zip([64, *sizes[:-1]], crops, strict=True):
            assert min(top, left) >= 0
            assert max(top + height, left + width) <= side
            assert 0.05 < height * width / side**2 <= 1
            assert 0.6 < width / height < 1.6
        expected = cascade(images, sizes, MEAN, STD, kind="crop", crops=crops)
        assert all(torch.equal(ours, own) for ours, own in zip(plan.inputs[1:], expected, strict=True))
        seen.add(crops)
    assert len(seen) == 40


def test_the_whole_step_may_see_resized_images() -> None:
    """One side per pair, drawn for each step; the subnets' inputs go on from there."""
    stimulative = method(
        subnets=2, main_resizes=(32, 40, 20, 32), subnet_inputs="cascaded", sizes=(16, 24), start_epoch=1
    )
    images = tiny_images(2, 32)
    drawn = [stimulative.draw(1, step).main_sizes for step in range(300)]
    assert {first for first, _ in drawn} == set(range(32, 41))
    assert {second for _, second in drawn} == set(range(20, 33))
    plan = stimulative.plan(images, (), epoch=1, step=7)
    resized = cascade(images, drawn[7], MEAN, STD)[-1]
    assert torch.equal(plan.inputs[0], resized)
    sizes = stimulative.draw(1, 7).sizes
    assert torch.equal(plan.inputs[2], cascade(resized, sizes, MEAN, STD)[1])
    before = stimulative.plan(images, (), epoch=0, step=7)
    assert before.places == ()
    assert before.inputs[0].shape[-1] == stimulative.draw(0, 7).main_sizes[1]


def test_subnets_start_at_their_epoch() -> None:
    stimulative = method(subnets=2, start_epoch=4)
    assert stimulative.plan(tiny_images(2, 32), (), epoch=3, step=0).places == ()
    assert len(stimulative.plan(tiny_images(2, 32), (), epoch=4, step=0).places) == 2


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [("constant", (2, 2, 2)), ("cosine_up", (0, 1, 1.9510565)), ("cosine_down", (2, 1, 0.0489435))],
)
def test_weight_schedules(schedule: str, weights: tuple[float, ...]) -> None:
    stimulative = method(kl_weight=2.0, kl_schedule=schedule)
    assert [stimulative.subnet_weight(epoch) for epoch in (0, 5, 9)] == pytest.approx(weights, abs=1e-6)


def test_coupled_weights_reach_the_loss() -> None:
    stimulative = method(subnets=6, draws="coupled", kl_weight=0.5)
    plan = stimulative.plan(tiny_images(2, 32), (), epoch=0, step=0)
    assert plan.weights == pytest.approx((0.5 * 6 / 2,) * 2)  # the last free stage has two depths


def test_common_training_is_stimulative_training_without_subnets() -> None:
    network = tiny_resnet(LAYERS).train()
    images, targets = tiny_images(4, 32), torch.randint(0, 7, (4,))
    gradients = []
    for each in (Common(network.full), method(subnets=0)):
        plan = each.plan(images, (), epoch=0, step=0)
        loss = each.loss(network.forward_trees(plan.inputs, plan.trees), plan, targets)
        gradients.append(torch.autograd.grad(loss.total, list(network.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_one_pass_equals_the_sum_of_separate_steps() -> None:
    """Gradients of the joint pass are those of main and subnet losses back-propagated one after another."""
    network = tiny_resnet(LAYERS).train()
    stimulative = method(
        subnets=4,
        subnet_inputs="downscaled",
        sizes=(16, 24),
        sizes_per_step=2,
        normalize="layer_norm",
        kl_weight=0.3,
    )
    images, small, targets = (
        tiny_images(4, 32),
        [tiny_images(4, 16), tiny_images(4, 24)],
        torch.randint(0, 7, (4,)),
    )
    plan = stimulative.plan(images, small, epoch=0, step=1)
    loss = stimulative.loss(network.forward_trees(plan.inputs, plan.trees), plan, targets)
    joint = torch.autograd.grad(loss.total, list(network.parameters()))

    network.zero_grad()
    alone = replace(stimulative.options, subnets=1, subnet_inputs="full", sizes=(), sizes_per_step=1)
    stimulative.options = alone
    main = network(images)
    stimulative.loss([[main]], replace(plan, places=(), weights=()), targets).total.backward()
    for index, subnet in enumerate(PrefixTree(stimulative_subnets(plan)).subnets):
        student = network(small[index % 2], subnet)
        single = replace(plan, places=((0, 1),), weights=plan.weights[:1])
        full = stimulative.loss([[main.detach(), student]], single, targets).total
        full.backward()
    for parameter, gradient in zip(network.parameters(), joint, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({}, (32, 32)),
        ({"subnet_inputs": "downscaled", "sizes": (16, 24), "sizes_per_step": 2}, (16, 24)),
        ({"subnet_inputs": "cascaded", "sizes": (20, 24)}, None),
    ],
)
def test_subnets_may_see_a_part_of_the_batch(options: dict[str, Any], sides: tuple[int, int] | None) -> None:
    """Two of five images: their logits follow the main network's of these images alone, as a mean of two."""
    network = tiny_resnet(LAYERS).train()
    stimulative = method(subnets=2, subnet_share=0.4, normalize="layer_norm", kl_weight=0.3, **options)
    images, targets = tiny_images(5, 32), torch.arange(5)
    small = [tiny_images(5, side, seed=side) for side in (16, 24)]
    plan = stimulative.plan(images, small, epoch=0, step=1)
    assert [len(each) for each in plan.inputs] == [5] + [2] * (len(plan.inputs) - 1)
    logits = network.forward_trees(plan.inputs, plan.trees)
    loss = stimulative.loss(logits, plan, targets)
    if sides is not None:
        inputs = [images if side == 32 else small[sides.index(side)] for side in sides]
        students = [network(x[:2], s) for x, s in zip(inputs, stimulative.draw(0, 1).subnets, strict=True)]
    else:
        students = [logits[tree][position] for tree, position in plan.places]
    main = network(images)
    kwargs: dict[str, Any] = {"weights": [0.3, 0.3], "normalize": "layer_norm", "main_weight": 0.0}
    expected = stimulative_loss(main[:2], students, targets[:2], **kwargs)
    alone = stimulative_loss(main, [], targets, weights=[], normalize="layer_norm")
    torch.testing.assert_close(loss.total, expected.total + alone.total, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss.subnets, expected.subnets, rtol=1e-10, atol=0)
    assert torch.equal(loss.hits, alone.hits)


def stimulative_subnets(plan: Any) -> list:
    return [plan.trees[tree].subnets[position] for tree, position in plan.places]


def test_options_that_exclude_each_other_are_refused() -> None:
    for options in (
        {"subnet_inputs": "downscaled"},
        {"sizes": (16,)},
        {"draws": "coupled", "sampling": "raw"},
        {"subnets": 2, "sizes_per_step": 3},
        {"temperature": 0.0},
        {"kl_weight": float("nan")},
        {"cascade": "crop"},
        {"main_resizes": (96,)},
        {"main_resizes": (96, 32)},
        {"main_resizes": (32, 96), "name": "common"},
        {"ensemble": 1.5},
        {"ensemble": 0.5, "backward": "split"},
    ):
        with pytest.raises(ConfigError, match="allowed"):
            Method(**options)


@pytest.mark.parametrize(
    "options",
    [
        *({"label_smoothing": 0.2}, {"supervision": "dkd"}, {"supervision": "mse"}, {"amplitude": 2.0}),
        *({"ensemble": 0.3}, {"scale_by_teacher": True}),
    ],
)
def test_options_reach_the_loss(options: dict[str, Any]) -> None:
    logits = [[torch.randn(4, 7, dtype=torch.float64) for _ in range(3)]]
    targets = torch.arange(4)
    plan = Plan((tiny_images(4, 32),), (), places=((0, 1), (0, 2)), weights=(0.5, 0.5))
    loss = method(subnets=2, normalize="layer_norm", **options).loss(logits, plan, targets)
    expected = stimulative_loss(logits[0][0], logits[0][1:], targets, weights=[0.5, 0.5], **options)
    torch.testing.assert_close(loss.total, expected.total, rtol=0, atol=0)
    assert loss.total != method(subnets=2, normalize="layer_norm").loss(logits, plan, targets).total


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"supervision": "dkd"}, r"method\.supervision 'dkd'"),
        ({"ensemble": 0.5}, r"method\.ensemble 0\.5"),
        ({"scale_by_teacher": True}, r"method\.scale_by_teacher True"),
    ],
)
def test_losses_without_kernels_run_the_reference(options: dict[str, Any], named: str) -> None:
    config, cpu = Config(method=Method(**options)), torch.device("cpu")
    assert build.loss_kernels(config, cpu) == "reference"
    asked = replace(config, run=Run(kernels="triton"))
    with pytest.raises(ConfigError, match=f"run.kernels is 'triton' with {named}; allowed: auto, reference"):
        build.loss_kernels(asked, cpu)


def test_common_training_smooths_labels() -> None:
    full = tiny_resnet(LAYERS).full
    logits, targets = torch.randn(4, 7, dtype=torch.float64), torch.arange(4)
    loss = Common(full, label_smoothing=0.1).loss([[logits]], Plan((), ()), targets)
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(loss.total, expected)
