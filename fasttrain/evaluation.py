"""Accuracy of the main network and of its subnets, and batch-norm statistics re-estimated for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .distributed import sum_over_processes
from .errors import DataError
from .hardware import Precision
from .kernels.normalized_loss import Normalization, normalize_logits
from .models import StagedNetwork, TreeWalk, batch_norms, frozen_statistics
from .subnets import ROOT, Depths, PrefixTree, Subnet, depths_of


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one network over a validation set: Top-1 and Top-5 in percent, mean cross-entropy, image count."""

    top1: float
    top5: float
    loss: float
    images: int


class NodeStatistics:
    """Batch-norm mean and variance of each node of a prefix tree; a leaf's cover the head after it, too.

    A node's statistics depend only on what is upstream of it, so that subnets that share a node share its
    statistics too, and all subnets of a space cost one walk.
    """

    def __init__(self, network: StagedNetwork, tree: PrefixTree) -> None:
        """Start empty, for one network and tree."""
        self.layers = {ROOT: [bn for module in network.stem_modules for bn in batch_norms(module)]}
        for index, node in enumerate(tree.nodes):
            self.layers[index] = [bn for each in network.block_modules(node.ref) for bn in batch_norms(each)]
        for leaf in set(tree.leaves):
            self.layers[leaf] += [bn for module in network.head_modules for bn in batch_norms(module)]
        self.images = torch.zeros((), dtype=torch.float64)
        self.sums: dict[tuple[int, _BatchNorm], Tensor] = {}
        self.current = ROOT

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Each batch-norm call inside adds its batch's mean and variance, weighted by the batch size."""
        every = {layer for layers in self.layers.values() for layer in layers}
        handles = [layer.register_forward_pre_hook(self._record) for layer in every]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
        if x[:, 0].numel() == 1:
            raise DataError(
                "batch-norm statistics cannot be re-estimated from single images that end as one pixel; "
                "allowed: at least 2 training images per process, and 2 per process in run.batch"
            )
        mean = x.mean((0, 2, 3))
        # torch.var_mean takes 3 to 20 times as long on a CPU (AMD EPYC, [16, C, 24, 24] and smaller)
        variance = (x - mean[:, None, None]).square_().mean((0, 2, 3))
        assert isinstance(layer, _BatchNorm)
        key = (self.current, layer)
        moments = torch.stack((mean, variance)) * len(x)
        self.sums[key] = self.sums[key] + moments if key in self.sums else moments

    def enter(self, node: int) -> None:
        """The walk's `before`, while recording."""
        self.current = node

    def load(self, node: int) -> None:
        """The walk's `before`, while evaluating: point the node's layers at its own statistics."""
        for layer in self.layers[node]:
            moments = self.sums.get((node, layer))
            if moments is not None:  # None: a layer that this part of a block does not run
                layer.running_mean, layer.running_var = moments / self.images.to(moments)


@contextmanager
def _evaluating(network: StagedNetwork) -> Iterator[None]:
    """Evaluation mode without gradients; mode and running statistics as before afterwards."""
    training = network.training
    layers = batch_norms(network)
    kept = [(layer.running_mean, layer.running_var) for layer in layers]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, (mean, variance) in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var = mean, variance
        network.train(training)


def estimate_statistics(
    network: StagedNetwork,
    subnets: Sequence[Subnet],
    batches: Iterable[Tensor],
    precision: Precision,
) -> NodeStatistics:
    """Batch-norm statistics of each subnet, as the published code re-estimates the main network's.

    Means and (biased) variances of each batch, normalized by its own statistics upstream, averaged over
    the batches by their size and over all processes.

    Args:
        network: its mode and running statistics are left as they are. One without batch norm has none to
            estimate: no batch is read.
        subnets: evaluated together afterwards; see `evaluate`.
        batches: images [B, 3, H, W], augmented as in training.
        precision: of the forward pass.

    Raises:
        DataError: no images.
    """
    tree = PrefixTree(subnets)
    statistics = NodeStatistics(network, tree)
    if not batch_norms(network):
        return statistics
    images = 0
    with _evaluating(network), frozen_statistics(network), statistics.recording():
        for layer in batch_norms(network):
            layer.train()
        for batch in batches:
            images += len(batch)
            with precision.autocast():
                TreeWalk(network, tree, batch, before=statistics.enter).finish()
    if not images:
        raise DataError("no training images to re-estimate batch-norm statistics from")
    device = next(iter(statistics.sums.values())).device
    statistics.images = (statistics.images + images).to(device)
    sum_over_processes([statistics.images, *statistics.sums.values()])
    return statistics


def use_statistics(network: StagedNetwork, statistics: NodeStatistics) -> None:
    """Write statistics that were estimated for the main network alone into its running statistics."""
    for (_, layer), moments in statistics.sums.items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, variance = moments / statistics.images.to(moments)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)


Measure: TypeAlias = Callable[[list[Tensor], Tensor], Tensor]
"""From each subnet's logits [B, C], float32 or wider, and targets, int64 [B]: what adds up over batches."""


def tally(
    network: StagedNetwork,
    subnets: Sequence[Subnet],
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision,
    measure: Measure,
    shape: Sequence[int],
    statistics: NodeStatistics | None = None,
) -> tuple[Tensor, int]:
    """Add up what `measure` makes of the subnets' logits, over all batches and processes, in one walk each.

    Args:
        network: its mode and running statistics are left as they are.
        subnets: `[network.full]` for the main network.
        batches: images [B, 3, H, W] and targets, int64 [B]; B may be 0.
        precision: of the forward pass.
        measure: of one batch.
        shape: of what it returns.
        statistics: of these very subnets (`estimate_statistics`); None: the running statistics.

    Returns:
        The sum, float64, on the network's device, and the number of images.

    Raises:
        DataError: no images.
    """
    tree = PrefixTree(subnets)
    device = next(network.parameters()).device
    sums = torch.zeros(*shape, dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.int64, device=device)
    with _evaluating(network):
        for images, targets in batches:
            if len(images):
                with precision.autocast():
                    walk = TreeWalk(network, tree, images, before=statistics.load if statistics else None)
                    logits = walk.finish()
                sums += measure([_at_least_float32(each) for each in logits], targets)
                count += len(images)
    sum_over_processes([sums, count])
    if not count:
        raise DataError("no validation images to evaluate on")
    return sums, int(count)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def evaluate(
    network: StagedNetwork,
    subnets: Sequence[Subnet],
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision,
    statistics: NodeStatistics | None = None,
    *,
    normalize: Normalization = "none",
) -> list[Accuracy]:
    """Accuracy of each subnet, all in one walk over their prefix tree, over all processes; see `tally`.

    Args:
        network: its mode and running statistics are left as they are.
        subnets: `[network.full]` for the main network.
        batches: images [B, 3, H, W] and targets, int64 [B]; B may be 0.
        precision: of the forward pass.
        statistics: of these very subnets; None: the running statistics.
        normalize: of the logits, before the cross-entropy.

    Raises:
        DataError: no images.
    """

    def counts(logits: list[Tensor], targets: Tensor) -> Tensor:
        return torch.stack([_counts(each, targets, normalize) for each in logits])

    sums, images = tally(network, subnets, batches, precision, counts, (len(subnets), 3), statistics)
    return [
        Accuracy(100 * top1 / images, 100 * top5 / images, loss / images, images)
        for top1, top5, loss in sums.tolist()
    ]


def _counts(logits: Tensor, targets: Tensor, normalize: Normalization) -> Tensor:
    """Top-1 hits, Top-5 hits and summed cross-entropy of one batch [3], float64."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    loss = F.cross_entropy(normalize_logits(logits, normalize, 1.0), targets, reduction="sum")
    return torch.stack((hits[:, 0].sum(), hits.sum(), loss)).double()


@dataclass(frozen=True, slots=True)
class SubnetReport:
    """Top-1 of many subnets, in percent.

    Attributes:
        statistics: whose batch-norm statistics they ran with: `reestimated` (own), `main`, or `none` where
            the network has no batch norm.
        depths: blocks per stage of each.
        top1: of each.
    """

    statistics: str
    depths: list[Depths]
    top1: list[float]

    @property
    def mean(self) -> float:
        """Mean over the subnets."""
        return fmean(self.top1)

    @property
    def deviation(self) -> float:
        """Standard deviation over the subnets."""
        return pstdev(self.top1)

    @property
    def worst(self) -> float:
        """The least."""
        return min(self.top1)

    def summary(self) -> dict[str, float | str | int]:
        """For metrics and tables."""
        return {
            "statistics": self.statistics,
            "subnets": len(self.top1),
            "mean": self.mean,
            "deviation": self.deviation,
            "worst": self.worst,
        }


def evaluate_subnets(
    network: StagedNetwork,
    subnets: Sequence[Subnet],
    validation: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    calibration: Callable[[], Iterable[Tensor]],
    precision: Precision,
    statistics: str,
) -> list[SubnetReport]:
    """Top-1 of each subnet with its own batch-norm statistics, the main network's, or both in turn.

    Args:
        network: the main network.
        subnets: of it.
        validation: gives images and targets, as `evaluate` takes them.
        calibration: gives augmented training images, as `estimate_statistics` takes them.
        precision: of the forward passes.
        statistics: `reestimated`, `main` or `both`.
    """
    reports = []
    kinds = ("reestimated", "main") if statistics == "both" else (statistics,)
    for kind in kinds if batch_norms(network) else ("none",):
        own = (
            estimate_statistics(network, subnets, calibration(), precision) if kind == "reestimated" else None
        )
        accuracies = evaluate(network, subnets, validation(), precision, own)
        depths = [depths_of(subnet, len(network.depths)) for subnet in subnets]
        reports.append(SubnetReport(kind, depths, [accuracy.top1 for accuracy in accuracies]))
    return reports
