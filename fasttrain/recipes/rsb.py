"""ImageNet recipe A2 of "ResNet strikes back" (Wightman et al. 2021), common training.

The values are those with which AugSub's table (Heo et al. 2023) trains ResNets; its Top-1 for common
training is in each recipe's first line. What that table does not say is from public command lines of A2 for
timm's train.py: target threshold 0.2, RandAugment with `-inc1`, first learning rate 1e-4 and floor 1e-6
(AugSub's own command line has neither threshold nor `-inc1`); and from timm's defaults: LAMB's eps and
largest gradient norm, weight decay without vectors, a learning rate that stays for an epoch. Ours: images
are resized bilinearly (A2: bicubic), weights start as the ST code's, and the cosine starts after the
warm-up.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, Data, Evaluation, Method, Model, Optim, Run


def rn50_ct_rsb_a2() -> Config:
    """ResNet-50, common training, RSB A2: LAMB, BCE, 300 epochs (AugSub's table, published: 79.7 % Top-1)."""
    return Config(
        recipe="rn50-ct-rsb-a2",
        data=Data(
            augmentation="imagenet",
            crop=224,
            policy="randaugment",  # rand-m7-mstd0.5-inc1
            policy_operations=2,
            policy_magnitude=7.0,
            policy_deviation=0.5,
            jitter=0.0,  # timm: none beside RandAugment
            lighting=0.0,
            mixup=0.1,
            cutmix=1.0,
            mix_switch=0.5,
            repeats=3,
            val_resize=235,  # floor(224 / 0.95): crop share 0.95
            val_crop=224,
        ),
        model=Model(name="resnet50", drop_path=0.05),
        method=Method(name="common", main_loss="bce", target_threshold=0.2, label_smoothing=0.0),
        optim=Optim(
            name="lamb",
            lr=5e-3,  # at batch 2048
            weight_decay=0.02,
            decay_on="matrices",
            eps=1e-6,
            warmup_epochs=5,
            warmup_lr=1e-4,
            min_lr=1e-6,
            schedule="cosine_to_floor",
            schedule_unit="epoch",
            clip=1.0,
        ),
        evaluation=Evaluation(every=1),
        run=Run(epochs=300, batch=2048, batch_norm_batch=256),  # 8 GPUs, 256 images each
    )


def rn101_ct_rsb_a2() -> Config:
    """ResNet-101, common training, as rn50-ct-rsb-a2 (AugSub's table, published: 81.4 % Top-1)."""
    return _deeper("rn101-ct-rsb-a2", "resnet101")


def rn152_ct_rsb_a2() -> Config:
    """ResNet-152, common training, as rn50-ct-rsb-a2 (AugSub's table, published: 81.8 % Top-1)."""
    return _deeper("rn152-ct-rsb-a2", "resnet152")


def _deeper(recipe: str, name: str) -> Config:
    base = rn50_ct_rsb_a2()
    return replace(base, recipe=recipe, model=replace(base.model, name=name))


RECIPES = {function().recipe: function for function in (rn50_ct_rsb_a2, rn101_ct_rsb_a2, rn152_ct_rsb_a2)}
