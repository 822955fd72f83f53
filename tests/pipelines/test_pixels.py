"""What DALI makes of an image against PIL, torchvision and numpy, in levels of 0 to 255."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, pipeline_def
from PIL import Image, ImageEnhance
from torchvision.transforms import v2

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.pipelines import colour, draws, graphs, windows
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.loader import Batch
from tests.pipelines.loaders import eval_loader, train_loader

pytestmark = pytest.mark.pipelines

CPU = torch.device("cpu")
PLAIN = Data(crop=64, val_resize=72, val_crop=64, flip=0, jitter=0, lighting=0, threads=2)
SEED = 11
LUMA = np.array([0.299, 0.587, 0.114])
Levels = NDArray[np.float64]


def first_batch(data: Data, folder: ImageFolder, batch: int = 12, **options: Any) -> Batch:
    options = {"seed": SEED, "device": CPU, "dtype": torch.float32, **options}
    return next(train_loader(data, folder, batch=batch, **options).epoch(0))


def levels(images: torch.Tensor, data: Data) -> Levels:
    """Normalized [B, 3, H, W] back on the 0-255 scale, [B, H, W, 3]."""
    values = images.permute(0, 2, 3, 1).double().numpy()
    return 255 * (values * np.array(data.std) + np.array(data.mean))


def opened(folder: ImageFolder, batch: int = 12) -> list[Image.Image]:
    """The images of the first step, in its order."""
    taken = draws.order(SEED, 0, len(folder.files))[:batch]
    return [Image.open(folder.path(index)).convert("RGB") for index in taken]


def numbers(data: Data, batch: int = 12) -> dict[str, NDArray[Any]]:
    return draws.augmentation(data, SEED, 0, 0, batch)


def reference_crops(folder: ImageFolder, data: Data) -> Levels:
    """The random resized crops by PIL, [B, H, W, 3]."""
    pictures = opened(folder)
    shapes = [np.array([picture.height, picture.width, 3]) for picture in pictures]
    corners, sizes = windows.random_resized(shapes, list(numbers(data)["crop"]))
    crops = []
    for picture, (top, left), (height, width) in zip(pictures, corners, sizes, strict=True):
        box = (left, top, left + width, top + height)
        crops.append(picture.crop(box).resize((data.crop, data.crop), Image.Resampling.BILINEAR))
    return np.stack([np.asarray(crop, np.float64) for crop in crops])


def test_evaluation_matches_torchvision(photos: ImageFolder) -> None:
    transform = v2.Compose([v2.Resize(72, antialias=True), v2.CenterCrop(64)])
    loader = eval_loader(PLAIN, photos, batch=47, device=CPU, dtype=torch.float32)
    ours = levels(next(iter(loader)).images, PLAIN)
    theirs = np.stack([transform(Image.open(photos.path(index)).convert("RGB")) for index in range(47)])
    assert np.abs(ours - theirs).mean() < 0.5


def test_normalization_is_exact_in_float32(icons: ImageFolder) -> None:
    """Images of the crop's size pass unchanged: whole levels, equal to PIL's decoding."""
    data = dataclasses.replace(PLAIN, augmentation="small", crop=32, val_resize=32, val_crop=32)
    loader = eval_loader(data, icons, batch=23, device=CPU, dtype=torch.float32)
    ours = levels(next(iter(loader)).images, data)
    assert np.abs(ours - np.rint(ours)).max() < 1e-4
    theirs = np.stack([np.asarray(Image.open(icons.path(index)), np.float64) for index in range(23)])
    assert np.abs(ours - theirs).mean() < 0.1


def test_random_resized_crops_match_pil(photos: ImageFolder) -> None:
    ours = levels(first_batch(PLAIN, photos).images, PLAIN)
    assert np.abs(ours - reference_crops(photos, PLAIN)).mean() < 0.5


def test_flips_mirror_the_chosen_images_in_all_batches(photos: ImageFolder) -> None:
    sizes: dict[str, Any] = {"sizes": (32,), "sizes_per_step": 1}
    flipping = dataclasses.replace(PLAIN, flip=0.5)
    straight, mirrored = first_batch(PLAIN, photos, **sizes), first_batch(flipping, photos, **sizes)
    flip = numbers(flipping)["flip"].astype(bool)
    assert 0 < flip.sum() < 12
    for one, other in ((straight.images, mirrored.images), (straight.small[0], mirrored.small[0])):
        assert torch.equal(other[flip], one[flip].flip(-1))
        assert torch.equal(other[~flip], one[~flip])


def adjusted(image: Levels, name: str, factor: float) -> Levels:
    """One operation of the colour jitter on an image [H, W, 3], rounded to whole levels."""
    grey = image @ LUMA
    middle = {
        "brightness": np.zeros(1),
        "contrast": np.rint(grey).mean()[None],
        "saturation": grey[..., None],
    }[name]
    return np.clip(np.rint(factor * image + (1 - factor) * middle), 0, 255)


def test_jitter_clamps_after_each_operation_in_the_images_own_order(photos: ImageFolder) -> None:
    data = dataclasses.replace(PLAIN, jitter=0.4)
    ours = levels(first_batch(data, photos).images, data)
    drawn = numbers(data)
    orders = np.stack([drawn[f"order{place}"] for place in range(3)], axis=1)
    assert len({tuple(order) for order in orders.tolist()}) > 3
    for index, image in enumerate(np.rint(levels(first_batch(PLAIN, photos).images, PLAIN))):
        expected = image
        for operation in orders[index]:
            name = draws.JITTER[operation]
            expected = adjusted(expected, name, float(drawn[name][index]))
        assert np.abs(ours[index] - image).mean() > 4
        assert np.abs(ours[index] - expected).mean() < 0.3


def test_folded_colours_are_the_operations_without_their_clamps(photos: ImageFolder) -> None:
    """Whatever the order: the affine map in the full and in the small batch, with lighting on top."""
    data = dataclasses.replace(PLAIN, jitter=0.4, lighting=0.1, colour="folded", flip=0.5)
    options: dict[str, Any] = {"sizes": (32,), "sizes_per_step": 1}
    batch, plain = first_batch(data, photos, **options), first_batch(PLAIN, photos, **options)
    drawn = numbers(data)
    assert "order0" not in drawn
    middle = np.rint(np.rint(levels(plain.images, PLAIN)) @ LUMA).mean(axis=(1, 2))
    b, c, s = (drawn[name].astype(np.float64)[:, None, None, None] for name in draws.JITTER)
    # DALI's grey is rounded in its third digit; the plain small batch is rounded before the map
    for ours, before, worst, mean in (
        (batch.images, plain.images, 0.5, 0.1),
        (batch.small[0], plain.small[0], 1.8, 0.5),
    ):
        x = np.rint(levels(before, PLAIN))
        grey = (x @ LUMA)[..., None]
        expected = b * (c * (s * x + (1 - s) * grey) + (1 - c) * middle[:, None, None, None])
        expected = expected + drawn["lighting"][:, None, None]
        expected = np.where(drawn["flip"][:, None, None, None] > 0, expected[:, :, ::-1], expected)
        assert np.abs(levels(ours, data) - expected).max() < worst
        assert np.abs(levels(ours, data) - expected).mean() < mean


def test_folded_colours_are_near_the_exact_ones(photos: ImageFolder) -> None:
    """Where nothing is clamped they differ by roundings; these images, over the whole range, clamp much."""
    data = dataclasses.replace(PLAIN, jitter=0.4)
    exact = levels(first_batch(data, photos).images, data)
    folded = levels(first_batch(dataclasses.replace(data, colour="folded"), photos).images, data)
    difference = np.abs(exact - folded)
    inside = (exact > 0).all(axis=-1) & (exact < 255).all(axis=-1)
    assert np.median(difference[inside]) < 0.5
    assert np.abs(exact - np.clip(folded, 0, 255)).mean() < 1.5


def test_published_lighting_needs_exact_colours() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.colour is 'folded'; allowed: exact with published_lighting"
    ):
        Data(colour="folded", published_lighting=True)


@pytest.mark.parametrize("name", draws.JITTER)
def test_each_operation_is_pils_but_for_its_truncation(photos: ImageFolder, name: str) -> None:
    crop = np.rint(levels(first_batch(PLAIN, photos).images, PLAIN))[0]
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for factor in (0.6, 1.4):
        theirs = np.asarray(enhance[name](Image.fromarray(crop.astype(np.uint8))).enhance(factor), np.float64)
        difference = adjusted(crop, name, factor) - theirs
        assert np.abs(difference).max() <= 1
        assert np.abs(difference).mean() < 0.6


def test_contrast_for_gpus_equals_the_one_for_cpus() -> None:
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8))
    factors = rng.uniform(0.6, 1.4, 6).astype(np.float32)
    pipeline = Pipeline(batch_size=6, num_threads=1, device_id=None)
    with pipeline:
        pixels, factor = fn.external_source(lambda: (images, factors), num_outputs=2)
        mean = fn.reductions.mean(pixels)
        for_cpu = fn.contrast(pixels, contrast=factor, contrast_center=mean)
        pipeline.set_outputs(colour.blend(pixels, mean, factor), for_cpu)
    gpu, cpu = (np.asarray(output.as_tensor()).astype(int) for output in pipeline.run())
    # a half can round either way
    assert np.abs(gpu - cpu).max() <= 1
    assert (gpu != cpu).mean() < 0.01
    for image, c, result in zip(images, factors, gpu, strict=True):
        assert np.abs(np.clip(c * image + (1 - c) * image.mean(), 0, 255) - result).max() < 0.51


def test_lighting_shifts_each_channel(photos: ImageFolder) -> None:
    data = dataclasses.replace(PLAIN, lighting=0.1)
    sizes: dict[str, Any] = {"sizes": (32,), "sizes_per_step": 1}
    plain, lit = first_batch(PLAIN, photos, **sizes), first_batch(data, photos, **sizes)
    expected = numbers(data)["lighting"].astype(np.float64)
    assert np.abs(expected).max() > 1
    for before, after in ((plain.images, lit.images), (plain.small[0], lit.small[0])):
        shift = levels(after, data) - levels(before, data)
        assert np.abs(shift - expected[:, None, None]).max() < 1e-3


def test_published_lighting_truncates_and_clips(photos: ImageFolder) -> None:
    data = dataclasses.replace(PLAIN, published_lighting=True, lighting=0.1)
    before = np.rint(levels(first_batch(PLAIN, photos).images, PLAIN))
    after = levels(first_batch(data, photos).images, data)
    rng = np.random.default_rng(0)
    assert (before == 0).any()
    for sign in (-1, 1):
        tiny = sign * rng.uniform(0.001, 0.05, 3)
        truncated = np.clip(before + tiny, 0, 255).astype(np.uint8)
        assert np.array_equal(truncated, np.clip(before + np.floor(tiny), 0, 255))
    expected = np.clip(before + numbers(data)["lighting"][:, None, None], 0, 255)
    assert np.abs(after - expected).max() < 1e-3
    assert (after != before).any()


@pytest.mark.parametrize("antialias", [True, False])
def test_downscaled_batches_are_resized_crops(photos: ImageFolder, antialias: bool) -> None:
    data = dataclasses.replace(PLAIN, antialias=antialias)
    batch = first_batch(data, photos, sizes=(32, 48), sizes_per_step=2)
    full = torch.from_numpy(levels(batch.images, data)).permute(0, 3, 1, 2).float()
    for small in batch.small:
        side = small.shape[-1]
        expected = torch.nn.functional.interpolate(full, (side, side), mode="bilinear", antialias=antialias)
        ours = levels(small, data)
        assert np.abs(ours - expected.permute(0, 2, 3, 1).numpy()).mean() < 0.5


def test_small_images_are_padded_cropped_and_flipped(icons: ImageFolder) -> None:
    data = dataclasses.replace(PLAIN, augmentation="small", crop=32, padding=4, flip=0.5)
    ours = levels(first_batch(data, icons).images, data)
    pixels = [np.asarray(picture, np.float64) for picture in opened(icons)]
    drawn = numbers(data)
    (corners,) = windows.padded(4, 32, [np.array(image.shape) for image in pixels], list(drawn["crop"]))
    assert len({tuple(corner.tolist()) for corner in corners}) > 6
    for image, (top, left), flip, result in zip(pixels, corners, drawn["flip"], ours, strict=True):
        expected = np.pad(image, ((4, 4), (4, 4), (0, 0)))[top + 4 : top + 36, left + 4 : left + 36]
        expected = expected[:, ::-1] if flip else expected
        assert np.abs(result - expected).mean() < 0.1


@pytest.mark.parametrize("size", [(96, 96), (64, 96), (24, 16)])
def test_small_augmentation_resizes_other_images(tmp_path: Path, size: tuple[int, int]) -> None:
    """The shorter side becomes the crop's, up or down, before the padding."""
    (tmp_path / "a").mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    picture.save(tmp_path / "a" / "1.png")
    folder = ImageFolder(root=str(tmp_path), classes=("a",), files=("a/1.png",), labels=(0,))
    data = dataclasses.replace(PLAIN, augmentation="small", crop=32, padding=2)
    ours = levels(first_batch(data, folder, 1).images, data)[0]
    drawn = numbers(data, 1)["crop"]
    # DALI rounds the longer side, torchvision truncates it
    resized = np.asarray(
        picture.resize([round(32 * side / min(size)) for side in size], Image.Resampling.BILINEAR), np.float64
    )
    ((corner,),) = windows.padded(2, 32, [np.array(resized.shape)], list(drawn))
    top, left = corner.tolist()
    expected = np.pad(resized, ((2, 2), (2, 2), (0, 0)))[top + 2 : top + 34, left + 2 : left + 34]
    assert np.abs(ours - expected).mean() < 0.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_become_rgb(
    tmp_path_factory: pytest.TempPathFactory, photos: ImageFolder, mode: str
) -> None:
    root = tmp_path_factory.mktemp(mode)
    (root / "a").mkdir()
    Image.open(photos.path(0)).convert(mode).save(root / "a" / "1.jpg", quality=95)
    folder = ImageFolder(root=str(root), classes=("a",), files=("a/1.jpg",), labels=(0,))
    loader = eval_loader(PLAIN, folder, batch=1, device=CPU, dtype=torch.float32)
    ours = levels(next(iter(loader)).images, PLAIN)[0]
    picture = Image.open(folder.path(0)).convert("RGB")
    theirs = v2.Compose([v2.Resize(72, antialias=True), v2.CenterCrop(64)])(picture)
    assert np.abs(ours - np.asarray(theirs, np.float64)).mean() < 2


def test_exif_orientation_is_ignored(tmp_path_factory: pytest.TempPathFactory, photos: ImageFolder) -> None:
    root = tmp_path_factory.mktemp("exif")
    (root / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(photos.path(0))
    picture.save(root / "a" / "1.jpg", quality=95, exif=exif)
    picture.save(root / "a" / "2.jpg", quality=95)
    folder = ImageFolder(root=str(root), classes=("a",), files=("a/1.jpg", "a/2.jpg"), labels=(0, 0))
    images = next(iter(eval_loader(PLAIN, folder, batch=2, device=CPU, dtype=torch.float32))).images
    assert torch.equal(images[0], images[1])


CUDA_GRAPHS: dict[str, dict[str, Any]] = {
    "plain": {},
    "published": {"published_lighting": True},
    "folded": {"colour": "folded", "erase": 0.5},
    "erased": {"erase": 0.5, "erase_fill": "noise"},
    **{
        policy: {"policy": policy, "lighting": 0}
        for policy in ("autoaugment", "randaugment", "trivialaugment", "uniformaugment", "threeaugment")
    },
}


@pytest.mark.parametrize("options", CUDA_GRAPHS)
@pytest.mark.parametrize("augmentation", ["imagenet", "small"])
def test_graphs_for_cuda_can_be_drawn(augmentation: Any, options: str) -> None:
    """Without a GPU they cannot run; arguments and placement are checked when the nodes are made."""
    data = Data(augmentation=augmentation, **CUDA_GRAPHS[options])
    names = ("encoded", "targets", *draws.augmentation(data, 0, 0, 0, 1), "size0")
    placed: list[str] = []

    @pipeline_def(batch_size=1, num_threads=1, device_id=0, enable_conditionals=True)
    def define() -> Any:
        nodes = fn.external_source(lambda: (), num_outputs=len(names))
        inputs = {name: nodes[index] for index, name in enumerate(names)}
        outputs = graphs.train_graph(inputs, data, torch.float16, True)
        outputs += graphs.eval_graph(inputs, data, torch.float16, True)
        placed.extend([node.device for node in outputs])
        return tuple(outputs)

    define()
    assert placed == ["gpu"] * 5
