"""Networks as files for other programs: the published code, timm, torchvision, safetensors, ONNX."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import write_whole
from .compat.weights import check_form, to_form
from .errors import ConfigError
from .models import StagedNetwork
from .telemetry import files

ONNX_OPSET = 18
"""Version of the operators in ONNX files."""

About = Mapping[str, str]
"""What a file says of its network (`trained.metadata`)."""


def write_published(network: StagedNetwork, path: Path, about: About | None = None) -> None:
    """Write a file as the published code's `save_checkpoint` does, without the optimizer: `--resume` cannot
    read it, `test_only` can.

    Args:
        network: made by `create_model`; ResNet-50, 101 or 152.
        path: a new file, or one to replace.
        about: epochs done and Top-1 are taken from it.

    Raises:
        ConfigError: the published code has no such network.
        CheckpointError: the file cannot be written.
    """
    weights, about = _weights(network, "published"), about or {}
    epoch, top1 = int(about.get("epoch", 0)), float(about.get("top1", 0.0))
    state = {"epoch": epoch - 1, "state_dict": weights, "model": weights, "best_acc1": top1}
    _save(state, path)


def write_timm(network: StagedNetwork, path: Path, about: About | None = None) -> None:
    """Write a state dict that timm's network of this name and these blocks per stage loads.

    Raises:
        ConfigError: timm has no such network.
        CheckpointError: the file cannot be written.
    """
    _save(_weights(network, "timm"), path)


def write_torchvision(network: StagedNetwork, path: Path, about: About | None = None) -> None:
    """Write a state dict that torchvision's network loads.

    Its MobileNetV3 has another eps in its batch norms; their weights are scaled so that it computes the same.

    Raises:
        ConfigError: torchvision has no such network.
        CheckpointError: the file cannot be written.
    """
    _save(_weights(network, "torchvision"), path)


def write_safetensors(network: StagedNetwork, path: Path, about: About | None = None) -> None:
    """Write weights in our names, which are timm's, and what is known about them.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from safetensors.torch import save

    content = save(_weights(network, ""), metadata={"format": "pt", **(about or {})})
    write_whole(path, lambda file: file.write(content))


def write_onnx(
    network: StagedNetwork, path: Path, about: About | None = None, *, side: int = 224, batch: int = 0
) -> None:
    """Write an ONNX graph in float32: `images` [B, 3, side, side], normalized, to `logits` [B, num_classes].

    Args:
        network: with timm's layers, not fused ones.
        path: a new file, or one to replace.
        about: goes into its metadata.
        side: of the images, pixels.
        batch: B; 0: any.

    Raises:
        ConfigError: the extra onnx is not installed.
        CheckpointError: the file cannot be written.
    """
    require_onnx()
    import onnx

    plain = copy.deepcopy(network).to("cpu", torch.float32).to(memory_format=torch.contiguous_format).eval()
    images = torch.zeros(batch or 2, 3, side, side)  # of one image, a batch axis would be taken for fixed
    shapes = ({} if batch else {0: torch.export.Dim("batch")},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own parts
        program = torch.onnx.export(
            plain,
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=ONNX_OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=shapes,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(about or {}))
    onnx.checker.check_model(model)
    write_whole(path, lambda file: file.write(model.SerializeToString()))


def require_onnx() -> None:
    """Look for what torch needs to write ONNX.

    Raises:
        ConfigError: the extra onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        message = "--format is onnx; allowed with the extra onnx: uv pip install -e '.[onnx]'"
        raise ConfigError(message) from None


def _weights(network: StagedNetwork, form: str) -> dict[str, Tensor]:
    if form:
        check_form(form, network.name, network.depths)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in to_form(network, form).items()}


def _save(state: dict[str, Any], path: Path) -> None:
    write_whole(path, lambda file: torch.save(state, file))


@dataclass(frozen=True, slots=True)
class Format:
    """How a file is written, and how its name may end."""

    write: Callable[..., None]
    suffixes: tuple[str, ...]


_TORCH = (".pt", ".pth", ".tar")
FORMATS = {
    "published": Format(write_published, _TORCH),
    "timm": Format(write_timm, _TORCH),
    "torchvision": Format(write_torchvision, _TORCH),
    "safetensors": Format(write_safetensors, (".safetensors",)),
    "onnx": Format(write_onnx, (".onnx",)),
}


def check_output(path: Path, suffixes: Sequence[str], *, force: bool) -> None:
    """Whether a file can be written, and is new.

    Raises:
        ConfigError: another suffix, a folder that does not exist or cannot be written to, or a file that
            exists, without `force`.
    """
    if path.suffix not in suffixes:
        raise ConfigError(f"-o is {path}; allowed for this format: a file ending in {', '.join(suffixes)}")
    files.check_output("-o", path)
    if os.path.lexists(path) and not force:
        raise ConfigError(f"-o is {path}, which exists; allowed: another file, or --force")
