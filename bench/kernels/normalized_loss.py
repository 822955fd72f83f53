"""The stimulative loss: one fused operation against the same in plain PyTorch, eager and compiled."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasttrain.kernels.normalized_loss import StimulativeLoss, stimulative_loss

from ..accuracy import Comparison
from ..case import Case, Check

_SIZES = (
    (256, 1000, (1, 4, 6, 8)),
    (512, 1000, (6,)),
    (1024, 1000, (6,)),
    (4096, 1000, (6,)),
    (256, 21841, (1, 6)),
    (4096, 21841, (0, 6)),
)
"""Images, classes, numbers of subnets. Of none there is plain cross-entropy, which Liger-Kernel has too."""


class Inputs(NamedTuple):
    """Logits [K + 1, B, C], the main network's first, each a tensor of its own; targets."""

    logits: list[Tensor]
    targets: Tensor

    @classmethod
    def draw(
        cls,
        images: int,
        classes: int,
        subnets: int,
        *,
        dtype: torch.dtype = torch.float32,
        soft: bool = False,
        device: torch.device | str = "cpu",
    ) -> Inputs:
        """Random ones."""

        def rows() -> Tensor:
            return 3 * torch.randn(images, classes, device=device)

        logits = [rows().to(dtype).requires_grad_() for _ in range(subnets + 1)]
        hard = torch.randint(classes, (images,), device=device)
        return cls(logits, rows().softmax(dim=1) if soft else hard)


def compare(
    inputs: Inputs, *, weights: Sequence[float] | None = None, grad: float = 1.0, **options: Any
) -> Iterator[Comparison]:
    """Losses, hits and every gradient of the Triton operation, against the reference.

    Args:
        inputs: leaves.
        weights: of the subnets; by default different ones.
        grad: of the total, a loss scale.
        options: of `stimulative_loss`.
    """
    logits, targets = inputs
    options["weights"] = weights or [1.0 - k / 10 for k in range(len(logits) - 1)]
    exact = [rows.detach().double().requires_grad_() for rows in logits]
    results = (
        _results(logits, targets, grad, options | {"kernels": "triton"}),
        _results(logits, targets, grad, options),
        _results(exact, targets.double() if targets.ndim == 2 else targets, grad, options),
    )
    for name in results[0]:
        yield Comparison(name, *(result[name] for result in results))


def _results(
    logits: Sequence[Tensor], targets: Tensor, grad: float, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    loss = stimulative_loss(logits[0], logits[1:], targets, **options)
    gradients = torch.autograd.grad(loss.total, logits, torch.full_like(loss.total, grad))
    named = {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}
    losses = {"total": loss.total.detach(), "main": loss.main, "subnets": loss.subnets}
    return losses | {"hits": loss.hits.double()} | named


def checks(device: torch.device) -> list[Check]:
    """Sizes in registers and in a loop, dtypes, supervisions, normalizations, kinds of targets."""
    every = []
    for images, classes, subnets, dtype, soft, options in (
        (5, 1000, 6, torch.bfloat16, False, {}),
        (3, 1000, 3, torch.float16, False, {"normalize": "none", "temperature": 4.0}),
        (3, 1001, 1, torch.float32, True, {"supervision": "ce_target", "label_smoothing": 0.1}),
        (2, 4097, 2, torch.bfloat16, False, {"supervision": "ce_teacher", "normalize": "l2"}),
        (2, 21841, 2, torch.float32, False, {"amplitude": 3.0, "normalize_main": False}),
        (4, 1000, 0, torch.bfloat16, True, {"normalize": "none"}),
    ):
        size = f"{images}x{classes}, K = {subnets}, {str(dtype).removeprefix('torch.')}"
        label = f"{size}, {'soft' if soft else 'hard'} targets, {options or 'default options'}"
        draw = partial(Inputs.draw, images, classes, subnets, dtype=dtype, soft=soft, device=device)
        every.append(Check(label, partial(_compare_drawn, draw, options)))
    return every


def _compare_drawn(draw: Callable[[], Inputs], options: Mapping[str, Any]) -> Iterator[Comparison]:
    return compare(draw(), **options)


def cases(device: torch.device) -> list[Case]:
    """bf16 logits, KL- with layer norm: forward and backward of the loss."""
    return [_case(images, classes, subnets, device) for images, classes, every in _SIZES for subnets in every]


def _case(images: int, classes: int, subnets: int, device: torch.device) -> Case:
    logits = (subnets + 1) * images * classes * torch.bfloat16.itemsize
    options = {"weights": [1.0] * subnets} | ({} if subnets else {"normalize": "none"})
    compiled = torch.compile(partial(_loss, options=options), dynamic=False)
    calls: dict[str, Callable[[Inputs], Any]] = {
        "triton": partial(_forward_backward, partial(_loss, options=options | {"kernels": "triton"})),
        "eager": partial(_forward_backward, partial(_loss, options=options)),
        "compile": partial(_forward_backward, compiled),
    }
    if not subnets:
        calls |= _liger()
    return Case(
        shape=f"{images}x{classes}, K = {subnets}",
        moved=3 * logits,  # read by the forward, read and written by the backward
        prepare=partial(Inputs.draw, images, classes, subnets, dtype=torch.bfloat16, device=device),
        calls=calls,
    )


def _loss(inputs: Inputs, options: Mapping[str, Any]) -> Tensor:
    loss: StimulativeLoss = stimulative_loss(inputs.logits[0], inputs.logits[1:], inputs.targets, **options)
    return loss.total


def _forward_backward(loss: Callable[[Inputs], Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(inputs), inputs.logits)


def _liger() -> dict[str, Callable[[Inputs], Any]]:
    try:
        cross_entropy = importlib.import_module("liger_kernel.transformers").LigerCrossEntropyLoss()
    except ImportError:
        return {}

    def call(inputs: Inputs) -> tuple[Tensor, ...]:
        main = inputs.logits[0].detach().clone().requires_grad_()  # it writes the gradient over the logits
        return torch.autograd.grad(cross_entropy(main, inputs.targets), main)

    return {"liger": call}
