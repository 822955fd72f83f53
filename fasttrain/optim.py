"""Optimizers, their parameters' groups, learning-rate schedule and weight averaging."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import Lamb
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import nvidia_apex
from .config import Optim
from .errors import ConfigError
from .models import StagedNetwork

UNDECAYED = (
    "pos_embed",
    "cls_token",
    "dist_token",
    "reg_token",
    "mask_token",
    "relative_position_bias_table",
)
"""Last names of the position embeddings and learned tokens of timm's networks, which are no vectors."""


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], optim: Optim, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of `optim.name`: torch's SGD with Nesterov momentum or AdamW, or timm's LAMB.

    LAMB clips no gradients by itself: `optim.clip` does, for all optimizers alike. Moments exist before the
    first step, so that it can be left out (see `fill_state`).

    Args:
        parameters: those of a network, or `parameter_groups`.
        optim: options.
        device: of the parameters.

    Raises:
        ConfigError: `optim.impl` is apex, but it is missing, or the device is no GPU.
    """
    optimizer = _make_optimizer(parameters, optim, choose_impl(optim, device))
    fill_state(optimizer)
    return optimizer


def _make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], optim: Optim, impl: str
) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    moments: dict[str, Any] = {"betas": optim.betas, "eps": optim.eps}
    if optim.name == "lamb":
        return Lamb(parameters, max_grad_norm=None, foreach=True, **options, **moments)
    momentum = {"momentum": optim.momentum, "nesterov": optim.momentum > 0}
    if impl == "apex":
        fused_sgd = nvidia_apex.load("optim.impl", "apex.optimizers", "FusedSGD")
        return fused_sgd(list(parameters), set_grad_none=True, **options, **momentum)
    fused = impl == "fused"
    options |= {"fused": fused, "foreach": None if fused else True}
    if optim.name == "adamw":
        return torch.optim.AdamW(parameters, **options, **moments)
    return torch.optim.SGD(parameters, **options, **momentum)  # type: ignore[arg-type]


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter that has none yet its moments: zeros, on which a first step is torch's own.

    Left to itself, torch's fused SGD makes its momentum in the first step, and does not write it where a flag
    on the device leaves that step out: the second step would train on whatever the memory held.
    """
    for group in optimizer.param_groups:
        names = _state_names(group)
        for parameter in group["params"]:
            entry = optimizer.state[parameter]
            entry |= {name: _zeros(name, parameter, group) for name in names if entry.get(name) is None}


def _state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
    """What an optimizer keeps for each parameter of a group; LAMB's count of steps is the group's."""
    if "momentum" in group:  # torch's SGD and apex's
        return ("momentum_buffer",) if group["momentum"] else ()
    return ("step", "exp_avg", "exp_avg_sq") if "amsgrad" in group else ("exp_avg", "exp_avg_sq")


def _zeros(name: str, parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """As torch makes them: counts of steps on the host, unless a fused optimizer counts on the device."""
    if name != "step":
        return torch.zeros_like(parameter, requires_grad=False)
    return torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over another optimizer's moments, learning rate and step; its other options stay as they are.

    What it lacks (checkpoints from before the first step that was not left out) is as before that step.

    Raises:
        ValueError: it is of other parameters, or holds what no optimizer of the kind has.
    """
    own, groups = optimizer.state_dict()["param_groups"], state["param_groups"]
    if [group["params"] for group in own] != [group["params"] for group in groups]:
        raise ValueError("its optimizer has other parameters")
    kept = [
        (_state_names(group), parameter.shape)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    for number, moments in state["state"].items():
        if not 0 <= number < len(kept):
            raise ValueError(f"its optimizer has a parameter {number}; there are {len(kept)}")
        _check_moments({name: value for name, value in moments.items() if value is not None}, *kept[number])
    merged = [{**group, **_changing(saved)} for group, saved in zip(own, groups, strict=True)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": merged})
    fill_state(optimizer)


def _changing(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group that change in training; the others are the configuration's."""
    found = {name: group[name] for name in ("lr", "step") if name in group}
    for name, value in found.items():
        if not 0 <= float(value) < math.inf:
            raise ValueError(f"its optimizer's {name} is {value}; allowed: 0 or more")
    return found


def _check_moments(moments: Mapping[str, Tensor], names: Sequence[str], shape: torch.Size) -> None:
    """Raises ValueError unless an optimizer that keeps such `names` could have made them."""
    if moments and moments.keys() != set(names):
        raise ValueError(
            f"its optimizer keeps {', '.join(moments)}; allowed: {', '.join(names) or 'nothing'}"
        )
    for name, value in moments.items():
        expected = () if name == "step" else tuple(shape)
        if tuple(value.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, the parameter {expected}")
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise ValueError(f"its optimizer's {name} holds what is no finite number")


def choose_impl(optim: Optim, device: torch.device) -> str:
    """The implementation of the optimizer on a device: fused, foreach or apex.

    Raises:
        ConfigError: apex without a GPU.
    """
    if optim.impl == "apex" and device.type != "cuda":
        raise ConfigError("optim.impl is 'apex'; allowed here: auto, fused, foreach (apex needs a GPU)")
    if optim.impl != "auto":
        return optim.impl
    return "fused" if device.type == "cuda" and optim.name != "lamb" else "foreach"


def parameter_groups(
    module: nn.Module, network: StagedNetwork, optim: Optim
) -> Iterable[nn.Parameter] | Iterable[dict[str, Any]]:
    """What is trained, in groups where weight decay or learning rate differs among the parameters.

    Args:
        module: what is trained: the network, or a module that holds it and more, all of the head's layer.
        network: whose layers count.
        optim: options.

    Returns:
        The parameters, or dictionaries of `params`, `weight_decay` and `lr_scale`, by which the schedule's
        learning rate is multiplied: layer_decay^(layers above), see `layer_numbers`.
    """
    if optim.decay_on == "all" and optim.layer_decay == 1:
        return module.parameters()
    numbers = layer_numbers(network)
    head = sum(network.depths) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        decay = optim.weight_decay if optim.decay_on == "all" or _is_matrix(name, parameter) else 0.0
        scale = optim.layer_decay ** (head - numbers.get(parameter, head))
        group = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((decay, scale), group)["params"].append(parameter)
    return list(groups.values())


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether this is a weight of a convolution or linear layer: no vector, position embedding or token."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in UNDECAYED


def layer_numbers(network: StagedNetwork) -> dict[nn.Parameter, int]:
    """The layer of each parameter: 0 the stem, 1, 2, ... the blocks in order, then the head.

    What belongs to none of them is of the layer that comes next in the network's definition: position
    embeddings and tokens of the stem, a transition between stages of the block after it.
    """
    blocks = [[block] for stage in network.stages for block in stage]
    layers = [network.stem_modules, *blocks, network.head_modules]
    known = {
        parameter: number
        for number, modules in enumerate(layers)
        for module in modules
        for parameter in module.parameters()
    }
    numbers: dict[nn.Parameter, int] = {}
    number = len(layers) - 1
    for parameter in reversed(list(network.parameters())):
        numbers[parameter] = number = known.get(parameter, number)
    return numbers


def build_ema(network: nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average of weights and batch-norm statistics; None with decay 0."""
    if decay == 0:
        return None
    lerp = get_ema_multi_avg_fn(decay)

    def average(averages: tuple[Tensor, ...] | list[Tensor], values: Any, count: Tensor | int) -> None:
        """Of whole numbers (counters, tables of indices) there is no average: they are the network's."""
        if averages[0].is_floating_point():
            lerp(averages, values, count)
        else:
            torch._foreach_copy_(averages, values)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """Learning rate per step: linear warm-up, then half a cosine (Loshchilov and Hutter 2017, equation 5).

    Attributes:
        peak: learning rate after the warm-up.
        floor: least learning rate after the warm-up.
        warmup: steps of warm-up.
        total: steps of the whole run.
        start: learning rate of the first step of the warm-up; 0: it starts one hold above 0.
        ends_in_floor: whether the cosine ends in the floor; otherwise it would end in 0 and is cut off.
        hold: steps for which the learning rate stays.
    """

    peak: float
    floor: float
    warmup: int
    total: int
    start: float = 0.0
    ends_in_floor: bool = False
    hold: int = 1

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""
        step -= step % self.hold
        if step < self.warmup:
            done = step if self.start else min(step + self.hold, self.warmup)
            return self.start + (self.peak - self.start) * done / self.warmup
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        height = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if self.ends_in_floor:
            return self.floor + (self.peak - self.floor) * height
        return max(self.floor, self.peak * height)


def build_schedule(optim: Optim, epochs: int, steps_per_epoch: int) -> CosineSchedule:
    """The schedule of a run."""
    return CosineSchedule(
        peak=optim.lr,
        floor=optim.min_lr,
        warmup=round(optim.warmup_epochs * steps_per_epoch),
        total=epochs * steps_per_epoch,
        start=optim.warmup_lr,
        ends_in_floor=optim.schedule == "cosine_to_floor",
        hold=steps_per_epoch if optim.schedule_unit == "epoch" else 1,
    )
