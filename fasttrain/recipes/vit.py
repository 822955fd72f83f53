"""ImageNet recipes of the ST papers' ViT by CT and ST.

AdamW, 100 epochs and batch 2048 are the papers' setting. Ours, since they do not say: ViT-S/16 at 224 pixels,
and DeiT's settings otherwise (Touvron et al. 2021, and its code's defaults), whose learning rate is 5e-4 at
batch 512 and grows with the batch; weights start as in timm.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, Data, Method, Model, Optim, Run


def vit_s_ct_100() -> Config:
    """ViT-S/16, common training, AdamW, 100 epochs, batch 2048 (the ST papers' ImageNet setting)."""
    return Config(
        recipe="vit-s-ct-100",
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
            repeats=3,
            val_resize=256,
            val_crop=224,
        ),
        model=Model(name="vit_small_patch16_224", drop_path=0.1),
        method=Method(name="common", label_smoothing=0.1),
        optim=Optim(
            name="adamw",
            lr=2e-3,  # 5e-4 * 2048 / 512
            weight_decay=0.05,
            decay_on="matrices",
            warmup_epochs=5,
            warmup_lr=1e-6,
            min_lr=1e-5,
            schedule="cosine_to_floor",
            schedule_unit="epoch",
        ),
        run=Run(epochs=100, batch=2048),
    )


def vit_s_st_100() -> Config:
    """ViT-S/16, ST with one subnet, AdamW, 100 epochs, batch 2048 (the ST papers' ImageNet setting)."""
    base = vit_s_ct_100()
    method = replace(base.method, name="stimulative", subnets=1, normalize="none")
    return replace(base, recipe="vit-s-st-100", method=method)


RECIPES = {"vit-s-ct-100": vit_s_ct_100, "vit-s-st-100": vit_s_st_100}
