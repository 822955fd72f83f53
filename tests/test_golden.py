"""The published code's recorded training steps, reproduced in float64 (see tests/golden/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fasttrain.compat.nips22.replay import replay
from fasttrain.models import StagedNetwork, create_model

pytestmark = pytest.mark.golden

FOLDER = Path(__file__).parent / "golden"
RECORDINGS = {
    "ct": (1, "--kl_coef 0 --multi_Snet 0", 0),
    "st": (2, "", 0),
    "st_norm": (3, "--norm_kd", 0),
    "st_norm_snet5": (4, "--norm_kd --multi_Snet 5", 0),
    "st_norm_snet5_dtrans7": (
        5,
        "--train_crop_size 64 --norm_kd --multi_Snet 5 --Snet_Dtrans --Dtrans Dtrans7",
        0,
    ),
    "stpp_a1": (
        6,
        "--train_crop_size 64 --norm_kd --multi_Snet 6 --Snet_Dtrans --Dtrans Dtrans7 --sample_space space3",
        0,
    ),
    "st_norm_v2": (7, "--norm_kd --norm_kd_type v2 --multi_Snet 2 --amplitude 3", 0),
    "st_norm_temp4": (8, "--norm_kd --multi_Snet 2 --Temp 4 --amplitude 2", 0),
    "st_ce_target": (9, "--st_loss CE_target --multi_Snet 2", 0),
    "st_kl_cos": (10, "--kl_cos --norm_kd --kl_coef 2", 60),
}
"""Seed, flags of the published train.py, epoch (of 200)."""


def recorded_step(seed: int) -> tuple[StagedNetwork, torch.Tensor, torch.Tensor]:
    """The weights, images [4, 3, 64, 64] and targets [4] that the recording used."""
    network = create_model("resnet50", 1000)
    random = np.random.RandomState(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            shape = tuple(parameter.shape)
            values = random.standard_normal(shape).astype(np.float32)
            if len(shape) == 4:
                values *= np.sqrt(2.0 / (shape[0] * shape[2] * shape[3]))
            elif len(shape) == 2:
                values *= 0.05
            elif name.endswith("weight"):
                values = 1 + 0.1 * values
            else:
                values *= 0.1
            parameter.copy_(torch.from_numpy(values))
    images = torch.from_numpy(random.standard_normal((4, 3, 64, 64)).astype(np.float32)).double()
    targets = torch.from_numpy(random.randint(0, 1000, (4,)))
    return network.double().train(), images, targets


def test_every_recording_is_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == sorted(RECORDINGS)


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_step_is_reproduced(name: str) -> None:
    seed, flags, epoch = RECORDINGS[name]
    golden = np.load(FOLDER / f"{name}.npz")
    network, images, targets = recorded_step(seed)
    result = replay(
        flags.split(),
        network,
        images,
        targets,
        depths=golden["depths"].reshape(-1, 4).astype(int),
        sizes=golden["sizes"],
        epoch=epoch,
    )

    np.testing.assert_allclose(result.main_logits, golden["main_logits"], rtol=0, atol=1e-9)
    assert len(result.subnet_logits) == len(golden["depths"])
    for ours, theirs in zip(result.subnet_logits, golden.get("subnet_logits", []), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert abs(float(result.main_loss) - golden["meters"][1]) < 1e-9
    if len(golden["depths"]):
        assert abs(float(result.subnet_losses[-1]) - golden["meters"][4]) < 1e-9
    assert_gradients(network, golden)


def assert_gradients(network: StagedNetwork, golden: dict[str, np.ndarray]) -> None:
    """Each parameter's gradient norm, sum and first values agree within 1e-8 of its norm."""
    gradients = [parameter.grad for parameter in network.parameters()]
    assert len(gradients) == len(golden["grad_norms"]) == 161
    for index, gradient in enumerate(gradients):
        assert gradient is not None
        norm = golden["grad_norms"][index]
        assert norm > 0
        assert abs(float(gradient.norm()) - norm) <= 1e-8 * norm
        assert abs(float(gradient.sum()) - golden["grad_sums"][index]) <= 1e-8 * norm
        head = gradient.flatten()[:8].numpy()
        assert np.abs(head - golden["grad_head"][index][: len(head)]).max() <= 1e-8 * norm
