"""What messages say of a name that is not known, and of values that are long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fasttrain.cli import main
from fasttrain.config import Config, Data, Run, from_dict, to_dict
from fasttrain.errors import LONGEST, ConfigError, brief, cut, error_of, instead
from fasttrain.models import create_model
from fasttrain.recipes import RECIPES
from fasttrain.subnets import ordered_space
from tests.test_cli import run


def test_names_near_a_wrong_one_are_told_and_not_all() -> None:
    names = [f"name-{letter}" * 3 for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert instead(names[0] + "x", names).startswith(f"did you mean {names[0]}")
    assert "allowed" not in instead(names[0] + "x", names)
    assert instead("quite another", names) == f"allowed: {', '.join(names)}"
    assert instead("quite another", names, "or a file") == f"allowed: {', '.join(names)}, or a file"
    assert instead("quite another", names, forms="forms") == "allowed: forms"


def test_all_of_a_few_are_told_besides() -> None:
    assert instead("trian", ["train", "check"]) == "did you mean train? allowed: train, check"
    assert instead("TRAIN", ["train", "check"]) == "did you mean train? allowed: train, check"
    assert instead("", ["train"]) == "allowed: train"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trian demo", "unknown command 'trian'; did you mean train?"),
        ("anlyze kl", "unknown command 'anlyze'; did you mean analyze?"),
        ("train rn50-stp-200", "unknown recipe 'rn50-stp-200'; did you mean rn50-stpp-200 or"),
        ("show demo-selfdistil", "unknown recipe 'demo-selfdistil'; did you mean demo-selfdistill"),
        ("compare demo-ct demo-sst --budget 1", "unknown recipe 'demo-sst'; did you mean demo-st"),
        ("evaluate {weights} --recipe demmo", "unknown recipe 'demmo'; did you mean demo?"),
        ("analyze delete-on x", "analyze delete-on: unknown; did you mean delete-one?"),
        ("train demo --optim.lrr 3", "--optim.lr FLOAT"),
        ("evaluate x --chekpoint best", "--checkpoint {best,last}"),
        ("analyze epochs x --outptu y", "--output"),
        ("nips22 --epohc 3", "unrecognized arguments: --epohc 3; did you mean --epoch?"),
        ("nips22 --st_loss DKDD", "choose from 'default', 'CE', 'CE_target', 'DKD', 'MSE'"),
        ("check demo --model.name restnet50", "model.name is 'restnet50'; did you mean resnet50"),
        ("train demo --model.name cifar_resnet65", "did you mean cifar_resnet56"),
        ("check demo --method.space spac1", "method.space is 'spac1'; did you mean space1"),
    ],
)
def test_a_name_mistyped_by_a_letter_is_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: str,
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": torch.zeros(1)}}, "weights.pt")
    status, out, err = run(capsys, *command.format(weights="weights.pt").split())
    text = " ".join((out + err).replace("│", " ").split())
    assert status == 2
    assert words in text
    assert len(text) < 1200
    assert sum(name in text.split() for name in RECIPES) < 5


def test_a_configuration_files_names_and_values_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for section, field, value, words in (
        ("optims", "lr", 1.0, "unknown section 'optims'; did you mean optim?"),
        ("method", "tempereture", 1.0, "unknown field method.tempereture; did you mean temperature?"),
        ("data", "val_rezize", 1, "unknown field data.val_rezize; did you mean val_resize?"),
        ("method", "name", "stimulativ", "method.name is 'stimulativ'; did you mean stimulative?"),
        ("data", "policy", "autoagment", "data.policy is 'autoagment'; did you mean autoaugment"),
    ):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({section: {field: value}}))
        status, _, err = run(capsys, "show", str(path))
        assert (status, words in err) == (2, True), err


def test_other_names_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="did you mean mobilenetv3_large_100"):
        create_model("mobilenetv3_large_10", 2)
    with pytest.raises(ConfigError, match=r"did you mean default\? allowed: default, space1"):
        ordered_space("defualt", (3, 4, 6, 3))


def test_long_values_are_cut_in_the_middle() -> None:
    path = "/disk/" + "folder/" * 100 + "images.jpg"
    for message in (
        f"cannot read {path}: gone",
        f"run.folder: cannot write to {path!r}: gone",
        f"x is {'two words ' * 60!r}; allowed: y",
    ):
        told = str(ConfigError(message))
        assert len(told) < LONGEST + 60
        assert "..." in told
        assert told.startswith(message[:20])
        assert told.endswith(message[-6:])
    assert "/disk/folder" in brief(path)
    assert brief(path).endswith("folder/images.jpg")
    assert len(cut("x" * 999)) <= LONGEST
    assert cut("x" * LONGEST) == "x" * LONGEST
    many = ", ".join(f"name{index}" for index in range(500))
    assert brief(many) == many
    assert str(ConfigError("a\x1b[31mb\x00c\n")) == "a\\x1b[31mb\\x00c\n"  # no command to a terminal
    between = f"unknown 'x'; allowed: {'words ' * 50}or a run's file"  # an apostrophe opens no value
    assert brief(between) == between
    assert str(error_of(3, "x" * 999)) == cut("x" * 999)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Run(name="/" * 3000),
        lambda: Run(profile="word " * 600),
        lambda: Data(policy="y" * 3000),  # type: ignore[arg-type]
        lambda: Data(mean=tuple(range(3000))),  # type: ignore[arg-type]
        lambda: from_dict({"z" * 3000: {}}),
        lambda: from_dict(to_dict(Config()) | {"recipe": "a/" * 3000}),
        lambda: ordered_space("9," * 3000, (3, 3, 3)),
    ],
)
def test_long_values_of_fields_are_cut(make: object) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "words",
    [
        *(["evaluate"], ["export", "--format", "timm", "-o", "y.pt"], ["watch"], ["report"], ["runs"]),
        *(["analyze", "epochs"], ["data", "check"], ["train"], ["check"], [], ["demo", "--x"]),
    ],
)
def test_long_arguments_are_cut(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """No argument fills the screen, whichever command it is given to."""
    at = 2 if words[:1] in (["analyze"], ["data"]) else 1
    with pytest.raises(SystemExit):
        main([*words[:at], "w" * 3000, *words[at:]])
    captured = capsys.readouterr()
    assert len(captured.out + captured.err) < 2500  # the longest lists all recipes
