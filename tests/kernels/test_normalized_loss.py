"""The stimulative loss: its reference against formulas in NumPy, its Triton kernels against the reference."""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch.utils._python_dispatch import TorchDispatchMode

from bench.case import Check
from bench.kernels.normalized_loss import Inputs, checks, compare
from fasttrain.kernels import runtime
from fasttrain.kernels.normalized_loss import (
    StimulativeLoss,
    binary_cross_entropy,
    implementation,
    normalize_logits,
    stimulative_loss,
)
from fasttrain.kernels.normalized_loss.checks import Options

NORMALIZATIONS = ("layer_norm", "l2", "none")
SUPERVISIONS = ("kl", "ce_teacher", "ce_target", "dkd", "mse", "bce_teacher")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


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

    def cross_entropy(z: np.ndarray) -> float:
        smooth = options["label_smoothing"]
        return (-(smooth / classes + (1 - smooth) * one_hot) * log_softmax(z)).sum(1).mean()

    def kl(p: np.ndarray, q: np.ndarray) -> float:
        return (p * np.log(p / q)).sum(1).mean()

    classes = main.shape[1]
    one_hot = np.eye(classes)[targets]
    teacher, t = normalized(main), options["temperature"]
    main_loss = cross_entropy(teacher if options["normalize_main"] else main)
    if options["supervision"] == "kl":
        return main_loss, t * t * kl(*(np.exp(log_softmax(z / t)) for z in (teacher, normalized(student))))
    p, q = (np.exp(log_softmax(z)) for z in (teacher, normalized(student)))
    if options["supervision"] == "ce_teacher":
        return main_loss, -(p * np.log(q)).sum(1).mean()
    if options["supervision"] == "dkd":
        pairs = [np.stack([(a * one_hot).sum(1), (a * (1 - one_hot)).sum(1)], 1) for a in (p, q)]
        others = [a[one_hot == 0].reshape(-1, classes - 1) for a in (p, q)]
        return main_loss, kl(*pairs) + kl(*(a / a.sum(1, keepdims=True) for a in others))
    if options["supervision"] == "mse":
        return main_loss, ((p - q) ** 2).mean()
    if options["supervision"] == "bce_teacher":
        p, q = (1 / (1 + np.exp(-z)) for z in (teacher, normalized(student)))
        return main_loss, -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
    return main_loss, cross_entropy(normalized(student))


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
        "label_smoothing": 0.2,
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


@pytest.mark.parametrize("normalize_main", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_binary_cross_entropy_equals_torchs(soft: bool, smoothing: float, normalize_main: bool) -> None:
    """In float64, with its gradients; the subnets' losses stay as they are."""
    main, subnets, targets = tensors()
    hard = np.eye(11)[targets.numpy()]
    shares = 0.7 * hard + 0.3 * hard[::-1] if soft else hard  # as mixup makes them
    loss = stimulative_loss(
        main,
        subnets,
        torch.from_numpy(shares.copy()) if soft else targets,
        weights=[0.0] * 3,
        normalize_main=normalize_main,
        label_smoothing=smoothing,
        main_weight=0.7,
        main_loss="bce",
    )
    judged = normalize_logits(main, "layer_norm", 1.0) if normalize_main else main
    smoothed = torch.from_numpy((1 - smoothing) * shares + smoothing / 11)
    expected = torch.nn.BCEWithLogitsLoss()(judged, smoothed)
    torch.testing.assert_close(loss.main, expected.detach(), rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(total, main)[0] for total in (loss.total, 0.7 * expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    plain = stimulative_loss(main, subnets, targets, weights=[0.0] * 3)
    assert torch.equal(loss.subnets, plain.subnets)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4])
def test_a_threshold_makes_targets_of_many_classes(threshold: float) -> None:
    """As timm's loss has it: both classes of a mixed image count in full above the threshold."""
    main, _, targets = tensors()
    one_hot = torch.nn.functional.one_hot(targets, 11).double()
    shares = 0.7 * one_hot + 0.3 * one_hot.roll(1, 1)
    expected = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold or None)(main, shares)
    torch.testing.assert_close(binary_cross_entropy(main, shares, threshold=threshold), expected)
    if threshold:
        many = one_hot + (one_hot.roll(1, 1) if threshold == 0.2 else 0)
        by_hand = torch.nn.functional.binary_cross_entropy(main.sigmoid(), many)
        torch.testing.assert_close(expected, by_hand, rtol=1e-10, atol=0)


def test_binary_cross_entropy_runs_the_reference_on_any_kernels() -> None:
    main, _, targets = tensors()
    values = [
        stimulative_loss(
            main.float(),
            [],
            targets,
            weights=[],
            main_loss="bce",
            kernels=kernels,
        ).main
        for kernels in ("reference", "triton")
    ]
    assert torch.equal(*values)


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
    with pytest.raises(ValueError, match="allowed: kl, ce_teacher, ce_target, dkd, mse, bce_teacher"):
        stimulative_loss(main, subnets, targets, weights=[1.0] * 3, supervision="cosine")  # type: ignore[arg-type]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"temperature": 0.0}, "temperature is 0.0; allowed: above 0"),
        ({"amplitude": -1.0}, "amplitude is -1.0"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5; allowed: 0 to 1"),
        ({"main_loss": "hinge"}, "main_loss is 'hinge'; allowed: ce, bce"),
        ({"main_loss": "bce", "target_threshold": -1.0}, "target_threshold is -1.0; allowed: 0 to 1"),
        ({"kernels": "cuda"}, "kernels is 'cuda'; allowed: triton, reference"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            stimulative_loss(main, [], targets, weights=[], **options)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_tensors_that_do_not_fit_are_refused(kernels: runtime.Kernels) -> None:
    main, student = torch.randn(2, 4, 3, device=DEVICE)
    targets = torch.tensor([0, 1, 2, 0], device=DEVICE)
    for logits, students, of, message in (
        (main[:0], [], targets[:0], r"\(0, 3\); allowed: \[B, C\], B and C at least 1"),
        (main, [student.half()], targets, "subnet logits are torch.float16"),
        (main, [student.to("meta")], targets, "on meta; the main network's are torch.float32"),
        (main, student, targets, "4 subnets"),
        (main, torch.randn(1, 4, 2, device=DEVICE), targets, r"shape \(4, 2\)"),
        (
            main,
            [],
            targets.int(),
            r"targets are torch.int32 of shape \(4,\); allowed: class indices, int64 \[4\]",
        ),
        (main, [], targets[:3], r"or probabilities, floating point \[4, 3\]"),
        (main, [], targets.to("meta"), "targets are on meta"),
        (main, [], targets + 1, "targets are 1 to 3; allowed: 0 to 2"),
        (main, [], targets - 100, "targets are -100 to -98"),
    ):
        with pytest.raises(ValueError, match=message):
            stimulative_loss(
                logits, students, of, weights=[1.0] * (students is not student and len(students)),
                kernels=kernels, check_targets=True,
            )  # fmt: skip
    with pytest.raises(ValueError, match=r"main logits are torch\.int64"):
        stimulative_loss(main.long(), [], targets, weights=[])
    with pytest.raises(ValueError, match="supervision is 'dkd', targets have shape"):
        stimulative_loss(main, [], main.softmax(1), weights=[], supervision="dkd")
    with pytest.raises(ValueError, match=r"kernels='reference' takes torch\.float64 too"):
        stimulative_loss(main.double(), [], targets, weights=[], kernels="triton")


@pytest.mark.parametrize("options", [{"ensemble": 0.4}, {"scale_by_teacher": True}])
def test_options_without_kernels_run_the_reference(options: dict[str, Any]) -> None:
    """Asked for Triton's kernels, too, which would leave the option out."""
    inputs = Inputs.draw(4, 7, 3, device=DEVICE)
    main, *students = inputs.logits
    expected = stimulative_loss(main, students, inputs.targets, weights=[0.5] * 3, **options)
    for ours, own in zip(run(inputs, **options), expected, strict=False):
        assert torch.equal(ours, own)
    assert not torch.equal(run(inputs)[2][1:], expected.subnets[1:])
    with pytest.raises(ValueError, match=r"ensemble is 1\.5; allowed: 0 to 1"):
        stimulative_loss(main, students, inputs.targets, weights=[0.5] * 3, ensemble=1.5)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_hits_count_strictly_larger_logits(kernels: runtime.Kernels) -> None:
    def hits(main: torch.Tensor, targets: torch.Tensor) -> list[int]:
        return stimulative_loss(main, [], targets, weights=[], kernels=kernels).hits.tolist()

    main = torch.tensor([[3.0, 3.0, 1.0, 0.0, -1.0, -2.0, -3.0]] * 5, device=DEVICE)
    main[4, 6] = float("nan")
    targets = torch.tensor([0, 1, 4, 5, 0], device=DEVICE)  # a tie is a hit; fifth; sixth; a NaN in the row
    assert hits(main, targets) == [2, 3]
    assert hits(main, torch.nn.functional.one_hot(targets, 7).float()) == [2, 3]
    assert hits(main[:3, :3], targets[:3] % 3) == [3, 3]
    assert hits(torch.tensor([[0.0, float("nan")]], device=DEVICE), targets[:1]) == [0, 0]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("check", checks(DEVICE), ids=lambda check: check.label)
def test_the_checks_of_the_bench_hold(check: Check) -> None:
    for comparison in check.compare():
        comparison.check()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("images", "classes", "subnets"),
    [(1, 1, 1), (1, 2, 0), (3, 7, 1), (5, 10, 5), (1, 1000, 8), (3, 1001, 2), (2, 4096, 1), (1, 8192, 1)],
)
def test_odd_sizes(images: int, classes: int, subnets: int) -> None:
    for comparison in compare(Inputs.draw(images, classes, subnets, device=DEVICE)):
        comparison.check()


CHOICES: dict[str, tuple[Any, ...]] = {
    "supervision": ("kl", "ce_teacher", "ce_target"),
    "normalize": NORMALIZATIONS,
    "dtype": (torch.float32, torch.float16, torch.bfloat16),
    "normalize_main": (True, False),
    "amplitude": (1.0, 5.0),
    "temperature": (1.0, 4.0),
    "main_weight": (1.0, 0.3),
    "label_smoothing": (0.0, 0.1),
    "soft": (False, True),
    "subnets": (0, 2, 3),
    "classes": (37, 4100),
    "grad": (1.0, 65536.0),
}


def pairs_of_options() -> list[dict[str, Any]]:
    """Settings in which every two options meet with each of their values."""

    def pairs(setting: dict[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
        return set(itertools.combinations(setting.items(), 2))

    generator = random.Random(0)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(CHOICES, 2)
        for x in CHOICES[a]
        for y in CHOICES[b]
    }
    settings: list[dict[str, Any]] = []
    while missing:
        sampled = [{name: generator.choice(values) for name, values in CHOICES.items()} for _ in range(50)]
        settings.append(max(sampled, key=lambda setting: len(pairs(setting) & missing)))
        missing -= pairs(settings[-1])
    return settings


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("setting", pairs_of_options(), ids=str)
def test_options_in_pairs(setting: dict[str, Any]) -> None:
    options = dict(setting)
    size = 2, options.pop("classes"), options.pop("subnets")
    inputs = Inputs.draw(*size, dtype=options.pop("dtype"), soft=options.pop("soft"), device=DEVICE)
    for comparison in compare(inputs, **options):
        comparison.check()


def run(inputs: Inputs, **options: Any) -> list[torch.Tensor]:
    """Losses, hits and gradients of the Triton operation."""
    main, *students = inputs.logits
    weights = [0.5] * len(students)
    loss = stimulative_loss(main, students, inputs.targets, weights=weights, kernels="triton", **options)
    return [*loss, *torch.autograd.grad(loss.total, inputs.logits)]


@pytest.mark.parametrize("classes", [40, 4100])
def test_rows_may_lie_apart_and_subnets_in_one_tensor(classes: int) -> None:
    inputs = Inputs.draw(3, classes, 2, soft=True, device=DEVICE)
    expected = run(inputs, supervision="ce_target")
    wide = [torch.zeros(3, classes + pad, device=DEVICE)[:, :classes] for pad in (1, 24, 3, 8)]
    for view, rows in zip(wide, [*inputs.logits, inputs.targets], strict=True):
        view.copy_(rows.detach())
    apart = Inputs([view.requires_grad_() for view in wide[:3]], wide[3])
    main, *students = (rows.detach().t().contiguous().t() for rows in inputs.logits)  # columns contiguous
    columns = Inputs([rows.requires_grad_() for rows in (main, *students)], inputs.targets)
    for other in (apart, columns):
        for out, own in zip(run(other, supervision="ce_target"), expected, strict=True):
            torch.testing.assert_close(out, own, rtol=0, atol=0)
    stacked = torch.stack([rows.detach() for rows in inputs.logits[1:]]).requires_grad_()
    loss = stimulative_loss(
        inputs.logits[0], stacked, inputs.targets,
        weights=[0.5] * 2, supervision="ce_target", kernels="triton",
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss.total, stacked)
    torch.testing.assert_close(gradient, torch.stack(expected[-2:]), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("supervision", ["kl", "ce_target"])
def test_infinite_rows_give_nan_and_leave_others_alone(normalize: str, supervision: str) -> None:
    for bad in (float("inf"), float("-inf"), float("nan")):
        inputs = Inputs.draw(3, 20, 1, device=DEVICE)
        with torch.no_grad():
            for rows in inputs.logits:
                rows[1] = bad
        options = {"normalize": normalize, "supervision": supervision}
        total, main, students, _, *gradients = run(inputs, **options)
        assert all(loss.isnan().all() for loss in (total, main, students))
        for gradient in gradients:
            assert gradient[1].isnan().all()
            assert gradient[::2].isfinite().all()
        with torch.no_grad():
            inputs.logits[0][1] = 0.0
            inputs.logits[1][1, 1:] = 0.0  # now one logit of the student alone
        student = run(inputs, **options)[2]
        expected = stimulative_loss(
            inputs.logits[0],
            inputs.logits[1:],
            inputs.targets,
            weights=[0.5],
            **options,  # type: ignore[arg-type]
        ).subnets
        torch.testing.assert_close(student, expected, equal_nan=True)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_large_half_precision_logits_stay_finite_in_triton(normalize: str) -> None:
    extreme = torch.tensor([[60000.0, -60000.0, 0.0]] * 2, dtype=torch.float16, device=DEVICE)
    inputs = Inputs(
        [extreme.requires_grad_(), (-extreme.detach()).requires_grad_()], torch.tensor([1, 0]).to(DEVICE)
    )
    assert all(out.isfinite().all() for out in run(inputs, normalize=normalize))
    for comparison in compare(inputs, normalize=normalize):
        comparison.check()


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_labels_out_of_range_read_nothing_and_give_nan() -> None:
    """Below the public face, which refuses them on a CPU."""
    inputs = Inputs.draw(3, 7, 1, device=DEVICE)
    targets = torch.tensor([0, 10**12, -100], device=DEVICE)
    total, losses, hits, _ = operation()(*arguments(inputs._replace(targets=targets)))
    assert total.isnan()
    assert losses[0].isnan()
    assert losses[1].isfinite()
    assert 0 <= hits[0] <= hits[1] <= 1
    gradient = torch.autograd.grad(total, inputs.logits[0])[0]
    assert gradient[1:].isnan().all()
    assert gradient[0].isfinite().all()


def operation() -> Any:
    return torch.ops.fasttrain.normalized_loss.default


def arguments(inputs: Inputs, supervision: str = "kl", normalize: str = "layer_norm") -> tuple[Any, ...]:
    main, *students = inputs.logits
    weights = [1.0 + k for k in range(len(students))]
    return main, students, inputs.targets, weights, supervision, normalize, True, 1.0, 2.0, 1.0, 0.1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize(("subnets", "soft"), [(0, False), (2, True)])
def test_opcheck(subnets: int, soft: bool) -> None:
    torch.library.opcheck(operation(), arguments(Inputs.draw(3, 20, subnets, soft=soft, device=DEVICE)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_of_the_backward_and_of_stacked_subnets() -> None:
    inputs = Inputs.draw(3, 20, 2, device=DEVICE)
    main, students, *others = arguments(inputs)
    stacked = torch.stack(students).detach().requires_grad_()
    torch.library.opcheck(operation(), (main, [stacked], *others))
    plain = [rows.detach() for rows in inputs.logits]
    rows = operation()(plain[0], plain[1:], *others)[3]
    targets, *options = others
    backward = torch.ops.fasttrain.normalized_loss_backward.default
    torch.library.opcheck(
        backward, (torch.ones((), device=DEVICE), plain[0], plain[1:], targets, rows, *options)
    )


def test_a_compiled_caller_sees_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "runs_triton", lambda device: True)  # Dynamo cannot read the real switch
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def total(main: torch.Tensor, student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return stimulative_loss(main, [student], targets, weights=[1.0], kernels="triton").total

    inputs = Inputs.draw(3, 20, 1, device=DEVICE)
    main, student = inputs.logits
    compiled = torch.compile(total, backend=keep, fullgraph=True)(main, student, inputs.targets)
    gradients = torch.autograd.grad(compiled, inputs.logits)
    plain = total(main, student, inputs.targets)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=0)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain, inputs.logits), rtol=0, atol=0)
    (graph,) = graphs
    assert [node.target for node in graph.graph.nodes if "fasttrain" in str(node.target)] == [operation()]


class Recorder(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("classes", [1000, 8192, 21841])
@pytest.mark.parametrize("subnets", [0, 6])
def test_one_launch_forward_and_one_backward(
    monkeypatch: pytest.MonkeyPatch, classes: int, subnets: int
) -> None:
    """And nothing else but allocations and views; kernels are not run here."""
    launched: list[str] = []
    monkeypatch.setattr(runtime, "launch", lambda kernel, *_, **__: launched.append(kernel.__name__))
    inputs = Inputs.draw(2, classes, subnets, soft=True, device=DEVICE)  # a CPU's labels are looked at
    run(inputs)
    launched.clear()
    with Recorder() as outside:
        run(inputs)
    assert launched == ["normalized_loss_fwd_kernel", "normalized_loss_bwd_kernel"]
    views = {"detach", "select", "slice", "unbind", "ones_like", "alias", "view"}  # ones: autograd.grad's own
    assert set(outside.names) - views == {"normalized_loss", "normalized_loss_backward"}
    main, students, targets, *options = arguments(inputs)
    with Recorder() as inside, torch.no_grad():
        kernels = importlib.import_module("fasttrain.kernels.normalized_loss.triton")
        weights, settings = options[0], Options(*options[1:])
        rows = kernels.forward(main, students, targets, weights, settings)[3]
        kernels.backward(rows.new_empty(()), main, students, targets, rows, weights, settings)
    assert set(inside.names) <= {"empty", "new_empty"}


def test_two_runs_are_equal_and_the_counter_is_zero_again() -> None:
    inputs = Inputs.draw(5, 100, 3, dtype=torch.bfloat16, device=DEVICE)
    for one, other in zip(run(inputs), run(inputs), strict=True):
        assert torch.equal(one, other)
    assert not runtime.counters(inputs.targets.device, 1).any()


def test_only_the_total_is_differentiable_and_only_if_asked() -> None:
    def loss(main: torch.Tensor, student: torch.Tensor) -> StimulativeLoss:
        return stimulative_loss(main, [student], inputs.targets, weights=[1.0], kernels="triton")

    inputs = Inputs.draw(2, 9, 1, device=DEVICE)
    main, student = inputs.logits
    assert [out.requires_grad for out in loss(main, student)] == [True, False, False, False]
    with torch.no_grad():
        assert not loss(main, student).total.requires_grad
    loss(main.detach(), student).total.backward()
    assert student.grad is not None


def test_what_has_no_kernel_runs_the_reference() -> None:
    main = torch.randn(2, 5, device=DEVICE)
    assert implementation("triton", "kl", main) == "triton"
    assert implementation("triton", "dkd", main) == "reference"
    assert implementation("triton", "mse", main) == "reference"
    assert implementation("reference", "kl", main) == "reference"
    for supervision in ("dkd", "mse"):
        for comparison in compare(Inputs.draw(3, 9, 2, device=DEVICE), supervision=supervision):
            comparison.check()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize("supervision", ["kl", "ce_teacher", "ce_target"])
@pytest.mark.parametrize("classes", [3, 4100])
def test_one_excluded_class_is_no_harm(supervision: str, classes: int) -> None:
    """A logit of -inf that no target names, unnormalized: the reference's losses and gradients."""
    logits = [torch.randn(2, classes, device=DEVICE) for _ in range(2)]
    for each in logits:
        each[:, 1] = -torch.inf
        each.requires_grad_()
    targets = torch.tensor([0, 2], device=DEVICE)
    options: Any = {"weights": [0.5], "supervision": supervision, "normalize": "none"}
    results = []
    for kernels in ("triton", "reference"):
        loss = stimulative_loss(logits[0], logits[1:], targets, kernels=kernels, **options)
        results.append((loss.main, *torch.autograd.grad(loss.total, logits)))
    assert torch.isfinite(results[0][1]).all()
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-4, atol=1e-6)
    if supervision == "ce_target":
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1e10])
def test_weights_are_numbers(weight: float) -> None:
    main, subnets, targets = tensors()
    with pytest.raises(ValueError, match=r"allowed: -1e\+09 to 1e\+09"):
        stimulative_loss(main, subnets, targets, weights=[1.0, weight, 1.0])
    with pytest.raises(ValueError, match="main_weight"):
        stimulative_loss(main, [], targets, weights=[], main_weight=weight)
    with pytest.raises(ValueError, match="temperature is"):
        stimulative_loss(main, [], targets, weights=[], temperature=1e300)
