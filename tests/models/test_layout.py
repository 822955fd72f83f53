"""A step in channels_last converts no activation to another layout, forward or backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasttrain.kernels.normalized_loss import stimulative_loss
from fasttrain.models import create_model, fuse_batch_norms
from fasttrain.subnets import PrefixTree

VIEWS = ("aten.permute", "aten.view")  # of other dimensions, without a copy
COPIES = ("aten.clone", "aten.copy_", "aten._to_copy", "aten.contiguous")


class Conversions(TorchDispatchMode):
    """Operations that give, or copy to, an image-like tensor that is not channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in [] if str(function).startswith(VIEWS) else tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.ndim == 4:
                self.seen += 1
                converted = not tensor.is_contiguous(memory_format=torch.channels_last)
                if converted or str(function).startswith(COPIES):
                    self.found.append(f"{function} {tuple(tensor.shape)} {tensor.stride()}")
        return result


@pytest.mark.parametrize("batch_norm", ["torch", "reference"])
@pytest.mark.parametrize("name", ["resnet50", "resnet18", "resnet50d", "mobilenetv3_large_100"])
def test_no_layout_is_converted(name: str, batch_norm: str) -> None:
    network = create_model(name, 10).to(memory_format=torch.channels_last).train()
    if batch_norm != "torch":
        fuse_batch_norms(network, batch_norm)
    images, small = (
        torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last) for side in (64, 96)
    )
    less = tuple(max(1, depth - 1) for depth in network.depths)
    trees = [PrefixTree([network.full]), PrefixTree([network.as_subnet(less), network.full])]
    with Conversions() as conversions:
        (main,), subnets = network.forward_trees([images, small], trees)
        loss = stimulative_loss(main, subnets, torch.tensor([0, 1]), weights=[1.0, 1.0])
        loss.total.backward()
    assert conversions.seen > 100
    assert conversions.found == []
