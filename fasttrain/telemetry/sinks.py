"""Where metrics go besides metrics.jsonl: TensorBoard and Weights & Biases, if asked for and installed."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..config import Config, Run, to_dict
from ..errors import ConfigError, encodable
from .files import replace_text


class Sink(Protocol):
    """Takes numbers by name."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one moment; `step` counts global steps and never goes back."""

    def close(self, state: str) -> None:
        """The run ended: `done`, `failed` or another state of status.json."""


class TensorBoard:
    """Scalars into the run's folder; what a resumed run takes again replaces what was there."""

    def __init__(self, folder: Path, step: int) -> None:
        """`step`: global steps done, after which all that was written is void."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=30)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, state: str) -> None:
        """See `Sink`."""
        self.writer.close()


class WeightsAndBiases:
    """A run on wandb's server, or in the run's folder with WANDB_MODE=offline; resumed as the same run."""

    def __init__(self, config: Config, folder: Path) -> None:
        """Begin, or go on by the id in the run's folder."""
        import wandb

        self.run = wandb.init(
            project=config.run.wandb,
            name=folder.name,
            id=_identity(folder / "wandb.id"),
            resume="allow",
            dir=str(folder),
            config=to_dict(config),
            settings=wandb.Settings(disable_code=True, disable_git=True, console="off"),
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        self.run.log(dict(values), step=step)

    def close(self, state: str) -> None:
        """See `Sink`."""
        self.run.finish(exit_code=0 if state == "done" else 1)


def check_sinks(run: Run) -> None:
    """What is asked for can be done here.

    Raises:
        ConfigError: a package is missing, the folder's name is none that they take, or Weights & Biases has
            no key.
    """
    asked = {"tensorboard": run.tensorboard, "wandb": bool(run.wandb)}
    for name, wanted in asked.items():
        if wanted and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"run.{name} is {getattr(run, name)!r}; allowed with the extra {name}, which is missing: "
                f"pip install -e '.[{name}]' where fasttrain lies"
            )
        folder = os.path.join(run.folder, run.name)
        if wanted and encodable(folder) != folder:
            raise ConfigError(
                f"run.{name} is {getattr(run, name)!r} and run.folder {folder!r}; allowed: a folder whose "
                "name is UTF-8, since it writes into no other"
            )
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
    if run.wandb and not offline and not os.environ.get("WANDB_API_KEY"):
        raise ConfigError(
            f"run.wandb is {run.wandb!r}; allowed with a key in the environment (WANDB_API_KEY), or with "
            "WANDB_MODE=offline"
        )


def open_sinks(config: Config, folder: Path, step: int) -> list[Sink]:
    """Those that `config.run` asks for.

    Args:
        config: of the run.
        folder: of the run.
        step: global steps done.
    """
    sinks: list[Sink] = []
    if config.run.tensorboard:
        sinks.append(TensorBoard(folder, step))
    if config.run.wandb:
        sinks.append(WeightsAndBiases(config, folder))
    return sinks


def numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of a record, as `kind/name`, nested ones as `kind/name/part`."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= numbers(f"{kind}/{name}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{kind}/{name}"] = value
    return flat


def _identity(path: Path) -> str:
    """The id of the run on Weights & Biases, kept in its folder."""
    if not path.exists():
        replace_text(path, secrets.token_hex(8))
    return path.read_text().strip()
