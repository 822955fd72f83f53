"""ImageNet recipes of AugSub's tables (Heo et al. 2023), each with its twin in common training.

Sub-models by masking at ratio 0.5, in a backward pass of their own as in the authors' code. Top-1 in first
lines is those tables'. ResNets: RSB A2, Swin: its authors' recipe; `fasttrain show` of the twins tells more.
Swin's sub-model sees a learned token in place of squares of 32 pixels, 8 x 8 of its patches.

ViT-S, B, L, H by DeiT III: epochs, optimizer, learning rate, weight decay, batch, sides, drop-path and
augmentation are the tables'; mixup and CutMix, warm-up, floor, no smoothing, the gradient's bound, what
decays and targets of 1 for both classes of a mixed image are DeiT III's own command line, code and defaults.
B, L and H are trained on smaller images, then fine-tuned on 224 pixels (`-224`, from `--model.weights
FILE`): the Top-1 is after it. Ours: drop-path grows linearly (DeiT III: constant), the position embeddings
of 224 pixels are interpolated to smaller sides, images are resized bilinearly, and ViT-H's 160 pixels are
154, the multiple of 14 that its patches cover.

MAE fine-tuning (from `--model.weights FILE`, `--model.new-head`): learning rate per 256 images, layer and
weight decay, drop-path, erasing, mixing and epochs are the tables'; batch, warm-up, smoothing, RandAugment
and floor MAE's (He et al. 2022, table 9 and code). Ours: the class token is classified, not the patches'
mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from ..config import Config, Data, Method, Model, Optim, Run
from .rsb import rn50_ct_rsb_a2, rn101_ct_rsb_a2, rn152_ct_rsb_a2
from .swin import swin_b_ct_300, swin_s_ct_300, swin_t_ct_300

_Train = Literal["ct", "augsub"]
_WORDS = {"ct": "common training", "augsub": "AugSub by masking"}


@dataclass(frozen=True)
class _Vit:
    """A row of the table of ViTs; pairs are of 400 and 800 epochs.

    Attributes:
        model: timm's name.
        lr: at batch 2048.
        crop: side of the training images, pixels.
        drop_path: in training from scratch.
        tuned_drop_path: in fine-tuning, after 400 and 800 epochs alike.
        top1: of common training and of AugSub, percent.
    """

    model: str
    lr: float
    crop: int
    drop_path: tuple[float, float]
    tuned_drop_path: float
    top1: tuple[tuple[float, float], tuple[float, float]]


_EPOCHS = (400, 800)
_WEIGHT_DECAY = (0.03, 0.05)  # told for ViT-S; taken for all
_VITS = {
    "s": _Vit("deit3_small_patch16_224", 4e-3, 224, (0.0, 0.05), 0.0, ((80.4, 81.1), (81.4, 81.7))),
    "b": _Vit("deit3_base_patch16_224", 3e-3, 192, (0.1, 0.2), 0.2, ((83.5, 84.1), (83.8, 84.2))),
    "l": _Vit("deit3_large_patch16_224", 3e-3, 192, (0.4, 0.45), 0.45, ((84.5, 85.2), (84.9, 85.3))),
    "h": _Vit("deit3_huge_patch14_224", 3e-3, 154, (0.5, 0.6), 0.55, ((85.1, 85.7), (85.2, 85.7))),
}


def _method(train: _Train, main_loss: Literal["ce", "bce"], **options: float) -> Method:
    if train == "ct":
        return Method(name="common", main_loss=main_loss, **options)  # type: ignore[arg-type]
    own = {"name": "augsub", "drop": "masking", "drop_ratio": 0.5, "mask_square": 32, "backward": "split"}
    return Method(main_loss=main_loss, **own, **options)  # type: ignore[arg-type]


def _deit3(size: str, index: int, train: _Train) -> Config:
    vit = _VITS[size]
    return Config(
        data=Data(
            crop=vit.crop,
            policy="threeaugment",
            jitter=0.3,
            lighting=0.0,
            mixup=0.8,
            cutmix=1.0,
            repeats=3,
            val_resize=vit.crop,  # crop share 1.0
            val_crop=vit.crop,
        ),
        model=Model(name=vit.model, drop_path=vit.drop_path[index]),
        method=_method(train, "bce", target_threshold=1e-6),  # both classes of a mixed image are 1
        optim=Optim(
            name="lamb",
            lr=vit.lr,
            weight_decay=_WEIGHT_DECAY[index],
            decay_on="matrices",
            warmup_epochs=5,
            warmup_lr=1e-6,
            min_lr=1e-5,
            schedule="cosine_to_floor",
            schedule_unit="epoch",
            clip=1.0,  # FusedLAMB's default
        ),
        run=Run(epochs=_EPOCHS[index], batch=2048),  # S, B: 8 GPUs, 256 images each; L, H: 64, 32
    )


def _deit3_tuned(size: str, index: int, train: _Train) -> Config:
    """20 epochs on 224 pixels."""
    vit, base = _VITS[size], _deit3(size, index, train)
    return replace(
        base,
        data=replace(
            base.data,
            crop=224,
            policy="randaugment",  # rand-m9-mstd0.5-inc1
            policy_magnitude=9.0,
            policy_deviation=0.5,
            jitter=0.0,  # timm: none beside RandAugment
            repeats=1,
            val_resize=224,
            val_crop=224,
        ),
        model=replace(base.model, drop_path=vit.tuned_drop_path),
        method=_method(train, "ce", label_smoothing=0.1),
        optim=replace(base.optim, name="adamw", lr=1e-5, weight_decay=0.1, warmup_lr=1e-6, clip=0.0),
        run=replace(base.run, epochs=20, batch=512),  # B: 8 GPUs, 64 images each; L, H: 64, 8
    )


@dataclass(frozen=True)
class _Mae:
    """A row of the table of MAE fine-tuning; `lr`: per 256 images; `top1`: as `_Vit`'s."""

    model: str
    lr: float
    layer_decay: float
    drop_path: float
    epochs: int
    top1: tuple[float, float]


_MAES = {
    "b": _Mae("vit_base_patch16_224", 5e-4, 0.65, 0.1, 100, (83.6, 83.9)),
    "l": _Mae("vit_large_patch16_224", 1e-3, 0.75, 0.2, 50, (85.9, 86.1)),
    "h": _Mae("vit_huge_patch14_224", 1e-3, 0.75, 0.3, 50, (86.9, 87.2)),
}


def _mae(size: str, train: _Train) -> Config:
    mae, batch = _MAES[size], 1024
    return Config(
        data=Data(
            crop=224,
            policy="randaugment",  # rand-m9-mstd0.5-inc1
            policy_magnitude=9.0,
            policy_deviation=0.5,
            jitter=0.0,
            lighting=0.0,
            erase=0.25,
            erase_fill="noise",
            mixup=0.8,
            cutmix=1.0,
            val_resize=256,  # 224 / 0.875
            val_crop=224,
        ),
        model=Model(name=mae.model, drop_path=mae.drop_path, new_head=True),
        method=_method(train, "ce", label_smoothing=0.1),
        optim=Optim(
            name="adamw",
            lr=mae.lr * batch / 256,
            weight_decay=0.05,
            decay_on="matrices",
            layer_decay=mae.layer_decay,
            warmup_epochs=5,
            min_lr=1e-6,
            schedule="cosine_to_floor",
        ),
        run=Run(epochs=mae.epochs, batch=batch),
    )


def _named(name: str, words: str, make: Callable[[], Config]) -> Callable[[], Config]:
    def recipe() -> Config:
        return replace(make(), recipe=name)

    recipe.__doc__ = words
    return recipe


_TWINS = (
    (rn50_ct_rsb_a2, "ResNet-50", "RSB A2", 80.0),
    (rn101_ct_rsb_a2, "ResNet-101", "RSB A2", 82.1),
    (rn152_ct_rsb_a2, "ResNet-152", "RSB A2", 82.8),
    (swin_t_ct_300, "Swin-T", "300 epochs", 81.4),
    (swin_s_ct_300, "Swin-S", "300 epochs", 83.4),
    (swin_b_ct_300, "Swin-B", "300 epochs", 83.9),
)
"""Recipes of common training, and AugSub's Top-1 by them, percent."""


def _of_twins() -> dict[str, Callable[[], Config]]:
    recipes = {}
    for twin, model, training, top1 in _TWINS:

        def make(twin: Callable[[], Config] = twin) -> Config:
            base = twin()
            return replace(base, method=replace(base.method, name="augsub", drop="masking", backward="split"))

        name = twin().recipe.replace("-ct-", "-augsub-")
        words = f"{model}, AugSub by masking, {training} (AugSub's table, published: {top1} % Top-1)."
        recipes[name] = _named(name, words, make)
    return recipes


def _vits() -> dict[str, Callable[[], Config]]:
    recipes = {}
    trainings: tuple[_Train, ...] = ("ct", "augsub")
    for size, vit in _VITS.items():
        for index, epochs in enumerate(_EPOCHS):
            for own, train in enumerate(trainings):
                name, what = (
                    f"vit-{size}-{train}-deit3-{epochs}",
                    f"ViT-{size.upper()}, {_WORDS[train]}, DeiT III",
                )
                top1 = f" (AugSub's table, published: {vit.top1[index][own]} % Top-1)."
                tuned = size != "s"
                words = f"{what}, {epochs} epochs on {vit.crop} pixels{'.' if tuned else top1}"
                recipes[name] = _named(name, words, lambda at=(size, index, train): _deit3(*at))  # type: ignore[misc]
                if tuned:
                    words = f"{what}, fine-tuning of {name} on 224 pixels{top1}"
                    name += "-224"
                    recipes[name] = _named(name, words, lambda at=(size, index, train): _deit3_tuned(*at))  # type: ignore[misc]
    for size, mae in _MAES.items():
        for own, train in enumerate(trainings):
            name = f"vit-{size}-{train}-mae-finetune"
            words = (
                f"ViT-{size.upper()}, {_WORDS[train]}, fine-tuning of MAE's weights, {mae.epochs} epochs "
                f"(AugSub's table, published: {mae.top1[own]} % Top-1)."
            )
            recipes[name] = _named(name, words, lambda at=(size, train): _mae(*at))  # type: ignore[misc]
    return recipes


RECIPES = _of_twins() | _vits()
