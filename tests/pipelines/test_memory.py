"""Memory stays flat over a long run."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path

import pytest
import torch

from fasttrain.config import Data
from fasttrain.pipelines.folder import ImageFolder
from tests.pipelines.loaders import train_loader

pytestmark = pytest.mark.pipelines


def resident_bytes() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def test_memory_is_flat_from_200_to_2000_batches(icons: ImageFolder) -> None:
    """With two sizes of small batches and everything that is drawn; epochs of 5 batches."""
    data = Data(augmentation="small", crop=32, val_resize=32, val_crop=32, threads=1)
    loader = train_loader(
        data,
        icons,
        batch=4,
        seed=0,
        device=torch.device("cpu"),
        dtype=torch.float32,
        sizes=(16, 24, 32),
        sizes_per_step=2,
    )
    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    for _ in itertools.islice(batches, 200):
        pass
    before = resident_bytes()
    for _ in itertools.islice(batches, 1800):
        pass
    after = resident_bytes()
    loader.close()
    assert after < 1.02 * before, f"{before / 2**20:.1f} MiB grew to {after / 2**20:.1f}"
