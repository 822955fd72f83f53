"""The typed configuration of a run: frozen dataclasses without behaviour beyond validation.

A recipe (`fasttrain.recipes`) is a function that returns a complete `Config`; the command line overrides
single fields (`--optim.lr 0.4`); a run's folder keeps the resolved one as `config.json`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import ConfigError, cut, instead

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Policy = Literal[
    "none",
    "autoaugment",
    "randaugment",
    "trivialaugment",
    "uniformaugment",
    "threeaugment",
    "randaugment_torchvision",
    "randaugment_standard",
    "trivialaugment_standard",
    "uniformaugment_standard",
]

LARGEST = 1e9
"""Of any number, unless a field has a bound of its own."""


def _check(ok: bool, name: str, value: Any, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {cut(repr(value))}; allowed: {allowed}")


def _check_types(section: Any) -> None:
    """Each field's value against its annotation: JSON files and callers are not type-checked."""
    prefix = type(section).__name__.lower()
    for name, hint in _hints(type(section)).items():  # type: ignore[arg-type]  # mypy: unhashable
        value = getattr(section, name)
        allowed = _allowed(hint, value)
        if allowed and get_origin(hint) is Literal and isinstance(value, str):
            raise ConfigError(f"{prefix}.{name} is {value!r}; {instead(value, get_args(hint))}")
        _check(not allowed, f"{prefix}.{name}", value, allowed)


@cache
def _hints(section: Any) -> dict[str, Any]:
    """The types of its fields; to evaluate them takes most of a recipe's time."""
    return get_type_hints(section)


def _allowed(hint: Any, value: Any) -> str:
    """What `hint` allows, if it does not allow `value`; else nothing."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "" if value in arguments else ", ".join(map(str, arguments))
    if origin is tuple:
        one = arguments[0]
        count = None if arguments[-1] is Ellipsis else len(arguments)
        fits = (
            isinstance(value, tuple)
            and count in (None, len(value))
            and not any(_allowed(one, v) for v in value)
        )
        return "" if fits else f"{count or 'any number of'} values of type {one.__name__}"
    if hint is float:
        return "" if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    return "" if fits else f"a value of type {hint.__name__}"


def _check_range(name: str, value: float, low: float, high: float = LARGEST) -> None:
    _check(low <= value <= high, name, value, f"{low:g} to {high:g}")  # NaN compares false


def _check_positive(name: str, value: float) -> None:
    _check(0 < value <= LARGEST, name, value, f"above 0, at most {LARGEST:g}")


def _check_pairs(name: str, sides: tuple[int, ...]) -> None:
    """Sides as lowest and highest, in pairs."""
    pairs = list(zip(sides[::2], sides[1::2], strict=False))
    ok = len(sides) % 2 == 0 and all(1 <= low <= high <= 4096 for low, high in pairs)
    _check(ok, name, sides, "pairs of a lowest and a highest side, 1 to 4096")


def _is_window(text: str) -> bool:
    """Whether it is empty, or two growing whole numbers with a colon between."""
    first, colon, end = text.partition(":")
    digits = all(part.isascii() and part.isdigit() for part in (first, end))
    return not text or bool(digits and colon and int(first) < int(end) <= LARGEST)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where the images are and how they are augmented."""

    train: str = ""
    """Training images: a folder with one folder of images per class, a folder of tars that `data pack` wrote,
    or a manifest that `data check` wrote."""
    val: str = ""
    """Validation images, of the same kinds; empty: the run does not evaluate."""
    classes: str = ""
    """Order of the class folders, and so of the labels: a file with their names, one per line, or natural (c2
    before c10, apple before Zebra, as timm sorts them); empty: as model.weights names its outputs, unless it
    does not or gets a new head; else sorted as text, or as the manifest has them."""
    builtin: Literal["none", "digits"] = "none"
    """A data set that fasttrain writes itself where `train` is missing (digits: scikit-learn's scans)."""
    num_classes: int = 0
    """Number of classes; 0: as many as the training folder holds."""
    augmentation: Literal["imagenet", "small"] = "imagenet"
    """imagenet: random resized crop; small: pad by `padding`, random crop of `crop` (32x32 images)."""
    crop: int = 224
    """Side of the training crop, pixels."""
    min_area: float = 0.08
    """Least share of the image's area in a random resized crop."""
    padding: int = 4
    """Zero padding on each side before the random crop of small images, pixels."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    policy: Policy = "none"
    """Operations drawn per image: Cubuk et al. 2018 and 2020 (as timm has it), Mueller and Hutter 2021,
    LingChen et al. 2020; threeaugment: DeiT III's grey, solarize or blur; randaugment_torchvision: as
    torchvision has it; standard: the 14 operations of TrivialAugment's library, as in the published code."""
    policy_last: bool = False
    """Apply the policy after the jitter and the lighting, as the published code does, not before."""
    policy_fill: int = 128
    """What warped images show outside of the original, level 0 to 255; the published code: 0."""
    policy_operations: int = 2
    """Operations per image of the randaugments and uniformaugments."""
    policy_magnitude: float = 9.0
    """Mean magnitude of the randaugments, 0 to 10."""
    policy_deviation: float = 0.5
    """Standard deviation of the randaugments' magnitude."""
    jitter: float = 0.4
    """Strength of the colour jitter: brightness, contrast and saturation factors in 1 +- jitter."""
    colour: Literal["exact", "folded"] = "exact"
    """exact: the jitter's operations one by one, clamped and rounded after each; folded: as one affine map
    per image, without clamps."""
    lighting: float = 0.1
    """Standard deviation of the PCA lighting (Krizhevsky et al. 2012), in units of the eigenvalues."""
    published_lighting: bool = False
    """Lighting as the published ST code does it: eigenvalues for 0-1 added to 0-255 integers, truncated."""
    erase: float = 0.0
    """Probability of random erasing (Zhong et al. 2020) of a box of 2 to 33 % of the image."""
    erase_fill: Literal["mean", "noise"] = "mean"
    """What erased boxes show: 0, or Gaussian noise, after normalization."""
    shuffle: bool = True
    """Draw an order for each epoch from run.seed; off: always the order of the folder, manifest or tars."""
    repeats: int = 1
    """Times that an image of an epoch is in it, each augmented anew, in one step (Hoffer et al. 2020); the
    epoch stays as long as the data and takes a part 1/repeats of the images."""
    mixup: float = 0.0
    """Alpha of mixup (Zhang et al. 2018): shares from Beta(alpha, alpha); 0: none."""
    cutmix: float = 0.0
    """Alpha of CutMix (Yun et al. 2019); 0: none."""
    mix_switch: float = 0.5
    """Probability of CutMix at a step where mixup and CutMix are both on."""
    val_resize: int = 256
    """Shorter side of a validation image before its centre crop, pixels."""
    val_crop: int = 224
    """Side of the validation centre crop, pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each channel on the 0-1 scale, subtracted from the images."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each channel on the 0-1 scale, the images' divisor."""
    antialias: bool = True
    """Antialias when the downscaled batches are made."""
    drop_last: bool = True
    """Drop the last, partial batch of an epoch (the published code keeps it)."""
    threads: int = 0
    """DALI's CPU threads per process; 0: the machine's cores shared among its processes, at most 16."""
    prefetch: int = 2
    """Batches that DALI prepares ahead."""
    hardware_decoder_load: float = 0.65
    """Share of each batch that a GPU's JPEG engines decode, where it has some; the rest by CUDA kernels."""
    decoder_memory: int = 16
    """Memory that each of a GPU's decoding threads reserves at the start, MiB, and half of it on the host; an
    image that needs more makes it grow, which waits for the GPU."""
    largest_image: tuple[int, int] = (0, 0)
    """Width and height for which a GPU's JPEG engines reserve memory at the start, pixels; 0 0: none."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range("data.num_classes", self.num_classes, 0, 1_000_000)
        _check_range("data.crop", self.crop, 1, 4096)
        _check_range("data.min_area", self.min_area, 1e-4, 1)
        _check_range("data.padding", self.padding, 0, 1024)
        _check_range("data.flip", self.flip, 0, 1)
        _check_range("data.policy_fill", self.policy_fill, 0, 255)
        _check_range("data.policy_operations", self.policy_operations, 1, 8)
        _check_range("data.policy_magnitude", self.policy_magnitude, 0, 10)
        _check_range("data.policy_deviation", self.policy_deviation, 0, 10)
        _check_range("data.jitter", self.jitter, 0, 1)
        _check_range("data.lighting", self.lighting, 0)
        _check(
            self.colour == "exact" or not self.published_lighting,
            "data.colour",
            self.colour,
            "exact with published_lighting, which truncates",
        )
        _check(
            not self.policy_last
            or (self.colour == "exact" and (self.published_lighting or self.lighting == 0)),
            "data.policy_last",
            self.policy_last,
            "True with colour exact, and published_lighting or no lighting, which are done on levels",
        )
        _check_range("data.erase", self.erase, 0, 1)
        _check_range("data.repeats", self.repeats, 1, 64)
        _check_range("data.mixup", self.mixup, 0, 100)
        _check_range("data.cutmix", self.cutmix, 0, 100)
        _check_range("data.mix_switch", self.mix_switch, 0, 1)
        _check_range("data.val_crop", self.val_crop, 1, 4096)
        _check_range("data.val_resize", self.val_resize, self.val_crop, 8192)
        for value in self.mean:
            _check_range("data.mean", value, 0, 1)
        for value in self.std:
            _check_positive("data.std", value)
        _check_range("data.threads", self.threads, 0, 1024)
        _check_range("data.prefetch", self.prefetch, 1, 64)
        _check_range("data.hardware_decoder_load", self.hardware_decoder_load, 0, 1)
        _check_range("data.decoder_memory", self.decoder_memory, 0, 1024)
        for side in self.largest_image:
            _check_range("data.largest_image", side, 0, 65_535)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The network."""

    name: str = "resnet50"
    """A timm ResNet (resnet18 ... resnet152, resnext, wide, resnet*d), MobileNetV3 (mobilenetv3_large_100,
    ...), ViT, DeiT, ConvNeXt, RegNet, Swin, PVT v2 or DenseNet by its name there,
    cifar_resnet20/32/44/56/110, cifar_resnet50 or cifar_mobilenetv3_large."""
    weights: str = ""
    """A file of weights to start from, or FILE#KEY, for those under KEY in it; empty: random weights."""
    new_head: bool = False
    """Take all of `weights` but the classifier, which starts at random: for other classes."""
    drop_path: float = 0.0
    """Probability with which an image goes without the last block's residual branch in training; it grows
    linearly from 0 in the first block (Huang et al. 2016; timm's drop-path)."""
    batch_norm: Literal["auto", "triton", "reference", "torch", "apex"] = "auto"
    """Batch norm: fused with the ReLU, residual add and stem pool after it by triton (this project's kernels;
    reference: the same in plain PyTorch) or apex (NVIDIA's groupbn; fp16); torch: timm's own layers; auto:
    triton on CUDA with channels_last, else torch. Only ResNets have them to fuse: else auto or torch."""
    conv1x1: Literal["torch", "triton", "reference"] = "torch"
    """1x1 convolutions of bottlenecks: torch (cuDNN), or this project's kernels (reference: the same in plain
    PyTorch), which also normalize their input and gather their output's statistics; needs the same
    batch_norm."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range("model.drop_path", self.drop_path, 0, 0.99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How the network is trained: common training, stimulative training (ST, ST++), AugSub, or a baseline."""

    name: Literal[
        "common",
        "stimulative",
        "augsub",
        "layer_supervision",
        "stage_supervision",
        "self_distillation",
        "stochastic_depth",
    ] = "stimulative"
    """common: the main loss alone; stimulative: and each sampled subnet follows the main network; augsub: and
    a sub-model, the main network under more drop, follows it (Heo et al. 2023); layer_supervision,
    stage_supervision: and the cross-entropy of a classifier after each block or stage; self_distillation: and
    such classifiers follow the main network (Zhang et al. 2019); stochastic_depth: common, but residual
    branches are left out at random (Huang et al. 2016). Of what follows augsub reads drop, drop_ratio,
    mask_square, main_loss and its options, and backward."""
    drop: Literal["masking", "dropout", "path"] = "masking"
    """What augsub's sub-model has more of: masked squares of the images (patches of a ViT, which leave the
    sequence); dropout after attention and in the MLP (transformers); drop-path in every block."""
    drop_ratio: float = 0.5
    """Share of the squares that are masked, or probability of dropout or drop-path."""
    mask_square: int = 32
    """Side of the masked squares, pixels; a ViT has its patches instead, Swin shows a learned token there."""
    auxiliary_weight: float = 1.0
    """Weight of each of the classifiers that layer_supervision, stage_supervision and self_distillation train
    besides the network's own."""
    distillation: float = 0.1
    """Share of that weight with which self_distillation's classifiers follow the main network; the rest is
    for the targets."""
    distillation_temperature: float = 3.0
    """Temperature at which they follow it (its authors' code), of a KL that is multiplied by its square."""
    survival: float = 0.5
    """Probability with which stochastic_depth keeps the last block's branch; it falls linearly from 1."""
    subnets: int = 1
    """K, the subnets drawn per step."""
    sampling: Literal["ordered", "stochastic", "raw"] = "ordered"
    """What a subnet is: each stage's first blocks; any subset of the droppable blocks; or each block's
    residual branch or shortcut alone (Veit et al. 2016)."""
    space: str = "default"
    """The sampling space: default, space1 ... space7 (ResNet-50), a rule (min=2, part=0.5) or an explicit
    list of blocks kept per stage (3,3-4,3-6,3)."""
    draws: Literal["independent", "coupled"] = "independent"
    """independent: K independent subnets; coupled: early stages drawn once, every depth of the last free
    stage taken, weighted so that the expected gradient is the same."""
    subnet_inputs: Literal["full", "downscaled", "cascaded"] = "full"
    """full: the main network's batch (ST); downscaled: smaller batches from DALI (ST++); cascaded: each
    input resized from the previous subnet's and normalized again, as the published code does."""
    sizes: tuple[int, ...] = ()
    """Sides that the subnets' inputs are drawn from, pixels; empty with subnet_inputs=full."""
    cascade: Literal["resize", "interpolate", "crop"] = "resize"
    """How a cascaded input is made: resize: bilinear, normalized again; interpolate: bilinear with aligned
    corners, not normalized again; crop: a random resized crop, one for the batch, normalized again."""
    main_resizes: tuple[int, ...] = ()
    """Lowest and highest side, in pairs, pixels: for each pair the whole step's batch is resized to a side
    drawn between them and normalized again, before the main network sees it (published code)."""
    sizes_per_step: int = 1
    """R, the sizes drawn per step with subnet_inputs=downscaled; the subnets are dealt over them."""
    subnet_share: float = 1.0
    """Share of each batch that the subnets see, its first images (this project's option, not the papers');
    below 1 they share nothing with the main network."""
    supervision: Literal["kl", "ce_teacher", "ce_target", "dkd", "mse"] = "kl"
    """What a subnet learns from: KL to the main output (papers); cross-entropy to it; or to the target;
    decoupled distillation (Zhao et al. 2022) from it; or squared differences of the probabilities."""
    main_loss: Literal["ce", "bce"] = "ce"
    """The main network's loss: cross-entropy, or a binary one for each class (Wightman et al. 2021), mean
    over images and classes; it has no Triton kernel."""
    target_threshold: float = 0.0
    """bce: a target's classes above this share count as 1, the others as 0; 0: the shares as they are."""
    label_smoothing: float = 0.0
    """Share of each target spread over all classes."""
    normalize: Literal["layer_norm", "l2", "none"] = "none"
    """Normalization of the logits before the losses: layer_norm (KL-, published code), l2 (KL-, ST++
    equation 6) or none (plain KL)."""
    normalize_main: bool = True
    """Whether the main loss sees the normalized logits too, as in the published 80.5 %."""
    amplitude: float = 1.0
    """Factor on normalized logits."""
    temperature: float = 1.0
    """Temperature of the KL, whose value is multiplied by its square."""
    scale_by_teacher: bool = False
    """Multiply the logits of both sides of the KL by the standard deviation of the teacher's over the
    classes, normalized as they are (published code)."""
    ensemble: float = 0.0
    """Share by which each subnet, after its turn, moves the teacher towards its own layer-normalized output
    (published code); 0: the main network's output teaches all."""
    main_weight: float = 1.0
    """Weight of the main network's loss."""
    kl_weight: float = 1.0
    """Weight of each subnet's loss."""
    kl_schedule: Literal["constant", "cosine_up", "cosine_down"] = "constant"
    """How the subnets' weight goes over the epochs: constant, 0 to kl_weight, or kl_weight to 0."""
    start_epoch: int = 0
    """First epoch in which subnets are trained."""
    backward: Literal["joint", "split"] = "joint"
    """joint: one forward and one backward pass for everything; split: the main network's first, then each
    input size's, with the same gradients: less memory, nothing shared between main network and subnets."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range("method.drop_ratio", self.drop_ratio, 0.01, 0.99)
        _check_range("method.mask_square", self.mask_square, 1, 4096)
        _check_range("method.auxiliary_weight", self.auxiliary_weight, 0)
        _check_range("method.distillation", self.distillation, 0, 1)
        _check_range("method.survival", self.survival, 0.01, 1)
        _check_range("method.subnets", self.subnets, 0, 64)
        for size in self.sizes:
            _check_range("method.sizes", size, 1, 4096)
        small = self.subnet_inputs != "full"
        _check(
            bool(self.sizes) == small,
            "method.sizes",
            self.sizes,
            "at least one side with subnet_inputs downscaled or cascaded, none with full",
        )
        _check_range("method.sizes_per_step", self.sizes_per_step, 1, max(1, self.subnets))
        _check(
            self.draws == "independent" or self.sampling == "ordered",
            "method.draws",
            self.draws,
            "coupled only with sampling=ordered",
        )
        _check(
            self.draws == "independent" or self.subnet_inputs != "cascaded",
            "method.draws",
            self.draws,
            "coupled only with subnet_inputs full or downscaled",
        )
        _check(
            self.cascade == "resize" or self.subnet_inputs == "cascaded",
            "method.cascade",
            self.cascade,
            "resize, or another with subnet_inputs cascaded",
        )
        _check_pairs("method.main_resizes", self.main_resizes)
        _check(
            not self.main_resizes or self.name == "stimulative",
            "method.main_resizes",
            self.main_resizes,
            "none unless method.name is stimulative",
        )
        auxiliary = self.name in ("layer_supervision", "stage_supervision", "self_distillation")
        _check(
            not auxiliary or self.backward == "joint",
            "method.backward",
            self.backward,
            f"joint with method.name {self.name}, whose classifiers share the main network's pass",
        )
        _check(
            not auxiliary or self.main_loss == "ce",
            "method.main_loss",
            self.main_loss,
            f"ce with method.name {self.name}",
        )
        _check_range("method.ensemble", self.ensemble, 0, 1)
        _check(
            self.ensemble == 0 or self.backward == "joint",
            "method.ensemble",
            self.ensemble,
            "0 with backward split, whose subnets do not wait for each other",
        )
        _check_range("method.subnet_share", self.subnet_share, 1e-3, 1)
        _check_range("method.label_smoothing", self.label_smoothing, 0, 1)
        _check_range("method.target_threshold", self.target_threshold, 0, 0.999)
        _check(
            self.target_threshold == 0 or self.main_loss == "bce",
            "method.target_threshold",
            self.target_threshold,
            "0 with main_loss ce",
        )
        _check_positive("method.amplitude", self.amplitude)
        _check_positive("method.temperature", self.temperature)
        _check_positive("method.distillation_temperature", self.distillation_temperature)
        _check_range("method.main_weight", self.main_weight, 0)
        _check_range("method.kl_weight", self.kl_weight, 0)
        _check_range("method.start_epoch", self.start_epoch, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """The optimizer and its learning-rate schedule."""

    name: Literal["sgd", "adamw", "lamb"] = "sgd"
    """sgd: with Nesterov momentum (torch); adamw: Loshchilov and Hutter 2019 (torch); lamb: You et al. 2020
    (timm's)."""
    lr: float = 0.2
    """Peak learning rate at the recipe's batch; it is not scaled by itself."""
    momentum: float = 0.9
    """Nesterov momentum of sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adamw and lamb: decay per step of the gradients' mean and of the squared gradients' mean."""
    eps: float = 1e-8
    """Added to the root of the squared gradients' mean by adamw and lamb."""
    weight_decay: float = 1e-4
    """sgd: L2 penalty; adamw: decoupled, times the learning rate; lamb: added to the step that it scales."""
    decay_on: Literal["all", "matrices"] = "all"
    """What decays: every parameter (the ST papers), or neither biases, norms, other vectors, position
    embeddings nor learned tokens (timm's recipes)."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one before it (Bao et al. 2022): the head has lr,
    the last block layer_decay * lr, and so on down to the stem; 1: all have lr."""
    schedule: Literal["cosine", "cosine_to_floor"] = "cosine"
    """cosine: towards 0, cut off at min_lr (published code); cosine_to_floor: it ends in min_lr (Loshchilov
    and Hutter 2017; timm)."""
    schedule_unit: Literal["step", "epoch"] = "step"
    """How often the learning rate changes; epoch: it stays for an epoch (timm)."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up."""
    warmup_lr: float = 0.0
    """Learning rate of the warm-up's first step; 0: that of one step (or epoch) above 0."""
    min_lr: float = 0.0
    """Floor of the cosine schedule."""
    clip: float = 0.0
    """Largest gradient norm; 0: no clipping."""
    ema: float = 0.0
    """Decay per step of the exponential moving average of the weights; 0: none. A step whose update is left
    out counts, as it does for the learning rate."""
    impl: Literal["auto", "fused", "foreach", "apex"] = "auto"
    """Implementation: fused (torch's sgd and adamw), foreach, or apex (NVIDIA's FusedSGD); auto: fused on
    CUDA where there is one, else foreach."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_positive("optim.lr", self.lr)
        _check_range("optim.momentum", self.momentum, 0, 0.9999)
        for beta in self.betas:
            _check_range("optim.betas", beta, 0, 0.999999)
        _check_range("optim.eps", self.eps, 1e-16, 1)
        _check_range("optim.weight_decay", self.weight_decay, 0)
        _check_range("optim.layer_decay", self.layer_decay, 0.01, 1)
        _check_range("optim.warmup_epochs", self.warmup_epochs, 0)
        _check_range("optim.warmup_lr", self.warmup_lr, 0, self.lr)
        _check_range("optim.min_lr", self.min_lr, 0, self.lr)
        has = {"sgd": ("fused", "foreach", "apex"), "adamw": ("fused", "foreach"), "lamb": ("foreach",)}
        allowed = ("auto", *has[self.name])
        _check(self.impl in allowed, "optim.impl", self.impl, f"{', '.join(allowed)} with {self.name}")
        _check_range("optim.clip", self.clip, 0)
        _check_range("optim.ema", self.ema, 0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What is measured on the validation images, and when."""

    every: int = 1
    """Epochs between two evaluations of the main network; the last epoch is always evaluated."""
    batch: int = 256
    """Images per process and evaluation batch."""
    reestimate: bool = False
    """Re-estimate the main network's batch-norm statistics before each evaluation (published code)."""
    calibration_images: int = 2048
    """Augmented training images used to re-estimate batch-norm statistics, over all processes."""
    subnets: int = 0
    """Subnets evaluated after the last epoch: 0 none, -1 the whole space, otherwise so many of it."""
    statistics: Literal["reestimated", "main", "both"] = "reestimated"
    """Whose batch-norm statistics a subnet is evaluated with: its own, or the main network's."""
    normalize: Literal["none", "layer_norm"] = "none"
    """Normalization of the logits before the validation loss; the accuracy does not depend on it."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range("evaluation.every", self.every, 1)
        _check_range("evaluation.batch", self.batch, 1, 65536)
        _check_range("evaluation.calibration_images", self.calibration_images, 2)
        _check_range("evaluation.subnets", self.subnets, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The run itself: length, batch, precision, seed, folder."""

    name: str = ""
    """Name of the run's folder; empty: the recipe's."""
    folder: str = "runs"
    """Where run folders are made."""
    epochs: int = 200
    """Passes over the training images."""
    max_steps: int = 0
    """Stop after so many steps, wherever that is; 0: no limit."""
    batch: int = 512
    """Global batch: images per step over all processes."""
    seed: int = 0
    """Seed of the initialization, the order, the augmentation and the draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the device computes it in hardware, else fp16 on a GPU, else fp32."""
    tf32: bool = True
    """TF32 for float32 matrix products and convolutions on GPUs that have it."""
    channels_last: bool = True
    """Memory format of weights and activations."""
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """Implementation of the loss: one fused Triton operation, or plain PyTorch; auto: triton on CUDA."""
    batch_norm_batch: int = 0
    """Images per process over which the recipe's batch norm is meant to work; 0: any. A difference warns."""
    log_every: int = 20
    """Steps between two lines of metrics."""
    resume: str = "auto"
    """auto: go on where the run folder stands, or start anew where it holds no checkpoint; never: a run
    folder that exists is an error; else a checkpoint to start from where the run folder holds none."""
    save_minutes: float = 15.0
    """Minutes between two checkpoints within an epoch; 0: none by the clock. Each epoch's end saves too."""
    save_steps: int = 0
    """Steps between two checkpoints within an epoch; 0: none by steps."""
    keep: int = 2
    """Newest checkpoints that are kept, besides the best."""
    start_timeout: float = 300.0
    """Seconds of silence before the first step after which a process ends itself as hung. A run of one
    process is ended on a GPU alone, and not before its steps are known; on a CPU silence is only told."""
    step_timeout: float = 100.0
    """Seconds without a step after which a process ends itself as hung; ten times as long around saving and
    for each batch of an evaluation. A process alone has at least ten times its longest step."""
    skip_nonfinite: int = 0
    """Updates in a row that may be left out because gradients are not finite; 0: the first ends the run."""
    accumulate: int = 1
    """Parts that each process's batch is trained in, one after the other: less memory, the same gradients
    but for batch norm, which works over a part."""
    sync_batch_norm: bool = False
    """Batch norm over the batch of all processes (torch's SyncBatchNorm, on GPUs, without fused kernels)."""
    gradient_compression: Literal["none", "bf16"] = "none"
    """Type in which gradients travel between processes; bf16: half the bytes, 8 bits of precision."""
    tensorboard: bool = False
    """Write scalars for TensorBoard into the run's folder (needs the extra tensorboard)."""
    wandb: str = ""
    """Project on Weights & Biases that gets the metrics (needs the extra wandb); empty: none."""
    profile: str = ""
    """A:B: trace the steps from A on and before B of this start, counted from 0; empty: none."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range("run.epochs", self.epochs, 1)
        _check_range("run.max_steps", self.max_steps, 0)
        _check_range("run.batch", self.batch, 1, 1_048_576)
        _check_range("run.seed", self.seed, 0, 2**31 - 1)
        _check_range("run.batch_norm_batch", self.batch_norm_batch, 0)
        _check_range("run.log_every", self.log_every, 1)
        _check(bool(self.resume), "run.resume", self.resume, "auto, never, or a checkpoint's path")
        _check_range("run.save_minutes", self.save_minutes, 0)
        _check_range("run.save_steps", self.save_steps, 0)
        _check_range("run.keep", self.keep, 2)
        _check_positive("run.start_timeout", self.start_timeout)
        _check_positive("run.step_timeout", self.step_timeout)
        _check_range("run.skip_nonfinite", self.skip_nonfinite, 0)
        _check_range("run.accumulate", self.accumulate, 1, self.batch)
        _check(_is_window(self.profile), "run.profile", self.profile, "A:B with 0 <= A < B, or nothing")
        _check(
            "/" not in self.name and self.name not in (".", ".."),
            "run.name",
            self.name,
            "a plain folder name",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One complete run."""

    recipe: str = ""
    """The recipe this configuration started from."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    method: Method = field(default_factory=Method)
    optim: Optim = field(default_factory=Optim)
    evaluation: Evaluation = field(default_factory=Evaluation)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        _check_types(self)
        _check(
            "/" not in self.recipe and not self.recipe.startswith("."), "recipe", self.recipe, "a plain name"
        )
        if self.method.subnet_inputs == "downscaled":
            _check(
                max(self.method.sizes) <= self.data.crop,
                "method.sizes",
                self.method.sizes,
                f"at most data.crop = {self.data.crop}",
            )
        _check(
            self.method.supervision != "dkd" or self.data.mixup == self.data.cutmix == 0,
            "method.supervision",
            self.method.supervision,
            "kl, ce_teacher, ce_target or mse with data.mixup or data.cutmix, whose targets are soft",
        )
        _check(
            self.method.name != "stochastic_depth" or self.model.drop_path == 0,
            "model.drop_path",
            self.model.drop_path,
            "0 with method.name stochastic_depth, which drops by method.survival",
        )
        _check(
            self.method.start_epoch < self.run.epochs,
            "method.start_epoch",
            self.method.start_epoch,
            f"below run.epochs = {self.run.epochs}",
        )
        _check(
            self.optim.warmup_epochs <= self.run.epochs,
            "optim.warmup_epochs",
            self.optim.warmup_epochs,
            f"at most run.epochs = {self.run.epochs}",
        )


FREE_ON_RESUME = (
    *("recipe", "data.train", "data.val", "data.builtin", "data.threads", "data.prefetch"),
    "data.classes",  # the classes themselves are compared
    *("data.hardware_decoder_load", "data.decoder_memory", "data.largest_image"),
    *("model.weights", "model.new_head", "model.batch_norm", "model.conv1x1"),
    *("method.backward", "optim.impl", "run.kernels"),
    *("evaluation.every", "evaluation.batch", "evaluation.subnets", "evaluation.statistics"),
    "evaluation.normalize",
    *("run.name", "run.folder", "run.max_steps", "run.device", "run.log_every", "run.resume"),
    *("run.tensorboard", "run.wandb", "run.profile"),
    *("run.save_minutes", "run.save_steps", "run.keep", "run.start_timeout", "run.step_timeout"),
    "run.skip_nonfinite",
)
"""Fields that may differ when a run is resumed, since they do not change what it trains."""


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain dictionaries (tuples become lists), ready for JSON."""
    return dataclasses.asdict(
        config,
        dict_factory=lambda items: {
            key: list(value) if isinstance(value, tuple) else value for key, value in items
        },
    )


_PATHS: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {"train": (), "val": (), "classes": ("natural",)},
    "model": {"weights": ()},
    "run": {"folder": (), "resume": ("auto", "never")},
}
"""Fields that hold a path, by section, and which words they hold instead."""


def with_paths(config: Config, change: Callable[[str], str]) -> Config:
    """The configuration with each path, where there is one, changed."""

    def changed(section: Any, paths: Mapping[str, tuple[str, ...]]) -> Any:
        values = {name: getattr(section, name) for name in paths}
        own = {name: value for name, value in values.items() if value and value not in paths[name]}
        local = {name: change(value) for name, value in own.items() if "://" not in value}
        return dataclasses.replace(section, **local)

    sections = {name: changed(getattr(config, name), paths) for name, paths in _PATHS.items()}
    return dataclasses.replace(config, **sections)


def absolute(config: Config) -> Config:
    """The configuration with whole paths, which means the same in any folder."""
    return with_paths(config, os.path.abspath)


_SECTIONS = {
    "data": Data,
    "model": Model,
    "method": Method,
    "optim": Optim,
    "evaluation": Evaluation,
    "run": Run,
}


def _of_older_runs(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """What older versions wrote elsewhere: self_distillation had no temperature of its own."""
    own = name == "method" and section.get("name") == "self_distillation"
    if not own or "temperature" not in section or "distillation_temperature" in section:
        return {}
    return {"distillation_temperature": section["temperature"], "temperature": Method().temperature}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        ConfigError: an unknown section or field, or a value out of its range.
    """
    sections: dict[str, Any] = {"recipe": values.get("recipe", "")}
    for name, section in values.items():
        if name == "recipe":
            continue
        if name not in _SECTIONS or not isinstance(section, dict):
            raise ConfigError(f"unknown section {name!r}; {instead(name, _SECTIONS)}")
        known = {f.name for f in dataclasses.fields(_SECTIONS[name])}
        unknown = sorted(set(section) - known)
        if unknown:
            raise ConfigError(f"unknown field {name}.{unknown[0]}; {instead(unknown[0], sorted(known))}")
        plain = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in (section | _of_older_runs(name, section)).items()
        }
        sections[name] = _SECTIONS[name](**plain)
    return Config(**sections)
