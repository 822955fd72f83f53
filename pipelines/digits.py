"""Scikit-learn's handwritten digits as an image folder: real images for the demo, without a download."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from fasttrain.errors import ConfigError, DataError

IMAGES = 1797
"""Images of the data set: 8x8 scans of the digits 0 to 9 (UCI, Alpaydin and Kaynak 1998)."""
CLASSES = 10
SIDE = 32
"""Side of the written images, pixels."""
TEST_EVERY = 5
"""Every fifth image of a class is for testing."""


def write_digits(folder: str | Path) -> None:
    """Writes `train/<digit>/*.jpg` and `test/<digit>/*.jpg` under `folder`, unless they are there already.

    The split is about 80 to 20 in each class and always the same. The folder appears when it is complete,
    so that several processes may call this at once.

    Raises:
        ConfigError: scikit-learn or Pillow is not installed.
        DataError: `folder` holds something else.
    """
    target = Path(folder)
    if _is_complete(target):
        return
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        _write(temporary)
        temporary.chmod(0o755)  # mkdtemp's are private
        os.rename(temporary, target)
    except OSError as error:
        if not _is_complete(target):  # another process may have been first
            raise DataError(
                f"cannot write the digits to {target}: {error.strerror}; give a new folder"
            ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    return sum(1 for _ in folder.glob("t*/[0-9]/*.jpg")) == IMAGES


def _write(folder: Path) -> None:
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            f"the digits need scikit-learn and Pillow ({error}): pip install 'fasttrain[demo]'"
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    written: Counter[int] = Counter()
    for values, label in zip(pixels.reshape(-1, 8, 8), labels.tolist(), strict=True):
        part = "test" if written[label] % TEST_EVERY == TEST_EVERY - 1 else "train"
        path = folder / part / str(label) / f"{written[label]:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.rint(values * (255 / 16)).astype(np.uint8)
        image = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
        image.save(path, quality=95)
        written[label] += 1
