"""ST in anyone's loop: one pass equals separate passes, the model stays its owner's; the README's code."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fasttrain
from fasttrain import stimulate
from fasttrain.errors import ConfigError
from fasttrain.subnets import PrefixTree, Subnet
from tests.networks import tiny_images, tiny_mobilenet, tiny_resnet

README = Path(__file__).parent.parent / "README.md"
CLASSES = 5


class Segmenter(nn.Module):
    """A head with batch norm over the last two stages' outputs."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.deep, self.shallow = nn.Conv2d(channels[-1], 8, 1), nn.Conv2d(channels[-2], 8, 1)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine = self.shallow(features[-2])
        mixed = fine + F.interpolate(self.deep(features[-1]), fine.shape[-2:])
        return self.out(F.relu(self.norm(mixed)))


def stripes(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of bands in CLASSES levels of grey with noise, float64, and the level of each pixel."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.randint(CLASSES, (count, 1, side // 16), generator=random).repeat_interleave(16, 2)
    masks = masks.expand(count, side, side)
    noise = 0.1 * torch.randn(count, 3, side, side, generator=random, dtype=torch.float64)
    return masks[:, None] / (CLASSES - 1) - 0.5 + noise, masks


def pixel_loss(head: nn.Module, masks: Tensor) -> Callable[[Any], Tensor]:
    return lambda features: F.cross_entropy(F.interpolate(head(features), masks.shape[-2:]), masks)


def alone(model: nn.Module, subnet: Subnet, x: Tensor) -> tuple[Tensor, ...]:
    """The stages' outputs of one subnet, written out plainly."""
    for name in ("conv1", "bn1", "act1", "maxpool"):
        x = getattr(model, name)(x)
    features = []
    for stage in range(4):
        for ref in subnet:
            if ref.stage == stage:
                x = getattr(model, f"layer{stage + 1}")[ref.block](x)
        features.append(x)
    return tuple(features)


def without_statistics(*modules: nn.Module) -> list[nn.Module]:
    """Copies that share the weights, but whose running statistics nobody sees."""
    copies = []
    for module in modules:
        memo = {id(parameter): parameter for parameter in module.parameters()}
        copies.append(copy.deepcopy(module, memo))
    return copies


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name.startswith("fc."):
            assert own.grad is None
            continue
        assert own.grad is not None, name
        assert other.grad is not None
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("sampling", ["ordered", "stochastic"])
def test_a_segmenters_gradients_are_those_of_separate_passes(sampling: str) -> None:
    """Float64: what is left is rounding. Running statistics, the head's too, are the main network's."""
    model = tiny_resnet((2, 3, 2, 3), bottleneck=True).train()
    head = Segmenter([32, 64, 128, 256]).double()
    theirs, their_head = copy.deepcopy(model), copy.deepcopy(head)
    images, masks = stripes(4, 64, 0)
    stim = stimulate(model, outputs="features", subnets=3, sampling=sampling, kl_weight=0.7, seed=5)

    outputs = stim(images, 2)
    total = stim.task_loss(outputs, pixel_loss(head, masks), head)
    total.backward()

    draw = stim.method.draw(0, 2)
    assert len(set(draw.subnets)) > 1
    expected = pixel_loss(their_head, masks)(alone(theirs, stim.network.full, images))
    for subnet in draw.subnets:
        copied, copied_head = without_statistics(theirs, their_head)
        expected = expected + 0.7 * pixel_loss(copied_head, masks)(alone(copied, subnet, images))
    expected.backward()

    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    assert_same_gradients(model, theirs)
    assert_same_gradients(head, their_head)
    for ours, reference in ((model, theirs), (head, their_head)):
        for own, other in zip(ours.buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(own, other)


def test_shared_blocks_run_once() -> None:
    """Three subnets and the model: as many block calls as their tree has, far fewer than one by one."""
    model = tiny_resnet((3, 3, 3, 3)).train()
    stim = stimulate(model, outputs="features", subnets=3, seed=5)
    calls: list[nn.Module] = []
    for stage in model.stages:
        for block in stage:
            block.register_forward_hook(lambda module, *_: calls.append(module))
    subnets = [stim.network.full, *stim.method.draw(0, 0).subnets]
    stim(tiny_images(2, 64), 0)
    assert len(calls) == len(PrefixTree(subnets)) < 0.8 * sum(map(len, subnets))


def test_a_classifiers_loss_is_the_papers() -> None:
    """ST equation 5: cross-entropy, and each subnet's KL to the detached main output."""
    model = tiny_resnet((2, 2, 2, 2)).train()
    stim = stimulate(model, subnets=2, seed=1, kernels="reference")
    images, targets = tiny_images(4, 64), torch.arange(4)
    outputs = stim(images, 0)
    loss = stim.loss(outputs, targets)
    teacher = outputs.main.detach().softmax(1)
    kl = [F.kl_div(each.log_softmax(1), teacher, reduction="batchmean") for each in outputs.subnets]
    torch.testing.assert_close(loss.total, F.cross_entropy(outputs.main, targets) + sum(kl))
    torch.testing.assert_close(loss.subnets, torch.stack(kl))
    assert len(loss.subnets) == 2
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_smaller_images_for_the_subnets() -> None:
    """ST++: one side per step for all of them, the longer side in proportion."""
    model = tiny_resnet((2, 2, 2, 2)).train()
    stim = stimulate(model, outputs="features", subnets=2, sizes=[32, 48], normalize="layer_norm")
    seen = set()
    for step in range(8):
        outputs = stim(tiny_images(2, 96)[:, :, :64], step)
        assert outputs.main[0].shape[-2:] == (16, 24)
        (shape,) = {tuple(features[0].shape[-2:]) for features in outputs.subnets}
        seen.add(shape)
    assert seen == {(8, 12), (12, 18)}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: timm.create_model("resnet18", num_classes=CLASSES),
    "timm, deep stem": lambda: timm.create_model("resnet26d", num_classes=CLASSES),
    "timm, no classifier": lambda: timm.create_model("resnet18", num_classes=0),
    "timm, features": lambda: timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4)),
    "timm, three stages": lambda: timm.create_model("resnet18", features_only=True, out_indices=(2, 3)),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "torchvision, getter": lambda: torchvision.models._utils.IntermediateLayerGetter(
        torchvision.models.resnet18(), {"layer2": "0", "layer4": "1"}
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_anyones_resnet(name: str) -> None:
    """The main network's output is the model's own; the model's mode and statistics are left alone."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    stim = stimulate(model, outputs="features").eval()
    assert not model.training
    with torch.no_grad():
        own, ours = model(images), stim(images, 0)
    assert ours.subnets == []
    if isinstance(own, dict):
        own = list(own.values())
    if isinstance(own, list):
        torch.testing.assert_close(ours.main[-1], own[-1])
        with pytest.raises(ConfigError, match="ends with its last stage; allowed: outputs='features'"):
            stimulate(model)
    else:
        with torch.no_grad():
            torch.testing.assert_close(stimulate(model).eval()(images, 0).main, own)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in stim.parameters()} <= shared


def test_networks_of_our_own() -> None:
    model = tiny_mobilenet((2, 2))
    assert stimulate(model, subnets=2)(tiny_images(2, 32), 0).main.shape == (2, 7)
    with pytest.raises(ConfigError, match="MobileNetV3; allowed: a ResNet of timm"):
        stimulate(model, outputs="features")


class NoReluInItsStem(nn.Sequential):
    """Looks like a ResNet; its forward does more than its children."""

    def __init__(self) -> None:
        children = dict(tiny_resnet((1, 1)).named_children())
        super().__init__(OrderedDict((name, children[name]) for name in ("conv1", "bn1", "layer1", "layer2")))

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm, *layers = self
        return nn.Sequential(*layers)(F.relu(norm(convolution(x))))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (torchvision.models.squeezenet1_0, {}, r"SqueezeNet; allowed: a ResNet of timm or torchvision"),
        (NoReluInItsStem, {"outputs": "features"}, "NoReluInItsStem; allowed"),
        (lambda: nn.DataParallel(torchvision.models.resnet18()), {}, "DataParallel; allowed"),
        (lambda: tiny_resnet((2, 2)), {"outputs": "maps"}, "outputs is 'maps'; allowed: logits, features"),
        (lambda: tiny_resnet((2, 2)), {"subnet": 2}, "no option 'subnet'; did you mean subnets\\?"),
        (lambda: tiny_resnet((2, 2)), {"main_resizes": (16, 32)}, "no option 'main_resizes'; allowed"),
        (lambda: tiny_resnet((2, 2)), {"sizes": 16}, "sizes is 16; allowed: a list of sides, pixels"),
        (lambda: tiny_resnet((2, 2)), {"seed": None}, "seed is None; allowed: 0 to 2147483647"),
        (lambda: tiny_resnet((2, 2)), {"seed": 2**70}, "allowed: 0 to 2147483647"),
        (lambda: tiny_resnet((2, 2)), {"kernels": "cuda"}, "kernels is 'cuda'; allowed: triton, reference"),
        (lambda: "resnet18", {}, "the model is of builtins.str; allowed: a ResNet of timm or torchvision"),
        (lambda: tiny_resnet((2, 2)), {"start_epoch": 2}, "no option 'start_epoch'"),
        (lambda: tiny_resnet((2, 2)), {"subnets": -1}, r"method\.subnets is -1"),
        (lambda: tiny_resnet((2, 2)), {"space": "space3"}, r"method\.space 'space3' is defined for"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stimulate(model(), **options)


def test_what_a_step_cannot_do_is_refused() -> None:
    stim = stimulate(tiny_resnet((2, 2)), sizes=(64,))
    with pytest.raises(ConfigError, match="sizes has 64 for images of 32 by 32 pixels"):
        stim(tiny_images(2, 32), 0)
    stim = stimulate(tiny_resnet((2, 2)), outputs="features")
    with pytest.raises(ConfigError, match="outputs is 'features'; allowed: task_loss"):
        stim.loss(stim(tiny_images(2, 32), 0), torch.zeros(2, dtype=torch.int64))


def test_a_model_with_dropout_is_none_of_another_build() -> None:
    model = timm.create_model("resnet18", num_classes=5, drop_rate=0.5)
    assert stimulate(model).training
    assert model.training


def test_draws_depend_on_seed_and_step_alone() -> None:
    model = tiny_resnet((3, 3, 3, 3))

    def draws(seed: int) -> list[str]:
        stim = stimulate(model, subnets=2, seed=seed)
        return [str(stim.method.draw(0, step).subnets) for step in range(6)]

    assert draws(3) == draws(3) != draws(4)
    assert len(set(draws(3))) > 3


@pytest.mark.parametrize("inside", [True, False])
def test_under_autocast(inside: bool) -> None:
    """bf16 logits; the loss is computed in float32, whether it is asked for inside or after the context."""
    model = tiny_resnet((2, 2, 2, 2)).float().train()
    stim = stimulate(model, subnets=2, normalize="layer_norm")
    images, targets = tiny_images(4, 64).float(), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = stim(images, 0)
        loss = stim.loss(outputs, targets) if inside else None
    loss = loss or stim.loss(outputs, targets)
    assert outputs.main.dtype == torch.bfloat16
    assert loss.total.dtype == torch.float32
    doubles = outputs._replace(
        main=outputs.main.double(), subnets=[each.double() for each in outputs.subnets]
    )
    exact = stimulate(model, normalize="layer_norm", kernels="reference").loss(doubles, targets)
    torch.testing.assert_close(loss.total.double(), exact.total, rtol=1e-5, atol=1e-6)
    loss.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())  # type: ignore[union-attr]


def test_a_segmenter_learns() -> None:
    """A few steps on bands of grey: the pixels that it gets wrong become few, in every subnet too."""
    model = tiny_resnet((2, 2, 2, 2)).float().train()
    head = Segmenter([8, 16, 32, 64])
    stim = stimulate(model, outputs="features", subnets=1, seed=0)
    optimizer = torch.optim.SGD([*stim.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    losses = []
    for step in range(40):
        images, masks = stripes(8, 64, step)
        loss = stim.task_loss(stim(images.float(), step), pixel_loss(head, masks), head)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_torchvisions_detector() -> None:
    """A whole Faster R-CNN: its own losses, of the main network and of each subnet."""
    torch.manual_seed(0)
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    few = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16}
    detector = torchvision.models.detection.FasterRCNN(
        backbone, num_classes=3, min_size=96, max_size=128, **few
    )
    stim = stimulate(detector.backbone.body, outputs="features", subnets=1)
    boxes = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
    images, targets = detector.transform([torch.rand(3, 96, 96), torch.rand(3, 96, 128)], [boxes, boxes])

    def task(features: tuple[Tensor, ...]) -> Tensor:
        maps = detector.backbone.fpn(OrderedDict(zip("0123", features, strict=True)))
        proposals, losses = detector.rpn(images, maps, targets)
        _, more = detector.roi_heads(maps, proposals, images.image_sizes, targets)
        return torch.stack([*losses.values(), *more.values()]).sum()

    loss = stim.task_loss(stim(images.tensors, 0), task)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in detector.parameters())


class OneForward(nn.Module):
    """What DDP wraps: backbone, head and loss, called once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.stim = stimulate(tiny_resnet((2, 2, 2, 2)), outputs="features", subnets=2, seed=3)
        torch.manual_seed(1)
        self.head = Segmenter([8, 16, 32, 64]).double()

    def forward(self, images: Tensor, masks: Tensor, step: int) -> Tensor:
        return self.stim.task_loss(self.stim(images, step), pixel_loss(self.head, masks), self.head)


def train_three_steps(model: nn.Module) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(3):
        model(*stripes(4, 64, step), step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [value.detach() for value in model.state_dict().values()]


def one_of_two(rank: int, folder: str) -> None:
    """A process of the test below; both have the same images."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(train_three_steps(DistributedDataParallel(OneForward())), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    alone_ = train_three_steps(OneForward())
    for rank in range(2):
        for own, other in zip(alone_, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_the_readmes_code_runs() -> None:
    section = README.read_text().partition("## In your own training loop\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["loss"].isfinite()


def test_the_package_offers_it() -> None:
    assert fasttrain.stimulate is stimulate
    with pytest.raises(AttributeError, match="no attribute 'simulate'"):
        fasttrain.simulate  # noqa: B018
