"""A configuration as a command: the real command line gives it back, in few words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fasttrain.cli.configure import configure
from fasttrain.command import command, nearest_recipe
from fasttrain.config import Config
from fasttrain.recipes import RECIPES, recipe


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("rn50-stpp-a1", "rn50-stpp-a1-published"),
        ("rn50-stpp-a2-published", "demo"),
        ("demo-ct", "rn50-stpp-a1"),  # no sides, other moments of the pixels
        ("cifar10-resnet56-st", "rn50-ct-100-published"),
    ],
)
def test_any_recipe_can_be_said_by_another(name: str, base: str) -> None:
    config = recipe(name)
    assert configure("show", command(config, base)) == replace(config, recipe=base)


def test_a_recipe_is_said_by_its_name() -> None:
    for name in RECIPES:
        assert command(recipe(name), name) == [name]
        nearest = recipe(nearest_recipe(recipe(name)))
        assert replace(nearest, recipe=name) == recipe(name)  # two names may have one configuration


def changed(**method: object) -> Config:
    config = recipe("rn50-stpp-a1-published")
    return replace(config, method=replace(config.method, **method))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((96,), ["96"]),
        ((96, 97), ["96", "97"]),
        ((96, 97, 98), ["96:98"]),
        ((64, 96, 97, 98, 128, 130, 131, 132, 133), ["64", "96:98", "128", "130:133"]),
        ((98, 97, 96), ["98", "97", "96"]),
    ],
)
def test_sides_are_written_as_ranges(sizes: tuple[int, ...], words: list[str]) -> None:
    config = changed(sizes=sizes)
    said = command(config, nearest_recipe(config))
    assert said == ["rn50-stpp-a1-published", "--method.sizes", *words]
    assert configure("show", said) == config


def test_words_with_spaces_and_switches() -> None:
    config = recipe("rn50-ct-200")
    config = replace(
        config,
        data=replace(config.data, train="/my images", shuffle=False),
        run=replace(config.run, name="", tensorboard=True),
    )
    said = command(config, "rn50-ct-200")
    assert said[1:] == ["--data.train", "/my images", "--data.no-shuffle", "--run.tensorboard"]
    assert configure("show", said) == config


def test_words_that_begin_like_options_are_taken_as_values() -> None:
    config = recipe("rn50-ct-200")
    config = replace(
        config, data=replace(config.data, train="-x/train"), run=replace(config.run, name="--fast")
    )
    said = command(config, "rn50-ct-200")
    assert said[1:] == ["--data.train=-x/train", "--run.name=--fast"]
    assert configure("show", said) == config
