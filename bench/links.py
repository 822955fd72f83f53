"""A model of the all-reduce of gradients, and of what of it the backward pass hides.

Within a node a ring reduces and scatters, so that each of n GPUs holds the sum of its 1/n; between nodes the
GPUs of equal place reduce their shares, each over its own adapter; a ring within the node gathers them again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel's `bucket_cap_mb`, which the trainer leaves at its default."""


@dataclass(frozen=True, slots=True)
class Link:
    """What one GPU sends over.

    Attributes:
        bandwidth: bytes per second in one direction.
        latency: seconds per step of a ring or tree.
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """`nodes` of equally many GPUs.

    Attributes:
        gpus: of all nodes.
        nodes: a divisor of `gpus`.
        nvlink: each GPU's link within its node.
        network: each GPU's link to the other nodes.
    """

    gpus: int
    nodes: int
    nvlink: Link
    network: Link


def ring(size: float, members: int, link: Link) -> float:
    """Seconds of a ring's all-reduce: 2 (n - 1) steps of 1/n of `size` bytes."""
    return 2 * (members - 1) * (size / members / link.bandwidth + link.latency)


def tree(size: float, members: int, link: Link) -> float:
    """Seconds of a double binary tree's: all bytes up and down, each half of them in one of two trees."""
    return 2 * (size / link.bandwidth + math.ceil(math.log2(members)) * link.latency) if members > 1 else 0.0


def all_reduce(size: float, cluster: Cluster) -> float:
    """Seconds of one all-reduce of `size` bytes; between nodes the sooner of ring and tree, as in NCCL."""
    local = cluster.gpus // cluster.nodes
    between = min(algorithm(size / local, cluster.nodes, cluster.network) for algorithm in (ring, tree))
    return ring(size, local, cluster.nvlink) + between


def buckets(size: int) -> list[int]:
    """Gradients of `size` bytes in the pieces that are reduced, the last one the rest."""
    full, rest = divmod(size, BUCKET_BYTES)
    return [BUCKET_BYTES] * full + [rest] * (rest > 0)


def exposed(size: int, cluster: Cluster, window: float) -> float:
    """Seconds that a step waits for its gradients, `size` bytes.

    The last bucket is complete when the backward pass ends: it is always waited for. The others are hidden
    as far as they fit into the `window`, the seconds in which gradients become complete.
    """
    *others, last = (all_reduce(bucket, cluster) for bucket in buckets(size))
    return last + max(0.0, sum(others) - window)
