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


def demo_st() -> Config:
    """Handwritten digits, ResNet-20, ST: one subnet in a pass of its own, so that memory stays CT's."""
    return _demo("demo-st", Method(name="stimulative", subnets=1, backward="split"))


def demo_layer() -> Config:
    """Handwritten digits, ResNet-20, layer supervision: a classifier after every block."""
    return _demo("demo-layer", Method(name="layer_supervision"))


def demo_stage() -> Config:
    """Handwritten digits, ResNet-20, stage supervision: a classifier after every stage."""
    return _demo("demo-stage", Method(name="stage_supervision"))


def demo_selfdistill() -> Config:
    """Handwritten digits, ResNet-20, self-distillation (Zhang et al. 2019): shallow classifiers follow it."""
    return _demo(
        "demo-selfdistill",
        Method(name="self_distillation", distillation=0.1, distillation_temperature=3.0),  # its authors' code
    )


def demo_stochastic_depth() -> Config:
    """Handwritten digits, ResNet-20, stochastic depth (Huang et al. 2016)."""
    return _demo("demo-stochastic-depth", Method(name="stochastic_depth", survival=0.5))  # their section 4


def demo_augsub() -> Config:
    """Handwritten digits, ResNet-20, AugSub (Heo et al. 2023): half of each image's squares masked."""
    method = Method(name="augsub", drop="masking", drop_ratio=0.5, mask_square=4)  # a seventh of 32 pixels
    return _demo("demo-augsub", method)


def _demo(name: str, method: Method) -> Config:
    return replace(demo_ct(), recipe=name, method=method)


RECIPES = {
    "demo": demo,
    "demo-ct": demo_ct,
    "demo-st": demo_st,
    "demo-layer": demo_layer,
    "demo-stage": demo_stage,
    "demo-selfdistill": demo_selfdistill,
    "demo-stochastic-depth": demo_stochastic_depth,
    "demo-augsub": demo_augsub,
}
