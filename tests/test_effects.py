"""Options without effect: what the table says of each is what a training step does."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import timm
import torch

from fasttrain import build, effects
from fasttrain.announcement import square_notes
from fasttrain.cli.compare import compare
from fasttrain.cli.configure import configure
from fasttrain.config import Config, Data, Evaluation, Method, Model, Optim, Run, from_dict, to_dict
from fasttrain.distributed import Process
from fasttrain.effects import NEEDS, ignored
from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision
from fasttrain.models import batch_norms
from fasttrain.models.vit import VisionTransformer
from fasttrain.randomness import draw_sizes
from fasttrain.recipes import RECIPES, recipe
from fasttrain.stimulation import stimulate
from tests.networks import tiny_images, tiny_resnet, tiny_swin

COMMON: dict[str, Any] = {"name": "common"}
ST: dict[str, Any] = {"subnets": 3}
SMALL: dict[str, Any] = {**ST, "subnet_inputs": "downscaled", "sizes": (16, 20, 24, 28)}
CASCADED: dict[str, Any] = {**SMALL, "subnet_inputs": "cascaded"}
MASKS: dict[str, Any] = {"name": "augsub", "mask_square": 8}
DISTILLED: dict[str, Any] = {"name": "self_distillation"}
NORMALIZED: dict[str, Any] = {**ST, "normalize": "layer_norm"}

METHOD: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "drop": ("path", COMMON, MASKS),
    "drop_ratio": (0.3, COMMON, MASKS),
    "mask_square": (16, {"name": "augsub", "drop": "path"}, MASKS),
    "auxiliary_weight": (0.5, COMMON, DISTILLED),
    "distillation": (0.4, {"name": "layer_supervision"}, DISTILLED),
    "distillation_temperature": (1.0, {"name": "layer_supervision"}, DISTILLED),
    "survival": (0.7, COMMON, {"name": "stochastic_depth"}),
    "subnets": (2, COMMON, {}),
    "sampling": ("stochastic", COMMON, ST),
    "space": ("2,3-3", MASKS, ST),
    "draws": ("coupled", COMMON, ST),
    "subnet_inputs": ("downscaled", {**COMMON, "sizes": (24, 28)}, {**ST, "sizes": (24, 28)}),
    "sizes": ((24, 28), {**COMMON, "subnet_inputs": "downscaled"}, {**ST, "subnet_inputs": "downscaled"}),
    "cascade": ("interpolate", {**CASCADED, **COMMON}, CASCADED),
    "sizes_per_step": (2, ST, SMALL),
    "subnet_share": (0.5, MASKS, ST),
    "supervision": ("mse", COMMON, ST),
    "main_loss": ("bce", {**ST, "main_weight": 0.0}, COMMON),
    "label_smoothing": (0.2, {**ST, "main_weight": 0.0}, COMMON),
    "normalize": ("layer_norm", MASKS, ST),
    "normalize_main": (False, ST, NORMALIZED),
    "amplitude": (2.0, ST, NORMALIZED),
    "temperature": (2.0, {**ST, "supervision": "mse"}, ST),
    "scale_by_teacher": (True, {**ST, "supervision": "mse"}, ST),
    "ensemble": (0.5, {"subnets": 1}, ST),
    "main_weight": (0.0, COMMON, ST),
    "kl_weight": (0.5, MASKS, ST),
    "kl_schedule": ("cosine_up", DISTILLED, ST),
    "start_epoch": (4, MASKS, ST),
    "backward": ("split", COMMON, ST),
}
"""Each option of the method: a value; options that do not read it, and options that do."""

OTHERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "data.min_area": (0.25, {"augmentation": "small"}, {}),
    "data.padding": (2, {}, {"augmentation": "small"}),
    "data.policy_last": (
        True,
        {"lighting": 0.0},
        {"lighting": 0.0, "policy": "autoaugment"},
    ),
    "data.policy_fill": (0, {"policy": "threeaugment"}, {"policy": "autoaugment"}),
    "data.policy_operations": (3, {"policy": "autoaugment"}, {"policy": "uniformaugment_standard"}),
    "data.policy_magnitude": (5.0, {"policy": "uniformaugment"}, {"policy": "randaugment_standard"}),
    "data.policy_deviation": (1.0, {"policy": "trivialaugment"}, {"policy": "randaugment"}),
    "data.colour": ("folded", {"jitter": 0.0}, {}),
    "data.published_lighting": (True, {"lighting": 0.0}, {}),
    "data.erase_fill": ("noise", {}, {"erase": 0.25}),
    "data.mix_switch": (0.7, {"mixup": 0.8}, {"mixup": 0.8, "cutmix": 1.0}),
    "optim.momentum": (0.8, {"name": "lamb"}, {}),
    "optim.betas": ((0.8, 0.9), {}, {"name": "adamw"}),
    "optim.eps": (1e-6, {}, {"name": "lamb"}),
    "optim.decay_on": ("matrices", {"weight_decay": 0.0}, {}),
    "optim.warmup_lr": (0.01, {}, {"warmup_epochs": 1.0}),
    "evaluation.statistics": ("both", {}, {"subnets": -1}),
}

ALWAYS = {
    "data": """train val classes builtin num_classes augmentation crop flip policy jitter lighting erase
        shuffle repeats mixup cutmix val_resize val_crop mean std drop_last threads prefetch
        hardware_decoder_load decoder_memory largest_image""",
    "model": "name weights new_head drop_path batch_norm conv1x1",
    "method": "name main_resizes target_threshold",  # which Method itself refuses elsewhere
    "optim": """name lr weight_decay layer_decay schedule schedule_unit warmup_epochs min_lr clip ema impl""",
    "evaluation": "every batch reestimate calibration_images subnets normalize",
    "run": """name folder epochs max_steps batch seed device precision tf32 channels_last kernels
        batch_norm_batch log_every resume save_minutes save_steps keep start_timeout step_timeout
        skip_nonfinite accumulate sync_batch_norm gradient_compression tensorboard wandb profile""",
}
"""What counts in every run, or depends on the machine, or is for what is done with the run later."""


def test_each_option_is_decided_about() -> None:
    """A new one goes into `NEEDS`, or here."""
    always = {f"{section}.{name}" for section, names in ALWAYS.items() for name in names.split()}
    every = {
        f"{section.name}.{field.name}"
        for section in fields(Config)
        if section.name != "recipe"
        for field in fields(getattr(Config(), section.name))
    }
    assert always | set(NEEDS) == every
    assert not always & set(NEEDS)
    assert {*(f"method.{name}" for name in METHOD), *OTHERS, "data.antialias"} == set(NEEDS)


def config_of(method: dict[str, Any], **sections: Any) -> Config:
    return Config(
        **{
            "data": Data(crop=32, val_crop=32, val_resize=32),
            "method": Method(**method),
            "optim": Optim(lr=0.1),
            "run": Run(batch=4, epochs=6, precision="fp32"),
            **sections,
        }
    )


def outcome(method: dict[str, Any]) -> tuple[Any, ...]:
    """What the fourth epoch's second step does to a small network."""
    config = config_of(method)
    cpu = torch.device("cpu")
    network = tiny_resnet((3, 3)).train()
    for norm in batch_norms(network):  # zero in the last of each block at first: no branch would count
        torch.nn.init.constant_(norm.weight, 0.5)
    step = build.build_step(config, network, Process(0, 1, cpu), Precision("fp32", "cpu"), 4)
    own = config.method
    sides: tuple[int, ...] = ()
    if own.subnet_inputs == "downscaled":
        sides = draw_sizes(own.sizes, own.sizes_per_step, seed=0, epoch=3, step=1)
    small = [tiny_images(4, side, seed=side) for side in sides]
    result = step(tiny_images(4, 32), small, torch.arange(4), epoch=3, step=1, global_step=13)
    passes = [(each.images, each.side, each.tree.subnets) for each in result.passes]
    weights = [each.detach().double().sum().item() for each in step.forward.parameters()]
    return passes, result.loss.total.item(), result.gradient_norm.item(), weights


@pytest.mark.parametrize("name", [name for name in METHOD if name not in ("sizes", "subnet_inputs")])
def test_an_option_of_the_method_is_without_effect_where_the_table_says_so(name: str) -> None:
    value, without, having = METHOD[name]
    given = {**without, name: value}
    assert f"method.{name}" in {each.name for each in ignored(config_of(given))}
    assert outcome(given) == outcome(without)
    given = {**having, name: value}
    assert f"method.{name}" not in {each.name for each in ignored(config_of(given))}
    assert outcome(given) != outcome(having)


def test_sides_are_without_effect_where_there_are_no_subnets() -> None:
    assert outcome({**SMALL, **COMMON}) == outcome(COMMON)
    found = [each.name for each in ignored(config_of({**SMALL, **COMMON}))]
    assert found == ["method.subnets", "method.subnet_inputs", "method.sizes"]
    assert list(ignored(config_of(SMALL))) == []


@pytest.mark.parametrize("name", OTHERS)
def test_other_options_need_what_reads_them(name: str) -> None:
    value, without, having = OTHERS[name]
    section, _, field = name.partition(".")
    kind = {"data": Data, "optim": Optim, "evaluation": Evaluation}[section]
    found = [
        list(ignored(Config(**{section: kind(**given, **{field: value})}))) for given in (without, having)
    ]
    assert [[each.name for each in own] for own in found] == [[name], []]


def test_antialiasing_is_of_downscaled_inputs() -> None:
    assert [each.name for each in ignored(Config(data=Data(antialias=False)))] == ["data.antialias"]
    assert not list(ignored(Config(data=Data(antialias=False), method=Method(**SMALL))))


def test_a_space_is_for_the_evaluation_too() -> None:
    method = Method(name="common", space="1,2-3")
    assert [each.name for each in ignored(Config(method=method))] == ["method.space"]
    assert list(ignored(Config(method=method, evaluation=Evaluation(subnets=-1)))) == []


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_nothing_without_effect(name: str) -> None:
    assert list(ignored(recipe(name))) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "demo-ct --method.main-weight 0",
            r"method\.main_weight is 0\.0, which has no effect here; allowed: 1",
        ),
        ("demo-augsub --method.start-epoch 3", r"method\.start_epoch is 3, .*: 0, or .* stimulative"),
        ("demo-ct --method.kl-weight 2", r"method\.kl_weight is 2\.0"),
        ("rn50-st-100 --method.sizes-per-step 1 --method.amplitude 3", r"amplitude is 3.*layer_norm or l2"),
        (
            "rn50-st-100 --data.padding 3",
            r"data\.padding is 3, .*: 4, or others with data\.augmentation small",
        ),
        ("demo-ct --optim.betas 0.8 0.9", r"optim\.betas is \(0\.8, 0\.9\), .* optim\.name adamw, lamb"),
        ("demo-selfdistill --method.temperature 2", r"method\.temperature is 2\.0"),
    ],
)
def test_what_is_asked_for_in_vain_is_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure("train", words.split())


def test_what_a_recipe_brings_along_is_named() -> None:
    """And so it is of an earlier run's config.json, which stays usable."""
    config = configure("train", ["demo", "--method.name", "common"])
    (line,) = effects.notes(config)
    assert line == (
        "has no effect in this run: method.subnets, method.subnet_inputs, method.sizes, method.normalize, "
        "method.normalize_main"
    )
    assert effects.notes(recipe("demo")) == []


def test_a_comparison_refuses_what_no_recipe_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Config]] = []
    monkeypatch.setattr("fasttrain.comparison.compare", lambda configs, *_, **__: given.append(configs))
    compare(["demo-ct", "demo-st", "--budget", "1", "--method.kl-weight", "2"])
    assert {name: each.method.kl_weight for name, each in given[0].items()} == {"demo-ct": 2, "demo-st": 2}
    with pytest.raises(ConfigError, match=r"method\.drop_ratio is 0\.3"):
        compare(["demo-ct", "demo-st", "--budget", "1", "--method.drop-ratio", "0.3"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes_per_step": 2, "subnets": 2}, "^sizes_per_step is 2, which has no effect"),
        ({"amplitude": 2.0}, "^amplitude is 2.0, which has no effect"),
        ({"supervision": "mse", "temperature": 2.0}, "^temperature is 2.0, .* supervision kl"),
    ],
)
def test_a_loop_of_ones_own_is_told_too(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stimulate(tiny_resnet((2, 2)), **options)


def test_self_distillations_temperature_is_its_authors() -> None:
    config = configure("train", ["demo-ct", "--method.name", "self_distillation"])
    assert config.method == recipe("demo-selfdistill").method
    assert (config.method.distillation, config.method.distillation_temperature) == (0.1, 3.0)


def test_an_earlier_runs_temperature_of_self_distillation_stays() -> None:
    values = to_dict(replace(recipe("demo-selfdistill"), model=Model(name="cifar_resnet20")))
    values["method"]["temperature"] = 2.0
    del values["method"]["distillation_temperature"]
    method = from_dict(values).method
    assert (method.temperature, method.distillation_temperature) == (1.0, 2.0)
    values["method"]["name"] = "stimulative"
    method = from_dict(values).method
    assert (method.temperature, method.distillation_temperature) == (2.0, 3.0)


def test_a_vits_patches_leave_no_choice_of_squares() -> None:
    """Which the network tells, not the configuration: a line at the run's start says so."""
    network = VisionTransformer(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1))
    (line,) = square_notes(Method(name="augsub", mask_square=8), network)
    assert line.startswith("has no effect in this run: method.mask_square")
    assert not list(square_notes(Method(name="augsub", mask_square=16), network))
    assert not list(square_notes(Method(name="augsub", mask_square=8), tiny_swin()))
