"""`fasttrain data check`, `data pack`, `data demo`."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _CheckData:
    """Decode every image once, in parallel. Exit status 3 if some are bad, unless they are left out."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A folder with one folder of images per class, a folder of packed tars, or a manifest."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="MANIFEST")] = None
    """Write a manifest for data.train or data.val; without it the check only reports. An interrupted check
    goes on where it was from MANIFEST.part."""
    leave_out_bad: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the manifest without the bad images, and record them in it."""
    classes: Annotated[str, tyro.conf.arg(metavar="FILE|natural")] = ""
    """The order of the labels: a file with the class folders' names, one per line, or natural (c2 before c10,
    apple before Zebra, as timm sorts them); without it they are sorted as text."""
    root: Annotated[str, tyro.conf.arg(metavar="s3://BUCKET/FOLDER")] = ""
    """Where training will find the files, if they are to be uploaded; without it where they are."""


@dataclass(frozen=True, kw_only=True)
class _Pack:
    """Write images into shuffled, uncompressed tars (WebDataset, with DALI's indexes), and read them back."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_MANIFEST")]
    """A folder with one folder of images per class, which is checked first, or a manifest."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """A new folder for the tars."""
    shards: int
    """Number of tars."""
    shuffle: Annotated[int, tyro.conf.arg(metavar="SEED")] = 0
    """Seed of the images' order in the tars."""
    resize_shorter: int = 0
    """Make images smaller whose shorter side is longer than this, pixels; 0: none."""
    quality: int = 90
    """JPEG quality of images made smaller, 1 to 95."""


def data(rest: list[str]) -> None:
    commands = {"check": _check_data, "pack": _pack_data, "demo": _demo_data}
    if not rest or rest[0] not in commands:
        raise ConfigError(
            f"data {' '.join(rest)}; allowed: data check DIR, data pack DIR_OR_MANIFEST -o DIR, data demo DIR"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidy up as after Ctrl-C
    commands[rest[0]](rest[1:])


def _check_data(rest: list[str]) -> None:
    options = tyro.cli(_CheckData, prog="fasttrain data check", args=rest)
    from ..data import check_data

    check_data(
        options.source,
        output=options.output,
        classes=options.classes,
        leave_out_bad=options.leave_out_bad,
        root=options.root,
    )


def _pack_data(rest: list[str]) -> None:
    options = tyro.cli(_Pack, prog="fasttrain data pack", args=rest)
    for name, value, low, high in (
        ("--resize-shorter", options.resize_shorter, 0, 65_500),  # a JPEG's longest side
        ("--quality", options.quality, 1, 95),
        ("--shuffle", options.shuffle, 0, 2**31 - 1),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}; allowed: {low} to {high}")
    from ..data import pack_data
    from ..pipelines.pack import Reencoding

    pack_data(
        options.source,
        options.output,
        shards=options.shards,
        seed=options.shuffle,
        reencoding=Reencoding(options.resize_shorter, options.quality) if options.resize_shorter else None,
    )


def _demo_data(rest: list[str]) -> None:
    if len(rest) != 1 or rest[0].startswith("-"):
        raise ConfigError(f"data demo {' '.join(rest)}; allowed: data demo DIR")
    from ..pipelines.digits import write_digits

    write_digits(Path(rest[0]))
    print(f"{rest[0]}/train and {rest[0]}/test hold the digits")
