"""Replayed steps against the flags' meaning written out: separate passes in float64, one backward each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as tvf
from torch import Tensor

from fasttrain.compat.nips22.replay import replay
from fasttrain.config import IMAGENET_MEAN, IMAGENET_STD
from fasttrain.errors import ConfigError
from fasttrain.models import StagedNetwork
from tests.networks import tiny_images, tiny_resnet

LAYERS = (2, 3, 2)
DEPTHS = ((1, 3, 2), (2, 1, 1), (2, 2, 2))
EPS = 1e-7


class Step:
    """One published training step under flags, written from what they mean."""

    def __init__(self, network: StagedNetwork, images: Tensor, targets: Tensor, **flags: Any) -> None:
        """Run it; the gradients are in the network's `.grad`."""
        self.flags, self.targets = flags, targets
        for side in flags.get("main_sizes", ()):
            images = again(tvf.resize(images, [side, side], antialias=False))
        logits = network(images)
        main = self.normalized(logits)
        self.main_logits = logits.detach()
        loss = F.cross_entropy(main, targets)
        self.main_loss = loss.detach()
        (flags.get("main_coef", 1.0) * loss).backward()
        teacher = main.detach()
        self.scale: Tensor | float = (
            teacher.std(1, keepdim=True) if flags.get("norm_kd_type") == "v1" else 1.0
        )
        self.losses = []
        for depths, smaller in zip(DEPTHS, self.inputs(images), strict=True):
            student = self.normalized(network(smaller, depths))
            loss = self.subnet_loss(student, teacher)
            self.losses.append(loss.detach())
            (self.weight() * loss).backward()
            share = flags.get("direct_KD_ema", 0.0)
            if share:
                teacher = (1 - share) * teacher + share * layer_norm(student.detach())

    def normalized(self, logits: Tensor) -> Tensor:
        if not self.flags.get("norm_kd"):
            return logits
        amplitude = self.flags.get("amplitude", 1.0)
        kind = self.flags.get("norm_kd_type", "default")
        if kind == "v2":
            return amplitude * logits / logits.norm(dim=1, keepdim=True)
        return layer_norm(logits) * (1.0 if kind == "v1" else amplitude)

    def subnet_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        p, q = teacher.softmax(1), student.softmax(1)
        kind = self.flags.get("st_loss", "default")
        if kind == "CE":
            return -(p * q.log()).sum(1).mean()
        if kind == "CE_target":
            return F.cross_entropy(student, self.targets)
        if kind == "MSE":
            return (p - q).square().mean()
        if kind == "DKD":
            return self.decoupled(p, q)
        heat = self.flags.get("Temp", 1.0)
        p, q = (teacher * self.scale / heat).softmax(1), (student * self.scale / heat).softmax(1)
        return heat**2 * divergence(p, q)

    def decoupled(self, p: Tensor, q: Tensor) -> Tensor:
        """KL of target against all else, plus KL among the other classes, renormalized."""
        target = F.one_hot(self.targets, p.shape[1]).bool()
        pair_p, pair_q = (torch.stack([each[target], 1 - each[target]], 1) for each in (p, q))
        rest_p, rest_q = (each[~target].view(len(p), -1) for each in (p, q))
        rest_p, rest_q = (each / each.sum(1, keepdim=True) for each in (rest_p, rest_q))
        return divergence(pair_p, pair_q) + divergence(rest_p, rest_q)

    def weight(self) -> float:
        rise = (1 - math.cos(math.pi * self.flags.get("at", 0) / self.flags.get("epoch", 200))) / 2
        schedule = rise if self.flags.get("kl_cos") else 1 - rise if self.flags.get("kl_rcos") else 1.0
        return self.flags.get("kl_coef", 1.0) * schedule

    def inputs(self, images: Tensor) -> Iterator[Tensor]:
        for index in range(len(DEPTHS)):
            if "sizes" in self.flags:
                size = [self.flags["sizes"][index]] * 2
                kind = self.flags["Dtrans"]
                if kind == "Dtrans4":
                    images = F.interpolate(images, size, mode="bilinear", align_corners=True)
                elif kind == "Dtrans15":
                    window = self.flags["windows"][index]
                    images = again(tvf.resized_crop(images, *window, size, antialias=False))
                else:
                    images = again(tvf.resize(images, size, antialias=False))
            yield images


def layer_norm(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + EPS).sqrt()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(1).mean()


def again(images: Tensor) -> Tensor:
    return tvf.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))


def words(flags: dict[str, Any]) -> list[str]:
    """The flags as a command line; draws and the epoch are no flags."""
    line = ["--multi_Snet", str(len(DEPTHS))]
    for name, value in flags.items():
        if name not in ("sizes", "main_sizes", "windows", "at"):
            line += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return line


CASES: list[dict[str, Any]] = [
    {},
    *({"norm_kd": True, "norm_kd_type": kind, "amplitude": 3.0} for kind in ("default", "v1", "v2")),
    *({"norm_kd_type": kind} for kind in ("default", "v1", "v2")),
    {"norm_kd": True, "norm_kd_type": "v1", "Temp": 3.0},
    *(
        {"st_loss": kind, "norm_kd": norm}
        for kind in ("CE", "CE_target", "DKD", "MSE")
        for norm in (True, "")
    ),
    {"norm_kd": True, "Temp": 2.0, "amplitude": 2.0, "kl_coef": 0.3, "main_coef": 0.5},
    *({"kl_cos": True, "kl_coef": 2.0, "epoch": 90, "at": at} for at in (0, 60)),
    *({"kl_rcos": True, "kl_coef": 2.0, "epoch": 90, "at": at} for at in (0, 60)),
    {"kl_cos": True, "kl_rcos": True, "at": 150},
    {"direct_KD_esm": True, "direct_KD_ema": 0.3},
    {"direct_KD_esm": True, "direct_KD_ema": 0.5, "norm_kd": True, "amplitude": 2.0},
    {"direct_KD_esm": True, "direct_KD_ema": 1.0, "norm_kd": True, "norm_kd_type": "v1"},
    {"direct_KD_esm": True, "direct_KD_ema": 0.3, "norm_kd": True, "norm_kd_type": "v2", "amplitude": 4.0},
    {"direct_KD_esm": True, "direct_KD_ema": 0.3, "st_loss": "DKD"},
    {"Snet_Dtrans": True, "Dtrans": "Dtrans4", "sizes": (128, 64, 96)},
    {"Snet_Dtrans": True, "Dtrans": "Dtrans9", "sizes": (40, 36, 72)},
    {
        "Snet_Dtrans": True,
        "Dtrans": "Dtrans15",
        "sizes": (40, 36, 48),
        "windows": ((3, 5, 20, 30), (0, 0, 40, 33), (10, 2, 9, 12)),
    },
    {"same_mscale_image": True, "main_sizes": (40,)},
    {"max_size": 1.5, "same_mscale_image": True, "main_sizes": (72, 40), "norm_kd": True},
    {
        "same_mscale_image": True,
        "main_sizes": (40,),
        "Snet_Dtrans": True,
        "Dtrans": "Dtrans7",
        "sizes": (44, 36, 40),
    },
]


@pytest.mark.parametrize("flags", CASES, ids=[" ".join(words(case)[2:]) or "none" for case in CASES])
def test_replays_do_what_the_flags_mean(flags: dict[str, Any]) -> None:
    flags = {name: value for name, value in flags.items() if value != ""}
    network = tiny_resnet(LAYERS).train()
    images, targets = tiny_images(4, 48), torch.tensor([0, 3, 6, 3])
    expected = Step(network, images, targets, **flags)
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    draws = {name: flags[name] for name in ("sizes", "main_sizes", "windows") if name in flags}
    found = replay(words(flags), network, images, targets, depths=DEPTHS, epoch=flags.get("at", 0), **draws)
    close(found.main_logits, expected.main_logits)
    close(found.main_loss, expected.main_loss)
    close(found.subnet_losses, torch.stack(expected.losses))
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-9)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_mixed_targets_reach_every_cross_entropy() -> None:
    network = tiny_resnet(LAYERS).train()
    images, targets = tiny_images(4, 48), torch.rand(4, 7, dtype=torch.float64).softmax(1)
    flags = {"mix": "mixup", "st_loss": "CE_target"}
    expected = Step(network, images, targets, **flags)
    found = replay(words(flags), network, images, targets, depths=DEPTHS)
    close(found.main_loss, expected.main_loss)
    close(found.subnet_losses, torch.stack(expected.losses))


def test_no_subnet_runs_before_its_epoch() -> None:
    network = tiny_resnet(LAYERS).train()
    images, targets = tiny_images(4, 48), torch.arange(4)
    found = replay(["--sampling_begin_epoch", "5", "--norm_kd"], network, images, targets, depths=(), epoch=4)
    close(found.main_loss, F.cross_entropy(layer_norm(network(images).detach()), targets))
    assert found.subnet_logits == ()


@pytest.mark.parametrize(
    ("flags", "given", "message"),
    [
        ("", {}, "0 depths given; allowed: the 1 that the flags draw"),
        ("--kl_coef 0", {"depths": DEPTHS[:1]}, "1 depths given; allowed: the 0"),
        ("--Snet_Dtrans", {"depths": DEPTHS[:1]}, "0 sizes given; allowed: the 1"),
        ("", {"depths": DEPTHS[:1], "sizes": (32,)}, "1 sizes given; allowed: the 0"),
        ("--max_size 2", {"depths": DEPTHS[:1]}, "0 main_sizes given; allowed: the 1"),
        ("--Snet_Dtrans --Dtrans Dtrans15", {"depths": DEPTHS[:1], "sizes": (32,)}, "0 windows given"),
        ("--epoch 3", {"depths": DEPTHS[:1], "epoch": 3}, "epoch is 3; allowed: 0 to 2"),
        ("--fly", {}, "unrecognized arguments: --fly"),
    ],
)
def test_draws_must_fit_the_flags(flags: str, given: dict[str, Any], message: str) -> None:
    network = tiny_resnet(LAYERS).train()
    with pytest.raises(ConfigError, match=message):
        replay(flags.split(), network, tiny_images(2, 32), torch.arange(2), **{"depths": (), **given})
