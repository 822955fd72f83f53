"""`fasttrain nips22` trains as `fasttrain train` does, through its own printed command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from fasttrain.config import from_dict
from fasttrain.recipes import recipe
from tests.test_cli import run
from tests.test_trainer import write_images

FLAGS = (
    "--epoch 1 --batch_size 4 --train_crop_size 32 --val_crop_size 32 --val_resize_size 36 --mini_size 1 "
    "--norm_kd --norm_kd_type v1 --norm_kd_test --multi_Snet 2 --direct_KD_esm --Snet_Dtrans "
    "--Dtrans Dtrans15 --same_mscale_image --mix mixup --train_trans with_UA --lr 0.001 --min_lr "
    "--min_lr_coef 0.5 --kl_rcos"
)


def test_the_published_flags_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ResNet-50 on a few small images; a second run needs --resume, and has nothing to do then."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images" / "train", 2, 0)
    write_images(tmp_path / "images" / "val", 1, 1)
    words = ["nips22", *FLAGS.split(), "--exp", "runs/first", "--data", "images"]
    status, out, err = run(capsys, *words)
    assert status == 0, err
    command = next(line for line in out.splitlines() if line.startswith("fasttrain train "))
    folder = tmp_path / "runs" / "first"
    config = from_dict(json.loads((folder / "config.json").read_text()))
    assert config.recipe == shlex.split(command)[2]
    assert config.method.cascade == "crop"
    assert recipe(str(folder / "config.json")) == config
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates
    assert min(rates) >= 0.0005
    assert any(line["kind"] == "evaluation" for line in lines)

    status, _, err = run(capsys, *words)
    assert status == 2
    assert (
        "runs/first exists and --resume is not given; allowed: --resume to go on with it, or another --exp"
        in err
    )
    status, out, _ = run(capsys, *words, "--resume")
    assert status == 0
    assert "finished" in out
