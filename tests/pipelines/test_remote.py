"""Images in an object store: DALI reads them from a stand-in for S3 on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from fasttrain.config import Data
from fasttrain.errors import ConfigError, DataError
from fasttrain.pipelines.check import list_images
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.manifest import check_presence, open_images
from tests.pipelines.loaders import eval_loader

from ..test_cli import run

pytestmark = pytest.mark.pipelines

DATA = Data(val_resize=32, val_crop=32, threads=2)


class Store(BaseHTTPRequestHandler):
    """Answers for objects in the bucket `bucket`, whole or in ranges."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, *rest: object) -> None:
        self.root = root
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.root / self.path.removeprefix("/bucket/")
        body, status, total = b"", 404, 0
        if path.is_file():
            body, status = path.read_bytes(), 200
            total = len(body)
        asked = self.headers.get("Range")
        start = 0
        if asked and status == 200:
            first, last = asked.removeprefix("bytes=").split("-")
            start, status = int(first), 206
            body = body[start : int(last) + 1 if last else None]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{total}")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *rest: object) -> None:
        pass


@contextmanager
def store(root: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Store, root))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pixels(images: ImageFolder) -> torch.Tensor:
    batches = eval_loader(DATA, images, batch=16, device=torch.device("cpu"), dtype=torch.float32)
    return torch.cat([batch.images for batch in batches])


def read_remotely(manifest: str, output: str) -> None:
    """In a process of its own: DALI's client keeps the address it was first used with."""
    images = open_images(manifest)
    check_presence(images)
    try:
        torch.save(pixels(images), output)
    except DataError as error:
        print(error)


def test_remote_files_are_read_and_bad_ones_named(
    photos: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, output = tmp_path / "m.jsonl", tmp_path / "pixels.pt"
    status, _, err = run(
        capsys, "data", "check", photos.root, "-o", str(manifest), "--root", "s3://bucket/photos"
    )
    assert status == 0, err
    (tmp_path / "photos").symlink_to(photos.root)
    with store(tmp_path) as address:
        remote = (address, str(manifest), str(output))
        assert remotely(*remote) == ""
        assert torch.equal(torch.load(output, weights_only=True), pixels(photos))
        (tmp_path / "photos").unlink()
        assert f"image s3://bucket/photos/{photos.files[0]} cannot be" in remotely(*remote)


def remotely(address: str, *arguments: str) -> str:
    code = f"from tests.pipelines.test_remote import read_remotely\nread_remotely{arguments!r}"
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
    environment = os.environ | keys | {"AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true"}
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment, cwd=root
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_what_dali_cannot_read_is_refused(
    photos: ImageFolder, packed: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, root in ((photos.root, "gs://bucket/x"), (packed.root, "s3://bucket/x")):
        status, _, err = run(capsys, "data", "check", source, "-o", str(tmp_path / "m"), "--root", root)
        assert (status, "allowed: s3://BUCKET/FOLDER, for files that are not in tars" in err) == (2, True)
    run(capsys, "data", "check", photos.root, "-o", str(tmp_path / "m"), "--root", "s3://bucket/x")
    with pytest.raises(ConfigError, match="allowed: local ones, before their upload"):
        list_images(tmp_path / "m")
