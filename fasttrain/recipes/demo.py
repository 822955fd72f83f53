"""The demo: handwritten digits (scikit-learn's 1,797 scans as 32x32 JPEGs), minutes on two CPU cores."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, Data, Evaluation, Method, Model, Optim, Run


def demo_ct() -> Config:
    """Handwritten digits, ResNet-20, common training: what the demo compares ST++ with."""
    return Config(
        recipe="demo-ct",
        data=Data(
            train="data/digits/train",
            val="data/digits/test",
            builtin="digits",
            num_classes=10,
            augmentation="small",
            crop=32,
            padding=4,
            flip=0.0,  # a mirrored digit is another sign
            jitter=0.0,
            lighting=0.0,
            val_resize=32,
            val_crop=32,
            mean=(0.305, 0.305, 0.305),  # of the training images
            std=(0.367, 0.367, 0.367),
        ),
        model=Model(name="cifar_resnet20"),
        method=Method(name="common"),
        optim=Optim(lr=0.1, weight_decay=5e-4, warmup_epochs=1, clip=1.0),
        evaluation=Evaluation(every=5, subnets=-1, calibration_images=704),
        run=Run(epochs=14, batch=64, log_every=22),
    )


def demo() -> Config:
    """Handwritten digits, ResNet-20, ST++: all 27 subnets follow the main network."""
    return replace(
        demo_ct(),
        recipe="demo",
        method=Method(
            name="stimulative",
            subnets=3,
            subnet_inputs="downscaled",
            sizes=(16, 20, 24, 28),
            normalize="layer_norm",
            normalize_main=False,  # its floor with 10 classes is 0.28
        ),
    )


RECIPES = {"demo": demo, "demo-ct": demo_ct}
