"""Evaluate a trained network: main network and subnets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import build
from .evaluation import Accuracy, SubnetReport, evaluate, evaluate_subnets
from .opening import opened
from .trained import open_trained


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accuracy of a checkpoint: which one, the main network, and its subnets by kind of statistics; and what
    is to be known of the images, in lines.
    """

    path: Path
    main: Accuracy
    subnets: list[SubnetReport]
    notes: Sequence[str] = ()


def evaluate_checkpoint(
    path: Path,
    *,
    which: str = "best",
    recipe: str = "",
    classes: str = "",
    train: str = "",
    val: str = "",
    subnets: int = -1,
    statistics: str = "reestimated",
    batch: int = 0,
    device: str = "auto",
) -> Verdict:
    """Evaluate a trained network on validation images.

    Args:
        path: of a run's folder, a checkpoint or a file of weights; see `trained.open_trained`.
        which: `best` or `last`, of a run's folder.
        recipe: a recipe or config.json that a file of weights fits.
        classes: the order of the outputs; see `trained.open_trained`.
        train: training images for the batch-norm statistics; empty: as in the run.
        val: validation images; empty: as in the run.
        subnets: how many of the run's space; -1 all, 0 none.
        statistics: `reestimated`, `main` or `both`.
        batch: images per process and batch; 0: as in the run.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        RunError: see `fasttrain.errors`.
    """
    trained = open_trained(path, which, recipe, classes)
    calibrates = subnets != 0 and statistics != "main"
    with opened(trained, calibrates, train=train, val=val, batch=batch, device=device) as run:
        network, normalize = run.network, run.config.evaluation.normalize
        chosen = build.subnets_to_evaluate(run.config, network, subnets)
        main = evaluate(network, [network.full], run.validation(), run.precision, normalize=normalize)[0]
        reports = (
            evaluate_subnets(network, chosen, run.validation, run.calibration, run.precision, statistics)
            if chosen
            else []
        )
        notes = [trained.note, *run.notes] if trained.note else run.notes
        return Verdict(trained.path, main, reports, notes)
