"""ImageNet recipe of Swin transformers (Liu et al. 2021), common training.

The values are those of the authors' code (config.py, configs/swin), with which AugSub's table (Heo et al.
2023) trains Swin-T, S and B: 8 GPUs with 128 images each, and learning rates of 5e-4 (warm-up 5e-7, floor
5e-6) at batch 512 that grow with the batch. Top-1 in first lines is that table's. Ours: images are resized
bilinearly (there: bicubic), and the cosine starts after the warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..config import Config, Data, Method, Model, Optim, Run


def swin_t_ct_300() -> Config:
    """Swin-T, common training, AdamW, 300 epochs (AugSub's table, published: 81.3 % Top-1)."""
    return Config(
        recipe="swin-t-ct-300",
        data=Data(
            augmentation="imagenet",
            crop=224,
            policy="randaugment",  # rand-m9-mstd0.5-inc1
            policy_operations=2,
            policy_magnitude=9.0,
            policy_deviation=0.5,
            jitter=0.0,  # timm: none beside RandAugment
            lighting=0.0,
            erase=0.25,
            erase_fill="noise",
            mixup=0.8,
            cutmix=1.0,
            mix_switch=0.5,
            val_resize=256,  # 224 * 256 / 224
            val_crop=224,
        ),
        model=Model(name="swin_tiny_patch4_window7_224", drop_path=0.2),
        method=Method(name="common", label_smoothing=0.1),
        optim=Optim(
            name="adamw",
            lr=1e-3,  # 5e-4 * 1024 / 512
            weight_decay=0.05,
            decay_on="matrices",
            warmup_epochs=20,
            warmup_lr=1e-6,
            min_lr=1e-5,
            schedule="cosine_to_floor",
            clip=5.0,
        ),
        run=Run(epochs=300, batch=1024),  # 8 GPUs, 128 images each
    )


def swin_s_ct_300() -> Config:
    """Swin-S, common training, AdamW, 300 epochs (AugSub's table, published: 83.0 % Top-1)."""
    return _larger("swin-s-ct-300", Model(name="swin_small_patch4_window7_224", drop_path=0.3))


def swin_b_ct_300() -> Config:
    """Swin-B, common training, AdamW, 300 epochs (AugSub's table, published: 83.5 % Top-1)."""
    return _larger("swin-b-ct-300", Model(name="swin_base_patch4_window7_224", drop_path=0.5))


def _larger(recipe: str, model: Model) -> Config:
    return replace(swin_t_ct_300(), recipe=recipe, model=model)


RECIPES: dict[str, Callable[[], Config]] = {
    function().recipe: function for function in (swin_t_ct_300, swin_s_ct_300, swin_b_ct_300)
}
