"""Passes that leave batch norm one value per channel are refused before anything starts; others are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fasttrain import loading
from fasttrain.build import build_network
from fasttrain.comparison import Budget, compare
from fasttrain.config import Config, Data, Method, Model, Run
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError, DataError
from fasttrain.evaluation import estimate_statistics
from fasttrain.export import export
from fasttrain.hardware import choose_precision
from fasttrain.launch.preflight import check_run
from fasttrain.passes import check_passes
from fasttrain.reevaluate import evaluate_checkpoint
from fasttrain.trainer import train

from .test_export import write_run
from .test_trainer import configure, write_images

CPU = torch.device("cpu")
PIXEL = 4
"""Side of images that end as one pixel in cifar_resnet20."""


def config(**changes: Mapping[str, Any]) -> Config:
    """Of common training in batches of 4, the partial one kept; `changes` by section."""
    sections: dict[str, dict[str, Any]] = {
        "data": {"crop": PIXEL, "val_crop": PIXEL, "val_resize": PIXEL, "drop_last": False},
        "model": {"name": "cifar_resnet20"},
        "method": {"name": "common"},
        "run": {"batch": 4},
    }
    for name, values in changes.items():
        sections[name] |= values
    kinds = {"data": Data, "model": Model, "method": Method, "run": Run}
    return Config(**{name: kinds[name](**values) for name, values in sections.items()})


CLASSIFIERS = {
    "model": {"name": "test_convnext"},
    "data": {"crop": 32},
    "method": {"name": "layer_supervision"},
}
"""Of a network without batch norm, but with classifiers that have some."""
LAST = "data.no-drop-last leaves a last batch of "


@pytest.mark.parametrize(
    ("images", "world", "changes", "told"),
    [
        (9, 1, {}, LAST + "1 (of 9 images in batches of 4); allowed: --data.drop-last, or a run.batch that"),
        (1, 1, {}, LAST + "1 (of 1 images in batches of 4)"),
        (10, 2, {}, LAST + "2 (of 10 images in batches of 4)"),
        (11, 2, {}, LAST + "2 (of 11 images in batches of 4)"),
        (11, 1, {"run": {"batch": 8, "accumulate": 2}}, LAST + "3 (of 11 images in batches of 8)"),
        (10, 1, {"run": {"batch": 4, "max_steps": 3}}, ""),
        (9, 1, {"run": {"max_steps": 3}}, LAST + "1"),
        (9, 1, {"run": {"max_steps": 2}}, ""),
        (9, 1, {"data": {"drop_last": True}}, ""),
        (9, 2, {}, ""),  # one image for two processes is left out anyway
        (8, 1, {}, ""),
        (9, 1, {"data": {"crop": PIXEL + 1}}, ""),
        (9, 1, {"model": {"name": "test_convnext"}, "data": {"crop": 32}}, ""),
        (9, 1, {"model": {"name": "resnet18"}, "data": {"crop": 32}}, LAST + "1"),
        (9, 1, {"model": {"name": "resnet18"}, "data": {"crop": 33}}, ""),
        (9, 1, {"model": {"name": "densenet121"}, "data": {"crop": 33}}, LAST + "1"),  # its pools round down
        (9, 1, CLASSIFIERS, LAST + "1"),
        (9, 1, {"run": {"sync_batch_norm": True}}, LAST + "1"),
        (10, 2, {"run": {"sync_batch_norm": True}}, ""),
    ],
)
def test_what_is_left_for_the_last_batch_counts(
    images: int, world: int, changes: dict[str, dict[str, Any]], told: str
) -> None:
    given = config(**changes)
    check_passes(given, world)  # a whole batch is enough
    if not told:
        check_passes(given, world, images)
        return
    with pytest.raises(ConfigError) as error:
        check_passes(given, world, images)
    assert told in str(error.value)
    assert f"images of {given.data.crop} pixels end as one pixel" in str(error.value)


@pytest.mark.parametrize(
    ("method", "batch", "refused"),
    [
        ({"subnet_inputs": "downscaled", "sizes": (PIXEL, 32)}, 1, True),
        ({"subnet_inputs": "downscaled", "sizes": (PIXEL, 32)}, 2, False),
        ({"subnet_inputs": "downscaled", "sizes": (PIXEL, 32), "subnet_share": 0.25}, 4, True),
        ({"subnet_inputs": "downscaled", "sizes": (PIXEL, 32), "subnet_share": 0.5}, 4, False),
        ({"subnet_inputs": "downscaled", "sizes": (PIXEL, 32), "name": "common"}, 1, False),
        ({"subnet_inputs": "downscaled", "sizes": (8, 32)}, 1, False),
        ({"main_resizes": (PIXEL, 8, 16, 32)}, 1, False),  # the last pair's side is the one it comes to
        ({"main_resizes": (16, 32, PIXEL, 8)}, 1, True),
    ],
)
def test_the_sides_that_a_method_draws_count(method: dict[str, Any], batch: int, refused: bool) -> None:
    given = config(data={"crop": 32}, method={"name": "stimulative"} | method, run={"batch": batch})
    if not refused:
        check_passes(given, 1)
        return
    with pytest.raises(ConfigError, match=rf"run\.batch is {batch}.*; allowed: at least 2 images per pass"):
        check_passes(given, 1)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/, 9 images, and val/."""
    folder = tmp_path_factory.mktemp("odd")
    write_images(folder / "train", 3, 0)
    write_images(folder / "val", 2, 1)
    return folder


def leaving_one(images: Path, folder: Path, side: int = PIXEL) -> Config:
    """A run on 9 images in batches of 4."""
    data = {
        "crop": side,
        "val_crop": side,
        "val_resize": side,
        "drop_last": False,
        "padding": 0,
        "threads": 1,
    }
    method = {"name": "common", "subnet_inputs": "full", "sizes": ()}
    run = {"batch": 4, "epochs": 1, "precision": "fp32"}
    return configure(images, folder, data=data, method=method, run=run, evaluation={"subnets": 2})


def test_check_train_and_compare_refuse_it(odd: Path, tmp_path: Path) -> None:
    given = leaving_one(odd, tmp_path)
    with pytest.raises(ConfigError, match=r"no-drop-last leaves a last batch of 1 \(of 9 images"):
        check_run(given)
    with pytest.raises(ConfigError, match=r"no-drop-last leaves a last batch of 1 \(of 9 images"):
        train(given)
    assert not (tmp_path / "run").exists()
    stochastic = replace(given, method=replace(given.method, name="stochastic_depth"))
    with pytest.raises(ConfigError, match=r"no-drop-last leaves a last batch of 1 \(of 9 images"):
        compare({"a": given, "b": stochastic}, Budget(epochs=1), seeds=1, folder=tmp_path / "compare")


def test_two_pixels_are_trained_on(odd: Path, tmp_path: Path) -> None:
    given = leaving_one(odd, tmp_path, PIXEL + 1)
    assert check_run(given)
    assert train(given).main is not None


def test_calibration_leaves_out_a_single_image(odd: Path, tmp_path: Path) -> None:
    """Of evaluation, and of an exported subnet, where training dropped it."""
    given = leaving_one(odd, tmp_path)
    process = Process(0, 1, CPU)
    folders = loading.open_folders(given)
    batches = list(loading.calibration_batches(given, folders.train, process, torch.float32, 0))
    assert [len(each) for each in batches] == [4, 4]
    ones = replace(given, run=replace(given.run, batch=1))
    batches = list(loading.calibration_batches(ones, folders.train, process, torch.float32, 0))
    assert [len(each) for each in batches] == [1] * 9
    run = write_run(given)
    verdict = evaluate_checkpoint(run, subnets=2, device="cpu", train=str(odd / "train"))
    assert len(verdict.subnets[0].top1) == 2
    path = tmp_path / "x.safetensors"
    (line,) = export(run, "safetensors", path, subnet=(1, 2, 3), train=str(odd / "train"), device="cpu")
    assert "batch-norm statistics reestimated" in line


def test_calibration_from_single_images_is_one_message() -> None:
    network = build_network(config(), 3, CPU)
    precision = choose_precision("fp32", CPU)
    with pytest.raises(DataError, match="from single images that end as one pixel; allowed: at least 2"):
        estimate_statistics(network, [network.full], [torch.zeros(1, 3, PIXEL, PIXEL)], precision)
    statistics = estimate_statistics(
        network, [network.full], [torch.zeros(1, 3, PIXEL + 1, PIXEL + 1)], precision
    )
    assert all(isinstance(layer, nn.BatchNorm2d) for _, layer in statistics.sums)
