"""Every bad input ends in one clear error, or in the right result; nothing is half-written."""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from carafe_deploy.images import load_image

Run = Callable[..., Any]


def assert_error(outcome: Any, message: str) -> None:
    """Bad input: status 2, one error that says `message`, nothing on stdout or in the folder."""
    assert (outcome.status, outcome.out) == (2, ""), outcome.err
    errors = [line for line in outcome.err.splitlines() if not line.startswith("✓")]
    assert errors[0].startswith("error: ")
    assert re.search(message, "\n".join(errors)), outcome.err
    assert "Traceback" not in outcome.err
    assert list(Path().rglob("*")) == []


# --- checkpoints ---------------------------------------------------------------------------------


class Owned:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_pickle_with_code_is_refused_and_not_run(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "meta": Owned(tmp_path / "owned")}, path)
    assert_error(
        run("export", path), r"names posix\.system, which weights do not need\. It was refused"
    )
    assert not (tmp_path / "owned").exists()


def test_checkpoint_of_another_architecture(run: Run, tmp_path: Path) -> None:
    weights = {
        "backbone.conv1.weight": torch.zeros(64, 3, 7, 7),
        "bbox_head.retina_cls.weight": torch.zeros(720, 256, 3, 3),
        "bbox_head.retina_reg.weight": torch.zeros(36, 256, 3, 3),
    }
    torch.save({"state_dict": weights}, tmp_path / "retinanet.pth")
    assert_error(
        run("export", tmp_path / "retinanet.pth"),
        "supported are Faster R-CNN and Mask R-CNN with a ResNet backbone and FPN_CARAFE",
    )


def test_wrong_number_of_classes(
    run: Run, checkpoint: Path, shapes_configs: dict[str, str], tmp_path: Path
) -> None:
    text = shapes_configs["shapes_mask_rcnn_carafe"]
    (tmp_path / "config.py").write_text(text.replace("num_classes=3", "num_classes=5"))
    assert_error(
        run("export", checkpoint, "--config", tmp_path / "config.py"),
        r"num_classes=5, but the checkpoint's weights have 3 classes",
    )


def test_config_with_unsupported_settings(
    run: Run, checkpoint: Path, shapes_configs: dict[str, str], tmp_path: Path
) -> None:
    text = shapes_configs["shapes_mask_rcnn_carafe"]
    (tmp_path / "config.py").write_text(text.replace("type='ResNet'", "type='ResNeXt'"))
    assert_error(
        run("export", checkpoint, "--config", tmp_path / "config.py"),
        r"model\.backbone\.type='ResNeXt' is not supported; supported: ResNet",
    )


def test_unknown_model_name(run: Run) -> None:
    assert_error(
        run("export", "mask_rcnn_r50_fpn_karafe_1x_coco"),
        "neither a file nor a published model called 'mask_rcnn_r50_fpn_karafe_1x_coco'"
        r"\. Did you mean mask_rcnn_r50_fpn_carafe_1x_coco\?",
    )


def test_missing_checkpoint(run: Run) -> None:
    assert_error(run("export", "work_dirs/epoch_12.pth"), "cannot read checkpoint work_dirs/epoch")


# --- truncated files -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".pth", r"is empty: download|is truncated, damaged or no PyTorch checkpoint"),
        (".onnx", r"cannot be loaded by ONNX Runtime|holds no carafe_deploy metadata"),
        (".ts", r"cannot be loaded as TorchScript"),
    ],
)
def test_truncated_file(
    request: pytest.FixtureRequest,
    run: Run,
    images: Path,
    tmp_path: Path,
    suffix: str,
    share: float,
    message: str,
) -> None:
    names = {".pth": "checkpoint", ".onnx": "onnx_file", ".ts": "ts_file"}
    whole = request.getfixturevalue(names[suffix]).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(share * len(whole))])
    assert_error(run("detect", path, images), message)


@pytest.mark.parametrize("suffix", [".onnx", ".ts", ".pth"])
def test_artefact_that_is_something_else(
    run: Run, images: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"page{suffix}"
    path.write_text("<!doctype html><title>404</title>")
    assert_error(run("detect", path, images), f"page{suffix}.* (cannot be loaded|is a web page)")


def test_artefact_of_unknown_kind(run: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "detector.tflite").write_bytes(b"x")
    assert_error(
        run("detect", tmp_path / "detector.tflite", images),
        r"has the suffix '\.tflite': give one of \.pth",
    )


def test_engine_without_its_sidecar(run: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "detector.engine").write_bytes(b"x")
    assert_error(
        run("detect", tmp_path / "detector.engine", images),
        r"detector\.engine\.json is missing: copy it along with the engine",
    )


# --- outputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.onnx", "x.ts"])
@pytest.mark.parametrize("folder", ["file", "/proc"])
def test_unwritable_export(
    run: Run, checkpoint: Path, tmp_path: Path, folder: str, name: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / folder / name
    exporter = ["--exporter", "torchscript"] if name == "x.onnx" else []
    outcome = run("export", checkpoint, "-o", target, "--size", "64x64", *exporter)
    assert_error(outcome, f"cannot write {target}: .*: choose another output path")
    assert (tmp_path / "file").read_text() == "in the way"


def test_export_onto_a_folder_named_like_a_file(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x.ts").mkdir()
    outcome = run("export", checkpoint, "-o", tmp_path / "x.ts", "--format", "torchscript")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "x.ts" / "shapes_mask_rcnn_carafe.ts").is_file()


@pytest.mark.parametrize("command", ["detect", "eval", "parity"])
def test_unwritable_results(
    run: Run, ts_file: Path, shapes_dir: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "x"
    image = shapes_dir / "val" / "000001.png"
    arguments = {
        "detect": [ts_file, image],
        "eval": [
            ts_file, "--annotations", shapes_dir / "val.json", "--images", shapes_dir / "val",
            "--limit", 1,
        ],
        "parity": [ts_file, ts_file, "--images", image, "--levels", "detections"],
    }  # fmt: skip
    assert_error(
        run(command, *arguments[command], "-o", target),
        f"cannot write {target}.*: choose another output path",
    )
    assert (tmp_path / "file").read_text() == "in the way"


def test_pictures_do_not_overwrite_images(run: Run, ts_file: Path, images: Path) -> None:
    before = (images / "000001.png").read_bytes()
    assert_error(run("detect", ts_file, images, "-o", images), "would overwrite the image")
    assert (images / "000001.png").read_bytes() == before


def test_a_failing_export_keeps_the_file_that_was_there(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "x.ts"
    target.parent.mkdir()
    target.write_bytes(b"before")

    def fail(module: object, path: str, **settings: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.jit.save", fail)
    assert_error(run("export", checkpoint, "-o", target), "No space left on device")
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == {"x.ts": b"before"}


# --- images: errors ------------------------------------------------------------------------------


def test_missing_image(run: Run, ts_file: Path) -> None:
    assert_error(run("detect", ts_file, "none.jpg"), r"none\.jpg does not exist: name an image")


def test_glob_without_match(run: Run, ts_file: Path) -> None:
    assert_error(run("detect", ts_file, "none/*.jpg"), r"none/\*\.jpg matches no image")


def test_empty_folder(run: Run, ts_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_error(run("detect", ts_file, tmp_path / "empty"), "empty holds no image: put ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no image", "cannot decode image"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", "is a truncated JPEG"),
    ],
)
def test_unreadable_image(
    run: Run, ts_file: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    assert_error(run("detect", ts_file, tmp_path / "bad.jpg"), f"image .*bad.jpg.*|{message}")


def test_only_unreadable_images(run: Run, ts_file: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    assert_error(
        run("detect", ts_file, tmp_path), r"none of 2 images can be read, .* image .*a\.jpg"
    )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_one_unreadable_image_does_not_cost_the_others(
    run: Run, ts_file: Path, images: Path, batch_size: int
) -> None:
    (images / "000002.png").write_bytes(b"no image")
    outcome = run("detect", ts_file, images, "--batch-size", batch_size, "--json")
    assert outcome.status == 2
    assert re.search(r"error: 1 of 3 images left out, .*\n  .*000002\.png", outcome.err)
    assert [Path(image["picture"]).name for image in outcome.json["images"]] == [
        "000001.png",
        "000003.png",
    ]
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "000001.png",
        "000003.png",
        "detections.json",
    ]


# --- images: right results -----------------------------------------------------------------------


def detections(run: Run, artefact: Path, path: Path) -> tuple[dict[str, Any], list[list[float]]]:
    """Entry of the one image, and the boxes found in it."""
    outcome = run("detect", artefact, path, "--json")
    assert outcome.status == 0, outcome.err
    [image] = outcome.json["images"]
    drawn = load_image(image["picture"])
    assert drawn.shape == (image["height"], image["width"], 3)
    return image, [entry["bbox"] for entry in outcome.json["annotations"]]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10_000, 50), (50, 10_000), (10_000, 1)])
def test_extreme_sizes(run: Run, ts_file: Path, tmp_path: Path, width: int, height: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "extreme.png"), noise)
    image, boxes = detections(run, ts_file, tmp_path / "extreme.png")
    assert (image["width"], image["height"]) == (width, height)
    for x, y, box_width, box_height in boxes:
        assert 0 <= x <= x + box_width <= width * 1.001
        assert 0 <= y <= y + box_height <= height * 1.001


@pytest.fixture
def grey(shapes_dir: Path, tmp_path: Path) -> Path:
    """A validation image without its colours, still three channels."""
    path = tmp_path / "grey.png"
    plane = cv2.cvtColor(load_image(shapes_dir / "val" / "000001.png"), cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(path), cv2.merge([plane] * 3))
    return path


def test_grayscale_counts_as_three_equal_channels(
    run: Run, ts_file: Path, grey: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "plane.png"), load_image(grey)[:, :, 0])
    assert cv2.imread(str(tmp_path / "plane.png"), cv2.IMREAD_UNCHANGED).ndim == 2
    expected = detections(run, ts_file, grey)[1]
    assert expected
    assert detections(run, ts_file, tmp_path / "plane.png")[1] == expected


def test_alpha_is_dropped(run: Run, ts_file: Path, images: Path, tmp_path: Path) -> None:
    colours = load_image(images / "000001.png")
    alpha = np.full(colours.shape[:2], 7, np.uint8)
    cv2.imwrite(str(tmp_path / "rgba.png"), np.dstack((colours, alpha)))
    expected = detections(run, ts_file, images / "000001.png")[1]
    assert expected
    assert detections(run, ts_file, tmp_path / "rgba.png")[1] == expected


def test_exif_rotation_is_honoured(run: Run, ts_file: Path, images: Path, tmp_path: Path) -> None:
    turned = cv2.rotate(load_image(images / "000001.png"), cv2.ROTATE_90_COUNTERCLOCKWISE)
    jpeg = cv2.imencode(".jpg", turned)[1]
    path = tmp_path / "lying.jpg"
    path.write_bytes(with_orientation(jpeg.tobytes(), 6))  # 6: turn right to show
    upright = cv2.rotate(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.ROTATE_90_CLOCKWISE)
    cv2.imwrite(str(tmp_path / "upright.png"), upright)
    image, boxes = detections(run, ts_file, path)
    assert (image["width"], image["height"]) == (150, 100)
    assert boxes == detections(run, ts_file, tmp_path / "upright.png")[1] != []


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Insert an EXIF segment that holds nothing but the orientation."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_zero_detections(run: Run, blind_file: Path, images: Path) -> None:
    outcome = run("detect", blind_file, images)
    assert outcome.status == 0, outcome.err
    assert "0 detections with score ≥ 0.3 in 3 images" in outcome.out
    assert outcome.out.splitlines()[1].split()[2:] == ["0", "none"]
    assert detections(run, blind_file, images / "000001.png")[1] == []
    for path in images.iterdir():
        assert (load_image(Path("out") / path.name) == load_image(path)).all()


def test_other_files_in_a_folder_are_left_alone(run: Run, ts_file: Path, images: Path) -> None:
    shutil.copy(images / "000001.png", images / ".hidden.png")
    (images / "notes.txt").write_text("no image")
    assert len(run("detect", ts_file, images, "--json").json["images"]) == 3
