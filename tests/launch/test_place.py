"""The variables that tell a process its place: wrong ones are told alike by each command."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.launch import place
from fasttrain.pipelines.loader import dali_threads
from tests.test_cli import run

NAMES = {
    "RANK": place.rank,
    "LOCAL_RANK": place.local_rank,
    "WORLD_SIZE": place.world,
    "LOCAL_WORLD_SIZE": place.local_world,
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_a_process_alone_is_the_first_of_one() -> None:
    assert (place.rank(), place.world(), place.local_rank(), place.local_world()) == (0, 1, 0, 1)
    assert place.is_first()


def test_torchruns_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 5), ("WORLD_SIZE", 8), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    assert (place.rank(), place.world(), place.local_rank(), place.local_world()) == (5, 8, 1, 4)
    assert not place.is_first()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["", "x", "-1", "1.0", "\u0663", " 0", "99999999999999999999"])
def test_wrong_variables_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Whoever meets it tells it, since it may not know whether it is the first."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"the environment's {name} is ") as caught:
        NAMES[name]()
    assert caught.value.speaks


@pytest.mark.parametrize("value", ["", "x"])
def test_the_loader_names_a_wrong_number_of_processes(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
    with pytest.raises(ConfigError, match=f"LOCAL_WORLD_SIZE is '{value}'; allowed: 1 to "):
        dali_threads(Data())


@pytest.mark.parametrize(
    ("variables", "words", "told"),
    [
        ({"RANK": ""}, "nips22 --exp x --data /x --print-command", "the environment's RANK is ''"),
        ({"RANK": "x"}, "nips22 --exp x --data /x", "the environment's RANK is 'x'"),
        ({"WORLD_SIZE": ""}, "analyze epochs x", "the environment's WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "x"}, "compare demo-ct demo-st --budget 1", "the environment's WORLD_SIZE is 'x'"),
        ({"RANK": ""}, "train nix", "unknown recipe 'nix'"),
        ({"RANK": "x"}, "runs /nowhere", "the folder of runs is /nowhere"),
        ({"RANK": "\u0661"}, "runs /nowhere", "the folder of runs is /nowhere"),
    ],
)
def test_each_command_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    words: str,
    told: str,
) -> None:
    """A mistake is not silent because the rank is none."""
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, _, err = run(capsys, *words.split())
    assert status == 2
    assert told in err
    assert len(err.splitlines()) == 1
