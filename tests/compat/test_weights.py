"""Weights of the published code, timm and torchvision load here, ours there, and the logits are the same."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from fasttrain.checkpoint import load_weights
from fasttrain.compat.weights import (
    PUBLISHED_DEPTHS,
    TORCHVISION_MOBILENETS,
    TORCHVISION_RESNETS,
    check_form,
    to_form,
    to_ours,
)
from fasttrain.errors import CheckpointError, ConfigError
from fasttrain.models import StagedNetwork, batch_norms, create_model
from tests.networks import tiny_images
from tests.published import Published

PUBLISHED_NAMES = {
    "resnet50": "24fefd7654073714bdca49906a08c065e778282f607515e765eb9d719a6e1c7f",
    "resnet101": "f78986d355803d235ea7814793f7757e38c1262d0a5f703ebf9c5c1ae05c0e2a",
    "resnet152": "75165eb665b974bf3bffd0f0f18de62e82efeeeebed48ea18270a98e4926144a",
}
"""`listing` of the published code's own `Model` with 7 classes behind DataParallel."""


def listing(state: dict[str, Tensor]) -> str:
    """Names and shapes in their order, hashed."""
    lines = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def trained(name: str, classes: int = 7) -> StagedNetwork:
    """A network in float64 whose batch norms have statistics, and variances that an eps matters to."""
    network = create_model(name, classes).double().eval()
    for layer in batch_norms(network):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.normal_(std=0.1)
        layer.running_var.uniform_(0.01, 1)
    return network


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network.double().eval()(tiny_images(2, 64))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * float(theirs.abs().max()))


def assert_equal(ours: nn.Module, theirs: nn.Module, tolerance: float = 0.0) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=0)


@pytest.mark.parametrize(("name", "depths"), [*zip(PUBLISHED_NAMES, PUBLISHED_DEPTHS, strict=True)])
def test_names_and_shapes_are_the_published_codes(name: str, depths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        theirs, ours = Published(depths, 7), create_model(name, 7)
    assert listing(nn.DataParallel(theirs).state_dict()) == PUBLISHED_NAMES[name]
    assert listing(to_form(ours, "published")) == PUBLISHED_NAMES[name]


def test_ours_to_the_published_code_and_back() -> None:
    ours = trained("resnet50")
    theirs = nn.DataParallel(Published((3, 4, 6, 3), 7).double())
    theirs.load_state_dict(to_form(ours, "published"))
    assert_close(logits(ours), logits(theirs.module))
    again = create_model("resnet50", 7).double()
    again.load_state_dict(to_ours(again, theirs.state_dict()))
    assert_equal(again, ours)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", *TORCHVISION_MOBILENETS])
def test_ours_to_torchvision_and_back(name: str) -> None:
    ours = trained(name)
    theirs = torchvision.models.get_model(TORCHVISION_MOBILENETS.get(name, name), num_classes=7).double()
    theirs.load_state_dict(to_form(ours, "torchvision"))
    assert_close(logits(ours), logits(theirs))
    again = create_model(name, 7).double()
    again.load_state_dict(to_ours(again, theirs.state_dict()))
    assert_equal(again, ours, 1e-14 if name in TORCHVISION_MOBILENETS else 0)


@pytest.mark.parametrize("name", TORCHVISION_RESNETS)
def test_all_of_torchvisions_resnets_have_our_names(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.get_model(name, num_classes=7), create_model(name, 7)
    assert listing(theirs.state_dict()) == listing(to_form(ours, "torchvision"))


@pytest.mark.parametrize("name", ["resnet50d", "seresnet50", "mobilenetv3_large_100"])
def test_ours_to_timm_and_back(name: str) -> None:
    ours = trained(name)
    theirs = timm.create_model(name, num_classes=7).double()
    theirs.load_state_dict(to_form(ours, "timm"))
    assert_close(logits(ours), logits(theirs))
    again = create_model(name, 7).double()
    again.load_state_dict(to_ours(again, theirs.state_dict()))
    assert_equal(again, ours)


@pytest.mark.parametrize(
    ("name", "depths", "theirs"),
    [
        ("resnet50", (3, 3, 6, 3), None),
        (
            "resnet50",
            (1, 2, 3, 1),
            lambda: timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, [1, 2, 3, 1], num_classes=7),
        ),
        (
            "resnet18",
            (1, 1, 2, 1),
            lambda: torchvision.models.resnet.ResNet(
                torchvision.models.resnet.BasicBlock, [1, 1, 2, 1], num_classes=7
            ),
        ),
        ("seresnet50", (2, 1, 1, 3), None),
    ],
)
def test_a_bare_subnet_is_a_smaller_network(name: str, depths: tuple[int, ...], theirs: Any) -> None:
    whole = trained(name)
    bare = create_model(name, 7).double()
    bare.keep(depths)
    assert bare.depths == depths
    bare.load_state_dict(
        {key: tensor for key, tensor in whole.state_dict().items() if key in bare.state_dict()}
    )
    with torch.no_grad():
        expected = whole(tiny_images(2, 64), depths)
    smaller = theirs() if theirs else timm.create_model(name, layers=depths, num_classes=7)
    smaller.double().load_state_dict(bare.state_dict())
    assert_close(logits(bare), expected)
    assert_close(logits(smaller), expected)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("form", ["published", "timm"])
def test_wrappers_are_seen_through(form: str, wrapper: str) -> None:
    with torch.device("meta"):
        network = create_model("resnet50", 7)
    state = to_form(network, form)
    wrapped = {f"{wrapper}{name}": tensor for name, tensor in state.items()}
    assert to_ours(network, wrapped).keys() == network.state_dict().keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_checkpoint_loads_as_its_code_saves_it(tmp_path: Path, zipped: bool) -> None:
    """Optimizer and accuracies beside the weights, in torch's present and former file format."""
    theirs = nn.DataParallel(Published((1, 2, 1, 1), 7))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.2, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    sum(parameter.sum() for parameter in theirs.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    schedule.step()
    path = tmp_path / "model_best.pth.tar"
    state = {"epoch": 3, "state_dict": theirs.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(
        state | {"best_acc1": 80.5, "best_acc5": torch.tensor(95.3)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    ours = create_model("resnet50", 7)
    ours.keep((1, 2, 1, 1))
    load_weights(ours, path)
    assert_close(logits(ours), logits(theirs.module))


def test_timms_checkpoints_load_with_the_options_in_them(tmp_path: Path) -> None:
    theirs = timm.create_model("resnet18", num_classes=7)
    options = argparse.Namespace(model="resnet18", lr=0.5)
    torch.save(
        {"arch": "resnet18", "state_dict": theirs.state_dict(), "args": options}, tmp_path / "last.pth"
    )
    ours = create_model("resnet18", 7)
    load_weights(ours, tmp_path / "last.pth")
    assert_equal(ours, theirs)


def test_old_files_without_counters_load(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.save({name: value for name, value in theirs.items() if value.ndim}, tmp_path / "resnet18.pth")
    ours = create_model("resnet18", 7)
    load_weights(ours, tmp_path / "resnet18.pth")
    assert torch.equal(ours.state_dict()["layer4.1.bn2.weight"], theirs["layer4.1.bn2.weight"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: to_form(create_model("resnet101", 7), "published"), "resnet50"),
        (lambda: to_form(create_model("resnet50", 7), "published"), "mobilenetv3_small_100"),
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=7).state_dict(), "mobilenetv3_large_100"),
        (lambda: torchvision.models.mobilenet_v3_large(num_classes=7).state_dict(), "resnet18"),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, theirs: Any, ours: str) -> None:
    torch.save(theirs(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt is of another architecture: it (has|lacks)"):
        load_weights(create_model(ours, 7), tmp_path / "weights.pt")


def test_other_classes_are_refused(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(Published((3, 4, 6, 3), 8)).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"fc\.(bias|weight) has shape \(8,.*network's is \(7,"):
        load_weights(create_model("resnet50", 7), tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("form", "model", "depths", "allowed"),
    [
        ("published", "resnet34", (3, 4, 6, 3), "resnet50, resnet101 and resnet152"),
        ("published", "resnet50", (3, 3, 6, 3), "the blocks per stage of one of them"),
        ("torchvision", "resnet50d", (3, 4, 6, 3), "resnext101_64x4d, mobilenetv3_large_100"),
        ("torchvision", "cifar_resnet20", (3, 3, 3), "resnet18, resnet34"),
        ("timm", "cifar_resnet20", (3, 3, 3), "safetensors and onnx take all"),
        ("timm", "cifar_resnet50", (3, 4, 6, 3), "safetensors and onnx take all"),
        ("timm", "cifar_mobilenetv3_large", (1, 2, 3, 4, 2, 3), "safetensors and onnx take all"),
    ],
)
def test_a_form_that_does_not_exist_is_named(
    form: str, model: str, depths: tuple[int, ...], allowed: str
) -> None:
    with pytest.raises(ConfigError, match=f"--format is {form} for {model} with .*allowed: .*{allowed}"):
        check_form(form, model, depths)


def test_a_subnet_of_resnet101_can_be_the_published_resnet50() -> None:
    with torch.device("meta"):
        network = create_model("resnet101", 7)
    network.keep((3, 4, 6, 3))
    check_form("published", network.name, network.depths)
    assert listing(to_form(network, "published")) == PUBLISHED_NAMES["resnet50"]
