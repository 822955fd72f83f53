"""Five training steps on given tensors, as one of several processes; rank 0 saves the weights.

Run by test_distributed.py: `distributed_worker.py OUTPUT MODE`, alone or under torchrun.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from fasttrain import build, distributed
from fasttrain.config import Config, Data, Method, Model, Optim, Run
from fasttrain.distributed import Process
from fasttrain.hardware import Precision
from fasttrain.models import batch_norms
from tests.networks import tiny_swin

CONFIG = Config(
    data=Data(augmentation="small", crop=32, val_crop=32, val_resize=32, num_classes=10),
    model=Model(name="cifar_resnet20"),
    method=Method(subnets=3, subnet_inputs="downscaled", sizes=(16, 24), normalize="layer_norm"),
    optim=Optim(lr=0.05, clip=5.0, ema=0.5),
    run=Run(batch=8, seed=11, epochs=2),
)
METHODS = {
    "classifiers": Method(name="self_distillation", temperature=3.0),
    "token": Method(name="augsub", mask_square=8),
}
STEPS = 5


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The global batch of a step: images, downscaled images, targets."""
    random = torch.Generator().manual_seed(step)
    images = torch.randn(8, 3, 32, 32, generator=random, dtype=torch.float64)
    small = torch.nn.functional.interpolate(images, (16 + 8 * (step % 2),) * 2, mode="bilinear")
    return images, small, torch.randint(0, 10, (8,), generator=random)


def run(process: Process, mode: str) -> dict[str, object]:
    """Train five steps.

    `mode` frozen: batch norm by its running statistics, each rank a part of the batch; same: all of it;
    split: likewise, the main network and the subnets in passes of their own; accumulate: as frozen, in three
    parts; bf16: as same, gradients reduced in bf16; classifiers: as same, by self-distillation; token: all of
    it, a Swin transformer by AugSub, each rank with masks of its own.
    """
    method = replace(METHODS.get(mode, CONFIG.method), backward="split" if mode == "split" else "joint")
    run = replace(
        CONFIG.run,
        accumulate=3 if mode == "accumulate" else 1,
        gradient_compression="bf16" if mode == "bf16" else "none",
    )
    config = replace(CONFIG, method=method, run=run)
    network = tiny_swin() if mode == "token" else build.build_network(config, 10, process.device).double()
    step = build.build_step(config, network, process, Precision("fp32", "cpu"), STEPS)
    network.train()
    if mode in ("frozen", "accumulate"):
        for layer in batch_norms(network):
            layer.eval()
    draws = []
    for index in range(STEPS):
        tensors = batch(index)
        if mode in ("frozen", "accumulate"):
            own = len(tensors[2]) // process.world
            tensors = tuple(t[process.rank * own : (process.rank + 1) * own] for t in tensors)  # type: ignore[assignment]
        images, small, targets = tensors
        step(images, [small], targets, epoch=0, step=index, global_step=index)
        draws.append(str(step.method.draw(0, index)) if mode not in METHODS else "")  # type: ignore[attr-defined]
    assert step.ema is not None
    auxiliary = step.auxiliary.state_dict() if step.auxiliary else {}
    parts = {"network": network.state_dict(), "ema": step.ema.state_dict(), "auxiliary": auxiliary}
    return {**parts, "draws": draws}


def main(output: Path, mode: str) -> None:
    """Join, train, save."""
    process = distributed.start(Run(device="cpu"))
    try:
        result = run(process, mode)
        torch.save(result, output / f"{mode}-{process.world}-{process.rank}.pt")
    finally:
        distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
