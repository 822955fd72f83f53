"""Exported files: what they hold, that other programs read them, and that they are whole or not there."""

from __future__ import annotations

import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fasttrain.errors import CheckpointError, ConfigError
from fasttrain.evaluation import estimate_statistics, evaluate, use_statistics
from fasttrain.export import bare_subnet
from fasttrain.formats import (
    FORMATS,
    ONNX_OPSET,
    check_output,
    write_onnx,
    write_published,
    write_safetensors,
    write_timm,
    write_torchvision,
)
from fasttrain.hardware import Precision
from fasttrain.models import StagedNetwork, create_model
from fasttrain.subnets import ordered_space, ordered_subnet
from tests.networks import TINY, tiny_images
from tests.published import Published

ABOUT = {"recipe": "rn50-stpp-a1", "depths": "1,1,1,1", "step": "12", "epoch": "3", "top1": "80.5"}


def small(name: str, depths: tuple[int, ...] = ()) -> StagedNetwork:
    """A network of few blocks after a pass in training mode, which gives its batch norms statistics."""
    network = create_model(name, 7)
    network.keep(depths or network.depths)
    network.train()(tiny_images(4, 64).float())
    return network.eval()


def logits(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(images)


def test_torch_files_load_where_they_belong(tmp_path: Path) -> None:
    network, images = small("resnet50", (1, 1, 1, 1)), tiny_images(2, 64).float()
    path, expected = tmp_path / "x.pth", logits(network, images)
    write_timm(network, path)
    theirs = timm.create_model("resnet50", layers=(1, 1, 1, 1), num_classes=7)
    theirs.load_state_dict(torch.load(path))
    torch.testing.assert_close(logits(theirs, images), expected)
    write_torchvision(network, path)
    theirs.load_state_dict(torch.load(path))
    torch.testing.assert_close(logits(theirs, images), expected)
    write_safetensors(network, tmp_path / "x.safetensors", ABOUT)
    theirs.load_state_dict(load_file(tmp_path / "x.safetensors"))
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", **ABOUT}


def test_a_published_file_is_as_its_code_saves_and_tests_it(tmp_path: Path) -> None:
    write_published(create_model("resnet50", 7), tmp_path / "x.pth.tar", ABOUT)
    state = torch.load(tmp_path / "x.pth.tar")
    assert (state["epoch"], state["best_acc1"]) == (2, 80.5)
    with torch.device("meta"):
        theirs = torch.nn.DataParallel(Published((3, 4, 6, 3), 7))
    for key in ("state_dict", "model"):  # its --resume reads the one, its test_only the other
        theirs.load_state_dict(state[key], assign=True)
    assert (tmp_path / "x.pth.tar").stat().st_size < 1.1 * 4 * 23.6e6  # both are the same tensors


@pytest.mark.parametrize(
    ("name", "depths", "batch"),
    [
        ("resnet18", (1, 1, 2, 1), 0),
        ("cifar_resnet20", (1, 2, 1), 0),
        ("cifar_resnet20", (3, 3, 3), 3),
        pytest.param("mobilenetv3_small_100", (1, 2, 2, 1, 3), 0, marks=pytest.mark.heavy),
        pytest.param("seresnext50_32x4d", (3, 3, 6, 3), 0, marks=pytest.mark.heavy),
    ],
)
def test_onnxruntime_computes_the_same(
    tmp_path: Path, name: str, depths: tuple[int, ...], batch: int
) -> None:
    """Within float32: twice torch's own distance from float64, and 4 units in the last place."""
    network, path = small(name, depths), tmp_path / "x.onnx"
    write_onnx(network, path, ABOUT, side=64, batch=batch)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [batch or "batch", 3, 64, 64]
    assert session.get_modelmeta().custom_metadata_map == ABOUT
    assert [each.version for each in onnx.load(path).opset_import if not each.domain] == [ONNX_OPSET]
    for count in (batch,) if batch else (1, 3):
        images = tiny_images(count, 64, seed=count)
        (ours,) = session.run(["logits"], {"images": images.float().numpy()})
        plain = logits(network.float(), images.float()).numpy()
        exact = logits(network.double(), images).numpy()
        allowed = 2 * np.abs(plain - exact).max() + 4 * np.finfo(np.float32).eps * np.abs(exact).max()
        assert np.abs(ours - exact).max() <= allowed


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"allowed with the extra onnx: uv pip install -e '\.\[onnx\]'"):
        write_onnx(create_model("resnet18", 7), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["timm", "safetensors"])
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    path = tmp_path / f"x{FORMATS[form].suffixes[0]}"
    path.write_text("before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CheckpointError, match="No space left"):
        FORMATS[form].write(create_model("resnet18", 7), path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "x.pt").touch()
    check_output(tmp_path / "x.pt", (".pt",), force=True)
    for path, words in (
        (tmp_path / "x.pt", "which exists; allowed: another file, or --force"),
        (tmp_path / "x.onnx", r"allowed for this format: a file ending in \.pt"),
        (tmp_path / "none" / "x.pt", "allowed: a file in a folder that exists"),
        (Path("/proc/x.pt"), "-o is /proc/x.pt: cannot write to /proc"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_output(path, (".pt",), force=False)


@pytest.mark.parametrize("family", TINY)
def test_a_bare_subnet_is_timms_smaller_network_and_leaves_the_whole_one_alone(family: str) -> None:
    network, images = TINY[family]((2, 2, 3)).eval(), tiny_images(2, 32)
    before = sorted(network.state_dict())
    subnet = bare_subnet(network, (2, 1, 2))
    assert subnet.depths == (2, 1, 2)
    assert torch.equal(logits(subnet, images), network(images, (2, 1, 2)))
    assert (network.depths, sorted(network.state_dict())) == ((2, 2, 3), before)
    smaller = TINY[family]((2, 1, 2))
    smaller.load_state_dict(subnet.state_dict())
    assert torch.equal(logits(smaller, images), network(images, (2, 1, 2)))
    with pytest.raises(ValueError, match="allowed: 1 to"):
        bare_subnet(network, (2, 3, 1))


@pytest.mark.parametrize("family", TINY)
def test_a_bare_subnets_own_statistics_are_those_of_the_walk(family: str) -> None:
    """Re-estimated alone, or with all subnets in their tree: the same accuracy and loss."""
    network, precision = TINY[family]((2, 2, 3)).train(), Precision("fp32", "cpu")
    calibration = [tiny_images(8, 32, seed) for seed in range(2)]
    batches = [(tiny_images(6, 32, 9), torch.arange(6) % 7)]
    subnets = list(ordered_space("default", (2, 2, 3)))
    walk = estimate_statistics(network, subnets, calibration, precision)
    together = evaluate(network, subnets, batches, precision, walk)
    for depths in ((1, 1, 1), (2, 1, 2), (2, 2, 3)):
        bare = bare_subnet(network, depths)
        use_statistics(bare, estimate_statistics(bare, [bare.full], calibration, precision))
        (alone,) = evaluate(bare, [bare.full], batches, precision)
        assert astuple(alone) == pytest.approx(astuple(together[subnets.index(ordered_subnet(depths))]))
