"""ImageNet recipes of the ST and ST++ papers, ResNet-50.

Each `-published` twin follows the published code (NIPS22-ST, train.py) to the letter where its plain
namesake takes this project's fast modes; the batch-norm statistics and the accuracy it reports are meant
to be the same.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, Data, Method, Model, Optim, Run

FAST_SIZES = (96, 112, 128, 160, 176, 192)
"""Instead of every integer in 86..200 (int(0.43 * 200) to the crop): mean side 144 against 143, mean area
21,931 against 21,551 pixels, six shapes against 115. ResNet-50 needs 5.5 % fewer FLOPs on them all the same:
at other sides its strides round feature maps up."""
FAST_SIZES_CROP = 200
"""The training crop that `FAST_SIZES` are meant for, pixels."""


def rn50_ct_200() -> Config:
    """ResNet-50, common training, 200 epochs (published: 76.7 % Top-1)."""
    return Config(
        recipe="rn50-ct-200",
        data=Data(
            augmentation="imagenet",
            crop=224,  # train.py --train_crop_size
            jitter=0.4,  # --jitter_coef
            lighting=0.1,  # --light_coef
            val_resize=256,  # --val_resize_size
            val_crop=224,  # --val_crop_size
        ),
        model=Model(name="resnet50"),
        method=Method(name="common"),
        optim=Optim(
            lr=0.2,  # --lr, at batch 512
            momentum=0.9,  # configs/resnet50_randwidth.yml; Nesterov
            weight_decay=1e-4,  # --weight_decay, on every parameter
        ),
        run=Run(epochs=200, batch=512),  # --epoch, --batch_size
    )


def rn50_st_200() -> Config:
    """ResNet-50, stimulative training (ST), one subnet per step, 200 epochs."""
    base = rn50_ct_200()
    return replace(base, recipe="rn50-st-200", method=Method(name="stimulative", subnets=1, normalize="none"))


def rn50_stpp_a1() -> Config:
    """ResNet-50, ST++ with six smaller-input subnets, 200 epochs, crop 200 (published: 80.5 % Top-1)."""
    base = rn50_ct_200()
    return replace(
        base,
        recipe="rn50-stpp-a1",
        data=replace(base.data, crop=200, val_resize=240),  # ST++ Table 3, A1
        method=Method(
            name="stimulative",
            subnets=6,  # --multi_Snet
            space="space3",  # --sample_space: 3, 3-4, 3-6, 3
            subnet_inputs="downscaled",
            sizes=FAST_SIZES,
            sizes_per_step=1,
            normalize="layer_norm",  # --norm_kd as its code does it
            normalize_main=True,
            amplitude=1.0,  # --amplitude
            temperature=1.0,  # --Temp
        ),
    )


def rn50_stpp_a2() -> Config:
    """ResNet-50, ST++ as rn50-stpp-a1 with UniformAugment, 400 epochs."""
    base = rn50_stpp_a1()
    return replace(
        base,
        recipe="rn50-stpp-a2",
        data=replace(base.data, policy="uniformaugment"),  # ST++ A2
        run=replace(base.run, epochs=400),
    )


def as_published(config: Config) -> Config:
    """The published code to the letter: partial last batch, lighting, float32 with TF32, re-estimation."""
    method = config.method
    if method.subnet_inputs == "downscaled":
        sizes = tuple(
            range(int(0.43 * config.data.crop), config.data.crop + 1)
        )  # --mini_size, --Dtrans Dtrans7
        method = replace(method, subnet_inputs="cascaded", sizes=sizes)
    return replace(
        config,
        recipe=f"{config.recipe}-published",
        data=replace(config.data, drop_last=False, published_lighting=True),
        model=replace(config.model, batch_norm="torch"),
        method=method,
        evaluation=replace(config.evaluation, reestimate=True, calibration_images=2000),
        run=replace(
            config.run,
            precision="fp32",
            tf32=True,
            kernels="reference",
            batch_norm_batch=256,  # two GPUs, DataParallel
        ),
    )


def rn50_ct_200_published() -> Config:
    """Twin of rn50-ct-200 that follows the published code to the letter."""
    return as_published(rn50_ct_200())


def rn50_st_200_published() -> Config:
    """Twin of rn50-st-200 that follows the published code to the letter."""
    return as_published(rn50_st_200())


def rn50_stpp_a1_published() -> Config:
    """Twin of rn50-stpp-a1 that follows the published code to the letter: cascaded inputs, integer sizes."""
    return as_published(rn50_stpp_a1())


RECIPES = {
    "rn50-ct-200": rn50_ct_200,
    "rn50-st-200": rn50_st_200,
    "rn50-stpp-a1": rn50_stpp_a1,
    "rn50-stpp-a2": rn50_stpp_a2,
    "rn50-ct-200-published": rn50_ct_200_published,
    "rn50-st-200-published": rn50_st_200_published,
    "rn50-stpp-a1-published": rn50_stpp_a1_published,
}
