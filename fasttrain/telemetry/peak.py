"""What a GPU's matrix units could do at most: the denominator of MFU."""

from __future__ import annotations

import re

_RATES = (
    (r"NVIDIA (A100|A800)[- ].*", (312, 156, 19.5)),
    (r"NVIDIA H100 PCIe", (756, 378, 51)),
    (r"NVIDIA H100 NVL", (835, 417, 60)),
    (r"NVIDIA (H100 80GB HBM3|H100 SXM.*|H200)", (989, 494, 67)),
    (r"NVIDIA H200 NVL", (835, 417, 60)),
)
"""Dense TFLOP/s in bf16 or fp16, in TF32, and in float32 outside of the matrix units, by the vendor's data
sheets (half of what they give with sparsity). A MIG slice is none of these GPUs."""


def matrix_rate(gpu: str, precision: str = "bf16", tf32: bool = True) -> float | None:
    """FLOP/s at most; None for a GPU that is not known.

    Args:
        gpu: its name, as torch has it.
        precision: bf16, fp16 or fp32.
        tf32: whether float32 products run as TF32.
    """
    for pattern, rates in _RATES:
        if re.fullmatch(pattern, gpu) and "MIG" not in gpu:
            return 1e12 * rates[0 if precision != "fp32" else 1 if tf32 else 2]
    return None
