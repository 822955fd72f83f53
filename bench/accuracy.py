"""How accurate a kernel must be: as good as plain PyTorch in the same dtype, against float64."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, finfo

NATIVE_ERRORS = 2
ULPS = 4


class Comparison(NamedTuple):
    """One result of an operation on the same inputs, three times.

    Attributes:
        name: of the result.
        out: the operation's.
        native: plain PyTorch's in the same dtype.
        exact: plain PyTorch's in float64.
    """

    name: str
    out: Tensor
    native: Tensor
    exact: Tensor

    @property
    def error(self) -> float:
        """Largest absolute error of the operation; NaN where only one of both is finite."""
        return _largest_error(self.out, self.exact)

    @property
    def allowed(self) -> float:
        """Twice the native error, and 4 units in the last place of the largest value."""
        largest = self.exact.abs().max().item() if self.exact.numel() else 0.0
        return (
            NATIVE_ERRORS * _largest_error(self.native, self.exact)
            + ULPS * finfo(self.out.dtype).eps * largest
        )

    def check(self) -> None:
        """Raise unless the operation is accurate enough.

        Raises:
            AssertionError: with the error, what is allowed, and of which result.
        """
        if self.out.shape != self.exact.shape:
            raise AssertionError(
                f"{self.name}: shape {tuple(self.out.shape)}, expected {tuple(self.exact.shape)}"
            )
        if not self.error <= self.allowed:
            raise AssertionError(
                f"{self.name} ({self.out.dtype}, {tuple(self.out.shape)}): error {self.error:.3g}, "
                f"allowed {self.allowed:.3g}"
            )


def _largest_error(out: Tensor, exact: Tensor) -> float:
    return (out.double() - exact).abs().max().item() if exact.numel() else 0.0
