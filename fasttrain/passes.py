"""The smallest forward passes of a run, and whether batch norm has two values per channel in them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .config import Config
from .errors import ConfigError
from .flops import meta_network
from .methods import AUXILIARY, images_seen
from .models import batch_norms, build_classifiers
from .pipelines.draws import Split
from .subnets import PrefixTree


def check_passes(config: Config, world: int, images: int = 0) -> None:
    """Whether each pass in training has enough images, those on a partial last batch among them.

    Args:
        config: of the run.
        world: processes that share each batch.
        images: of the training set; 0: not known, so that the last batch is not looked at.

    Raises:
        ConfigError: batch norm would see one value per channel.
    """
    run = config.run
    local = run.batch // world
    if local < run.accumulate:
        if local:
            raise ConfigError(
                f"run.accumulate is {run.accumulate}; allowed: up to the {local} images per process"
            )
        return
    share = config.method.subnet_share
    some = f" with method.subnet_share {share:g}" if _sees_some(config) else ""
    _check_batch(config, world, local, f"run.batch is {run.batch}{some}; allowed: ")
    last = _last_batch(config, world, images)
    if last:
        _check_batch(
            config,
            world,
            last,
            f"data.no-drop-last leaves a last batch of {last * world} (of {images} images in batches of "
            f"{run.batch}){some}; allowed: --data.drop-last, or a run.batch that leaves none or ",
        )


def _last_batch(config: Config, world: int, images: int) -> int:
    """Images of each process in the partial last batch of an epoch; 0: there is none that is trained on."""
    if config.data.drop_last or not images:
        return 0
    split = Split(images=images, batch=config.run.batch // world, world=world, drop_last=False)
    if 0 < config.run.max_steps < split.steps:
        return 0
    first, end = split.rows(split.steps - 1, 0)
    return end - first if end - first < split.batch else 0


def _check_batch(config: Config, world: int, images: int, given: str) -> None:
    """Whether a batch of some images per process can be trained on; `given` begins the message."""
    if config.run.sync_batch_norm and world > 1:
        return  # its values are those of all processes
    for count, side in _passes(config, images):
        if count == 1 and _values(config, side) == 1:
            raise ConfigError(
                f"{given}at least 2 images per pass and process, since images of {side} pixels end as one "
                "pixel and batch norm needs two values per channel"
            )


def _passes(config: Config, images: int) -> Iterator[tuple[int, int]]:
    """Images and their side of the smallest passes on a batch of so many per process: of the main network,
    and of subnets.
    """
    method = config.method
    least = images // min(config.run.accumulate, images)  # of the parts it is trained in
    side = method.main_resizes[-2] if method.main_resizes else config.data.crop
    yield least, side
    if method.name == "stimulative" and method.subnets:
        yield images_seen(method.subnet_share, least), min((side, *method.sizes))


def _sees_some(config: Config) -> bool:
    """Whether subnets see a part of each batch alone."""
    return config.method.name == "stimulative" and config.method.subnet_share < 1


def _values(config: Config, side: int) -> int:
    """The fewest values per channel that a batch norm, of the network or of what is trained besides it, sees
    of one image; 0: there is no batch norm.
    """
    network = meta_network(config.model.name)
    kind = AUXILIARY.get(config.method.name)
    with torch.random.fork_rng(devices=[]):  # a run's random numbers stay as they are
        auxiliary = build_classifiers(network, kind, side) if kind else None
    found: list[int] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0][0, 0].numel())

    for norm in (*batch_norms(network), *(batch_norms(auxiliary) if auxiliary else ())):
        norm.register_forward_pre_hook(record)
    images = torch.zeros(2, 3, side, side, device="meta")  # of one alone, some would be an error here, too
    with torch.no_grad():
        network.eval()
        if auxiliary is None:
            network(images)
        else:
            auxiliary.run(network, [images], [PrefixTree([network.full])], [])
    return min(found, default=0)
