"""The reference of the stimulative loss: against formulas in NumPy, gradcheck, floors, options, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fasttrain.kernels.normalized_loss import stimulative_loss

NORMALIZATIONS = ("layer_norm", "l2", "none")
SUPERVISIONS = ("kl", "ce_teacher", "ce_target")


def tensors(
    images: int = 5, classes: int = 11, subnets: int = 3
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    def logits() -> torch.Tensor:
        return (3 * torch.randn(images, classes, dtype=torch.float64)).requires_grad_()

    return logits(), [logits() for _ in range(subnets)], torch.randint(0, classes, (images,))


def by_hand(
    main: np.ndarray, student: np.ndarray, targets: np.ndarray, options: dict[str, Any]
) -> tuple[float, float]:
    """Main cross-entropy and one subnet's loss, written from the papers' equations."""

    def normalized(z: np.ndarray) -> np.ndarray:
        if options["normalize"] == "layer_norm":
            z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-7)
        elif options["normalize"] == "l2":
            z = z / np.sqrt((z**2).sum(1, keepdims=True))
        return z * (1 if options["normalize"] == "none" else options["amplitude"])

    def log_softmax(z: np.ndarray) -> np.ndarray:
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    rows = np.arange(len(main))
    teacher, t = normalized(main), options["temperature"]
    main_loss = -log_softmax(teacher if options["normalize_main"] else main)[rows, targets].mean()
    if options["supervision"] == "kl":
        p, log_q = np.exp(log_softmax(teacher / t)), log_softmax(normalized(student) / t)
        subnet = (p * (np.log(p) - log_q)).sum(1).mean() * t * t
    elif options["supervision"] == "ce_teacher":
        subnet = -(np.exp(log_softmax(teacher)) * log_softmax(normalized(student))).sum(1).mean()
    else:
        subnet = -log_softmax(normalized(student))[rows, targets].mean()
    return main_loss, subnet


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("supervision", SUPERVISIONS)
@pytest.mark.parametrize("normalize_main", [True, False])
def test_values_follow_the_equations(normalize: str, supervision: str, normalize_main: bool) -> None:
    main, subnets, targets = tensors()
    options: dict[str, Any] = {
        "normalize": normalize,
        "supervision": supervision,
        "normalize_main": normalize_main,
        "amplitude": 1.7,
        "temperature": 2.5,
    }
    weights = [1.0, 0.5, 2.0]
    loss = stimulative_loss(main, subnets, targets, weights=weights, main_weight=0.7, **options)
    expected = [by_hand(main.detach().numpy(), s.detach().numpy(), targets.numpy(), options) for s in subnets]
    assert float(loss.main) == pytest.approx(expected[0][0], rel=1e-12)
    np.testing.assert_allclose(loss.subnets, [subnet for _, subnet in expected], rtol=1e-10)
    total = 0.7 * expected[0][0] + sum(w * subnet for w, (_, subnet) in zip(weights, expected, strict=True))
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-12)
    assert not loss.main.requires_grad
    assert not loss.subnets.requires_grad


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_gradients_pass_gradcheck(normalize: str, supervision: str) -> None:
    """With the teacher held fixed: its gradient comes from the main cross-entropy alone."""
    main, subnets, targets = tensors(3, 5, 2)

    def only_subnets(*students: torch.Tensor) -> torch.Tensor:
        return stimulative_loss(
            main.detach(),
            students,
            targets,
            weights=[1.0, 2.0],
            normalize=normalize,  # type: ignore[arg-type]
            supervision=supervision,  # type: ignore[arg-type]
        ).total

    def only_main(teacher: torch.Tensor) -> torch.Tensor:
        return stimulative_loss(teacher, [], targets, weights=[], normalize=normalize).total  # type: ignore[arg-type]

    checks: list[tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = [
        (only_subnets, tuple(subnets)),
        (only_main, (main,)),
    ]
    for function, inputs in checks:
        assert torch.autograd.gradcheck(function, inputs)


def test_the_teacher_gets_no_gradient_from_the_subnets() -> None:
    main, subnets, targets = tensors()
    (with_subnets,) = torch.autograd.grad(
        stimulative_loss(main, subnets, targets, weights=[1.0] * 3).total, [main]
    )
    (alone,) = torch.autograd.grad(stimulative_loss(main, [], targets, weights=[]).total, [main])
    torch.testing.assert_close(with_subnets, alone, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("normalize", "classes", "floor"), [("l2", 1000, 5.91), ("l2", 10, 1.42), ("layer_norm", 10, 0.28)]
)
def test_floors_of_a_normalized_main_cross_entropy(normalize: str, classes: int, floor: float) -> None:
    """The best possible logits, one class far above all others, cannot get under these (DESIGN.md)."""
    perfect = torch.full((1, classes), 0.0, dtype=torch.float64)
    perfect[0, 3] = 1e6
    perfect -= perfect.mean()
    loss = stimulative_loss(perfect, [], torch.tensor([3]), weights=[], normalize=normalize)  # type: ignore[arg-type]
    assert float(loss.main) == pytest.approx(floor, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    main, subnets, targets = tensors(4, 1000, 2)
    half = [logits.detach().to(dtype) for logits in (main, *subnets)]
    loss = stimulative_loss(half[0], half[1:], targets, weights=[1.0, 1.0])
    exact = stimulative_loss(half[0].double(), [s.double() for s in half[1:]], targets, weights=[1.0, 1.0])
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total.double(), exact.total, rtol=1e-5, atol=1e-6)


def test_large_half_precision_logits_stay_finite() -> None:
    extreme = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16)
    for normalize in NORMALIZATIONS:
        loss = stimulative_loss(extreme, [-extreme], torch.tensor([1]), weights=[1.0], normalize=normalize)  # type: ignore[arg-type]
        assert torch.isfinite(loss.total)


def test_soft_targets_equal_hard_ones_where_they_are_one_hot() -> None:
    main, subnets, targets = tensors()
    soft = torch.nn.functional.one_hot(targets, 11).double()
    hard = stimulative_loss(main, subnets, targets, weights=[1.0] * 3, supervision="ce_target")
    torch.testing.assert_close(
        stimulative_loss(main, subnets, soft, weights=[1.0] * 3, supervision="ce_target").total, hard.total
    )


def test_what_does_not_fit_is_refused() -> None:
    main, subnets, targets = tensors()
    with pytest.raises(ValueError, match="2 weights for 3 subnets"):
        stimulative_loss(main, subnets, targets, weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="subnet logits have shape"):
        stimulative_loss(main, [subnets[0][:, :5]], targets, weights=[1.0])
    with pytest.raises(ValueError, match=r"allowed: \[B, C\]"):
        stimulative_loss(main[0], [], targets, weights=[])
    with pytest.raises(ValueError, match="allowed: layer_norm, l2, none"):
        stimulative_loss(main, [], targets, weights=[], normalize="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allowed: kl, ce_teacher, ce_target"):
        stimulative_loss(main, subnets, targets, weights=[1.0] * 3, supervision="mse")  # type: ignore[arg-type]
