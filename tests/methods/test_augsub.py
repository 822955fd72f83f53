"""AugSub against plain float64 code written from the paper, its draws, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from bench import modes
from fasttrain import build, flops
from fasttrain.config import Config, Data, Method, Model, Optim, Run
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision
from fasttrain.methods import AugSub, Common, Plan
from fasttrain.methods.augsub import draw_mask
from fasttrain.models import (
    Mask,
    MaskToken,
    StagedNetwork,
    VisionTransformer,
    batch_norms,
    fuse_batch_norms,
)
from fasttrain.step import TrainStep
from tests.networks import TINY, tiny_images, tiny_resnet, tiny_swin

LAYERS = (2, 3, 2)
CPU = torch.device("cpu")


def augsub(network: StagedNetwork, **options: Any) -> AugSub:
    square = options.pop("mask_square", 8)
    return AugSub(Method(name="augsub", mask_square=square, **options), network, seed=5)


def run(network: StagedNetwork, method: AugSub, images: Tensor, targets: Tensor, step: int = 3) -> Any:
    """The loss of a step, and its gradients by name."""
    network.zero_grad()
    plan = method.plan(images, (), epoch=1, step=step)
    loss = method.loss(network.forward_trees(plan.inputs, plan.trees, plan.drops), plan, targets)
    loss.total.backward()
    return loss, gradients(network)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}  # type: ignore[union-attr]
    network.zero_grad()
    return found


def paper(main: Tensor, sub: Tensor, targets: Tensor) -> Tensor:
    """Half of -log p(y) of the main network, half of -sum q log p of the sub-model; q: main output."""
    log_p, log_sub = main.log_softmax(1), sub.log_softmax(1)
    q = log_p.exp().detach()
    own = -log_p[torch.arange(len(targets)), targets].mean()
    return (own - (q * log_sub).sum(1).mean()) / 2


def binary_paper(main: Tensor, sub: Tensor, targets: Tensor) -> Tensor:
    """The same of binary cross-entropies, over images and classes; q: the sigmoid of the main output."""
    y, q = torch.zeros_like(main).scatter(1, targets[:, None], 1.0), main.sigmoid().detach()

    def entropy(share: Tensor, z: Tensor) -> Tensor:
        return -(share * z.sigmoid().log() + (1 - share) * (1 - z.sigmoid()).log()).mean()

    return (entropy(y, main) + entropy(q, sub)) / 2


LOSSES = {"ce": paper, "bce": binary_paper}


def masked(images: Tensor, mask: Mask) -> Tensor:
    """Pixel by pixel: squares that are not kept become zero."""
    images = images.clone()
    across = -(-mask.width // mask.square)
    for image, kept in zip(images, mask.kept.tolist(), strict=True):
        for y in range(mask.height):
            for x in range(mask.width):
                if y // mask.square * across + x // mask.square not in kept:
                    image[:, y, x] = 0
    return images


@pytest.mark.parametrize(("family", "main_loss"), [("resnet", "ce"), ("resnet", "bce"), ("mobilenet", "ce")])
def test_masking_squares_equals_the_papers_two_passes(family: str, main_loss: str) -> None:
    network = TINY[family](LAYERS).train()
    images, targets = tiny_images(4, 28), torch.tensor([0, 3, 6, 3])  # 28 pixels: the last squares are cut
    method = augsub(network, main_loss=main_loss)
    loss, ours = run(network, method, images, targets)
    mask = method.plan(images, (), epoch=1, step=3).drops[1].mask  # type: ignore[union-attr]
    assert mask is not None
    expected = LOSSES[main_loss](network(images), network(masked(images, mask)), targets)
    expected.backward()
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    for name, theirs in gradients(network).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-9, atol=1e-12, msg=name)


def paths(generator: torch.Generator, count: int, keep: float) -> Callable[[Tensor], Tensor]:
    """Drop-path as Huang et al. 2016 have it, scaled in training: each image's branch stays or goes."""

    def drop(branch: Tensor) -> Tensor:
        own = branch.new_empty(count, 1, 1, 1).bernoulli_(keep, generator=generator)
        return branch * own / keep

    return drop


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_drop_path_of_resnets_equals_plain_code(bottleneck: bool, fused: bool) -> None:
    network = tiny_resnet((1, 2), bottleneck=bottleneck).train()
    for norm in batch_norms(network):  # zero in the last of each block at first: the branch would be nothing
        nn.init.ones_(norm.weight)
    if fused:
        fuse_batch_norms(network, "reference")
    plain = tiny_resnet((1, 2), bottleneck=bottleneck).train()
    plain.load_state_dict(network.state_dict())
    images, targets = tiny_images(5, 32), torch.arange(5)
    method = augsub(network, drop="path", drop_ratio=0.4)
    generator = method.plan(images, (), epoch=1, step=3).drops[1].generator  # type: ignore[union-attr]
    assert generator is not None
    drop = paths(generator, 5, 0.6)
    loss, ours = run(network, method, images, targets)

    x = plain.stem(images)
    for block in (block for stage in plain.stages for block in stage):
        branch = x
        for number in (1, 2, 3) if bottleneck else (1, 2):
            branch = block.get_submodule(f"bn{number}")(block.get_submodule(f"conv{number}")(branch))
            branch = branch if number == (3 if bottleneck else 2) else branch.relu()
        shortcut = block.downsample
        x = (drop(branch) + (x if shortcut is None else shortcut(x))).relu()  # type: ignore[operator]
    expected = paper(plain(images), plain.head(x), targets)
    expected.backward()
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=0)
    for name, theirs in gradients(plain).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-8, atol=1e-11, msg=name)


def tiny_vit(**options: Any) -> StagedNetwork:
    """Three blocks on 2 x 2 patches of 16 pixels and the class token, float64."""
    torch.manual_seed(0)
    source = timm.create_model(
        "vit_tiny_patch16_224",
        **{"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 7, **options},
        dynamic_img_size=True,
    )
    return VisionTransformer(source).double().train()


def transformer(
    network: StagedNetwork,
    images: Tensor,
    kept: Tensor | None = None,
    path: Callable[[Tensor], Tensor] = lambda x: x,
    dropout: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Logits of a ViT written from the papers: each image by itself, on the patches that are kept."""
    weights: dict[str, Any] = dict(network.named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    kernel = weights["patch_embed.proj.weight"]
    patches = F.conv2d(images, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1])
    tokens = patches.flatten(2).mT + weights["pos_embed"][:, 1:]
    if kept is not None:
        tokens = torch.stack([own[stay] for own, stay in zip(tokens, kept, strict=True)])
    first = (weights["cls_token"] + weights["pos_embed"][:, :1]).expand(len(images), -1, -1)
    x, heads = torch.cat([first, tokens], 1), 2
    for block in range(3):
        at = f"blocks.{block}"
        q, k, v = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in linear(f"{at}.attn.qkv", norm(f"{at}.norm1", x)).chunk(3, -1)
        )
        attended = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + path(dropout(linear(f"{at}.attn.proj", attended.transpose(1, 2).flatten(2))))
        hidden = dropout(F.gelu(linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", x))))
        x = x + path(dropout(linear(f"{at}.mlp.fc2", hidden)))
    return linear("head", norm("norm", x)[:, 0])


@pytest.mark.parametrize("main_loss", list(LOSSES))
@pytest.mark.parametrize("drop", ["masking", "path", "dropout"])
def test_transformers_equal_the_papers_two_passes(drop: str, main_loss: str) -> None:
    network, images, targets = tiny_vit(), tiny_images(5, 32), torch.arange(5)
    method = augsub(network, drop=drop, main_loss=main_loss)
    loss, ours = run(network, method, images, targets)
    own = method.plan(images, (), epoch=1, step=3).drops[1]
    assert own is not None

    def dropped(x: Tensor) -> Tensor:
        shape = x.shape if drop == "dropout" else (len(x), 1, 1)
        return 2 * x * x.new_empty(shape).bernoulli_(0.5, generator=own.generator)

    noise: dict[str, Any] = {"kept": own.mask.kept} if own.mask else {drop: dropped}
    expected = LOSSES[main_loss](transformer(network, images), transformer(network, images, **noise), targets)
    expected.backward()
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=0)
    for name, theirs in gradients(network).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-8, atol=1e-12, msg=name)


def swin_step(network: StagedNetwork, **options: Any) -> TrainStep:
    config = Config(
        method=Method(name="augsub", mask_square=8, **options),
        data=Data(crop=32),
        optim=Optim(name="adamw", lr=1e-3, weight_decay=0.1, decay_on="matrices"),
        run=Run(precision="fp32", seed=2),
    )
    return build.build_step(config, network, Process(0, 1, CPU), Precision("fp32", "cpu"), 10)


@pytest.mark.parametrize("backward", ["joint", "split"])
def test_swin_learns_a_token_for_hidden_patches(backward: str) -> None:
    """Squares of 8 pixels are 2 x 2 patches, each replaced after its embedding, before the first block."""
    network = tiny_swin().train()
    step = swin_step(network, backward=backward)
    assert isinstance(step.auxiliary, MaskToken)
    token, images, targets = step.auxiliary.mask_token, tiny_images(4, 32), torch.arange(4)
    assert 0 < token.std() < 0.06
    plan = step.method.plan(images, (), epoch=0, step=0)
    loss = step.backward(plan, targets)
    ours, of_token = gradients(network), token.grad
    assert of_token is not None
    token.grad = None

    mask, layers = plan.drops[1].mask, dict(network.named_modules())  # type: ignore[union-attr]
    assert mask is not None
    x = layers["patch_embed"](images)
    rows = []
    for image, kept in zip(x, mask.kept.tolist(), strict=True):
        places = [[y // 2 * 4 + x // 2 in kept for x in range(8)] for y in range(8)]
        rows.append(torch.where(torch.tensor(places)[..., None], image, token[0, 0, 0]))
    for layer in (layers["layers.0"], layers["layers.1"], layers["norm"], layers["head"]):
        x = layer(torch.stack(rows) if rows else x)
        rows = []
    expected = paper(network(images), x, targets)
    expected.backward()
    torch.testing.assert_close(loss.total, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(of_token, token.grad, rtol=1e-9, atol=1e-14)
    assert of_token.abs().min() > 0
    for name, theirs in gradients(network).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_the_mask_token_is_trained_without_decay_and_no_part_of_the_network() -> None:
    network = tiny_swin().train()
    step = swin_step(network)
    assert step.auxiliary is not None
    (token,) = step.auxiliary.parameters()
    assert not any("mask_token" in name for name in network.state_dict())
    (group,) = (
        group for group in step.optimizer.param_groups if any(token is each for each in group["params"])
    )
    assert group["weight_decay"] == 0
    before, images = token.detach().clone(), tiny_images(4, 32)
    step(images, (), torch.arange(4), epoch=0, step=0, global_step=5)
    assert not torch.equal(token, before)
    plain = tiny_swin().eval()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(images), plain(images))


def test_others_learn_no_token() -> None:
    assert swin_step(tiny_swin(), drop="path").auxiliary is None
    assert swin_step(tiny_vit()).auxiliary is None
    assert step_of(tiny_resnet(LAYERS)).auxiliary is None


def test_the_networks_own_drop_path_is_of_the_main_pass_alone() -> None:
    network = tiny_vit(drop_path_rate=0.3)
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert rates
    run(network, augsub(network, drop="path"), tiny_images(4, 32), torch.arange(4))
    assert [module.drop_prob for module in network.modules() if isinstance(module, DropPath)] == rates
    assert list(network.state_dict()) == list(tiny_vit().state_dict())


def test_a_masked_step_of_vit_small_needs_at_most_1_6_plain_steps() -> None:
    """FLOPs at 224 pixels and ratio 0.5, counted by the step and by its plan."""
    network = flops.meta_network("vit_small_patch16_224", 1000)
    images = torch.empty(2, 3, 224, 224, device="meta")
    targets = torch.zeros(2, dtype=torch.int64, device="meta")
    counted = []
    for method in (Common(network.full), augsub(network)):
        plan = method.plan(images, (), epoch=0, step=0)

        def step(method: Any = method, plan: Plan = plan) -> None:
            logits = network.forward_trees(plan.inputs, plan.trees, plan.drops)
            method.loss(logits, plan, targets).total.backward()

        counted.append(flops.count(step))
        assert flops.passes_flops(network, plan.passes) == counted[-1]
    assert 1.45 < counted[1] / counted[0] < 1.6


def test_the_bench_tells_a_masked_step_from_one_with_drop_path() -> None:
    """Its FLOPs are counted once for steps of equal keys."""
    network, keys = tiny_vit(), set()
    setup = modes.Setup(subnets=1, space="default", crop=32, sizes=(16,), seed=0)
    for name in ("augsub-mask", "augsub-path", "ct"):
        mode = modes.build_mode(name, setup, network, CPU, "fp32")
        draw = mode.draw(0)
        keys.add(modes.tree_key(mode, mode.batch(tiny_images(2, 32), torch.arange(2), draw), draw))
    assert len(keys) == 3


@pytest.mark.parametrize("drop", ["masking", "path"])
def test_the_main_network_alone_updates_the_statistics_and_keeps_its_blocks(drop: str) -> None:
    network, plain = tiny_resnet(LAYERS).train(), tiny_resnet(LAYERS).train()
    names = list(network.state_dict())
    run(network, augsub(network, drop=drop), tiny_images(4, 32), torch.arange(4))
    plain(tiny_images(4, 32))
    assert list(network.state_dict()) == names
    for (name, ours), theirs in zip(network.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    torch.testing.assert_close(network.eval()(tiny_images(2, 32)), plain.eval()(tiny_images(2, 32)))


def step_of(network: StagedNetwork, **options: Any) -> TrainStep:
    method = Method(name="augsub", mask_square=8, **options)
    config = Config(method=method, data=Data(crop=32), run=Run(precision="fp32", seed=2))
    return build.build_step(config, network, Process(0, 1, CPU), Precision("fp32", "cpu"), 10)


@pytest.mark.parametrize("drop", ["masking", "path"])
def test_split_passes_have_the_gradients_of_the_joint_pass(drop: str) -> None:
    found = []
    for backward in ("joint", "split"):
        network = tiny_resnet(LAYERS).train()
        step = step_of(network, drop=drop, backward=backward)
        plan = step.method.plan(tiny_images(4, 32), (), epoch=0, step=0)
        loss = step.backward(plan, torch.arange(4))
        found.append((loss.total, gradients(network)))
    (joint, one), (split, other) = found
    torch.testing.assert_close(joint, split, rtol=1e-12, atol=0)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("drop", ["masking", "path"])
def test_ten_steps_lower_the_loss(drop: str) -> None:
    network = tiny_resnet(LAYERS).train()
    step = step_of(network, drop=drop)
    images, targets = tiny_images(8, 32), torch.arange(8) % 7
    losses = [
        step(images, (), targets, epoch=0, step=0, global_step=index).loss.main.item() for index in range(10)
    ]
    assert losses[-1] < 0.9 * losses[0]


def test_draws_are_a_function_of_seed_epoch_step_rank_and_part() -> None:
    network, images = tiny_resnet(LAYERS), tiny_images(6, 32)

    def kept(seed: int = 5, epoch: int = 0, step: int = 0, rank: int = 0, part: int = 0) -> list[list[int]]:
        method = AugSub(Method(name="augsub", mask_square=8), network, seed=seed, rank=rank)
        drop = method.plan(images, (), epoch=epoch, step=step, part=part).drops[1]
        assert drop is not None
        assert drop.mask is not None
        return drop.mask.kept.sort(1).values.tolist()

    first = kept()
    torch.rand(3)  # from the generator that everybody shares
    assert kept() == first
    others = [kept(seed=6), kept(epoch=1), kept(step=1), kept(rank=1), kept(part=1)]
    assert all(other != first for other in others)
    assert len({str(own) for own in first}) > 1  # images have masks of their own


@pytest.mark.parametrize(("side", "square", "ratio", "kept"), [(224, 32, 0.5, 25), (224, 16, 0.5, 98)])
def test_a_mask_hides_its_share_of_each_image(side: int, square: int, ratio: float, kept: int) -> None:
    mask = draw_mask(torch.empty(9, 3, side, side), square, ratio, torch.Generator())
    assert mask.kept.shape == (9, kept)
    assert all(len(set(own)) == kept for own in mask.kept.tolist())
    assert mask.visible(side, side).sum((1, 2)).tolist() == [kept * square**2] * 9
    assert mask.visible(side // square, side // square).sum((1, 2)).tolist() == [kept] * 9


@pytest.mark.parametrize(
    ("make", "side", "square", "ratio", "kept"),
    [
        (tiny_swin, 224, 32, 0.5, 24),  # the authors keep int(49 * (1 - 0.5))
        (lambda: tiny_vit(), 80, 16, 0.5, 12),
        (lambda: tiny_resnet(LAYERS), 224, 32, 0.5, 25),  # and of a ResNet hide so many
        (lambda: TINY["mobilenet"](LAYERS), 224, 32, 0.5, 25),
        (tiny_swin, 80, 8, 0.29, 71),  # 0.29 * 100 is 28.999999999999996
        (lambda: tiny_resnet(LAYERS), 80, 8, 0.29, 71),
    ],
)
def test_shares_are_rounded_as_the_authors_round_them(
    make: Callable[[], StagedNetwork], side: int, square: int, ratio: float, kept: int
) -> None:
    method = augsub(make(), mask_square=square, drop_ratio=ratio)
    drop = method.plan(torch.empty(2, 3, side, side), (), epoch=0, step=0).drops[1]
    assert drop is not None
    assert drop.kept == kept


def test_a_mask_that_hides_all_is_refused() -> None:
    config = Config(
        method=Method(name="augsub", drop_ratio=0.95),
        data=Data(crop=64, val_crop=64, val_resize=64),
        model=Model(name="vit_tiny_patch16_224"),
    )
    with pytest.raises(
        ConfigError, match=r"drop_ratio is 0\.95; allowed: at most 15/16, since .* 16 squares"
    ):
        build.build_network(config, 10, CPU)


def test_every_square_is_kept_as_often_as_its_share() -> None:
    mask = draw_mask(torch.empty(4000, 3, 8, 8), 2, 0.25, torch.Generator().manual_seed(1))
    share = mask.visible(4, 4).double().mean(0)
    assert (share - 0.75).abs().max() < 0.035  # five standard deviations of 4000 draws


KINDS = ("masking", "path", "dropout")
DEFINED = {
    "resnet50": KINDS[:2],
    "cifar_resnet20": KINDS[:2],
    "mobilenetv3_small_100": KINDS[:2],
    "convnext_atto": KINDS[:2],
    "regnety_002": KINDS[:2],
    "densenet121": KINDS[:1],
    "vit_tiny_patch16_224": KINDS,
    "deit3_small_patch16_224": KINDS,
    "swin_tiny_patch4_window7_224": KINDS,
    "pvt_v2_b0": KINDS,
}


@pytest.mark.parametrize("name", DEFINED)
def test_kinds_of_drop_that_are_not_defined_on_a_network_are_refused(name: str) -> None:
    network = flops.meta_network(name, 10)
    for drop in DEFINED[name]:
        augsub(network, drop=drop)
    for drop in set(KINDS) - set(DEFINED[name]):
        with pytest.raises(
            ConfigError, match=f"'{drop}'; allowed for {name}, .*: {', '.join(DEFINED[name])}$"
        ):
            augsub(network, drop=drop)


def test_options_out_of_range_are_refused() -> None:
    for options in ({"drop_ratio": 0.0}, {"drop_ratio": 1.0}, {"mask_square": 0}, {"drop": "tokens"}):
        with pytest.raises(ConfigError, match="allowed"):
            Method(name="augsub", **options)
    small = Config(method=Method(name="augsub"), data=Data(crop=32), model=Model(name="cifar_resnet20"))
    with pytest.raises(ConfigError, match=r"mask_square is 32; allowed: below data\.crop = 32"):
        build.build_network(small, 10, CPU)


def test_a_mask_that_hides_nothing_is_refused() -> None:
    method = Method(name="augsub", mask_square=16, drop_ratio=0.2)
    data = Data(crop=32, val_crop=32, val_resize=32)
    config = Config(method=method, data=data, model=Model(name="cifar_resnet20"))
    with pytest.raises(
        ConfigError, match=r"drop_ratio is 0\.2; allowed: 1/4 or more, since .* 4 squares of 16"
    ):
        build.build_network(config, 10, CPU)


def test_label_smoothing_is_of_the_main_loss_alone() -> None:
    network = tiny_resnet(LAYERS).train()
    images, targets = tiny_images(4, 32), torch.arange(4)
    smooth, _ = run(network, augsub(network, label_smoothing=0.1), images, targets)
    plain, _ = run(network, augsub(network), images, targets)
    torch.testing.assert_close(smooth.subnets, plain.subnets, rtol=1e-12, atol=0)
    expected = F.cross_entropy(network(images), targets, label_smoothing=0.1)
    torch.testing.assert_close(smooth.main, expected.detach(), rtol=1e-12, atol=0)
