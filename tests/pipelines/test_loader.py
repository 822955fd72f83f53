from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.config import Data
from fasttrain.errors import CheckpointError, ConfigError
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.loader import Batch, EvalLoader, TrainLoader, channels_first, dali_threads
from tests.pipelines.loaders import eval_loader, train_loader

pytestmark = pytest.mark.pipelines

CPU = torch.device("cpu")
DATA = Data(crop=48, val_resize=56, val_crop=48, threads=2)
SMALL = Data(augmentation="small", crop=32, val_resize=32, val_crop=32, jitter=0, lighting=0, threads=2)


EVERYTHING = dataclasses.replace(
    DATA, policy="uniformaugment", erase=0.5, erase_fill="noise", repeats=3, colour="folded"
)


def train(data: Data, folder: ImageFolder, batch: int = 8, **options: Any) -> TrainLoader:
    options = {"seed": 5, "device": CPU, "dtype": torch.float32, **options}
    return train_loader(data, folder, batch=batch, **options)


def evaluate(data: Data, folder: ImageFolder, batch: int = 8, **options: Any) -> EvalLoader:
    return eval_loader(data, folder, batch=batch, **{"device": CPU, "dtype": torch.float32, **options})


def numbered(folder: ImageFolder) -> ImageFolder:
    """The same images, each a class of its own, so that targets tell which images came."""
    return dataclasses.replace(folder, labels=tuple(range(len(folder.files))))


def flat(batches: list[list[int]]) -> list[int]:
    return [target for batch in batches for target in batch]


def targets(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.targets.tolist() for batch in batches]


def assert_equal(one: Batch, other: Batch) -> None:
    for left, right in zip((one.images, *one.small), (other.images, *other.small), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(one.targets, other.targets)


def test_an_epoch_takes_each_image_once(images: ImageFolder) -> None:
    loader = train(dataclasses.replace(DATA, drop_last=False), numbered(images))
    epochs = [targets(loader.epoch(epoch)) for epoch in (0, 1)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [8] * 5 + [7]
        assert sorted(flat(epoch)) == list(range(47))
    assert epochs[0] != epochs[1]
    assert loader.steps_per_epoch == 6


def test_images_may_be_taken_as_they_lie(images: ImageFolder) -> None:
    loader = train(dataclasses.replace(DATA, shuffle=False), numbered(images))
    assert [flat(targets(loader.epoch(epoch))) for epoch in (0, 1)] == [list(range(40))] * 2


def test_the_last_partial_batch_is_dropped(images: ImageFolder) -> None:
    loader = train(DATA, numbered(images))
    taken = targets(loader.epoch(0))
    assert [len(batch) for batch in taken] == [8] * 5 == [8] * loader.steps_per_epoch
    assert len(set(flat(taken))) == 40


@pytest.mark.parametrize(
    "data",
    [DATA, *(dataclasses.replace(data, drop_last=False) for data in (DATA, EVERYTHING))],
    ids=["drop", "keep", "everything"],
)
@pytest.mark.parametrize("world", [2, 4])
def test_any_world_size_sees_the_same_global_steps(images: ImageFolder, data: Data, world: int) -> None:
    """Not only the same images: the same pixels, but for the images that a partial batch cannot share."""
    options: dict[str, Any] = {"sizes": (16, 24, 32), "sizes_per_step": 1}
    alone = list(train(data, numbered(images), 12, **options).epoch(1))
    shared = [
        list(train(data, numbered(images), 12 // world, rank=rank, world=world, **options).epoch(1))
        for rank in range(world)
    ]
    for step, whole in enumerate(alone):
        parts = [batches[step] for batches in shared]
        count = len(whole.targets) // world * world
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets[:count])
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images[:count])
        assert torch.equal(torch.cat([part.small[0] for part in parts]), whole.small[0][:count])


def test_repeated_images_are_augmented_anew_in_any_world(photos: ImageFolder) -> None:
    data = dataclasses.replace(DATA, repeats=3)
    alone = list(train(data, numbered(photos), 12).epoch(1))
    assert len(alone) == len(list(train(DATA, photos, 12).epoch(1)))
    for batch in alone:
        assert torch.equal(batch.targets[:4], batch.targets[4:8])
        assert torch.equal(batch.targets[:4], batch.targets[8:])
        assert not torch.equal(batch.images[:4], batch.images[4:8])
    shared = [list(train(data, numbered(photos), 4, rank=rank, world=3).epoch(1)) for rank in range(3)]
    for step, whole in enumerate(alone):
        assert torch.equal(torch.cat([batches[step].images for batches in shared]), whole.images)


@pytest.mark.parametrize("data", [DATA, SMALL, EVERYTHING], ids=["imagenet", "small", "everything"])
@pytest.mark.parametrize(("epoch", "step"), [(0, 3), (1, 0), (2, 4)])
def test_a_resume_is_bit_identical(
    images: ImageFolder, icons: ImageFolder, data: Data, epoch: int, step: int
) -> None:
    folder = icons if data is SMALL else images
    options: dict[str, Any] = {"batch": 4, "sizes": (12, 16, 24), "sizes_per_step": 2}
    straight = train(data, folder, **options)
    expected = [batch for past in range(epoch + 1) for batch in straight.epoch(past)]
    expected = expected[epoch * straight.steps_per_epoch + step :]
    resumed = list(train(data, folder, **options).epoch(epoch, step))
    assert len(resumed) == straight.steps_per_epoch - step > 0
    for one, other in zip(expected, resumed, strict=True):
        assert_equal(one, other)


def test_one_loader_may_jump_back(images: ImageFolder) -> None:
    loader = train(DATA, images)
    first = list(loader.epoch(0))
    abandoned = loader.epoch(1)
    next(abandoned)
    for one, other in zip(first[2:], loader.epoch(0, 2), strict=True):
        assert_equal(one, other)


def test_consecutive_epochs_keep_the_pipeline(photos: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = train(DATA, photos)
    list(loader.epoch(0))
    monkeypatch.setattr(loader._stream, "_build", lambda first: pytest.fail("built anew"))
    assert len(list(loader.epoch(1))) == loader.steps_per_epoch


def test_downscaled_batches_have_the_sizes_of_their_step(images: ImageFolder) -> None:
    loader = train(DATA, images, sizes=(16, 24, 32, 48), sizes_per_step=3)
    sides = [
        [[small.shape[-1] for small in batch.small] for batch in loader.epoch(epoch)] for epoch in (0, 1)
    ]
    assert {len(step) for epoch in sides for step in epoch} == {3}
    assert {side for epoch in sides for step in epoch for side in step} == {16, 24, 32, 48}
    assert sides[0] != sides[1]


def test_without_sizes_there_is_no_downscaled_batch(photos: ImageFolder) -> None:
    assert next(train(DATA, photos, sizes=(), sizes_per_step=1).epoch(0)).small == ()
    assert next(train(DATA, photos, sizes=(16,), sizes_per_step=0).epoch(0)).small == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_batches_are_channels_last_without_a_copy(photos: ImageFolder, dtype: torch.dtype) -> None:
    batch = next(train(DATA, photos, dtype=dtype, sizes=(16,), sizes_per_step=1).epoch(0))
    assert batch.images.shape == (8, 3, 48, 48)
    assert batch.small[0].shape == (8, 3, 16, 16)
    assert (batch.targets.dtype, batch.targets.shape) == (torch.int64, (8,))
    for images in (batch.images, *batch.small):
        assert images.dtype == dtype
        assert images.is_contiguous(memory_format=torch.channels_last)
    hwc = torch.zeros(2, 4, 5, 3, dtype=dtype)
    assert channels_first(hwc).data_ptr() == hwc.data_ptr()


def test_batches_outlive_the_next_ones_and_the_pipeline(photos: ImageFolder) -> None:
    loader = train(dataclasses.replace(DATA, prefetch=3), photos, sizes=(16,), sizes_per_step=1)
    held: list[Batch] = []
    copies: list[Batch] = []
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            held.append(batch)
            small = tuple(images.clone() for images in batch.small)
            copies.append(Batch(batch.images.clone(), small, batch.targets.clone()))
    loader.close()
    for one, other in zip(held, copies, strict=True):
        assert_equal(one, other)
    assert len({batch.images.data_ptr() for batch in held}) == len(held)


@pytest.mark.parametrize("world", [*range(1, 9), 50])
def test_evaluation_takes_each_image_once(images: ImageFolder, world: int) -> None:
    taken: list[int] = []
    for rank in range(world):
        loader = evaluate(DATA, numbered(images), rank=rank, world=world)
        batches = targets(iter(loader))
        assert len(batches) == len(loader)
        assert all(batches)
        taken += flat(batches)
    assert sorted(taken) == list(range(47))


def test_evaluation_repeats_and_may_be_broken_off(photos: ImageFolder) -> None:
    loader = evaluate(DATA, photos)
    first = list(loader)
    next(iter(loader))
    for again in (list(loader), list(loader)):
        for one, other in zip(first, again, strict=True):
            assert_equal(one, other)
    assert first[0].small == ()
    assert first[0].images.is_contiguous(memory_format=torch.channels_last)


def test_file_names_of_any_length_and_letters_are_read(photos: ImageFolder, tmp_path: Path) -> None:
    names = ("a", "b" * 200, "c d", "\u00e9\u732b", os.fsdecode(b"not-utf8-\xff"))
    files = tuple(f"{index % 2}/{name}.jpg" for index, name in enumerate(names))
    for index, file in enumerate(files):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(photos.path(index), tmp_path / file)
    folder = ImageFolder(root=str(tmp_path), classes=("0", "1"), files=files, labels=(0, 1, 0, 1, 0))
    renamed = next(iter(evaluate(DATA, folder, 5)))
    original = next(iter(evaluate(DATA, photos, 5)))
    assert torch.equal(renamed.images, original.images)


@pytest.mark.parametrize(
    ("configured", "cores", "processes", "threads"),
    [(0, 64, "2", 16), (0, 16, "4", 4), (0, 2, "8", 1), (5, 64, "1", 5)],
)
def test_threads_are_a_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, configured: int, cores: int, processes: str, threads: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    assert dali_threads(Data(threads=configured)) == threads


def test_wrong_requests_are_refused(photos: ImageFolder) -> None:
    with pytest.raises(ConfigError, match=r"torch\.bfloat16; allowed: torch\.float32, torch\.float16"):
        train(DATA, photos, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"run\.batch is 48, larger than the data's 47 images"):
        train(DATA, photos, batch=24, world=2)


def test_loaders_close_while_batches_are_under_way(photos: ImageFolder) -> None:
    for taken in (0, 1, 2):
        loader = train(dataclasses.replace(DATA, prefetch=4), photos)
        batches = loader.epoch(0)
        for _ in range(taken):
            next(batches)
        loader.close()
        loader.close()
    assert len(targets(loader.epoch(0))) == loader.steps_per_epoch
    pipeline = weakref.ref(loader._stream._pipeline)
    assert pipeline() is not None
    loader.close()
    assert pipeline() is None


def test_a_recorded_state_goes_on_with_the_next_batch(photos: ImageFolder) -> None:
    """In mid-epoch, at its end, and before the first batch; another number of processes is allowed."""
    options: dict[str, Any] = {"sizes": (16, 24, 32), "sizes_per_step": 2}
    loader = train(DATA, photos, **options)
    whole = [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
    for taken in (0, 3, 5):
        first = train(DATA, photos, **options)
        for _ in itertools.islice(first.epoch(0), taken):
            pass
        again = train(DATA, photos, **options)
        again.load_state_dict(first.state_dict())
        assert again.position == divmod(taken, 5)
        assert_equal(next(again.epoch(*again.position)), whole[taken])
    half = train(DATA, photos, batch=4, world=2, rank=1, **options)
    half.load_state_dict(first.state_dict())
    assert torch.equal(next(half.epoch(*half.position)).images, whole[5].images[4:])


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (DATA, {"batch": 4}, "global batch is 4 here, was 8"),
        (DATA, {"seed": 6}, "seed is 6 here, was 5"),
        (DATA, {"sizes": (16,), "sizes_per_step": 1}, r"sizes is 1 of \[16\] here, was 0 of"),
        (dataclasses.replace(DATA, flip=0.1), {}, "augmentation is"),
    ],
)
def test_a_state_of_something_else_is_refused(
    photos: ImageFolder, data: Data, options: dict[str, Any], message: str
) -> None:
    state = train(DATA, photos).state_dict()
    with pytest.raises(CheckpointError, match=f"cannot go on in the data: {message}"):
        train(data, photos, **options).load_state_dict(state)


def test_a_state_of_other_images_or_another_dali_is_refused(photos: ImageFolder, icons: ImageFolder) -> None:
    state = train(DATA, photos).state_dict()
    with pytest.raises(CheckpointError, match="images is"):
        train(DATA, icons).load_state_dict(state)
    state["fingerprint"]["dali"] = "1.0"
    with pytest.raises(CheckpointError, match=r"dali is .* here, was 1\.0"):
        train(DATA, photos).load_state_dict(state)
    threads = train(dataclasses.replace(DATA, threads=1, prefetch=3), photos)
    threads.load_state_dict(train(DATA, photos).state_dict())  # they decide no batch


@pytest.mark.parametrize(
    "changes",
    [{"step": 5}, {"step": -1}, {"epoch": -1}, {"step": 1.0}, {"epoch": None}, {"fingerprint": None}],
)
def test_a_state_that_no_loader_wrote_is_refused(photos: ImageFolder, changes: dict[str, object]) -> None:
    loader = train(DATA, photos)
    with pytest.raises(CheckpointError, match=f"cannot go on in the data: the state.*{next(iter(changes))}"):
        loader.load_state_dict(loader.state_dict() | changes)
    assert loader.position == (0, 0)
