"""Every kernel compiles for A100 and H100/H200 without a GPU, keeps its values in registers, and fits."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import rest_heavy

ROOT = Path(__file__).parent.parent.parent
OPERATIONS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/op.py"))


TARGETS = rest_heavy(
    "80-float32", "90-float16", "90-bfloat16", "80-float16", "80-bfloat16", "90-float32", first=3
)


@pytest.fixture(scope="module", params=TARGETS)
def binaries(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """All kernels for an architecture (80: A100; 90: H100, H200) and a dtype."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_kernels", *request.param.split("-")],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_kernel_is_compiled(binaries: list[dict[str, Any]]) -> None:
    compiled = {(b["operation"], b["kernel"]) for b in binaries}
    expected = {(operation, kernel) for operation in OPERATIONS for kernel in kernels_of(operation)}
    assert expected <= compiled, sorted(expected - compiled)


def test_no_kernel_spills_registers(binaries: list[dict[str, Any]]) -> None:
    assert [b for b in binaries if b["spilled"]] == []


def test_two_blocks_of_every_kernel_fit_on_a_multiprocessor(binaries: list[dict[str, Any]]) -> None:
    """An A100's or H100's has 65,536 registers; with one block, its loads would wait for its own sums."""
    assert [b for b in binaries if 2 * b["registers"] * b["threads"] > 65536] == []


def kernels_of(operation: str) -> set[str]:
    """Names of the kernels that an operation launches: functions called `*_kernel` in its triton.py."""
    tree = ast.parse((ROOT / "kernels" / operation / "triton.py").read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {name for name in functions if name.endswith("_kernel")}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_its_files(operation: str) -> None:
    """A specification, a test file, and an entry in the benchmark."""
    from bench.checks import OPERATIONS as MEASURED

    for path in (
        f"kernels/{operation}/reference.py",
        f"kernels/{operation}/triton.py",
        f"kernels/{operation}/op.py",
        f"tests/kernels/test_{operation}.py",
        f"bench/kernels/{operation}.py",
    ):
        assert (ROOT / path).is_file(), path
    assert operation in MEASURED
    assert kernels_of(operation)


def test_every_folder_of_kernels_is_an_operation() -> None:
    folders = {path.name for path in (ROOT / "kernels").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(OPERATIONS)
