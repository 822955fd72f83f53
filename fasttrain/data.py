"""`fasttrain data check` and `data pack` as the command line runs them: what they print and write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import ConfigError, DataError
from .pipelines.check import Check, Listing, check, list_images
from .pipelines.folder import is_remote
from .pipelines.manifest import Manifest
from .pipelines.pack import Reencoding, pack
from .telemetry.files import check_output


def check_data(
    source: Path, *, output: Path | None, classes: str, leave_out_bad: bool, root: str = ""
) -> None:
    """Check all images, print what was found, write the manifest if asked for.

    Args:
        source: a folder of class folders, a folder of packed tars, or a manifest.
        output: the manifest; an unfinished check's progress is kept beside it.
        classes: the order of the labels: a file with the class folders' names, one per line, or `natural`;
            empty: sorted as text.
        leave_out_bad: write a manifest in spite of bad images, without them.
        root: where training will find the files (s3://bucket/folder), empty: where they are.

    Raises:
        ConfigError: leave_out_bad without an output, a root that DALI cannot read, or a list of classes that
            cannot be read.
        DataError: bad images that are not left out, a class without a good one, or no images.
    """
    if leave_out_bad and output is None:
        raise ConfigError(
            "--leave-out-bad without -o; allowed: with -o FILE, the manifest that leaves them out"
        )
    if output is not None:
        check_output("-o", output)
    if root and output is None:
        raise ConfigError(f"--root is {root} without -o; allowed: with -o FILE, the manifest that names it")
    listing = list_images(source, classes)
    if root and (not is_remote(root) or root == "s3://" or listing.images.members is not None):
        raise ConfigError(f"--root is {root}; allowed: s3://BUCKET/FOLDER, for files that are not in tars")
    console = Console(soft_wrap=True, highlight=False)
    journal = None if output is None else output.with_name(output.name + ".part")
    done = _check(listing, console, journal)
    fault = _fault(done.manifest, leave_out_bad)
    if not fault and output is not None and journal is not None:  # before the report, whose reader may leave
        replace(done.manifest, root=root or done.manifest.root).write(output)
        journal.unlink(missing_ok=True)
    _report(done, listing, console)
    if fault:
        raise DataError(fault)
    if output is not None:
        console.print(f"{output} lists the {len(done.manifest.records)} good images", markup=False)


def pack_data(source: Path, target: Path, *, shards: int, seed: int, reencoding: Reencoding | None) -> None:
    """Check the images unless their manifest is given, then write and compare the tars.

    Raises:
        ConfigError: see `pipelines.pack.pack`.
        DataError: bad images, or the tars cannot be written.
    """
    console = Console(soft_wrap=True, highlight=False)
    listing = list_images(source)
    if listing.manifest is None:
        done = _check(listing, console, None)
        _report(done, listing, console)
        fault = _fault(done.manifest, False)
        if fault:
            raise DataError(fault)
        manifest = done.manifest
    else:
        manifest = listing.manifest
    with _progress(console, "packing, comparing", 2 * len(manifest.records)) as advance:
        packed = pack(manifest, target, shards=shards, seed=seed, reencoding=reencoding, advance=advance)
    size = sum(each.bytes for each in packed.records)
    left_out = f", {len(packed.left_out)} bad ones left out" if packed.left_out else ""
    console.print(
        f"{target} holds {len(packed.records)} images ({_bytes(size)}) in {shards} tars, "
        f"read back and compared{left_out}",
        markup=False,
    )


def _check(listing: Listing, console: Console, journal: Path | None) -> Check:
    with _progress(console, "checking", len(listing.places)) as advance:
        return check(listing, journal=journal, advance=advance)


def _report(done: Check, listing: Listing, console: Console) -> None:
    manifest = done.manifest
    good, bad = manifest.records, manifest.left_out
    for fault in bad:
        console.print(f"{fault.path} {fault.reason}", markup=False)
    lines = [
        f"{len(good) + len(bad)} images of {len(manifest.classes)} classes, "
        f"{_bytes(sum(each.bytes for each in good))}: {len(good)} good, {len(bad)} bad",
        f"formats: {_counts(each.format for each in good)}; colour: {_counts(each.colour for each in good)}",
    ]
    rotated = sum(each.orientation != 1 for each in good)
    if rotated:
        lines.append(f"{rotated} with an EXIF orientation, which training ignores: it takes images as stored")
    if done.messages:
        first = done.messages[0]
        lines.append(
            f"{len(done.messages)} good at which the decoder writes a line in training, without the name; "
            f"the first: {first.path} ({first.reason})"
        )
    if listing.images.omission:
        lines.append(listing.images.omission)
    resumed = f" ({done.resumed} of them before)" if done.resumed else ""
    lines.append(f"checked in {done.seconds:.1f} s{resumed}, {done.cores:.2f} cores busy")
    for line in lines:
        console.print(line, markup=False)


def _fault(manifest: Manifest, leave_out: bool) -> str:
    """Why a manifest cannot be used: bad images, or a class without a good one; empty: it can."""
    bad, total = manifest.left_out, len(manifest.left_out) + len(manifest.records)
    if bad and not leave_out:
        return (
            f"{len(bad)} of {total} images are bad, the first: {bad[0].path} {bad[0].reason}; mend or remove "
            "them, or leave them out (data check -o FILE --leave-out-bad)"
        )
    for label in sorted(set(range(len(manifest.classes))) - {each.label for each in manifest.records}):
        return f"class {manifest.classes[label]} has no good image; mend one, or remove the class"
    return ""


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar, on a terminal; the function that moves it on."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _counts(names: Iterator[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common()) or "none"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
