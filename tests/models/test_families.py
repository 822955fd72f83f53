"""Each model family: timm's forward, the tree, FLOPs, parts of blocks, and training by every method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath, convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fasttrain import build, flops
from fasttrain.analysis.deletion import deletable
from fasttrain.config import Config, Data, Method, Model, Optim, Run
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError
from fasttrain.evaluation import estimate_statistics, evaluate, evaluate_subnets
from fasttrain.export import bare_subnet, export
from fasttrain.formats import write_safetensors
from fasttrain.hardware import Precision
from fasttrain.methods import Pass, build_method
from fasttrain.methods.stimulative import Stimulative
from fasttrain.models import (
    ConvNeXt,
    DenseNet,
    PyramidTransformer,
    RegNet,
    ResNet,
    StagedNetwork,
    SwinTransformer,
    VisionTransformer,
    batch_norms,
    create_model,
    fuse_batch_norms,
)
from fasttrain.subnets import BlockRef, Part, PrefixTree, Subnet, ordered_space, ordered_subnet
from fasttrain.trained import Trained, metadata
from fasttrain.trainer import subnets_line
from tests.networks import tiny_images

FP32 = Precision("fp32", "cpu")
CLASSES = 7
SIDE = 64
SMALLER = 48


@dataclass(frozen=True)
class Family:
    """A tiny network of a family: timm's name for its like, and what makes it tiny."""

    view: Callable[[Any], StagedNetwork]
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    dynamic: dict[str, Any] = field(default_factory=dict)

    def source(self, **options: Any) -> nn.Module:
        """Timm's."""
        torch.manual_seed(0)
        return timm.create_model(self.name, num_classes=CLASSES, **{**self.options, **options})

    def network(self) -> StagedNetwork:
        """Ours, float32; layer scales and last batch norms of blocks not near 0, so that blocks matter."""
        network = self.view(self.source(**self.dynamic))
        for name, parameter in network.named_parameters():
            if name.endswith(("gamma", "conv3.bn.weight", "bn3.weight")):
                nn.init.uniform_(parameter, 0.5, 1.0)
        return network


_DYNAMIC = {"dynamic_img_size": True}
_VIT = {"img_size": SIDE, "embed_dim": 24, "depth": 3, "num_heads": 2}
_STAGES = {"depths": (1, 2, 1, 2)}
FAMILIES = {
    "resnet": Family(ResNet, "resnet50", {"layers": (1, 2, 1, 2), "channels": (4, 4, 8, 8), "stem_width": 8}),
    "vit": Family(VisionTransformer, "vit_tiny_patch16_224", _VIT, _DYNAMIC),
    "deit": Family(VisionTransformer, "deit_tiny_distilled_patch16_224", _VIT, _DYNAMIC),
    "deit3": Family(VisionTransformer, "deit3_small_patch16_224", _VIT, _DYNAMIC),
    "convnext": Family(ConvNeXt, "convnext_atto", {**_STAGES, "dims": (8, 12, 16, 24)}),
    "regnet": Family(RegNet, "regnety_002", {"w0": 8, "wa": 8.0, "wm": 2.0, "depth": 7, "group_size": 4}),
    "swin": Family(
        SwinTransformer,
        "swin_tiny_patch4_window7_224",
        {**_STAGES, "img_size": SIDE, "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4}
        | {"drop_path_rate": 0.0},
        _DYNAMIC,
    ),
    "pvt": Family(
        PyramidTransformer, "pvt_v2_b0", {**_STAGES, "embed_dims": (8, 8, 16, 24), "num_heads": (1, 2, 2, 4)}
    ),
    "densenet": Family(DenseNet, "densenet121", {"growth_rate": 4, "block_config": (1, 2, 3, 2)}),
}

parametrized = pytest.mark.parametrize("family", FAMILIES)
SHORTCUTS = [name for name in FAMILIES if name != "densenet"]
BATCH_NORM = ("resnet", "regnet", "densenet")


def tiny(family: str) -> StagedNetwork:
    """A tiny network, float64, training mode."""
    return FAMILIES[family].network().double().train()


def shorter(network: StagedNetwork) -> list[tuple[int, ...]]:
    """Some depths, the whole network's first: each stage one block shorter or not, at most twelve of them."""
    choices = [(depth, depth - 1) if depth > 1 else (depth,) for depth in network.depths]
    return [*list(product(*choices))[:8], (1,) * len(network.depths)]


@parametrized
@pytest.mark.parametrize("training", [False, True])
def test_full_depth_is_timms_forward_to_the_bit(family: str, training: bool) -> None:
    own = FAMILIES[family]
    network, reference = own.network().train(training), own.source().train(training)
    reference.load_state_dict(network.state_dict())
    assert list(network.state_dict()) == list(reference.state_dict())
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(network(images), reference(images))
    for ours, theirs in zip(network.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@parametrized
def test_smaller_images_are_seen_as_timm_does(family: str) -> None:
    own = FAMILIES[family]
    network, reference = own.network().eval(), own.source(**own.dynamic).eval()
    reference.load_state_dict(network.state_dict())
    for shape in ((2, 3, SMALLER, SMALLER), (1, 3, SIDE, SMALLER)):
        images = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(network(images), reference(images))


def gradients(network: StagedNetwork, logits: list[Tensor]) -> list[Tensor]:
    """Of a fixed random function of all logits."""
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(each.shape, generator=random, dtype=each.dtype) for each in logits]
    total = torch.stack([(each * own).sum() for each, own in zip(logits, weights, strict=True)]).sum()
    return list(torch.autograd.grad(total, list(network.parameters())))


@parametrized
def test_tree_equals_separate_passes(family: str) -> None:
    network = tiny(family)
    depths = shorter(network)
    images, small = tiny_images(4, SIDE), tiny_images(4, SMALLER, seed=1)
    trees = [PrefixTree([network.as_subnet(each) for each in own]) for own in (depths, depths[::-1])]
    ours = [each for tree in network.forward_trees([images, small], trees) for each in tree]
    theirs = [network(images, each) for each in depths] + [network(small, each) for each in depths[::-1]]
    for tree, alone in zip(ours, theirs, strict=True):
        torch.testing.assert_close(tree, alone, rtol=1e-10, atol=1e-12)
    assert len({tuple(each.flatten().tolist()) for each in theirs}) == 2 * len(set(depths))
    every = zip(network.named_parameters(), gradients(network, ours), gradients(network, theirs), strict=True)
    for (name, _), shared, separate in every:
        atol = 1e-6 if name == "pos_embed" else 1e-11  # timm interpolates it in float32
        torch.testing.assert_close(shared, separate, rtol=1e-9, atol=atol)


@parametrized
def test_modules_are_found_by_their_names(family: str) -> None:
    """Those too that are named like methods, such as `head`."""
    network = tiny(family)
    for name, module in network.named_modules():
        assert network.get_submodule(name) is module
    with pytest.raises(AttributeError, match="nowhere"):
        network.get_submodule("nowhere.weight")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "resnet"])
def test_nothing_is_fused(family: str) -> None:
    """Their batch norms are followed by something else than the fused operations do, or are timm's own."""
    network = tiny(family)
    modules = [type(module) for module in network.modules()]
    assert fuse_batch_norms(network, "reference") == 0
    assert [type(module) for module in network.modules()] == modules


@parametrized
def test_sync_batch_norm_keeps_the_names(family: str) -> None:
    network = tiny(family)
    names = list(network.state_dict())
    converted = convert_sync_batchnorm(network)
    assert list(converted.state_dict()) == names
    norms = batch_norms(converted)
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in norms)
    assert bool(norms) == (family in BATCH_NORM)


@parametrized
def test_subnets_leave_the_running_statistics_alone(family: str) -> None:
    network, alone = tiny(family), tiny(family)
    network.forward_tree(tiny_images(4, SIDE), shorter(network))
    alone(tiny_images(4, SIDE))
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, alone.get_buffer(name)), name


def counted(network: StagedNetwork, subnet: Subnet, side: int = SIDE) -> int:
    """FLOPs of one subnet's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"), subnet)
    return counter.get_total_flops()


def linear(inputs: int, outputs: int, positions: int = 1) -> int:
    """FLOPs of a 1x1 convolution or linear layer."""
    return 2 * inputs * outputs * positions


@parametrized
def test_a_subnet_costs_what_its_depths_imply(family: str) -> None:
    """Blocks of the same build cost the same, so that two depths of a stage tell those of all."""
    network = FAMILIES[family].network().to("meta").eval()
    full = counted(network, network.full)
    costs = flops.ForwardCosts(network, SIDE)
    blocks = {ref: block_cost(network, ref) for ref in network.full}
    assert min(blocks.values()) > 0
    for depths in shorter(network):
        subnet = ordered_subnet(depths)
        left_out = sum(cost for ref, cost in blocks.items() if ref not in subnet)
        assert counted(network, subnet) == full - left_out - unread(network, depths)
        assert 2 * costs.of(subnet) == counted(network, subnet)


def block_cost(network: StagedNetwork, ref: BlockRef) -> int:
    """FLOPs of one block alone, behind those before it."""
    before = ordered_subnet([*network.depths[: ref.stage], ref.block + 1])
    x = network.stem(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    for each in before[:-1]:
        x = network.run_block(each, x)
    with FlopCounterMode(display=False) as counter:
        network.run_block(ref, x)
    return counter.get_total_flops()


def unread(network: StagedNetwork, depths: tuple[int, ...]) -> int:
    """FLOPs that transitions and classifier save on the channels of a DenseNet's layers left out."""
    if not isinstance(network, DenseNet):
        return 0
    saved, side = 0, SIDE // 4
    for stage, (kept, full) in enumerate(zip(depths, network.depths, strict=True)):
        missing = 4 * (full - kept)
        if stage + 1 < len(depths):
            convolution: Any = network.transition_modules(stage + 1)[1]
            saved += linear(missing, convolution.out_channels, side**2)
        else:
            saved += linear(missing, CLASSES)
        side //= 2
    return saved


@parametrized
def test_a_plan_costs_what_a_whole_step_counts(family: str) -> None:
    network = FAMILIES[family].network().to("meta").eval()
    trees = PrefixTree([ordered_subnet(each) for each in shorter(network)]), PrefixTree([network.full])
    inputs = [torch.empty(2, 3, side, side, device="meta") for side in (SIDE, SMALLER)]

    def step() -> None:
        logits = network.forward_trees(inputs, trees)
        torch.stack([each.sum() for tree in logits for each in tree]).sum().backward()

    passes = [Pass(2, SIDE, trees[0]), Pass(2, SMALLER, trees[1])]
    assert flops.passes_flops(network, passes) == flops.count(step)


@pytest.mark.parametrize("family", [name for name in SHORTCUTS if name != "resnet"])
def test_branch_and_shortcut_add_up_to_the_block(family: str) -> None:
    """Of blocks that end in their sum; RegNet's end in a ReLU of it (ResNets': test_models.py)."""
    network = tiny(family).eval()
    x = network.stem(tiny_images(2, SIDE))
    for ref in network.full:
        whole, branch, shortcut = (network.run_block(ref._replace(part=part), x) for part in Part)
        if family == "regnet":
            block: Any = network.stages[ref.stage][ref.block]
            act, block.act3 = block.act3, nn.Identity()
            branch, shortcut = (
                network.run_block(ref._replace(part=part), x) for part in (Part.BRANCH, Part.SHORTCUT)
            )
            block.act3 = act
            torch.testing.assert_close((branch + shortcut).relu(), whole, rtol=1e-12, atol=1e-12)
        else:
            torch.testing.assert_close(branch + shortcut, whole, rtol=1e-12, atol=1e-12)
            if ref.block:
                assert torch.equal(shortcut, x)
        assert not torch.allclose(branch, whole)
        x = whole


@pytest.mark.parametrize("sampling", ["raw", "stochastic"])
@pytest.mark.parametrize("family", SHORTCUTS)
def test_parts_of_blocks_are_sampled(family: str, sampling: str) -> None:
    network = tiny(family)
    method = build_method(Config(method=Method(sampling=sampling)), network)  # type: ignore[arg-type]
    assert isinstance(method, Stimulative)
    random = np.random.default_rng(0)
    drawn = [method.space.draw(random) for _ in range(3)]
    ours = network.forward_tree(tiny_images(3, SIDE), [network.full, *drawn])
    for subnet, logits in zip(drawn, ours[1:], strict=True):
        torch.testing.assert_close(logits, network(tiny_images(3, SIDE), subnet), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sampling", ["raw", "stochastic"])
def test_dense_layers_cannot_be_left_out(sampling: str) -> None:
    with pytest.raises(ConfigError, match=f"'{sampling}'; allowed for a network whose blocks"):
        build_method(Config(method=Method(sampling=sampling)), tiny("densenet"))  # type: ignore[arg-type]


def test_dense_layers_cannot_be_deleted() -> None:
    with pytest.raises(ConfigError, match="no block of densenet121 has a shortcut"):
        deletable(flops.meta_network("densenet121"))


def test_regnet_z_has_first_blocks_without_a_shortcut() -> None:
    network = create_model("regnetz_005", 3).eval()
    assert network.without_shortcut == {BlockRef(stage, 0) for stage in range(4)}
    method = build_method(Config(method=Method(sampling="raw")), network)
    assert isinstance(method, Stimulative)
    subnet = method.space.draw(np.random.default_rng(0))
    assert network(torch.randn(1, 3, 32, 32), subnet).shape == (1, 3)


def test_regnet_v_normalizes_before_its_shortcut() -> None:
    network = create_model("regnetv_040", 3).double().eval()
    x = network.stem(tiny_images(1, 32))
    for ref in (BlockRef(0, 0), BlockRef(0, 1)):
        whole, branch, shortcut = (network.run_block(ref._replace(part=part), x) for part in Part)
        torch.testing.assert_close(branch + shortcut, whole, rtol=1e-12, atol=1e-12)
        x = whole


def numbers(network: nn.Module) -> int:
    """Trainable ones."""
    return sum(parameter.numel() for parameter in network.parameters())


@parametrized
def test_a_bare_subnet_is_the_subnet(family: str) -> None:
    network = tiny(family).eval()
    depths = tuple(max(1, depth - 1) for depth in network.depths)
    subnet = bare_subnet(network, depths)
    assert subnet.depths == depths
    assert sum(each.numel() for each in subnet.parameters()) < sum(
        each.numel() for each in network.parameters()
    )
    torch.testing.assert_close(
        subnet(tiny_images(2, SIDE)), network(tiny_images(2, SIDE), depths), rtol=1e-12, atol=1e-12
    )
    again = FAMILIES[family].network().double().eval()
    again.keep(depths)
    again.load_state_dict(subnet.state_dict())
    assert torch.equal(again(tiny_images(2, SIDE)), subnet(tiny_images(2, SIDE)))


@pytest.mark.parametrize("family", ["vit", "convnext", "swin", "pvt"])
def test_timm_takes_bare_subnets(family: str) -> None:
    network = FAMILIES[family].network().eval()
    depths = tuple(max(1, depth - 1) for depth in network.depths)
    network.keep(depths)
    reference = FAMILIES[family].source(**({"depth": depths[0]} if family == "vit" else {"depths": depths}))
    reference.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(reference.eval()(images), network(images))


@parametrized
def test_statistics_of_all_subnets_in_one_walk(family: str) -> None:
    """Against each subnet alone, in training mode; without batch norm there are none, and no image read."""
    network = tiny(family)
    subnets = [ordered_subnet(each) for each in shorter(network)]
    images = tiny_images(6, SIDE)
    batches: Iterator[Tensor] = iter([images])
    statistics = estimate_statistics(network, subnets, batches, FP32)
    assert bool(statistics.sums) == bool(batch_norms(network)) == (family in BATCH_NORM)
    assert len(list(batches)) == (0 if batch_norms(network) else 1)
    tree = PrefixTree(subnets)
    for subnet, leaf in zip(subnets, tree.leaves, strict=True):
        alone = estimate_statistics(network, [subnet], [images], FP32)
        for layer in statistics.layers[leaf]:
            torch.testing.assert_close(
                statistics.sums[leaf, layer], alone.sums[len(subnet) - 1, layer], rtol=1e-9, atol=1e-9
            )
    targets = torch.arange(6)
    accuracies = evaluate(network, subnets, [(images, targets)], FP32, statistics)
    for subnet, accuracy in zip(subnets, accuracies, strict=True):
        with torch.no_grad():
            logits = own_statistics(network, subnet, images)
        loss = nn.functional.cross_entropy(logits, targets)
        assert accuracy.loss == pytest.approx(float(loss), rel=1e-6)


def own_statistics(network: StagedNetwork, subnet: Subnet, images: Tensor) -> Tensor:
    """Logits of a copy whose batch norms normalize by this very batch, with the biased variance."""
    return copy.deepcopy(network).train()(images, subnet)


@parametrized
def test_evaluation_with_both_kinds_of_statistics(family: str) -> None:
    network = tiny(family)
    batch = (tiny_images(4, SIDE), torch.arange(4))
    subnets = [ordered_subnet(each) for each in shorter(network)[:3]]
    reports = evaluate_subnets(network, subnets, lambda: [batch], lambda: [batch[0]], FP32, "both")
    kinds = ["reestimated", "main"] if batch_norms(network) else ["none"]
    assert [report.statistics for report in reports] == kinds
    assert ("batch-norm" in subnets_line(reports[0])) == bool(batch_norms(network))


@parametrized
def test_nodes_are_drop_path_draws(family: str) -> None:
    """Where a recipe sets drop path, a node is run and drawn once for all subnets that share it."""
    network = tiny(family)
    if family == "densenet":
        assert not any(isinstance(each, DropPath) for each in network.modules())
        return
    for stage in network.stages:
        for block in stage:
            for name in ("drop_path", "drop_path1", "drop_path2"):
                if hasattr(block, name):
                    setattr(block, name, DropPath(0.5))
    calls: list[nn.Module] = []
    for each in network.modules():
        if isinstance(each, DropPath):
            each.register_forward_hook(lambda module, _x, _y: calls.append(module))
    depths = shorter(network)
    subnets = [*map(ordered_subnet, depths), ordered_subnet(depths[0])]
    logits = network.forward_tree(tiny_images(4, SIDE), subnets)
    own = sum(isinstance(each, DropPath) for each in network.stages[0][0].modules())
    assert len(calls) == own * len(PrefixTree(subnets))
    assert torch.equal(logits[0], logits[-1])


def test_created_models_have_no_drop_path() -> None:
    for name in ("swin_tiny_patch4_window7_224", "pvt_v2_b0", "convnext_atto", "test_vit"):
        with torch.device("meta"):
            network = create_model(name, 2)
        assert not any(isinstance(each, DropPath) for each in network.modules())


TRAINED: dict[str, Callable[[], StagedNetwork]] = {
    **{name: family.network for name, family in FAMILIES.items()},
    "mobilenetv3": lambda: create_model("mobilenetv3_small_050", CLASSES),
    "cifar_resnet": lambda: create_model("cifar_resnet20", CLASSES),
}
"""A network of each family."""
METHODS: dict[str, dict[str, Any]] = {
    "common training": {"name": "common", "subnets": 0},
    "ST": {"subnets": 1},
    "ST++": {"subnets": 2, "subnet_inputs": "downscaled", "sizes": (32, 48), "normalize": "layer_norm"},
    "AugSub, masking": {"name": "augsub", "mask_square": 16},
    "AugSub, dropout": {"name": "augsub", "drop": "dropout", "drop_ratio": 0.2},
    "AugSub, drop-path": {"name": "augsub", "drop": "path", "drop_ratio": 0.2},
    "layer supervision": {"name": "layer_supervision"},
    "stage supervision": {"name": "stage_supervision"},
    "self-distillation": {"name": "self_distillation", "temperature": 3.0},
    "stochastic depth": {"name": "stochastic_depth", "survival": 0.8},
}
TRANSFORMERS = ("vit", "deit", "deit3", "swin", "pvt")
UNDEFINED = {
    **dict.fromkeys(product(("densenet",), ("AugSub, drop-path", "stochastic depth")), "branches"),
    **dict.fromkeys(product(("vit", "deit", "deit3"), ("stage supervision", "self-distillation")), "stages"),
    **{(family, "AugSub, dropout"): "attention" for family in TRAINED if family not in TRANSFORMERS},
}
"""Method and family that do not go together, and what the family lacks."""
SLOW = tuple(
    method for method in METHODS if method.endswith(("supervision", "distillation")) or "AugSub" in method
)
"""Half of AugSub's loss is the sub-model's distance to the teacher, and above its output's entropy;
classifiers within the network start at the uniform output."""
DEFINED = [pair for pair in product(TRAINED, METHODS) if pair not in UNDEFINED]


def config_of(method: str) -> Config:
    """Of a small run."""
    return Config(
        data=Data(crop=SIDE, val_crop=SIDE, val_resize=SIDE),
        method=Method(**METHODS[method]),
        run=Run(batch=6, epochs=10),
    )


@pytest.mark.parametrize(("family", "method"), DEFINED)
def test_ten_steps_lower_the_loss(family: str, method: str) -> None:
    """The whole of it, on a fixed batch; the whole network's, where each step leaves other blocks out."""
    torch.manual_seed(0)
    network, config = TRAINED[family]().train(), config_of(method)
    lr = (0.02 if method in SLOW else 0.01) / (10 if family == "mobilenetv3" else 1)
    config = replace(config, optim=Optim(lr=lr, warmup_epochs=0))
    step = build.build_step(config, network, Process(0, 1, torch.device("cpu")), FP32, 10)
    images = torch.randn(6, 3, SIDE, SIDE) + 2 * torch.randn(6, 3, 1, 1)  # of six colours
    losses, targets = [], torch.arange(6)

    def whole() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(copy.deepcopy(network)(images), targets))

    before = whole()
    for index in range(10):
        side = (32, 48)[index % 2]
        small = [nn.functional.interpolate(images, (side, side), mode="bilinear")]
        result = step(images, small, targets, epoch=0, step=index, global_step=index)
        losses.append(float(result.loss.total))
    first, last = losses[0], max(losses[-3:])
    if method == "stochastic depth":
        first, last = before, whole()
    assert last < (0.97 if method in SLOW else 0.9) * first


LACKING = {
    "branches": r"has no residual branch that could be left out|'path'; allowed for .*: masking$",
    "stages": "allowed for a classifier before its own: two or more stages",
    "attention": "'dropout'; allowed for .*, whose blocks have no attention: ",
}


@pytest.mark.parametrize(("family", "method"), UNDEFINED)
def test_methods_that_a_family_cannot_have_are_refused(family: str, method: str) -> None:
    process = Process(0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match=LACKING[UNDEFINED[family, method]]):
        build.build_step(config_of(method), TRAINED[family](), process, FP32, 10)


COLUMNS = {
    "ResNet": ("resnet", "cifar_resnet"),
    "MobileNetV3": ("mobilenetv3",),
    "RegNet": ("regnet",),
    "ConvNeXt": ("convnext",),
    "ViT, DeiT": ("vit", "deit", "deit3"),
    "Swin": ("swin",),
    "PVT v2": ("pvt",),
    "DenseNet": ("densenet",),
}
CELLS = {"branches": "no branches", "stages": "one stage", "attention": "no attention"}


def test_the_readmes_table_of_methods_and_families_is_what_is_tested() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    table = text.partition("| method | ResNet")[2].partition("\n\n")[0]
    header, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in ("| method | ResNet" + table).splitlines()
    ]
    assert header[1:] == list(COLUMNS)
    assert [line[0] for line in lines] == list(METHODS)
    for method, *cells in lines:
        for column, cell in zip(header[1:], cells, strict=True):
            lacking = {UNDEFINED.get((family, method)) for family in COLUMNS[column]}
            assert {CELLS[each] if each else "yes" for each in lacking} == {cell}, (method, column)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("test_vit", {"crop": 168}, "data.crop holds 168; allowed: multiples of 16 pixels"),
        ("test_vit", {"sizes": (96, 100)}, "method.sizes holds 100; allowed: multiples of 16 pixels"),
        ("test_vit", {"main_resizes": (96, 112)}, "method.main_resizes holds 97"),
        (
            "test_convnext",
            {"sizes": (16, 96)},
            "the least of method.sizes is 16; allowed: at least 32",
        ),
    ],
)
def test_sides_that_patches_do_not_fill_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    method = {key: value for key, value in changes.items() if key != "crop"}
    if "sizes" in method:
        method["subnet_inputs"] = "downscaled"
    config = Config(
        model=Model(name=name),
        data=Data(crop=changes.get("crop", 160), val_crop=160, val_resize=160),
        method=Method(**method),
    )
    with pytest.raises(ConfigError, match=message):
        build.build_network(config, 3, torch.device("cpu"))


def test_exported_images_fill_patches(tmp_path: Path) -> None:
    network = create_model("test_vit", 3)
    weights = tmp_path / "vit.safetensors"
    config = Config(model=Model(name="test_vit"), data=Data(num_classes=3))
    trained = Trained(weights, config, network.state_dict(), 3, network.depths)
    write_safetensors(network, weights, metadata(trained))
    with pytest.raises(ConfigError, match="--side holds 40; allowed: multiples of 16 pixels"):
        export(weights, "onnx", tmp_path / "vit.onnx", side=40)


def test_one_pixel_is_enough_without_batch_norm() -> None:
    """Where batch norm needs two values per channel, a network without it trains on one image.

    The classifiers of layer supervision have batch norm.
    """
    config = Config(
        model=Model(name="test_convnext"),
        data=Data(crop=32, val_crop=32, val_resize=32),
        method=Method(name="common"),
        run=Run(batch=1),
    )
    assert build.build_network(config, 3, torch.device("cpu")).depths == (1, 2, 4, 2)
    with pytest.raises(ConfigError, match=r"run\.batch is 1; allowed: at least 2 images"):
        build.build_network(replace(config, method=Method(name="layer_supervision")), 3, torch.device("cpu"))


def test_deit3s_layer_scale_starts_as_in_its_paper() -> None:
    for name, value in create_model("deit3_small_patch16_224", 3).named_parameters():
        assert not name.endswith("gamma") or (value == 1e-4).all()


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("vit_small_patch16_224", (12,)),
        ("vit_base_patch16_siglip_224", (12,)),
        ("deit3_small_patch16_224", (12,)),
        ("convnext_tiny", (3, 3, 9, 3)),
        ("convnextv2_nano", (2, 2, 8, 2)),
        ("regnety_016", (2, 6, 17, 2)),
        ("swin_tiny_patch4_window7_224", (2, 2, 6, 2)),
        ("swin_base_patch4_window12_384", (2, 2, 18, 2)),
        ("pvt_v2_b2", (3, 4, 6, 3)),
        ("pvt_v2_b2_li", (3, 4, 6, 3)),
        ("densenet121", (6, 12, 24, 16)),
    ],
)
def test_timms_names(name: str, depths: tuple[int, ...]) -> None:
    """Built, run and counted without storage, at the whole size and a smaller one."""
    network = flops.meta_network(name, 10)
    assert network.depths == depths
    assert list(ordered_space("default", depths))[-1] == network.full
    for side in (224, 96):
        images = torch.empty(1, 3, side, side, device="meta")
        assert network(images).shape == network(images, (1,) * len(depths)).shape == (1, 10)
        (maps,) = network.stage_outputs([images], [PrefixTree([network.full])])[0]
        assert [each.ndim for each in maps] == [4] * len(depths)
        assert maps[-1].shape[-1] == side // network.reduction


def test_the_tokens_of_other_images_are_no_map() -> None:
    network = tiny("vit")
    with pytest.raises(ValueError, match="12 patches; allowed: those of square images"):
        network.stage_outputs([tiny_images(1, SIDE)[..., :48]], [PrefixTree([network.full])])


def test_classifiers_are_found() -> None:
    """What `model.new_head` leaves as it is."""
    names = {family: tiny(family).classifier_names for family in FAMILIES}
    assert names["deit"] == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert names["vit"] == names["pvt"] == ["head.weight", "head.bias"]
    assert names["convnext"] == names["regnet"] == names["swin"] == ["head.fc.weight", "head.fc.bias"]
    assert names["densenet"] == ["classifier.weight", "classifier.bias"]
