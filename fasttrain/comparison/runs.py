"""The runs of a comparison: each trained, and judged by its main network and all of its subnets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.state import check_settings
from ..config import Config, from_dict
from ..models import StagedNetwork
from ..opening import opened
from ..subnets import Subnet, depths_of, ordered_space, sample_distinct
from ..telemetry.files import read_json, write_json
from ..trained import open_trained
from ..trainer import train

VERDICT = "comparison.json"
"""In a run's folder: what it came to."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Top-1 of a trained network in percent.

    Attributes:
        main: of the main network, with the running statistics of training.
        subnets: of each subnet, batch-norm statistics re-estimated for each.
    """

    main: float
    subnets: list[float]


def run_of(config: Config, label: str, seed: int, epochs: int, folder: Path) -> Config:
    """One run of a comparison: a recipe with its own seed, length and folder, evaluated at the end.

    Warm-up and the first epoch with subnets keep their share of the recipe's epochs.
    """
    share = epochs / config.run.epochs
    return replace(
        config,
        method=replace(config.method, start_epoch=int(config.method.start_epoch * share)),
        optim=replace(config.optim, warmup_epochs=config.optim.warmup_epochs * share),
        evaluation=replace(config.evaluation, every=epochs, subnets=0),
        run=replace(config.run, epochs=epochs, seed=seed, folder=str(folder), name=f"{label}-seed{seed}"),
    )


def verdict_on(config: Config, subnets: int) -> Verdict:
    """Train a run, or go on with it, and judge it; one that was judged before is not touched.

    Args:
        config: as `run_of` gives it.
        subnets: how many are judged, the same of each network; -1: all ordered subnets.

    Raises:
        ConfigError: the run's folder holds another run.
        RunError: see `trainer.train`.
    """
    folder = Path(config.run.folder) / config.run.name
    known = read_json(folder / VERDICT)
    if known.get("chosen") == subnets and known.get("judged") == _judged(config):
        check_settings(config, from_dict(read_json(folder / "config.json")))
        return Verdict(known["main"], known["top1"])
    train(config)
    with opened(open_trained(folder, "last"), calibrates=True) as run:
        chosen = judged_subnets(run.network, subnets)
        (main,) = run.top1([run.network.full], "main")
        verdict = Verdict(main, run.top1(chosen, "reestimated"))
        depths = [depths_of(subnet, len(run.network.depths)) for subnet in chosen]
    write_json(
        folder / VERDICT,
        {
            "chosen": subnets,
            "judged": _judged(config),
            "main": main,
            "statistics": "reestimated",
            "depths": depths,
            "top1": verdict.subnets,
        },
    )
    return verdict


def _judged(config: Config) -> dict[str, Any]:
    """What a verdict depends on and a resume does not: another of these judges anew."""
    return {
        "train": config.data.train,
        "val": config.data.val,
        "max_steps": config.run.max_steps,
        "evaluation": asdict(config.evaluation),
    }


def judged_subnets(network: StagedNetwork, count: int) -> list[Subnet]:
    """All ordered subnets, or `count` of them: the same whatever spaces the methods draw from."""
    space = ordered_space("default", network.depths)
    return list(space) if count < 0 else sample_distinct(space, count, 0)
