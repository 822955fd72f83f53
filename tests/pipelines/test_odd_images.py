"""Odd images are decoded as stored, whole and by windows, or `data check` refuses them and says why."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Literal

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, types

from fasttrain.config import Data
from fasttrain.pipelines.check import Check, check, list_images
from fasttrain.pipelines.decoding import decode
from fasttrain.pipelines.loader import train_loader
from fasttrain.pipelines.reference import TOLERANCE, apart, stored_pixels

from .odd_images import Levels, odd_images

pytestmark = pytest.mark.pipelines

ODD = odd_images()


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """All of them in one check."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "a").mkdir()
    for name, image in ODD.items():
        (folder / "a" / name).write_bytes(image.data)
    return check(list_images(folder))


def decoded(data: bytes, window: tuple[list[int], list[int]] | None = None) -> Levels:
    """By DALI, as training does."""
    contents = np.frombuffer(data, np.uint8)
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        source = fn.external_source(lambda: [contents], batch=True, dtype=types.DALIDataType.UINT8, ndim=1)
        pipeline.set_outputs(decode(source, Data(), window=window))
    return np.array(pipeline.run()[0][0])


@pytest.mark.parametrize("augmentation", ["imagenet", "small"])
def test_what_was_checked_trains_the_same_twice(
    checked: Check, augmentation: Literal["imagenet", "small"]
) -> None:
    data = Data(crop=24, threads=2, augmentation=augmentation)
    cpu = torch.device("cpu")
    batches = []
    for _ in range(2):
        loader = train_loader(
            data, checked.manifest.images(), batch=16, seed=3, device=cpu, dtype=torch.float32
        )
        with closing(loader):
            batches.append(torch.cat([batch.images.clone() for batch in loader.epoch(0)]))
    assert torch.equal(*batches)
    assert batches[0].isfinite().all()


def test_what_the_decoder_writes_in_training_is_told_of_with_the_name(checked: Check) -> None:
    messages = {fault.path: fault.reason for fault in checked.messages}
    assert messages["a/jpeg_extraneous_bytes.jpg"].endswith("extraneous bytes before marker 0xd9")
    assert messages["a/tiff_cmyk.jpg"].startswith("[ERROR] [libtiff_decoder] Unsupported photometric")
    assert "a/jpeg.jpg" not in messages


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_is_decoded_as_stored_or_refused(checked: Check, name: str) -> None:
    image = ODD[name]
    reasons = {fault.path: fault.reason for fault in checked.manifest.left_out}
    records = {record.path: record for record in checked.manifest.records}
    path = f"a/{name}"
    if image.pixels is None:
        assert path not in records
        assert re.match(image.reason, reasons[path]), reasons[path]
        return
    assert path not in reasons, reasons[path]
    height, width, _ = image.pixels.shape
    assert (records[path].width, records[path].height) == (width, height)
    whole = decoded(image.data)
    assert apart(whole, image.pixels) <= image.near
    assert apart(whole, stored_pixels(image.data)) <= TOLERANCE
    for top, left, rows, columns in (
        (0, 0, height, width),
        (0, 0, 1, 1),
        (height // 3, width // 4, height // 2, width // 2),
        (height - 7, width - 5, 7, 5),
    ):
        part = decoded(image.data, ([top, left], [rows, columns]))
        assert apart(part, whole[top : top + rows, left : left + columns]) <= TOLERANCE
