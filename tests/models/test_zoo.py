"""The published models: the list, and fetching from a server on this machine."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from carafe_deploy.errors import DownloadError
from carafe_deploy.models import zoo

CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]
ENTRY = zoo.ZooEntry("tiny_model", "faster_rcnn", f"tiny_model-{DIGEST}.pth", 1.0, None, 1.0)
PATH = f"mmdetection/v2.0/carafe/tiny_model/{ENTRY.file_name}"


class Server(ThreadingHTTPServer):
    """Answers every request the way `mode` says, and counts them."""

    daemon_threads = True
    mode = "full"
    paths: list[str]
    base: str


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        mode = self.server.mode
        if mode == "404":
            self.send_error(404)
            return
        if mode == "silent":
            time.sleep(1.5)
            return
        body = {"wrong": CONTENT[::-1], "broken": CONTENT[: len(CONTENT) // 2]}.get(mode, CONTENT)
        self.send_response(200)
        if mode != "no length":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(zoo.BASE_URL_VARIABLE, raising=False)
    monkeypatch.setattr(zoo, "MODELS", (ENTRY,))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.paths = []
        server.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_model_card() -> None:
    faster, mask = zoo.MODELS
    assert (faster.box_ap, faster.mask_ap, faster.fps) == (38.6, None, 16.5)
    assert (mask.box_ap, mask.mask_ap, mask.fps) == (39.3, 35.8, 14.0)
    assert (faster.sha256_prefix, mask.sha256_prefix) == ("385a75b7", "8687f195")
    assert mask.url() == (
        "http://download.openmmlab.com/mmdetection/v2.0/carafe/mask_rcnn_r50_fpn_carafe_1x_coco/"
        "mask_rcnn_r50_fpn_carafe_1x_coco_bbox_mAP-0.393__segm_mAP-0.358_20200503_135957-"
        "8687f195.pth"
    )
    assert faster.file_name == (
        "faster_rcnn_r50_fpn_carafe_1x_coco_bbox_mAP-0.386_20200504_175733-385a75b7.pth"
    )


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn_r50_fpn_carafe_1x_coco",
        "mask-rcnn_r50_fpn-carafe_1x_coco",
        "Mask-RCNN_R50-FPN-CARAFE_1x_coco.py",
        "mask_rcnn_r50_fpn_carafe_1x_coco_bbox_mAP-0.393__segm_mAP-0.358_20200503_135957-"
        "8687f195.pth",
    ],
)
def test_spellings(name: str) -> None:
    assert zoo.find(name).name == "mask_rcnn_r50_fpn_carafe_1x_coco"


def test_unknown_name() -> None:
    with pytest.raises(
        DownloadError,
        match=r"called 'mask_rcnn_r50_carafe'\. Did you mean mask_rcnn_r50_fpn_carafe_1x_coco\? Pub"
        r"lished models: faster_rcnn_r50_fpn_carafe_1x_coco, mask_rcnn_r50_fpn_carafe_1x_coco",
    ):
        zoo.find("mask_rcnn_r50_carafe")


def test_name_like_nothing() -> None:
    with pytest.raises(DownloadError) as caught:
        zoo.find("x.onnx")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("mode", ["full", "no length"])
def test_fetch_once(cache: Path, server: Server, mode: str) -> None:
    server.mode = mode
    path = zoo.fetch("tiny_model", progress=False, base_url=server.base)
    assert path == cache / ENTRY.file_name
    assert path.read_bytes() == CONTENT
    assert [file.name for file in cache.iterdir()] == [ENTRY.file_name]
    assert zoo.fetch("tiny-model", progress=False, base_url=server.base) == path
    assert server.paths == [f"/{PATH}"]


def test_mirror_from_the_environment(
    cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(zoo.BASE_URL_VARIABLE, f"{server.base}/mirror/")
    zoo.fetch("tiny_model", progress=False)
    assert server.paths == [f"/mirror/{PATH}"]


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(
    cache: Path, server: Server, capfd: pytest.CaptureFixture[str], progress: bool
) -> None:
    zoo.fetch("tiny_model", progress=progress, base_url=server.base)
    captured = capfd.readouterr()
    assert ("100" in captured.err) == progress
    assert captured.out == ""


def test_a_damaged_file_in_the_cache_is_replaced(cache: Path, server: Server) -> None:
    cache.mkdir(parents=True)
    (cache / ENTRY.file_name).write_bytes(CONTENT[:10])
    assert zoo.fetch("tiny_model", False, server.base).read_bytes() == CONTENT


FAILURES = [
    ("404", r"answers 404 Not Found\. Check CARAFE_DEPLOY_ZOO_URL"),
    ("broken", "sent is incomplete or not the published file"),
    ("wrong", f"not the published file .*{DIGEST}"),
    ("silent", r"no connection to http://127\.0\.0\.1:\d+/mmdet.*/tiny_model-.*timed out"),
]


@pytest.mark.parametrize(("mode", "message"), FAILURES)
def test_nothing_is_left_after_a_failure(
    cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
) -> None:
    monkeypatch.setattr(zoo, "_TIMEOUT_SECONDS", 0.3)
    server.mode = mode
    with pytest.raises(DownloadError, match=message) as caught:
        zoo.fetch("tiny_model", progress=False, base_url=server.base)
    assert str(cache / ENTRY.file_name) in str(caught.value)
    assert list(cache.iterdir()) == []
    server.mode = "full"
    assert zoo.fetch("tiny_model", False, server.base).read_bytes() == CONTENT


def test_offline(cache: Path, server: Server) -> None:
    closed = Server(("127.0.0.1", 0), Handler)
    base = f"http://127.0.0.1:{closed.server_port}"
    closed.server_close()
    with pytest.raises(DownloadError) as caught:
        zoo.fetch("tiny_model", progress=False, base_url=base)
    message = str(caught.value)
    assert f"no connection to {base}/{PATH} (" in message
    assert "refused" in message
    assert f"Or download {base}/{PATH} elsewhere and put it at {cache}" in message
    assert list(cache.iterdir()) == []


def test_an_address_that_is_none(cache: Path) -> None:
    with pytest.raises(
        DownloadError, match=r"'nowhere/mmdet.*' is no address\. Check CARAFE_DEPLOY_ZOO"
    ):
        zoo.fetch("tiny_model", progress=False, base_url="nowhere")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(cache: Path, server: Server) -> None:
    cache.parent.parent.joinpath("hub").write_text("a file where a folder should be")
    with pytest.raises(DownloadError, match=r"cannot be written .*Set TORCH_HOME"):
        zoo.fetch("tiny_model", progress=False, base_url=server.base)
    assert server.paths == []


def test_interrupted(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.hub.shutil.move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        zoo.fetch("tiny_model", progress=False, base_url=server.base)
    assert list(cache.iterdir()) == []


def test_entry_of_a_file() -> None:
    mask = zoo.MODELS[1]
    assert zoo.entry_of(mask.file_name, "8687f195" + "0" * 56) == mask
    assert zoo.entry_of(mask.file_name, "0" * 64) is None
    assert zoo.entry_of("other-8687f195.pth", "8687f195" + "0" * 56) is None
