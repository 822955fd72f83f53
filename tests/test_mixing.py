"""Mixup and CutMix: the same mix in every batch, soft targets, a step's loss against plain formulas."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from fasttrain import build
from fasttrain.config import Config, Data, Method, Optim, Run
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision
from fasttrain.mixing import Mixing
from fasttrain.step import StepResult
from tests.networks import tiny_images, tiny_resnet

CLASSES = 7


def mixing(mixup: float = 0.0, cutmix: float = 0.0, switch: float = 0.5, seed: int = 0) -> Mixing:
    return Mixing(mixup, cutmix, switch, CLASSES, seed)


def neighbours(tensor: Tensor) -> Tensor:
    """Each pair's rows exchanged."""
    return tensor.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_mixup_blends_neighbours_in_every_batch(dtype: torch.dtype) -> None:
    images, small = tiny_images(6, 32).to(dtype), [tiny_images(6, side).to(dtype) for side in (16, 24)]
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.tensor([0, 1, 2, 3, 4, 4])
    own = mixing(mixup=0.8)
    share = own.draw(1, 2, 32).share
    mixed, mixed_small, soft = own(images, small, targets, epoch=1, step=2)
    for ours, before in zip((mixed, *mixed_small), (images, *small), strict=True):
        expected = share * before.double() + (1 - share) * neighbours(before).double()
        torch.testing.assert_close(
            ours, expected.to(dtype), rtol=2e-3, atol=2e-3 if dtype == torch.float16 else 1e-6
        )
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    hot = F.one_hot(targets, CLASSES).double()
    torch.testing.assert_close(soft.double(), share * hot + (1 - share) * neighbours(hot), rtol=0, atol=1e-7)
    assert soft[4].tolist() == soft[5].tolist() == hot[4].tolist()


def test_cutmix_shows_the_neighbour_in_one_box() -> None:
    own, seen = mixing(cutmix=1.0), set()
    ramp = torch.arange(6.0).view(6, 1, 1, 1)
    for step in range(40):
        sides = (40, 20, 10)
        full, small, soft = own(
            ramp.expand(6, 3, 40, 40),
            [ramp.expand(6, 3, side, side) for side in sides[1:]],
            torch.arange(6),
            epoch=0,
            step=step,
        )
        foreign = [(batch != ramp) for batch in (full, *small)]
        assert torch.equal(full[foreign[0]], neighbours(ramp).expand_as(full)[foreign[0]])
        share = 1 - foreign[0][0, 0].double().mean().item()
        assert soft.diagonal().tolist() == pytest.approx([share] * 6, abs=1e-6)
        assert soft.sum(1).tolist() == pytest.approx([1.0] * 6)
        box = own.draw(0, step, 40).box
        assert box is not None
        for where, side in zip(foreign, sides, strict=True):
            rows, columns = where[0, 0].any(1).nonzero(), where[0, 0].any(0).nonzero()
            assert where[0, 0].sum() == len(rows) * len(columns)  # a rectangle
            if len(rows):  # the same one, to half a pixel
                edges = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
                assert np.abs(np.array(edges) / side - box).max() <= 0.5 / side + 1e-6
        seen.add(round(share, 2))
    assert len(seen) > 20


def test_targets_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """v2.MixUp rolls the batch by one: of two images the partner is the same."""
    images, targets = tiny_images(2, 32), torch.tensor([3, 5])
    own = mixing(mixup=0.4)
    share = own.draw(0, 0, 32).share
    transform = v2.MixUp(alpha=0.4, num_classes=CLASSES)
    monkeypatch.setattr(transform, "make_params", lambda inputs: {
        "labels": targets, "batch_size": 2, "lam": share
    })  # fmt: skip
    theirs, their_targets = transform(images, targets)
    ours, _, soft = own(images, [], targets, epoch=0, step=0)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(soft, their_targets.double(), rtol=0, atol=1e-6)


def test_shares_have_their_distribution_and_cutmix_its_share_of_the_steps() -> None:
    both = [
        mixing(mixup=0.2, cutmix=1.0, switch=0.3).draw(epoch, step, 224)
        for epoch in (0, 1)
        for step in range(2000)
    ]
    cut = np.array([mix.box is not None for mix in both])
    assert cut.mean() == pytest.approx(0.3, abs=0.03)
    share = np.array([mix.share for mix in both])
    # variance of Beta(a, a): 1 / (4 (2 a + 1))
    assert share[~cut].var() == pytest.approx(1 / (4 * 1.4), rel=0.05)
    # boxes are cut at the edges: the image keeps more than Beta(1, 1)'s half
    assert 0.55 < share[cut].mean() < 0.75
    assert len(set(share.tolist())) > 3000


def test_mixes_are_functions_of_seed_epoch_and_step() -> None:
    own = mixing(mixup=0.2, cutmix=1.0)
    draws = {own.draw(epoch, step, 64) for epoch in range(3) for step in range(3)}
    assert len(draws) == 9
    assert own.draw(2, 1, 64) == mixing(mixup=0.2, cutmix=1.0).draw(2, 1, 64)
    assert own.draw(2, 1, 64) != mixing(mixup=0.2, cutmix=1.0, seed=1).draw(2, 1, 64)


@pytest.mark.parametrize("count", [1, 3])
def test_the_last_image_of_an_odd_batch_stays(count: int) -> None:
    images, targets = tiny_images(count, 8), torch.arange(count)
    mixed, _, soft = mixing(mixup=1.0)(images, [], targets, epoch=0, step=0)
    torch.testing.assert_close(mixed[-1], images[-1])
    assert soft[-1].argmax() == count - 1


def test_two_processes_mix_as_one() -> None:
    images, targets = tiny_images(8, 16), torch.arange(8) % CLASSES
    own = mixing(mixup=0.2, cutmix=1.0)
    for step in range(4):
        whole = own(images, [], targets, epoch=0, step=step)
        halves = [
            own(images[half], [], targets[half], epoch=0, step=step) for half in (slice(4), slice(4, 8))
        ]
        assert torch.equal(torch.cat([half[0] for half in halves]), whole[0])
        assert torch.equal(torch.cat([half[2] for half in halves]), whole[2])


METHODS: dict[str, dict[str, Any]] = {
    "ct": {"name": "common"},
    "st": {"subnets": 2, "normalize": "none"},
    "stpp": {
        "subnets": 3,
        "normalize": "layer_norm",
        "subnet_inputs": "downscaled",
        "sizes": (24,),
        "supervision": "kl",
    },
    "targets": {"subnets": 2, "supervision": "ce_target", "normalize": "none"},
}


def one_step(method: Method, data: Data, small: Sequence[Tensor], targets: Tensor) -> tuple[StepResult, Any]:
    config = Config(
        data=data, method=method, optim=Optim(lr=1e-9, weight_decay=0.0), run=Run(batch=4, epochs=2)
    )
    network = tiny_resnet((2, 3), bottleneck=True).train()
    before = copy.deepcopy(network)
    step = build.build_step(config, network, Process(0, 1, torch.device("cpu")), Precision("fp32", "cpu"), 2)
    result = step(tiny_images(4, 32), small, targets, epoch=0, step=0, global_step=0)
    return result, (step, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}])
@pytest.mark.parametrize("backward", ["joint", "split"])
@pytest.mark.parametrize("name", METHODS)
def test_a_steps_loss_is_the_shares_of_two_cross_entropies(
    name: str, backward: Any, mix: dict[str, float], smoothing: float
) -> None:
    """In float64: share * CE(own target) + (1 - share) * CE(the partner's), of the mixed images' logits."""
    data = Data(crop=32, val_crop=32, val_resize=32, **mix)  # type: ignore[arg-type]
    method = Method(backward=backward, label_smoothing=smoothing, **METHODS[name])
    images, targets = tiny_images(4, 32), torch.tensor([0, 1, 5, 3])
    small = [tiny_images(4, 24, seed=24)] if method.sizes else []
    result, (step, network) = one_step(method, data, small, targets)
    share = step.mixing.draw(0, 0, 32).share
    mixed, mixed_small, _ = step.mixing(images, small, targets, epoch=0, step=0)
    drawn = step.method.draw(0, 0).subnets if name != "ct" else ()
    main = network(mixed)
    outputs = [network(mixed_small[0] if small else mixed, subnet) for subnet in drawn]

    def normalized(logits: Tensor) -> Tensor:
        return (
            F.layer_norm(logits, logits.shape[1:], eps=1e-7) if method.normalize == "layer_norm" else logits
        )

    def mixed_ce(logits: Tensor) -> Tensor:
        own, other = (
            F.cross_entropy(logits, labels, label_smoothing=smoothing)
            for labels in (targets, neighbours(targets))
        )
        return share * own + (1 - share) * other

    expected = mixed_ce(normalized(main))
    torch.testing.assert_close(result.loss.main, expected.detach(), rtol=1e-10, atol=1e-12)
    teacher = normalized(main).detach().softmax(1)
    for output in map(normalized, outputs):
        if method.supervision == "ce_target":
            expected = expected + mixed_ce(output)
        else:
            expected = expected + F.kl_div(output.log_softmax(1), teacher, reduction="batchmean")
    torch.testing.assert_close(result.loss.total, expected.detach(), rtol=1e-10, atol=1e-12)
    larger = targets if share > 0.5 else neighbours(targets)
    assert result.loss.hits[0] == (main.argmax(1) == larger).sum()
    expected.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    torch.testing.assert_close(result.gradient_norm.double(), gradients.norm(), rtol=1e-6, atol=0)


def test_wrong_mixes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.mixup is -0\.1; allowed: 0 to 100"):
        Data(mixup=-0.1)
    with pytest.raises(
        ConfigError, match=r"method\.supervision is 'dkd'; allowed: kl.*whose targets are soft"
    ):
        Config(data=Data(cutmix=1.0), method=Method(supervision="dkd"))
    network = tiny_resnet((1, 1))
    cpu = Process(0, 1, torch.device("cpu"))
    assert build.build_step(Config(), network, cpu, Precision("fp32", "cpu"), 1).mixing is None
