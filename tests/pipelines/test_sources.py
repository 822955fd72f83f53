"""Files and tars: the same images in the same order, for any number of processes and after any resume."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from fasttrain.config import Data
from fasttrain.errors import DataError
from fasttrain.evaluation import evaluate
from fasttrain.hardware import Precision
from fasttrain.pipelines import sources
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.loader import Batch, TrainLoader
from fasttrain.pipelines.manifest import check_presence, open_images
from tests.networks import tiny_resnet
from tests.pipelines.loaders import eval_loader, train_loader

pytestmark = pytest.mark.pipelines

CPU = torch.device("cpu")
DATA = Data(crop=32, val_resize=36, val_crop=32, jitter=0, threads=2)


def loader(images: ImageFolder, rank: int = 0, world: int = 1, batch: int = 4) -> TrainLoader:
    return train_loader(
        DATA,
        images,
        batch=batch,
        seed=3,
        rank=rank,
        world=world,
        device=CPU,
        dtype=torch.float32,
        sizes=(12, 16, 20, 24),
        sizes_per_step=2,
    )


def numbered(images: ImageFolder) -> ImageFolder:
    return dataclasses.replace(images, labels=tuple(range(len(images.files))))


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(
        (one.images, *one.small, one.targets), (other.images, *other.small, other.targets), strict=True
    )
    return all(torch.equal(left, right) for left, right in pairs)


def test_tars_give_the_files_batches(photos: ImageFolder, packed: ImageFolder) -> None:
    assert packed.files == photos.files
    assert packed.members is not None
    assert len(set(packed.members.shard.tolist())) == 3
    for epoch in (0, 1):
        pairs = zip(loader(photos).epoch(epoch), loader(packed).epoch(epoch), strict=True)
        assert all(same(one, other) for one, other in pairs)
    evaluations = (
        eval_loader(DATA, each, batch=8, device=CPU, dtype=torch.float32) for each in (photos, packed)
    )
    assert all(same(one, other) for one, other in zip(*evaluations, strict=True))


@pytest.mark.parametrize("world", range(1, 9))
def test_processes_share_a_permutation_and_resume_in_it(images: ImageFolder, world: int) -> None:
    """At world 4 and batch 3, 47 images leave 11 over, a batch less than a step takes."""
    images = numbered(images)
    ranks = [list(loader(images, rank, world, batch=3).epoch(1)) for rank in range(world)]
    steps = 47 // (3 * world)
    taken = [target for batches in ranks for batch in batches for target in batch.targets.tolist()]
    assert [len(batches) for batches in ranks] == [steps] * world
    assert len(taken) == len(set(taken)) == 3 * world * steps
    for step in range(steps):
        sides = {tuple(small.shape[-1] for small in batches[step].small) for batches in ranks}
        assert len(sides) == 1
    last = world - 1
    middle = steps // 2
    resumed = list(loader(images, last, world, batch=3).epoch(1, middle))
    assert all(same(one, other) for one, other in zip(ranks[last][middle:], resumed, strict=True))


@pytest.fixture
def copy(packed: ImageFolder, tmp_path: Path) -> ImageFolder:
    shutil.copytree(packed.root, tmp_path / "copy")
    return open_images(tmp_path / "copy")


def test_a_damaged_member_is_named(copy: ImageFolder) -> None:
    index = 20
    offset, size = copy.span(index)
    with open(copy.container(index), "r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    with pytest.raises(DataError, match=r"0000\d\.tar:class\d/0\d\d\.jpg cannot be decoded") as caught:
        list(eval_loader(DATA, copy, batch=8, device=CPU, dtype=torch.float32))
    assert copy.path(index) in str(caught.value)


def test_a_tar_cut_short_or_lost_is_named(copy: ImageFolder) -> None:
    check_presence(copy)
    tar = Path(copy.container(5))
    whole = tar.read_bytes()
    batches = loader(copy, batch=8).epoch(0)
    tar.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"tar:\S+ cannot be read: its tar ends before it does"):
        list(batches)
    with pytest.raises(DataError, match=rf"1 of 3 files .* the first: {tar} has \d+ bytes, not at least \d+"):
        check_presence(copy)
    tar.unlink()
    with pytest.raises(DataError, match=rf"the first: {tar} cannot be read \(no such file"):
        check_presence(copy)
    with pytest.raises(DataError, match="cannot be read: no such file"):
        list(loader(copy, batch=8).epoch(0))


def test_more_tars_than_may_be_open(packed: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [batch.targets for batch in loader(packed).epoch(0)]
    monkeypatch.setattr(sources, "OPEN_TARS", 1)
    found = [batch.targets for batch in loader(packed).epoch(0)]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_accuracy_is_equal_to_the_last_count_in_any_world(
    photos: ImageFolder, images: ImageFolder, world: int
) -> None:
    """Hits and images of all processes together, against one process on the files in one batch."""
    network = tiny_resnet((1, 1)).float()
    cpu = Precision("fp32", "cpu")

    def counts(folder: ImageFolder, rank: int, world: int, batch: int) -> list[int]:
        source = eval_loader(
            DATA, folder, batch=batch, rank=rank, world=world, device=CPU, dtype=torch.float32
        )
        batches = ((each.images, each.targets) for each in source)
        (own,) = evaluate(network, [network.full], batches, cpu)
        return [round(own.top1 * own.images / 100), round(own.top5 * own.images / 100), own.images]

    together = [
        sum(column) for column in zip(*(counts(images, rank, world, 5) for rank in range(world)), strict=True)
    ]
    assert together == counts(photos, 0, 1, 47)
    assert together[0] > 0
