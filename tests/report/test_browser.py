"""The report in a real browser without a network: it renders, asks nobody, complains of nothing, and fits."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasttrain.report import write_report
from tests.report.runs import EVALUATION, SUBNETS, TRAIN, write_run

BROWSER = next(
    filter(
        None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"))
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium to open the report in (apt-get install chromium-headless-shell)"
)

MEASURE = """<script>addEventListener("load", () => {
  const root = document.documentElement, pictures = [...document.querySelectorAll("svg")];
  root.setAttribute("data-measured", [
    root.scrollWidth, innerWidth, performance.getEntriesByType("resource").length,
    document.querySelectorAll("svg path").length,
    Math.min(...pictures.map(one => one.getBoundingClientRect().width)),
  ].join(" "));
});</script>"""


def browse(folder: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page; stderr has the console's lines."""
    assert BROWSER is not None
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'browser'}"]
    plain = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command = [BROWSER, *plain, *offline, *options, page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs, with long names and words."""
    folder = tmp_path_factory.mktemp("report")
    records = [*TRAIN, EVALUATION, SUBNETS]
    runs = [
        write_run(
            folder / "a-run-whose-name-goes-on-and-on-without-a-space-that-a-line-could-break-at",
            records=records,
        ),
        write_run(
            folder / "b",
            records=records,
            status={"state": "failed", "message": "x" * 300, "exit_status": 1},
            environment={"machine": "y" * 200},
        ),
    ]
    return write_report(runs, folder / "report.html")


@pytest.mark.parametrize("dark", [False, True])
def test_a_screenshot(page: Path, tmp_path: Path, dark: bool) -> None:
    """Not blank, in the colours of the screen, and nothing that the console complains of."""
    picture = tmp_path / "page.png"
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    result = browse(tmp_path, page, "--window-size=1200,1600", f"--screenshot={picture}", *scheme)
    assert "CONSOLE" not in result.stderr
    pixels = Image.open(picture).convert("RGB")
    assert pixels.size == (1200, 1600)
    counts = Counter(np.asarray(pixels).reshape(-1, 3).dot((1 << 16, 1 << 8, 1)).tolist())
    ((most, count),) = counts.most_common(1)
    assert most == (0x15181C if dark else 0xFFFFFF)
    assert count < 0.95 * 1200 * 1600
    assert counts[0x3F83C9] > 100
    assert counts[0xD9772B] > 100


@pytest.mark.parametrize("width", [400, 1300])
def test_it_fits_the_window_and_loads_nothing(page: Path, tmp_path: Path, width: int) -> None:
    """Measured by a script in a copy without its policy, which would let it load whatever it names."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", MEASURE + "</body>"))
    result = browse(tmp_path, copy, f"--window-size={width},900", "--dump-dom")
    measured = re.search(r'data-measured="([^"]*)"', result.stdout)
    assert measured is not None
    scroll, inner, resources, paths, narrowest = map(float, measured[1].split())
    assert scroll <= inner <= width
    assert resources == 0
    assert paths > 100
    assert narrowest > 250


def test_its_policy_holds(page: Path, tmp_path: Path) -> None:
    """A script that got into the page would not run."""
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text().replace("</body>", MEASURE + "</body>"))
    result = browse(tmp_path, copy, "--dump-dom")
    assert "data-measured=" not in result.stdout.partition("<script>")[0]
    assert "Content Security Policy" in result.stderr


def test_it_prints(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "page.pdf"
    browse(tmp_path, page, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert len(pdf.read_bytes()) > 20_000
