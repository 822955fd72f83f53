"""The published NIPS22-ST training step, written plainly: the baseline, not a second product.

One pass per subnet after the main network's, a backward pass after each, every subnet's input resized and
normalized again from the one before. Float32 (TF32 on GPUs), contiguous NCHW, cudnn.benchmark off.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.config import IMAGENET_MEAN, IMAGENET_STD
from fasttrain.models import StagedNetwork

LEAST_SIDE = 0.43  # --mini_size of the published train.py: the least side over the crop


def sizes(crop: int) -> tuple[int, ...]:
    """Sides that the published code draws a subnet's input from: every integer, pixels."""
    return tuple(range(max(1, int(LEAST_SIDE * crop)), crop + 1))


def forward_backward(
    network: StagedNetwork,
    images: Tensor,
    targets: Tensor,
    depths: Sequence[Sequence[int]],
    sides: Sequence[int],
) -> Tensor:
    """Losses and gradients of one step; the gradients are left in `.grad`.

    Args:
        network: in training mode.
        images: normalized images [B, 3, H, W].
        targets: class indices, int64 [B].
        depths: blocks kept per stage, of each subnet.
        sides: side of each subnet's input, pixels.

    Returns:
        The sum of all losses, detached.
    """
    teacher = normalize(run(network, images, network.depths))
    loss = F.cross_entropy(teacher, targets)
    loss.backward()
    total, teacher = loss.detach(), teacher.detach()
    for kept, side in zip(depths, sides, strict=True):
        images = shrink(images, side)
        student = normalize(run(network, images, kept))
        loss = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
        loss.backward()
        total += loss.detach()
    return total


def run(network: StagedNetwork, x: Tensor, depths: Sequence[int]) -> Tensor:
    """Logits [B, C] of the subnet that keeps each stage's first `depths[i]` blocks."""
    x = network.stem(x)
    for ref in network.as_subnet(depths):
        x = network.run_block(ref, x)
    return network.head(x)


def shrink(images: Tensor, side: int) -> Tensor:
    """Resize((side, side)) and Normalize(mean, std), on images [B, 3, H, W] that are normalized already."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    resized = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
    return (resized - mean) / std


def normalize(logits: Tensor) -> Tensor:
    """The published KL-'s normalization of logits [B, C]: zero mean and unit variance over the classes."""
    return F.layer_norm(logits, logits.shape[1:], eps=1e-7)
