"""Every published flag and value: the configuration it amounts to, and the command that gives it."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields, replace
from typing import Any

import pytest

from fasttrain.cli.configure import configure
from fasttrain.compat.nips22 import Flags, equivalent
from fasttrain.compat.nips22.flags import CHOICES, parse
from fasttrain.config import Config, Method, to_dict
from fasttrain.effects import ignored
from fasttrain.errors import ConfigError
from fasttrain.recipes import RECIPES, recipe
from fasttrain.recipes.imagenet import FAST_SIZES
from tests.test_cli import ROOT, run

KL = "--norm_kd"
SMALL = "--Snet_Dtrans"
CUT = "--Snet_Dtrans --train_crop_size 200"
Fields = dict[str, Any]


def cascaded(low: int, high: int, **more: Any) -> Fields:
    own = {"method.subnet_inputs": "cascaded", "method.sizes": tuple(range(low, high + 1))}
    return own | {f"method.{name}": value for name, value in more.items()}


def policy(name: str, **more: Any) -> Fields:
    return {"data.policy": name, "data.policy_last": True, "data.policy_fill": 0} | {
        f"data.policy_{field}": value for field, value in more.items()
    }


AT_9_OF_30 = {"operations": 1, "magnitude": 3.0, "deviation": 0.0}
COMMON = {"method.name": "common"}

# flags around, the flag with its value, and the fields that it changes
TABLE: list[tuple[str, str, Fields]] = [
    ("", "--depth 50", {}),
    ("", "--depth 101", {"model.name": "resnet101"}),
    ("", "--depth 152", {"model.name": "resnet152"}),
    ("", "--epoch 100", {"run.epochs": 100}),
    ("", "--sampling_begin_epoch 30", {"method.start_epoch": 30}),
    ("", "--sampling_begin_epoch -1", {}),
    ("", "--sampling_begin_epoch 200", COMMON),
    ("", "--same_mscale_image", {"method.main_resizes": (96, 224)}),
    ("", "--st_loss default", {}),
    ("", "--st_loss CE", {"method.supervision": "ce_teacher"}),
    ("", "--st_loss CE_target", {"method.supervision": "ce_target"}),
    ("", "--st_loss DKD", {"method.supervision": "dkd"}),
    ("", "--st_loss MSE", {"method.supervision": "mse"}),
    ("", "--exp first", {"run.name": "first"}),
    ("", "--exp some/where/first", {"run.name": "first", "run.folder": "some/where"}),
    ("", "--kl_coef 0.5", {"method.kl_weight": 0.5}),
    ("", "--kl_coef 0", COMMON),
    ("", "--main_coef 0.5", {"method.main_weight": 0.5}),
    ("", "--UT", {}),
    ("", "--kl_cos", {"method.kl_schedule": "cosine_up"}),
    ("", "--kl_rcos", {"method.kl_schedule": "cosine_down"}),
    ("--kl_cos", "--kl_rcos", {}),
    ("", "--val_tf_bn_reset", {}),
    ("", "--resume", {"run.resume": "auto"}),
    ("", "--batch_size 256", {"run.batch": 256, "run.batch_norm_batch": 128, "evaluation.batch": 128}),
    ("", "--workers 16", {}),
    ("", "--workers 4", {"data.threads": 4}),
    ("", "--workers 0", {"data.threads": 1}),
    ("", "--lr 0.1", {"optim.lr": 0.1}),
    ("", "--weight_decay 5e-5", {"optim.weight_decay": 5e-5}),
    ("", "--multi_Snet 6", {"method.subnets": 6}),
    ("", "--multi_Snet 0", COMMON),
    (KL, "--multi_Snet 0", {"method.subnets": 0}),
    ("", "--norm_kd", {"method.normalize": "layer_norm"}),
    ("", "--norm_kd_test", {"evaluation.normalize": "layer_norm"}),
    (KL, "--amplitude 3", {"method.amplitude": 3.0}),
    ("--norm_kd --norm_kd_type v1", "--amplitude 3", {}),
    ("", "--amplitude 3", {}),
    ("", "--Temp 4", {"method.temperature": 4.0}),
    ("--st_loss CE", "--Temp 4", {}),
    (KL, "--norm_kd_type default", {}),
    (KL, "--norm_kd_type v1", {"method.scale_by_teacher": True}),
    (KL, "--norm_kd_type v2", {"method.normalize": "l2"}),
    ("", "--norm_kd_type v1", {"method.scale_by_teacher": True}),
    ("", "--norm_kd_type v2", {}),
    ("--norm_kd --st_loss MSE --amplitude 2", "--norm_kd_type v1", {"method.amplitude": 1.0}),
    ("--multi_Snet 3", "--direct_KD_esm", {"method.ensemble": 0.5}),
    ("--multi_Snet 3 --direct_KD_esm", "--direct_KD_ema 0.2", {"method.ensemble": 0.2}),
    ("", "--direct_KD_ema 0.2", {}),
    ("", "--Snet_Dtrans", cascaded(96, 224)),
    (SMALL, "--Dtrans Dtrans4", {"method.sizes": (128, 160, 192, 224), "method.cascade": "interpolate"}),
    (SMALL, "--Dtrans Dtrans5", {"method.sizes": (128, 160, 192, 224)}),
    (CUT, "--Dtrans Dtrans6", {"method.sizes": tuple(range(128, 225))}),
    (CUT, "--Dtrans Dtrans7", {}),
    (CUT, "--Dtrans Dtrans8", {"method.sizes": tuple(range(64, 225))}),
    (CUT, "--Dtrans Dtrans9", {"method.sizes": tuple(range(96, 257))}),
    (CUT, "--Dtrans Dtrans10", {"method.sizes": tuple(range(32, 225))}),
    (CUT, "--Dtrans Dtrans11", {"method.sizes": tuple(range(96, 241))}),
    (CUT, "--Dtrans Dtrans12", {"method.sizes": tuple(range(80, 225))}),
    (CUT, "--Dtrans Dtrans13", {"method.sizes": tuple(range(96, 209))}),
    (CUT, "--Dtrans Dtrans14", {"method.sizes": tuple(range(96, 273))}),
    (CUT, "--Dtrans Dtrans15", {"method.cascade": "crop"}),
    ("", "--Dtrans Dtrans5", {}),
    ("", "--min_lr", {"optim.min_lr": 0.2 * 1e-4}),
    ("--min_lr", "--min_lr_coef 0.01", {"optim.min_lr": 0.2 * 0.01}),
    ("", "--min_lr_coef 0.01", {}),
    ("", "--val_resize_size 240", {"data.val_resize": 240}),
    ("", "--val_crop_size 200", {"data.val_crop": 200}),
    ("", "--train_crop_size 200", {"data.crop": 200}),
    (SMALL, "--train_crop_size 200", {"data.crop": 200, "method.sizes": tuple(range(86, 201))}),
    (SMALL, "--mini_size 0.5", {"method.sizes": tuple(range(112, 225))}),
    ("--same_mscale_image", "--mini_size 0.5", {"method.main_resizes": (112, 224)}),
    ("", "--mini_size 0.5", {}),
    ("", "--jitter_coef 0.3", {"data.jitter": 0.3}),
    ("", "--light_coef 0.2", {"data.lighting": 0.2}),
    ("", "--train_trans default", {}),
    ("", "--train_trans with_TA_torch", policy("trivialaugment")),
    ("", "--train_trans with_TA_torch1", policy("trivialaugment")),
    ("", "--train_trans with_TA", policy("trivialaugment_standard")),
    ("", "--train_trans with_RA_torch", policy("randaugment_torchvision", **AT_9_OF_30)),
    ("", "--train_trans with_RA", policy("randaugment_standard", **AT_9_OF_30)),
    ("", "--train_trans with_UA", policy("uniformaugment_standard")),
    ("", "--train_trans with_AA", policy("autoaugment")),
    ("", "--train_trans with_RE", {"data.erase": 0.5}),
    ("", "--mix default", {}),
    ("", "--mix cutmix", {"data.cutmix": 1.0}),
    ("", "--mix mixup", {"data.mixup": 0.2}),
    ("", "--mix cutmix-torch", {"data.cutmix": 1.0}),
    ("", "--mix mixup-torch", {"data.mixup": 0.2}),
    ("", "--mix mixup-cutmix-torch", {"data.mixup": 0.2, "data.cutmix": 1.0}),
    ("", "--mix mixup-cutmix-timm", {"data.mixup": 0.2, "data.cutmix": 1.0, "data.drop_last": True}),
    ("--mix mixup", "--mixup_alpha 0.4", {"data.mixup": 0.4}),
    ("", "--mixup_alpha 0.4", {}),
    ("", "--max_size 1.25", {"method.main_resizes": (224, 280)}),
    ("--same_mscale_image", "--max_size 1.25", {"method.main_resizes": (224, 280, 96, 224)}),
    ("", "--max_size 1", {}),
    ("", "--sample_space default", {}),
    *[("", f"--sample_space space{i}", {"method.space": f"space{i}"}) for i in range(1, 8)],
    ("--depth 101", "--sample_space space3", {}),
    ("", "--no_rebn", {"evaluation.reestimate": False}),
]


def flat(config: Config) -> Fields:
    sections = {name: part for name, part in to_dict(config).items() if isinstance(part, dict)}
    return {
        f"{name}.{field}": getattr(getattr(config, name), field)
        for name, part in sections.items()
        for field in part
    }


def test_the_table_has_every_flag_and_value() -> None:
    words = [flag.split() for _, flag, _ in TABLE]
    assert {name.removeprefix("--") for name, *_ in words} == {field.name for field in fields(Flags)}
    for name, values in CHOICES.items():
        tested = {value for flag, *rest in words for value in rest if flag == f"--{name}"}
        assert tested == {str(value) for value in values}


@pytest.mark.parametrize(("around", "flag", "changed"), TABLE, ids=[f"{a} {f}".strip() for a, f, _ in TABLE])
def test_a_flag_changes_these_fields_alone_and_the_command_gives_them(
    around: str, flag: str, changed: Fields
) -> None:
    before = flat(equivalent(around.split()).config)
    found = equivalent([*around.split(), *flag.split()])
    after = flat(found.config)
    expected = flat(Config(method=Method(name="common"))) if changed is COMMON else {}
    expected = {name: value for name, value in expected.items() if name.startswith("method.")}
    assert after == before | (expected or changed)
    assert configure("train", found.words) == found.config


@pytest.mark.parametrize(("around", "flag", "changed"), [row for row in TABLE if not row[2]])
def test_a_flag_without_effect_is_told(around: str, flag: str, changed: Fields) -> None:
    name, *value = flag.split()
    field = name.removeprefix("--")
    default = getattr(Flags(), field)
    told = any(
        line.startswith(f"{name} changes nothing: ")
        for line in equivalent([*around.split(), *flag.split()]).notices
    )
    at_default = bool(value) and type(default)(value[0]) == default
    assert told or at_default or flag in ("--sampling_begin_epoch -1", "--Dtrans Dtrans7")


def test_notices_are_one_line_each_and_say_why() -> None:
    given = "--UT --val_tf_bn_reset --kl_coef 0 --Temp 3 --exp x --lr 0.2"
    found = equivalent(given.split())
    assert found.notices == [
        "--Temp changes nothing: no subnet is trained",
        "--UT changes nothing: it is always on",
        "--val_tf_bn_reset changes nothing: nothing reads the loader that it makes",
        "subnets of weight 0 are left out: the gradients are the same",
    ]
    assert equivalent([]).notices == []
    for flags, words in (
        ("--resume", "newest checkpoint"),
        ("--no_rebn", "running batch-norm statistics"),
        ("--no_rebn --kl_coef 0", "the subnets' passes enter too"),
        ("--mix cutmix-torch", "pairs of neighbours"),
        ("--train_trans with_RE", "erased boxes"),
        ("--train_trans with_UA", "interpolated linearly"),
    ):
        line = equivalent(flags.split()).notices[-1]
        assert words in line


BOTH = "--epoch=200 --norm_kd --amplitude=1 --Temp=1 --multi_Snet=6 --Snet_Dtrans --Dtrans=Dtrans7"
A1 = f"{BOTH} --val_resize_size=240 --train_crop_size=200 --sample_space=space3"
COMMANDS = {
    "rn50-ct-200": "--epoch=200 --kl_coef=0",
    "rn50-st-200": "--epoch=200",
    "rn50-st-kl-200": "--epoch=200 --norm_kd --amplitude=1 --Temp=1",
    "rn50-st-kl6-200": "--epoch=200 --norm_kd --amplitude=1 --Temp=1 --multi_Snet=6",
    "rn50-st-small-200": "--epoch=200 --Snet_Dtrans",
    "rn50-stpp-200": BOTH,
    "rn50-stpp-resize240": f"{BOTH} --val_resize_size=240",
    "rn50-stpp-crop200": f"{BOTH} --val_resize_size=240 --train_crop_size=200",
    "rn50-stpp-a1": A1,
    "rn50-stpp-a2": f"{A1} --epoch=400 --train_trans=with_UA",
    "rn50-ct-100": "--epoch=100 --kl_coef=0",
    "rn50-st-100": "--epoch=100",
}
"""The published README's commands and the papers' other settings, by the recipe of each."""


def test_every_published_recipe_has_its_command() -> None:
    assert {f"{name}-published" for name in COMMANDS} == {each for each in RECIPES if "published" in each}


@pytest.mark.parametrize("name", COMMANDS)
def test_published_commands_are_recipes(name: str) -> None:
    own = {"name": "mine", "resume": "never"}
    twin = recipe(f"{name}-published")
    found = equivalent([*COMMANDS[name].split(), "--exp", "mine"])
    assert found.config == replace(twin, run=replace(twin.run, **own))  # type: ignore[arg-type]
    assert found.words == [f"{name}-published", "--run.name", "mine", "--run.resume", "never"]
    plain = recipe(name)
    fast = equivalent([*COMMANDS[name].split(), "--exp", "mine"], fast=True)
    operations = {"policy": "uniformaugment_standard"} if name == "rn50-stpp-a2" else {}
    data = replace(plain.data, **operations)  # type: ignore[arg-type]
    assert configure("train", fast.words) == fast.config
    assert fast.config == replace(plain, data=data, run=replace(plain.run, **own))  # type: ignore[arg-type]


def test_fast_modes_keep_the_recipe() -> None:
    found = equivalent([*A1.split(), "--st_loss", "MSE", "--direct_KD_esm"], fast=True).config
    assert (found.method.subnet_inputs, found.method.sizes, found.method.sizes_per_step) == (
        "downscaled",
        FAST_SIZES,
        1,
    )
    assert (found.method.supervision, found.method.ensemble) == ("mse", 0.5)
    assert (found.run.precision, found.data.drop_last, found.evaluation.reestimate) == ("auto", True, False)
    above = equivalent(["--Snet_Dtrans", "--Dtrans", "Dtrans14"], fast=True)
    assert above.config.method.sizes == (96, 128, 144, 176, 192, 224)
    assert "above the crop of 224" in above.notices[0]
    cut = equivalent(["--Snet_Dtrans", "--Dtrans", "Dtrans15"], fast=True)
    assert (cut.config.method.subnet_inputs, cut.config.method.cascade) == ("cascaded", "crop")
    assert "Dtrans15 as they are" in cut.notices[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 3", "unrecognized arguments: --epochs 3"),
        ("--lr fast", "argument --lr: invalid float value: 'fast'"),
        ("--depth 34", "argument --depth: invalid choice: 34 (choose from 50, 101, 152)"),
        ("--st_loss KL", "argument --st_loss: invalid choice: 'KL' (choose from 'default', 'CE'"),
        ("--norm_kd_type v3", "--norm_kd_type: invalid choice: 'v3'"),
        ("--Dtrans Dtrans3", "--Dtrans: invalid choice: 'Dtrans3'"),
        ("--train_trans with_XA", "--train_trans: invalid choice"),
        ("--mix mosaic", "--mix: invalid choice"),
        ("--sample_space space8", "--sample_space: invalid choice"),
        ("--multi_Snet -1", "method.subnets is -1; allowed: 0 to 64"),
        ("--max_size 0.5", "--max_size is 0.5; allowed: 1 to 16"),
        ("--max_size inf", "--max_size is inf; allowed: 1 to 16"),
        ("--mini_size 2 --Snet_Dtrans", "--mini_size is 2; allowed: 0 to 1"),
        ("--mini_size=-1e9 --same_mscale_image", "--mini_size is -1e+09; allowed: 0 to 1"),
        ("--mini_size 0 --Snet_Dtrans", "method.sizes is 0; allowed: 1 to 4096"),
        ("--exp /", "--exp is '/'; allowed: the run's name"),
        ("--kl_coef -1", "method.kl_weight is -1.0"),
        ("--lr nan", "optim.lr is nan"),
        ("--val_resize_size 200", "data.val_resize is 200; allowed: 224"),
        ("--min_lr --min_lr_coef 2", "optim.min_lr is 0.4"),
        ("--st_loss DKD --mix mixup", "whose targets are soft"),
        ("--mix mixup --mixup_alpha nan", "data.mixup is nan"),
        ("--exp ..", "run.name is '..'"),
        ("--workers -1", "--workers is -1; allowed: 0 to 1024"),
        ("--mix mixup-torch --mixup_alpha 0", "--mixup_alpha is 0; allowed: above 0 with --mix mixup-torch"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(flags: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        equivalent(flags.split())
    assert words in str(caught.value)
    assert "published" in str(caught.value)


def test_unknown_values_are_errors_where_they_pass_silently_there() -> None:
    for flags in ("--Dtrans Dtrans99", "--norm_kd_type x", "--depth 101 --sample_space x"):
        with pytest.raises(ConfigError, match="invalid choice"):
            parse(flags.split())


def test_the_command_prints_what_it_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("nips22", *A1.split(), "--UT", "--exp", "a run", "--data", "/my images", "--print-command")
    status, out, err = run(capsys, *words)
    assert status == 0
    assert out == (
        "fasttrain train rn50-stpp-a1-published --data.train '/my images/train' --data.val '/my images/val' "
        "--run.name 'a run' --run.resume never\n"
    )
    assert err == "notice: --UT changes nothing: it is always on\n"
    assert json.loads(run(capsys, "show", "rn50-stpp-a1-published")[1])["recipe"] == "rn50-stpp-a1-published"


def test_the_readmes_example_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    (first,) = (index for index, line in enumerate(lines) if line.startswith(".venv/bin/fasttrain nips22 "))
    status, out, err = run(capsys, *shlex.split(lines[first])[1:])
    assert (status, out, err) == (0, f"{lines[first + 1]}\n", "")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("nips22", 2, "--data is missing; allowed: --data DIR"),
        ("nips22 --data", 2, "nips22: argument --data: expected one argument"),
        ("nips22 --data /nowhere --exp x", 3, "/nowhere/train"),
        ("nips22 --print-command --mix no", 2, "published flags: argument --mix"),
    ],
)
def test_mistakes_on_the_command_line(
    capsys: pytest.CaptureFixture[str], words: str, status: int, message: str
) -> None:
    got, _, err = run(capsys, *words.split())
    assert got == status
    assert message in err


def test_help_has_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "nips22", "--help")
    assert status == 0
    for name in (*(field.name for field in fields(Flags)), "data", "fast", "print-command"):
        assert f"--{name}" in out


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ("--direct_KD_esm --direct_KD_ema 0.5", "method.ensemble"),
        ("--light_coef 0", "data.published_lighting"),
        ("--jitter_coef 0", ""),
    ],
)
@pytest.mark.parametrize("fast", [False, True])
def test_flags_that_nothing_reads_are_no_part_of_the_command(flags: str, field: str, fast: bool) -> None:
    """`train` would refuse them."""
    found = equivalent(flags.split(), fast=fast)
    assert configure("train", found.words) == found.config
    assert list(ignored(found.config)) == []
    if field:
        assert flat(found.config)[field] == flat(Config())[field]
