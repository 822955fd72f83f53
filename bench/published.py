"""Figures that others published, each with its source: what a plan rests on where nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass

from fasttrain.errors import ConfigError, instead

from .links import Link


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU as it sits in its vendor's eight-GPU node.

    Attributes:
        relative: plain ResNet-50 training with AMP in one stack on all three, images/s: only ratios are used.
        nvlink: one GPU's link within a node.
        network: one GPU's link between nodes.
        watts: board power limit.
    """

    relative: float
    nvlink: Link
    network: Link
    watts: float


PROTOCOL = 0.8
"""Of a link's line rate what NCCL gets: 370 of 450 GB/s on an H100 (NVIDIA/nccl-tests#212, S. Jeaugey)."""
_NVLINK_LATENCY = 3.4e-6  # NCCL's src/graph/tuning.cc: hardware latency of a ring's step, Simple protocol
_NETWORK_LATENCY = 14e-6  # the same


def _link(gigabytes: float, latency: float) -> Link:
    return Link(PROTOCOL * 1e9 * gigabytes, latency)


GPUS = {
    # NVLink: half the data sheets' 600 and 900 GB/s, which count both directions. Network: one adapter per
    # GPU, 200 Gb/s in a DGX A100, 400 Gb/s in a DGX H100 and H200 (NVIDIA's data sheets, as the watts of the
    # SXM boards). relative: Lambda's deeplearning-benchmark, pytorch, resnet50 AMP, one GPU.
    "a100": Gpu(1582, _link(300, _NVLINK_LATENCY), _link(25, _NETWORK_LATENCY), 400),
    "h100": Gpu(2790, _link(450, _NVLINK_LATENCY), _link(50, _NETWORK_LATENCY), 700),
    "h200": Gpu(3079, _link(450, _NVLINK_LATENCY), _link(50, _NETWORK_LATENCY), 700),
}
"""By the part of a device's name that tells it."""

PLAIN_MODEL, PLAIN_CROP = "resnet50", 224
PLAIN_A100 = {"amp": 2470.0, "tf32": 938.0}
"""Plain training on one A100-80GB, images/s: NVIDIA DeepLearningExamples, PyTorch, resnet50v1.5 README
(channels_last with AMP, 21.03 container)."""
PLAIN_A100_EIGHT = {"amp": 16621.0, "tf32": 7248.0}
"""The same on a DGX A100's eight, images/s, its loader included (the same table)."""
PLAIN_SOURCE = "NVIDIA DeepLearningExamples"

STPP_GPUS, STPP_RATE, STPP_HOURS = 2, 459.0, 163.0
"""The published ST++ code: 200 epochs of rn50-stpp-a1-published on two A100s, images/s and hours with its
validations (its train.log)."""


def plain_rate(gpu: str, precision: str) -> float:
    """Plain ResNet-50 training at 224 pixels on one GPU, images/s: the A100's, times the relative speed.

    Args:
        gpu: key of `GPUS`.
        precision: amp or tf32.
    """
    return PLAIN_A100[precision] * GPUS[gpu].relative / GPUS["a100"].relative


def find_gpu(name: str) -> Gpu:
    """The GPU called so.

    Raises:
        ConfigError: an unknown one.
    """
    if name not in GPUS:
        raise ConfigError(f"--gpu is {name!r}; {instead(name, GPUS)}")
    return GPUS[name]
