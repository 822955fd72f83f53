"""All that a run changes as it trains: captured for a checkpoint, and restored to the bit.

Weights, momentum and averages are equal on all processes and kept once. Each process has its own random
numbers, batch-norm running statistics (DDP leaves them apart here) and sums of the metrics: they are kept per
rank, and the mean of the statistics with the weights, for evaluation and for another number of processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoint, distributed
from ..config import FREE_ON_RESUME, Config, absolute, from_dict, to_dict
from ..distributed import Process
from ..errors import CheckpointError, ConfigError
from ..evaluation import Accuracy
from ..models import StagedNetwork
from ..optim import load_optimizer
from ..pipelines.classes import difference
from ..pipelines.loader import TrainLoader
from ..step import TrainStep
from ..telemetry.interval import Interval
from . import schema


@dataclass(slots=True)
class Position:
    """Where a run stands: the next epoch, the next step in it, and the steps done."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0


@dataclass(slots=True)
class Progress:
    """What a run has come to.

    Attributes:
        position: where it stands.
        evaluated: the global step of the last evaluation.
        main: the main network's accuracy there.
        best: the best Top-1 so far.
        images, seconds: trained, over all processes, evaluations excluded.
    """

    position: Position = field(default_factory=Position)
    evaluated: int = 0
    main: Accuracy | None = None
    best: float = -math.inf
    images: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class State:
    """The parts of a run that change; the `interval` of the metrics comes last, by `report_to`."""

    config: Config
    process: Process
    classes: Sequence[str]
    network: StagedNetwork
    step: TrainStep
    loader: TrainLoader
    interval: Interval | None = None
    progress: Progress = field(default_factory=Progress)
    _sums: tuple[list[Mapping[str, Any]], int] | None = None
    _host: dict[str, Tensor] = field(default_factory=dict)

    def report_to(self, interval: Interval) -> None:
        """Set the sums of the metrics, with what a checkpoint had of them."""
        self.interval = interval
        if self._sums is not None:
            interval.load_state_dicts(*self._sums)

    def capture(self) -> dict[str, Any]:
        """A copy of everything on the host, which training goes on without changing; on rank 0 alone.

        All processes take part. The next call uses the same memory again.
        """
        parts = distributed.to_main(_pack(self._own()), self.process)
        if not self.process.is_main:
            return {}
        ranks = [_unpack(part) for part in parts]
        ema, auxiliary = self.step.ema, self.step.auxiliary
        state = self._copy(
            {
                "auxiliary": None if auxiliary is None else auxiliary.state_dict(),
                "network": self.network.state_dict(),
                "optimizer": self.step.optimizer.state_dict(),
                "ema": None if ema is None else ema.state_dict(),
            }
        )
        if self.process.device.type == "cuda":
            torch.cuda.synchronize(self.process.device)
        state["network"] |= _mean([rank["network"] for rank in ranks])
        if ema is not None:
            state["ema"] |= _mean([rank["ema"] for rank in ranks])
        progress = self.progress
        return state | {
            "config": to_dict(absolute(self.config)),
            "classes": list(self.classes),
            "position": asdict(progress.position),
            "evaluated": progress.evaluated,
            "main": None if progress.main is None else asdict(progress.main),
            "best": progress.best,
            "trained": [progress.images, progress.seconds],
            "skipped": self.step.check.skipped,
            "scaler": self.step.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "ranks": ranks,
        }

    def about(self) -> dict[str, Any]:
        """What a manifest says besides the hash."""
        position = self.progress.position
        return {
            "step": position.global_step,
            "epoch": position.epoch,
            "world_size": self.process.world,
            "global_batch": self.config.run.batch,
            "config_sha256": config_hash(self.config),
            "torch": torch.__version__,
            "dali": self.loader.fingerprint["dali"],
        }

    def restore(self, state: Mapping[str, Any], path: Path) -> None:
        """Stand where a checkpoint stood; to the bit, if it is of as many processes.

        Raises:
            ConfigError: the run has other settings.
            CheckpointError: it is of other data, or does not fit.
        """
        check_fits(self.config, self.classes, state, path)
        restore_trained(self.network, self.step, state, path)
        with checkpoint.restoring(path):
            self.loader.load_state_dict(state["loader"])
            self.step.check.skipped = state["skipped"]
            self._restore_progress(state)
            self._restore_own(state["ranks"], path)

    def _restore_progress(self, state: Mapping[str, Any]) -> None:
        progress = self.progress
        progress.position = self._checked(Position(**state["position"]))
        progress.evaluated = state["evaluated"]
        if progress.evaluated > progress.position.global_step:
            raise ValueError(f"it was evaluated at step {progress.evaluated}, which is still to come")
        progress.main = None if state["main"] is None else Accuracy(**state["main"])
        progress.best = float(state["best"])
        progress.images, progress.seconds = state["trained"][0], float(state["trained"][1])

    def _checked(self, position: Position) -> Position:
        """The position, if this run has it: another batch or data set has other steps per epoch."""
        steps, epochs = self.loader.steps_per_epoch, self.config.run.epochs
        if position.epoch > epochs:
            raise ValueError(f"it stands at epoch {position.epoch} of a run of {epochs}")
        if position.epoch * steps + position.step != position.global_step or not 0 <= position.step < steps:
            raise ValueError(
                f"it stands at epoch {position.epoch}, step {position.step} ({position.global_step} in all); "
                f"with this batch and data an epoch has {steps} steps"
            )
        return position

    def _own(self) -> dict[str, Any]:
        """What this process alone has."""
        ema = self.step.ema
        assert self.interval is not None
        return {
            "random": random_state(self.process.device),
            "network": _buffers(self.network),
            "ema": None if ema is None else _buffers(ema),
            "interval": self.interval.state_dict(),
        }

    def _restore_own(self, ranks: Sequence[Mapping[str, Any]], path: Path) -> None:
        if len(ranks) != self.process.world:
            seed_process(self.config.run.seed, self.process.rank, self.progress.position.global_step)
            self._sums = [rank["interval"] for rank in ranks], self.process.world
            return
        own = ranks[self.process.rank]
        _load_buffers(_buffers(self.network), own["network"], path)
        if self.step.ema is not None:
            _load_buffers(_buffers(self.step.ema), own["ema"], path)
        self._sums = [own["interval"]], 1
        set_random_state(own["random"], self.process.device)

    def _copy(self, value: Any, name: str = "") -> Any:
        """Nested values with tensors copied to memory of the host that is used again."""
        if isinstance(value, Tensor):
            host = self._host.get(name)
            if host is None or host.shape != value.shape or host.dtype != value.dtype:
                host = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                self._host[name] = host
            return host.copy_(value, non_blocking=True)
        if isinstance(value, dict):
            return {key: self._copy(each, f"{name}/{key}") for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(each, f"{name}/{index}") for index, each in enumerate(value))
        return value


def restore_trained(network: StagedNetwork, step: TrainStep, state: Mapping[str, Any], path: Path) -> None:
    """Take over what is trained, which is equal on all processes.

    Raises:
        CheckpointError: it does not fit.
    """
    with checkpoint.restoring(path):
        checkpoint.load_state(network, state["network"], path)
        if step.auxiliary is not None:
            checkpoint.load_state(step.auxiliary, state["auxiliary"], path)
        load_optimizer(step.optimizer, state["optimizer"])
        step.scaler.load_state_dict(state["scaler"])
        if step.ema is not None:
            checkpoint.load_state(step.ema, state["ema"], path)


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Those that a state dict has (others are constants), but for an average's counter."""
    kept = module.state_dict().keys() - {"n_averaged"}
    return {name: value for name, value in module.named_buffers() if name in kept}


def _load_buffers(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], path: Path) -> None:
    checkpoint.check_tensors(ours, theirs, path)
    for name, buffer in ours.items():
        buffer.copy_(theirs[name])
    checkpoint.check_finite(ours, path)


def _mean(ranks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each buffer over the ranks; what is no floating-point number is equal on all."""
    first = ranks[0]
    return {
        name: torch.stack([rank[name].double() for rank in ranks]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def _pack(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpack(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where Python's, NumPy's and torch's generators stand, as plain numbers and tensors."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            int(numpy["state"]["pos"]),
            int(numpy["has_gauss"]),
            float(numpy["gauss"]),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    key, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_process(seed: int, rank: int, global_step: int) -> None:
    """Start a process's generators: different for each rank, and for each step a run is taken up at."""
    own = int(np.random.SeedSequence((seed, rank, global_step)).generate_state(1)[0])
    random.seed(own)
    np.random.seed(own)
    torch.manual_seed(own)


def config_hash(config: Config) -> str:
    """SHA-256 of the settings that a resume may not change."""
    decisive = {name: value for name, value in flat(to_dict(config)).items() if name not in FREE_ON_RESUME}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def check_fits(config: Config, classes: Sequence[str], state: Mapping[str, Any], path: Path) -> None:
    """Whether a run may go on with a checkpoint, as far as its values, settings and classes tell.

    Raises:
        ConfigError: the run has other settings.
        CheckpointError: it is of other data, or holds what no run writes.
    """
    schema.check(state, path)
    with checkpoint.restoring(path):
        recorded = from_dict(state["config"])  # fields that are newer than it get their defaults
    check_settings(config, recorded)
    if state["classes"] != list(classes):
        how = difference(classes, state["classes"]) or "they are in another order (data.classes)"
        raise CheckpointError(f"{path} was trained on other classes than {config.data.train}: {how}")


def check_settings(config: Config, recorded: Config) -> None:
    """A resumed run has the settings it was started with, but for those of `FREE_ON_RESUME`.

    Raises:
        ConfigError: another setting differs.
    """
    ours, theirs = flat(to_dict(config)), flat(to_dict(recorded))
    differing = [name for name in ours if name not in FREE_ON_RESUME and ours[name] != theirs.get(name)]
    if differing:
        named = [f"{name} is {ours[name]!r}, was {theirs.get(name)!r}" for name in differing[:3]]
        raise ConfigError(
            f"cannot resume with other settings: {', '.join(named)}; allowed: the run's own (train "
            "RUN/config.json), or another --run.name for another run"
        )


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Nested configuration as `section.field` to value."""
    values: dict[str, Any] = {}
    for name, value in sections.items():
        values |= (
            {f"{name}.{key}": each for key, each in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return values
