"""Layer supervision, stage supervision and self-distillation against plain float64 references."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain import build
from fasttrain.config import Config, Data, Method, Model, Optim, Run
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision
from fasttrain.methods import AUXILIARY, build_method
from fasttrain.models import AuxiliaryClassifiers, StagedNetwork, TreeForward, build_classifiers
from fasttrain.step import TrainStep

from ..networks import tiny_images, tiny_mobilenet, tiny_resnet

TARGETS = torch.tensor([1, 4, 0, 6])
CPU = torch.device("cpu")


def forward_of(network: StagedNetwork, name: str) -> TreeForward:
    auxiliary = build_classifiers(network, AUXILIARY[name], 32)
    for parameter in auxiliary.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)  # so that no loss starts at its uniform value
    return TreeForward(network, auxiliary)


def outputs(forward: TreeForward, images: Tensor) -> list[Tensor]:
    """Logits of the network, and of its classifiers, block after block."""
    network, auxiliary = forward.network, forward.auxiliary
    assert isinstance(auxiliary, AuxiliaryClassifiers)
    classifiers = dict(zip(auxiliary.refs, auxiliary.classifiers, strict=True))
    x, logits = network.stem(images), []
    for stage, blocks in enumerate(network.stages):
        for index, block in enumerate(blocks):
            x = block(x)
            logits += [classifier(x) for ref, classifier in classifiers.items() if ref[:2] == (stage, index)]
    return [network.head(x), *logits]


def reference(name: str, options: Method, logits: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Total and each classifier's loss, written from the methods' definitions."""
    main, *others = logits
    losses = []
    for each in others:
        loss = F.cross_entropy(each, TARGETS)
        if name == "self_distillation":
            t, a = options.distillation_temperature, options.distillation
            p, log_q = F.softmax(main.detach() / t, 1), F.log_softmax(each / t, 1)
            kl = (p * (p.log() - log_q)).sum(1).mean()
            loss = (1 - a) * loss + a * t**2 * kl
        losses.append(loss)
    return F.cross_entropy(main, TARGETS) + options.auxiliary_weight * sum(losses), losses


@pytest.mark.parametrize("family", [tiny_resnet, tiny_mobilenet])
@pytest.mark.parametrize(
    ("name", "count"), [("layer_supervision", 4), ("stage_supervision", 2), ("self_distillation", 2)]
)
def test_losses_and_gradients_are_the_definition(family: object, name: str, count: int) -> None:
    options = Method(name=name, auxiliary_weight=0.7, distillation=0.3, distillation_temperature=2.0)  # type: ignore[arg-type]
    forward = forward_of(family((2, 1, 2)), name)  # type: ignore[operator]
    assert isinstance(forward.auxiliary, AuxiliaryClassifiers)
    assert len(forward.auxiliary.refs) == count
    images = tiny_images(4, 32)
    method = build_method(Config(method=options), forward.network, classifiers=count)
    plan = method.plan(images, (), epoch=0, step=0)
    loss = method.loss(forward(plan.inputs, plan.trees), plan, TARGETS)
    loss.total.backward()
    ours = [parameter.grad.clone() for parameter in forward.parameters() if parameter.grad is not None]
    forward.zero_grad()
    total, losses = reference(name, options, outputs(forward, images))
    total.backward()
    theirs = [parameter.grad for parameter in forward.parameters()]
    assert abs(loss.total.item() - total.item()) < 1e-12
    torch.testing.assert_close(loss.subnets, torch.stack(losses).detach(), rtol=0, atol=1e-12)
    assert len(ours) == len(theirs)  # every parameter has a gradient, which DDP waits for
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_main_network_does_not_follow_its_classifiers() -> None:
    """The KL's teacher has no gradient: with all of the weight on it, the head learns as without."""
    options = Method(name="self_distillation", distillation=1.0, distillation_temperature=3.0)
    forward = forward_of(tiny_resnet((1, 1)), "self_distillation")
    method = build_method(Config(method=options), forward.network, classifiers=1)
    plan = method.plan(tiny_images(4, 32), (), epoch=0, step=0)
    logits = forward(plan.inputs, plan.trees)
    (grad,) = torch.autograd.grad(method.loss(logits, plan, TARGETS).total, logits[0][0])
    torch.testing.assert_close(grad, (logits[0][0].softmax(1) - F.one_hot(TARGETS, 7)).detach() / 4)


def test_running_statistics_are_common_trainings() -> None:
    forward, plain = forward_of(tiny_resnet((2, 2)), "layer_supervision"), tiny_resnet((2, 2))
    method = build_method(Config(method=Method(name="layer_supervision")), forward.network, classifiers=3)
    plan = method.plan(tiny_images(4, 32), (), epoch=0, step=0)
    forward(plan.inputs, plan.trees)
    plain(tiny_images(4, 32))
    for ours, theirs in zip(forward.network.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def build_step(name: str, **method: object) -> TrainStep:
    config = Config(
        data=Data(crop=32, val_crop=32, val_resize=32, num_classes=7),
        model=Model(name="cifar_resnet20"),
        method=Method(name=name, **method),  # type: ignore[arg-type]
        optim=Optim(lr=0.02, ema=0.5),
        run=Run(epochs=4, batch=4, device="cpu"),
    )
    network = build.build_network(config, 7, CPU).train()
    return build.build_step(config, network, Process(0, 1, CPU), Precision("fp32", "cpu"), 2)


@pytest.mark.parametrize("name", AUXILIARY)
def test_steps_lower_every_loss(name: str) -> None:
    """At temperature 1: at 3 the KL to a teacher that sharpens within eight steps grows at first."""
    step = build_step(name, distillation_temperature=1.0)
    images = tiny_images(4, 32).float()
    losses = [
        step(images, (), TARGETS, epoch=index // 2, step=index % 2, global_step=index).loss
        for index in range(8)
    ]
    assert losses[-1].main < losses[0].main
    assert (losses[-1].subnets < losses[0].subnets).all()


def test_the_trained_network_holds_no_classifier() -> None:
    step = build_step("layer_supervision")
    forward = step.forward
    assert isinstance(forward, TreeForward)
    assert isinstance(step.auxiliary, AuxiliaryClassifiers)
    assert len(step.auxiliary.refs) == 8
    trained = {parameter for group in step.optimizer.param_groups for parameter in group["params"]}
    assert trained == set(forward.parameters())
    plain = {name for name in forward.network.state_dict() if "auxiliary" in name or "classifiers" in name}
    assert not plain
    assert step.ema is not None
    assert set(step.ema.module.state_dict()) == set(forward.network.state_dict())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.backward is 'split'; allowed: joint with .*layer_superv"):
        Method(name="layer_supervision", backward="split")
    with pytest.raises(ConfigError, match=r"method\.main_loss is 'bce'; allowed: ce with .*stage_superv"):
        Method(name="stage_supervision", main_loss="bce")
    with pytest.raises(ConfigError, match=r"method\.distillation is 1\.5; allowed: 0 to 1"):
        Method(name="self_distillation", distillation=1.5)
    with pytest.raises(ConfigError, match=r"has \(2,\) blocks per stage; allowed .* two or more stages"):
        build_classifiers(tiny_resnet((2,)), "stages", 32)


def test_classifiers_start_from_the_seed() -> None:
    first, second = build_step("self_distillation"), build_step("self_distillation")
    assert first.auxiliary is not None
    assert second.auxiliary is not None
    for ours, theirs in zip(first.auxiliary.parameters(), second.auxiliary.parameters(), strict=True):
        assert torch.equal(ours, theirs)
