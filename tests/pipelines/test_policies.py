"""Augmentation policies: each operation against torchvision's or PIL's, and the choices' distributions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def
from PIL import Image, ImageDraw, ImageFilter
from timm.data import auto_augment
from torchvision.transforms import AutoAugment, InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.pipelines import draws, operations, policies
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.policies import Choice, Operation
from tests.pipelines.conftest import smooth_noise
from tests.pipelines.loaders import train_loader

pytestmark = pytest.mark.pipelines

SIDE = 200
FILL = Data().policy_fill
POLICIES = ("autoaugment", "randaugment", "trivialaugment", "uniformaugment", "threeaugment")
STANDARD = ("randaugment_standard", "trivialaugment_standard", "uniformaugment_standard")

# operation, its value, torchvision's name and magnitude; bounds of the mean difference in levels, and of the
# share of values off by more than 2
WARP = (0.6, 0.012)  # fill colours meet the image along a line: DALI blends them there, PIL does not
EXACT = (0.0, 0.0)
ROUNDING = (0.6, 0.0)  # PIL truncates
CONTRAST = (1.0, 0.0)  # and rounds the mean grey
CASES: list[tuple[str, float, str, float, tuple[float, float]]] = [
    ("shear_x", 0.2, "ShearX", 0.2, WARP),
    ("shear_x", -0.3, "ShearX", -0.3, WARP),
    ("shear_y", 0.25, "ShearY", 0.25, WARP),
    ("translate_x", 0.2, "TranslateX", -40, WARP),
    ("translate_y", -0.4, "TranslateY", 80, WARP),
    ("rotate", 30, "Rotate", 30, WARP),
    ("rotate", -17, "Rotate", -17, WARP),
    ("brightness", 0.7, "Brightness", 0.7, ROUNDING),
    ("brightness", -0.5, "Brightness", -0.5, ROUNDING),
    ("contrast", 0.9, "Contrast", 0.9, CONTRAST),
    ("contrast", -0.9, "Contrast", -0.9, CONTRAST),
    ("colour", 0.9, "Color", 0.9, ROUNDING),
    ("colour", -0.9, "Color", -0.9, ROUNDING),
    ("sharpness", 0.9, "Sharpness", 0.9, ROUNDING),
    ("sharpness", -0.9, "Sharpness", -0.9, ROUNDING),
    ("posterize", 4, "Posterize", 4, EXACT),
    ("posterize", 8, "Posterize", 8, EXACT),
    ("posterize", 1, "Posterize", 1, EXACT),
    ("solarize", 100, "Solarize", 100, EXACT),
    ("solarize", 255, "Solarize", 255, EXACT),
    ("invert", 0, "Invert", 0, EXACT),
    ("autocontrast", 0, "AutoContrast", 0, ROUNDING),
    ("equalize", 0, "Equalize", 0, (1.5, 0.1)),  # another rounding of the histogram's steps
    ("identity", 0, "Identity", 0, EXACT),
]


def picture(seed: int = 0) -> Image.Image:
    """A smooth image whose channels do not span the whole range."""
    pixels = np.asarray(smooth_noise(np.random.default_rng(seed), SIDE, SIDE), np.float64)
    return Image.fromarray((30 + 0.7 * pixels).astype(np.uint8))


def apply(image: Image.Image, name: str, value: float, seed: int = 0) -> NDArray[np.uint8]:
    """One operation of a value on one image, through the graph that all operations share."""
    space = (Operation(name, 0.0, abs(value), signed=True), *every_operation())
    choice = Choice(np.array([[0]]), np.array([[1.0 if value >= 0 else -1.0]]), np.array([[True]]))
    numbers = policies.encode(choice, space, SIDE, np.random.default_rng(seed))
    names = list(numbers)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, enable_conditionals=True)
    def define() -> Any:
        images = fn.external_source(lambda: [np.asarray(image)], layout="HWC")
        nodes = fn.external_source(lambda: [numbers[each] for each in names], num_outputs=len(names))
        inputs = {each: nodes[index] for index, each in enumerate(names)}
        own = {each.removesuffix("0"): node for each, node in inputs.items()} | {"fill": FILL}
        return operations.one_of(policies.KINDS, images, own["kind"], own, False)

    return np.asarray(define().run()[0].as_tensor())[0]


def every_operation() -> tuple[Operation, ...]:
    """Operations of all kinds, so that the graph has all its inputs."""
    return tuple(each for policy in POLICIES for each in policies.operations(policy, SIDE))


def difference(ours: NDArray[np.uint8], theirs: Image.Image) -> tuple[float, float]:
    """Mean difference in levels, and the share of values off by more than 2."""
    levels = np.abs(ours.astype(np.float64) - np.asarray(theirs, np.float64))
    return levels.mean(), (levels > 2).mean()


@pytest.mark.parametrize(("name", "value", "theirs", "magnitude", "bounds"), CASES)
def test_operations_match_torchvisions(
    name: str, value: float, theirs: str, magnitude: float, bounds: tuple[float, float]
) -> None:
    image = picture()
    expected = _apply_op(image, theirs, magnitude, InterpolationMode.BILINEAR, [FILL] * 3)
    ours = apply(image, name, value)
    inner = slice(1, -1) if name == "sharpness" else slice(None)
    mean, far = difference(ours[inner, inner], Image.fromarray(np.asarray(expected)[inner, inner]))
    assert mean <= bounds[0]
    assert far <= bounds[1]
    unchanged = name == "identity" or value in (8, 255)
    assert np.array_equal(ours, np.asarray(image)) == unchanged


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_matches_pils(sigma: float) -> None:
    """PIL's Gaussian is three box filters."""
    image = picture()
    mean, _ = difference(apply(image, "blur", sigma), image.filter(ImageFilter.GaussianBlur(sigma)))
    assert mean < 0.7


def test_grey_is_pils_and_solarize_add_is_a_table() -> None:
    image = picture()
    grey = image.convert("L").convert("RGB")
    assert difference(apply(image, "grey", 0), grey)[0] < 0.6
    table = [level + 60 if level < 128 else level for level in range(256)] * 3
    assert difference(apply(image, "solarize_add", 60), image.point(table)) == EXACT


def test_cutout_draws_a_square_of_its_colour() -> None:
    image = picture()
    for seed in range(4):
        ours = apply(image, "cutout", 0.2, seed)
        low, extent = policies._squares(np.random.default_rng(seed), np.array([[0.2]]))
        top, left = np.rint(SIDE * low[0, 0]).tolist()
        bottom, right = np.rint(SIDE * (low + extent)[0, 0]).tolist()
        expected = image.copy()
        ImageDraw.Draw(expected).rectangle((left, top, right - 1, bottom - 1), (125, 123, 114))
        assert difference(ours, expected)[1] < 0.004  # a row and a column


@pytest.mark.parametrize("policy", [*POLICIES, *STANDARD, "randaugment_torchvision"])
def test_choices_are_uniform_over_the_operations(policy: str) -> None:
    data = Data(policy=policy)  # type: ignore[arg-type]
    count = 30_000
    choice = policies.choose(data, np.random.default_rng(0), count)
    space = policies.operations(policy, data.crop)
    assert choice.index.shape == (count, policies.places(data))
    assert np.abs(choice.magnitude).max() <= 1
    assert (choice.magnitude < 0).mean() == pytest.approx((choice.magnitude != 0).mean() / 2, abs=0.01)
    if policy == "autoaugment":
        return
    shares = np.bincount(choice.index.ravel(), minlength=len(space)) / choice.index.size
    assert np.abs(shares - 1 / len(space)).max() < 5 * np.sqrt(1 / len(space) / choice.index.size)
    halves = ("randaugment", "uniformaugment", "uniformaugment_standard")
    applied = 0.5 if policy in halves else 1.0
    assert choice.applied.mean() == pytest.approx(applied, abs=0.01)


def test_uniformaugment_is_uniform_in_operation_probability_and_magnitude() -> None:
    """LingChen et al. 2020, section 3: two operations of 15, continuous magnitudes over the whole range."""
    choice = policies.choose(Data(policy="uniformaugment"), np.random.default_rng(1), 40_000)
    assert len(policies.operations("uniformaugment", 224)) == 15
    shares, _ = np.histogram(choice.magnitude, bins=10, range=(-1, 1))
    assert shares / choice.magnitude.size == pytest.approx(0.1, abs=0.006)
    both = choice.applied.all(axis=1).mean(), (~choice.applied).all(axis=1).mean()
    assert both == pytest.approx((0.25, 0.25), abs=0.01)  # the places are independent


def test_autoaugment_has_its_25_sub_policies() -> None:
    space = policies.operations("autoaugment", 224)
    choice = policies.choose(Data(policy="autoaugment"), np.random.default_rng(2), 50_000)
    names = np.array([operation.name for operation in space])[choice.index]
    pairs = {tuple(pair) for pair in names.tolist()}
    assert pairs == {(first[0], second[0]) for first, second in policies.AUTOAUGMENT}
    own = (names == ("sharpness", "invert")).all(axis=1)
    assert own.mean() == pytest.approx(1 / 25, abs=0.005)
    assert choice.applied[own].mean(axis=0) == pytest.approx((0.4, 0.6), abs=0.06)
    assert np.abs(choice.magnitude[own, 0]) == pytest.approx(7 / 9)


TORCHVISION = {
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "colour": "Color",
    "autocontrast": "AutoContrast",
}
"""Names that differ in more than their first letter."""


@pytest.mark.parametrize(
    ("policy", "theirs", "bins"),
    [
        ("autoaugment", AutoAugment, 10),
        ("trivialaugment", TrivialAugmentWide, 31),
        ("randaugment_torchvision", RandAugment, 31),
    ],
)
def test_ranges_are_torchvisions(policy: str, theirs: Any, bins: int) -> None:
    space = theirs()._augmentation_space(bins, *(() if policy == "trivialaugment" else ((SIDE, SIDE),)))
    ours = policies.operations(policy, SIDE)
    assert {TORCHVISION.get(each.name, each.name.title()) for each in ours} == set(space)
    for each in ours:
        magnitudes, signed = space[TORCHVISION.get(each.name, each.name.title())]
        if not magnitudes.ndim:
            assert (each.low, each.high) == (0, 0)
            continue
        values = np.linspace(each.low, each.high, bins)
        values = values * SIDE if each.name.startswith("translate") else values
        values = np.rint(values) if each.name == "posterize" else values
        assert values == pytest.approx(magnitudes.numpy(), abs=1e-4)
        assert each.signed == signed


def test_standard_ranges_are_those_of_the_published_library() -> None:
    """aug_lib's fixed_standard: 14 operations; value at level k of 30, whole where it is truncated."""
    level = np.arange(31)
    factor = -0.9 + 1.8 * level / 30  # of its enhancer, 0.1 to 1.9, less 1
    expected = {
        **dict.fromkeys(("shear_x", "shear_y"), 0.3 * level / 30),
        **dict.fromkeys(("translate_x", "translate_y"), 10 / SIDE * level / 30),
        "rotate": level,
        **dict.fromkeys(("brightness", "contrast", "colour", "sharpness"), factor),
        "posterize": 8 - (level * 4 // 30),
        "solarize": 256 - 256 * level / 30,
        **dict.fromkeys(("autocontrast", "equalize", "identity"), 0 * level),
    }
    for policy in STANDARD:
        ours = {each.name: each for each in policies.operations(policy, SIDE)}
        assert set(ours) == set(expected)
        for name, values in expected.items():
            each = ours[name]
            own = each.low + level / 30 * (each.high - each.low)
            assert (np.rint(own) if name == "posterize" else own) == pytest.approx(values)
            assert each.signed == (name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"))
    levels = policies.choose(Data(policy="uniformaugment_standard"), np.random.default_rng(5), 9000).magnitude
    assert set(np.rint(30 * np.abs(levels)).ravel()) == set(level)
    assert np.abs(levels * 30) == pytest.approx(np.rint(np.abs(levels * 30)))


def one_operation(monkeypatch: pytest.MonkeyPatch, operation: Operation) -> None:
    monkeypatch.setattr(policies, "operations", lambda policy, side: (operation,))


OWN = Data(policy="trivialaugment", crop=48, val_crop=48, val_resize=48, lighting=0, flip=0, threads=1)


def first_levels(data: Data, photos: ImageFolder) -> NDArray[np.float64]:
    """The first batch on the 0-255 scale, [B, 3, H, W]."""
    options: dict[str, Any] = {"seed": 3, "device": torch.device("cpu"), "dtype": torch.float32}
    images = next(train_loader(data, photos, batch=8, **options).epoch(0)).images.double().numpy()
    mean, std = (np.array(each)[:, None, None] for each in (data.mean, data.std))
    return 255 * (images * std + mean)


@pytest.mark.parametrize("last", [True, False])
def test_a_policy_comes_before_the_jitter_or_after_it(
    photos: ImageFolder, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    one_operation(monkeypatch, Operation("invert"))
    data = dataclasses.replace(OWN, lighting=0.1, published_lighting=True)
    jittered = first_levels(dataclasses.replace(data, policy="none"), photos)
    inverted = first_levels(dataclasses.replace(data, policy_last=last), photos)
    assert (np.abs(255 - jittered - inverted).max() < 0.01) == last


@pytest.mark.filterwarnings("ignore:The external source node")  # a shift is in its matrix alone
@pytest.mark.parametrize("fill", [0, 128])
def test_warped_images_show_the_fill(photos: ImageFolder, monkeypatch: pytest.MonkeyPatch, fill: int) -> None:
    one_operation(monkeypatch, Operation("translate_x", 0.5, 0.5))
    shifted = first_levels(dataclasses.replace(OWN, jitter=0, policy_fill=fill), photos)
    assert np.abs(shifted[..., 25:] - fill).max() < 0.01
    assert np.abs(shifted[..., :23] - fill).mean() > 20


def test_sub_policies_are_torchvisions() -> None:
    ours = [
        tuple(
            (TORCHVISION.get(name, name.title()), probability, magnitude)
            for name, probability, magnitude in pair
        )
        for pair in policies.AUTOAUGMENT
    ]
    theirs = [tuple((name, p, m or 0) for name, p, m in pair) for pair in AutoAugment().policies]
    assert ours == theirs


def test_ranges_of_randaugment_are_timms() -> None:
    names = {"colour": "Color", "solarize_add": "SolarizeAdd", **TORCHVISION}
    theirs = {
        name.removesuffix("Increasing").removesuffix("Rel"): auto_augment.LEVEL_TO_ARG[name]
        for name in auto_augment._RAND_INCREASING_TRANSFORMS
    }
    ours = policies.operations("randaugment", SIDE)
    assert {names.get(each.name, each.name.title()) for each in ours} == set(theirs)
    for each in ours:
        level_to_value = theirs[names.get(each.name, each.name.title())]
        for level in (0.9, 3.3, 7.0, 9.4):
            if level_to_value is None:
                assert (each.low, each.high) == (0, 0)
                continue
            value = each.low + level / 10 * (each.high - each.low)
            (expected,) = level_to_value(level, {})
            if each.name in ("brightness", "contrast", "colour", "sharpness"):
                value, expected = 1 + value, 1 + abs(expected - 1)
            rounding = 0.5 if each.name == "posterize" else 1.0 if each.name.startswith("solarize") else 1e-6
            assert abs(value - abs(expected)) <= rounding


def test_randaugments_magnitude_has_its_deviation() -> None:
    data = Data(policy="randaugment", policy_magnitude=7, policy_deviation=0.5, policy_operations=3)
    magnitude = np.abs(policies.choose(data, np.random.default_rng(3), 20_000).magnitude)
    assert magnitude.shape == (20_000, 3)
    assert magnitude.mean() == pytest.approx(0.7, abs=0.002)
    assert magnitude.std() == pytest.approx(0.05, abs=0.002)
    fixed = dataclasses.replace(data, policy_deviation=0.0)
    assert np.abs(policies.choose(fixed, np.random.default_rng(3), 9).magnitude) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("uniformaugment", {4: 0.25, 5: 0.25, 6: 0.25, 7: 0.25}),
        ("trivialaugment", {2: 1 / 12, 8: 1 / 12}),
        ("randaugment", {4: 0.25, 3: 0.25, 2: 0.25, 1: 0.25}),
    ],
)
def test_posterized_bits_are_whole(policy: str, expected: dict[int, float]) -> None:
    space = tuple(each for each in policies.operations(policy, 224) if each.name == "posterize")
    magnitude = np.arange(24_000)[:, None] / 24_000
    choice = Choice(np.zeros(magnitude.shape, np.int64), magnitude, np.ones(magnitude.shape, bool))
    masks = policies.encode(choice, space, 224, np.random.default_rng(0))["amount0"].astype(np.uint8)
    bits, counts = np.unique([int(mask).bit_count() for mask in masks], return_counts=True)
    shares = dict(zip(bits.tolist(), (counts / len(magnitude)).tolist(), strict=True))
    for each, share in expected.items():
        assert shares[each] == pytest.approx(share, abs=0.001)
    assert set(shares) <= set(range(min(expected), max(expected) + 1))


@pytest.mark.parametrize("augmentation", ["imagenet", "small"])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_change_pixels_alike_in_any_world(
    photos: ImageFolder, policy: Any, augmentation: Any
) -> None:
    """Two processes make of their halves what one makes of the whole; crops and flips stay as without it."""
    data = Data(
        crop=48, val_crop=48, val_resize=48, augmentation=augmentation, jitter=0, lighting=0, threads=1
    )
    options: dict[str, Any] = {"seed": 3, "device": torch.device("cpu"), "dtype": torch.float32}
    options |= {"sizes": (24,), "sizes_per_step": 1}
    plain = next(train_loader(data, photos, batch=16, **options).epoch(0))
    own = dataclasses.replace(data, policy=policy)
    alone = next(train_loader(own, photos, batch=16, **options).epoch(0))
    shared = [
        next(train_loader(own, photos, batch=8, rank=rank, world=2, **options).epoch(0)) for rank in (0, 1)
    ]
    for whole, parts in (
        (alone.images, [part.images for part in shared]),
        (alone.small[0], [part.small[0] for part in shared]),
    ):
        assert torch.equal(whole, torch.cat(parts))
    changed = (alone.images != plain.images).flatten(1).any(1)
    numbers = draws.augmentation(own, 3, 0, 0, 16)
    drawn = np.stack([numbers[f"kind{place}"] for place in range(policies.places(own))]).any(axis=0)
    assert 4 < changed.sum() <= drawn.sum()
    assert not changed[~torch.from_numpy(drawn)].any()


def test_wrong_policies_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.policy is 'autoagument'; did you mean autoaugment\? allowed: none, autoaugment",
    ):
        Data(policy="autoagument")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data\.policy_magnitude is 30; allowed: 0 to 10"):
        Data(policy_magnitude=30)
    for options in ({"colour": "folded", "lighting": 0}, {"lighting": 0.1}):
        with pytest.raises(ConfigError, match=r"data\.policy_last is True; allowed: True with colour exact"):
            Data(policy="trivialaugment", policy_last=True, **options)
