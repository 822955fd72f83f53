"""CIFAR-10 recipes: ResNet-56 by CT, ST and ST++, the ST papers' MobileNetV3 and ResNet-50 by CT and ST.

ResNet-56 (He et al. 2016, section 4.2): optimizer and augmentation follow He et al.; the cosine schedule, its
200 epochs and the subnets' sizes are this project's choice, since the ST papers do not state them for this
network.

MobileNetV3-Large and ResNet-50, the networks of the papers' CIFAR tables: SGD, learning rate 0.05, weight
decay 3e-5, 500 epochs and batch 64 are the papers' CIFAR setting. Our choice, since they do not say: how the
networks are made for 32 pixels (see `cifar_mobilenetv3_large` and `cifar_resnet50`), Nesterov momentum 0.9
and the cosine schedule (as in the published ImageNet code), and He et al.'s augmentation. For CIFAR-100:
`--data.num-classes 100`.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, Data, Evaluation, Method, Model, Optim, Run

CIFAR_SIZES = (16, 20, 24, 28, 32)
"""0.43 * 32 = 13 to 32 in the published rule, in steps that the network's stride of 4 divides."""


def cifar10_resnet56_ct() -> Config:
    """CIFAR-10, ResNet-56, common training."""
    return Config(
        recipe="cifar10-resnet56-ct",
        data=Data(
            augmentation="small",
            crop=32,
            padding=4,  # He et al. 2016, section 4.2
            flip=0.5,
            jitter=0.0,
            lighting=0.0,
            val_resize=32,
            val_crop=32,
            mean=(0.4914, 0.4822, 0.4465),  # of the training images
            std=(0.2470, 0.2435, 0.2616),
            num_classes=10,
        ),
        model=Model(name="cifar_resnet56"),
        method=Method(name="common"),
        # rate, momentum and decay: He et al. 2016, section 4.2. Warm-up and clipping for ST++, whose KL-
        # divides by the logits' deviation, near zero at the start; CT has them too, for the comparison.
        optim=Optim(lr=0.1, momentum=0.9, weight_decay=1e-4, warmup_epochs=1, clip=1.0),
        evaluation=Evaluation(every=10, batch=500, subnets=-1),
        run=Run(epochs=200, batch=128),  # batch: He et al. 2016, section 4.2
    )


def cifar10_resnet56_st() -> Config:
    """CIFAR-10, ResNet-56, stimulative training, one subnet per step."""
    return replace(
        cifar10_resnet56_ct(),
        recipe="cifar10-resnet56-st",
        method=Method(name="stimulative", subnets=1, normalize="none"),
    )


def cifar10_resnet56_stpp() -> Config:
    """CIFAR-10, ResNet-56, ST++: three subnets per step on one smaller batch."""
    return replace(
        cifar10_resnet56_ct(),
        recipe="cifar10-resnet56-stpp",
        method=Method(
            name="stimulative",
            subnets=3,
            subnet_inputs="downscaled",
            sizes=CIFAR_SIZES,
            normalize="layer_norm",
            normalize_main=False,  # its floor with 10 classes is 0.28
        ),
    )


def cifar10_mobilenetv3_ct() -> Config:
    """CIFAR-10, MobileNetV3-Large, common training, 500 epochs (the ST papers' CIFAR setting)."""
    return _papers("cifar10-mobilenetv3-ct", "cifar_mobilenetv3_large", Method(name="common"))


def cifar10_mobilenetv3_st() -> Config:
    """CIFAR-10, MobileNetV3-Large, stimulative training (ST), 500 epochs (the ST papers' CIFAR setting)."""
    return _papers("cifar10-mobilenetv3-st", "cifar_mobilenetv3_large", _ST)


def cifar10_resnet50_ct() -> Config:
    """CIFAR-10, ResNet-50, common training, 500 epochs (the ST papers' CIFAR setting)."""
    return _papers("cifar10-resnet50-ct", "cifar_resnet50", Method(name="common"))


def cifar10_resnet50_st() -> Config:
    """CIFAR-10, ResNet-50, stimulative training (ST), 500 epochs (the ST papers' CIFAR setting)."""
    return _papers("cifar10-resnet50-st", "cifar_resnet50", _ST)


_ST = Method(name="stimulative", subnets=1, normalize="none")


def _papers(recipe: str, model: str, method: Method) -> Config:
    """The papers' CIFAR setting; all ordered subnets are evaluated (144 and 216)."""
    return replace(
        cifar10_resnet56_ct(),
        recipe=recipe,
        model=Model(name=model),
        method=method,
        optim=Optim(
            lr=0.05,  # ST papers, CIFAR
            momentum=0.9,  # published code
            weight_decay=3e-5,  # ST papers, CIFAR
        ),
        run=Run(epochs=500, batch=64),  # ST papers, CIFAR
    )


RECIPES = {
    function().recipe: function
    for function in (
        *(cifar10_resnet56_ct, cifar10_resnet56_st, cifar10_resnet56_stpp),
        *(cifar10_mobilenetv3_ct, cifar10_mobilenetv3_st, cifar10_resnet50_ct, cifar10_resnet50_st),
    )
}
