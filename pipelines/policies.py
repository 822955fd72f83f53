"""Augmentation policies (AutoAugment and its kin): which operations each image gets, and how strongly.

All is drawn here, as functions of (seed, epoch, step); `pipelines.operations` does to the images what was
drawn. An operation's value at magnitude m, 0 to 1, is low + m * (high - low).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fasttrain.config import Data
from fasttrain.randomness import Stream, generator

KINDS = (
    *("identity", "warp", "brightness", "contrast", "colour", "sharpness", "posterize", "solarize"),
    *("solarize_add", "autocontrast", "equalize", "blur", "cutout"),
)
"""What the graph can do; operations that differ in numbers alone are of one kind."""

_KIND = {
    "shear_x": "warp",
    "shear_y": "warp",
    "translate_x": "warp",
    "translate_y": "warp",
    "rotate": "warp",
    "invert": "solarize",  # from threshold 0 on
    "grey": "colour",  # by factor 0
}
"""The kind of an operation that is not named like its kind."""


class Operation(NamedTuple):
    """One operation of a policy and its range.

    Values are: shears, in widths per height; translations, in sides of the image; rotations, in degrees
    counter-clockwise; factors of brightness, contrast, colour and sharpness less 1; bits kept by `posterize`;
    levels from which `solarize` inverts; levels that `solarize_add` adds below 128; standard deviations of
    `blur`, in pixels; sides of the square of `cutout`, in sides of the image.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    """Whether the value is negated for half of the images."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy chose for B images in S places, one after the other.

    Attributes:
        index: of the operation, int64 [B, S].
        magnitude: 0 to 1, negative where a signed operation's value is to be negated, float64 [B, S].
        applied: otherwise the place does nothing, bool [B, S].
    """

    index: NDArray[np.int64]
    magnitude: NDArray[np.float64]
    applied: NDArray[np.bool_]


def _space(
    *,
    shear: float,
    translate: float,
    rotate: float,
    enhance: float,
    posterize: tuple[float, float],
    solarize: tuple[float, float],
) -> tuple[Operation, ...]:
    """The operations that all searched and sampled policies have, with one policy's ranges."""
    return (
        Operation("shear_x", 0, shear, True),
        Operation("shear_y", 0, shear, True),
        Operation("translate_x", 0, translate, True),
        Operation("translate_y", 0, translate, True),
        Operation("rotate", 0, rotate, True),
        Operation("brightness", 0, enhance, True),
        Operation("contrast", 0, enhance, True),
        Operation("colour", 0, enhance, True),
        Operation("sharpness", 0, enhance, True),
        Operation("posterize", *posterize),
        Operation("solarize", *solarize),
        Operation("autocontrast"),
        Operation("equalize"),
    )


RANDOM = ("randaugment", "randaugment_torchvision", "randaugment_standard")
"""Policies of a fixed mean magnitude."""


@cache
def operations(policy: str, side: int) -> tuple[Operation, ...]:
    """What a policy (`data.policy`) chooses from, for images of a side in pixels.

    AutoAugment: Cubuk et al. 2018, Table 6. RandAugment (Cubuk et al. 2020) as timm's `rand-...-inc1`, which
    RSB, DeiT and AugSub train with, and as torchvision. TrivialAugment: Mueller and Hutter 2021, Wide.
    UniformAugment: LingChen et al. 2020, section 3, with Fast AutoAugment's ranges. Three-augment: Touvron et
    al. 2022 (DeiT III). Standard: the fixed_standard space of TrivialAugment's aug_lib, whose enhancements go
    from the faintest to the strongest, and which keeps 8 - int(4 m) bits.
    """
    if policy.endswith("_standard"):
        enhancements = ("brightness", "contrast", "colour", "sharpness")
        space = _space(
            shear=0.3, translate=10 / side, rotate=30, enhance=0.9, posterize=(8.45, 4.45), solarize=(256, 0)
        )
        faint = (
            each._replace(low=-0.9, signed=False) if each.name in enhancements else each for each in space
        )
        return (*faint, Operation("identity"))
    searched = {"shear": 0.3, "rotate": 30, "enhance": 0.9}
    invert = Operation("invert")
    if policy == "autoaugment":
        space = _space(translate=150 / 331, posterize=(8, 4), solarize=(255, 0), **searched)
        return (*space, invert)
    if policy == "randaugment_torchvision":
        space = _space(translate=150 / 331, posterize=(8, 4), solarize=(255, 0), **searched)
        return (*space, Operation("identity"))
    if policy == "randaugment":  # timm rounds the bits up
        space = _space(translate=0.45, posterize=(4.5, 0.5), solarize=(256, 0), **searched)
        return (*space, invert, Operation("solarize_add", 0, 110))
    if policy == "uniformaugment":  # 4, 5, 6 and 7 bits are equally likely, as where the bits are truncated
        space = _space(translate=0.45, posterize=(3.5, 7.5), solarize=(0, 256), **searched)
        return (*space, invert, Operation("cutout", 0, 0.2))
    if policy == "trivialaugment":
        wide = {"shear": 0.99, "translate": 32 / side, "rotate": 135, "enhance": 0.99}  # 32 pixels
        return (*_space(posterize=(8, 2), solarize=(255, 0), **wide), Operation("identity"))
    assert policy == "threeaugment"
    return (Operation("grey"), Operation("solarize", 128, 128), Operation("blur", 0.1, 2.0))


AUTOAUGMENT = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("colour", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("colour", 1.0, 2)),
    (("colour", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("colour", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
"""ImageNet's 25 sub-policies (Cubuk et al. 2018, Table 9): operation, probability, magnitude in 0 to 9."""


def kinds(data: Data) -> list[str]:
    """The kinds that a policy's operations have, and identity, in the order of `KINDS`."""
    found = {"identity", *(_kind(operation) for operation in operations(data.policy, data.crop))}
    return [kind for kind in KINDS if kind in found]


def places(data: Data) -> int:
    """S, the operations that an image gets one after the other."""
    own = {"none": 0, "autoaugment": 2, "trivialaugment": 1, "threeaugment": 1}
    return own.get(data.policy.removesuffix("_standard"), data.policy_operations)


def draw(data: Data, seed: int, epoch: int, step: int, images: int) -> dict[str, NDArray[Any]]:
    """The numbers that drive a policy on a global batch of B images, by the input of the graph they feed.

    Returns:
        For each place p: `kind<p>`: int32 [B], an index into `KINDS`; `amount<p>`: float32 [B]; `matrix<p>`:
        float32 [B, 2, 3], from the output's coordinates to the input's, in pixels, where the policy warps;
        `corner<p>` and `extent<p>`: float32 [B, 2], vertical first, in sides of the image, where it cuts out.
    """
    rng = generator(seed, Stream.POLICY, epoch, step)
    return encode(choose(data, rng, images), operations(data.policy, data.crop), data.crop, rng)


def encode(
    choice: Choice, space: Sequence[Operation], side: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """A choice as `draw` returns it, for images of a side in pixels; `rng` places the squares of `cutout`."""
    amount = _amounts(space, choice)
    found = {_kind(operation) for operation in space}
    numbers: dict[str, NDArray[Any]] = {
        "kind": np.where(choice.applied, _lookup(space, choice, _kind_index), 0).astype(np.int32),
        "amount": amount.astype(np.float32),
    }
    if "warp" in found:
        numbers["matrix"] = _matrices(space, choice, amount, side).astype(np.float32)
    if "cutout" in found:
        numbers["corner"], numbers["extent"] = _squares(rng, amount)
    return {
        f"{name}{place}": np.ascontiguousarray(values[:, place])
        for name, values in numbers.items()
        for place in range(choice.index.shape[1])
    }


def choose(data: Data, rng: np.random.Generator, images: int) -> Choice:
    """The operations of a batch's images, of `operations(data.policy, data.crop)`."""
    shape = (images, places(data))
    sign = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    if data.policy == "autoaugment":
        return _choose_sub_policies(rng, sign)
    index = rng.integers(len(operations(data.policy, data.crop)), size=shape)
    if data.policy in RANDOM:
        magnitude = rng.normal(data.policy_magnitude, data.policy_deviation, shape)
        applied = rng.random(shape) < (0.5 if data.policy == "randaugment" else 1.0)
        return Choice(index, sign * np.clip(magnitude, 0, 10) / 10, applied)
    if data.policy.startswith("trivialaugment"):
        return Choice(index, sign * rng.integers(31, size=shape) / 30, np.ones(shape, bool))
    if data.policy == "uniformaugment_standard":
        return Choice(index, sign * rng.integers(31, size=shape) / 30, rng.random(shape) < 0.5)
    if data.policy == "uniformaugment":  # each with a probability that is itself drawn
        return Choice(index, sign * rng.random(shape), rng.random(shape) < rng.random(shape))
    return Choice(index, sign * rng.random(shape), np.ones(shape, bool))


def _choose_sub_policies(rng: np.random.Generator, sign: NDArray[np.float64]) -> Choice:
    names = [operation.name for operation in operations("autoaugment", 1)]
    table = np.array([[(names.index(name), p, m / 9) for name, p, m in pair] for pair in AUTOAUGMENT])
    index, probability, magnitude = np.moveaxis(table[rng.integers(len(table), size=len(sign))], 2, 0)
    return Choice(index.astype(np.int64), sign * magnitude, rng.random(index.shape) < probability)


def _kind(operation: Operation) -> str:
    return _KIND.get(operation.name, operation.name)


def _kind_index(operation: Operation) -> int:
    return KINDS.index(_kind(operation))


def _lookup(space: Sequence[Operation], choice: Choice, function: Callable[[Operation], Any]) -> NDArray[Any]:
    """A function's value of each chosen operation, [B, S]."""
    return np.array([function(operation) for operation in space])[choice.index]


def _named(space: Sequence[Operation], choice: Choice, *names: str) -> NDArray[np.bool_]:
    """Where one of the operations was chosen, [B, S]."""
    return _lookup(space, choice, lambda operation: operation.name in names)


def _amounts(space: Sequence[Operation], choice: Choice) -> NDArray[np.float64]:
    """The operations' values as the graph takes them, [B, S]: enhancements as factors, bits as a mask."""
    low = _lookup(space, choice, lambda operation: operation.low)
    high = _lookup(space, choice, lambda operation: operation.high)
    signed = _lookup(space, choice, lambda operation: operation.signed)
    value = low + np.abs(choice.magnitude) * (high - low)
    value = np.where(signed & (choice.magnitude < 0), -value, value)
    value += _named(space, choice, "brightness", "contrast", "colour", "sharpness")
    mask = 256 - 2 ** np.clip(8 - np.rint(value), 0, 7)  # at least one bit: none would leave nothing
    return np.where(_named(space, choice, "posterize"), mask, value)


def _matrices(
    space: Sequence[Operation], choice: Choice, amount: NDArray[np.float64], side: int
) -> NDArray[np.float64]:
    """Affine maps [B, S, 2, 3] from output to input coordinates, in pixels; identities elsewhere."""

    def of(name: str) -> NDArray[np.float64]:
        return np.where(_named(space, choice, name), amount, 0.0)

    angle = np.deg2rad(of("rotate"))
    cosine, sine = np.cos(angle), np.sin(angle)
    linear = np.stack([cosine, of("shear_x") - sine, of("shear_y") + sine, cosine], axis=-1)
    linear = linear.reshape(*amount.shape, 2, 2)
    shift = side * np.stack([of("translate_x"), of("translate_y")], axis=-1)
    middle = np.full(2, side / 2)
    rotated = _named(space, choice, "rotate")[..., None]  # about the centre; shears keep the first corner
    shift = shift + np.where(rotated, middle - linear @ middle, 0.0)
    return np.concatenate([linear, shift[..., None]], axis=-1)


def _squares(rng: np.random.Generator, side: NDArray[np.float64]) -> tuple[NDArray[np.float32], ...]:
    """Corners and extents [B, S, 2] of squares about random points, cut at the image's edges."""
    centre = rng.random((*side.shape, 2))
    low, high = (np.clip(centre + sign * side[..., None] / 2, 0, 1) for sign in (-1, 1))
    return low.astype(np.float32), (high - low).astype(np.float32)
