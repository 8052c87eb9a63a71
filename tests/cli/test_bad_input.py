"""Every bad input ends in one clear error, or in the right result; nothing is half-written."""

from __future__ import annotations

import os
import re
import shlex
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
from tests.engine.tiny import tiny_model

Run = Callable[..., Any]


def assert_error(outcome: Any, message: str) -> None:
    """Bad input: status 2, one error that says `message`, nothing on stdout or in the folder."""
    assert (outcome.status, outcome.out) == (2, ""), outcome.err
    errors = [line for line in outcome.err.splitlines() if not line.startswith("✓")]
    assert errors[0].startswith("error: ")
    assert re.search(message, "\n".join(errors)), outcome.err
    assert "Traceback" not in outcome.err
    assert list(Path().rglob("*")) == []


# --- options and names ---------------------------------------------------------------------------

#: Command line, with fixtures in braces, and what is said.
REFUSED = """
export missing.pth -o x.bin | --output is x.bin: let its name end in .onnx or .ts or .torchscript
export missing.pth -o x.ts --format onnx | --output is x.ts: let its name end in .onnx
export missing.pth -o x.ts --exporter dynamo | --exporter chooses between ONNX exporters
export missing.pth --size 64 | --size is '64': give height x width in pixels
export missing.pth --size 64x64 --min-size 64x64 | --size makes the size static
export missing.pth --batch many | --batch is 'many'
export work_dirs/epoch_12.pth | cannot read checkpoint work_dirs/epoch
export mask_rcnn_r50_fpn_karafe_1x_coco | neither a file nor a published model called \
    'mask_rcnn_r50_fpn_karafe_1x_coco'. Did you mean mask_rcnn_r50_fpn_carafe_1x_coco?
export {checkpoint} --size 100x128 | height 100 is not a multiple of 64: use 128
export {checkpoint} --min-size 128x128 --max-size 64x64 | height bounds are 128 to 64
export {checkpoint} --batch 0 | batch bounds are 0 to 0
export {checkpoint} --score-threshold 2 | score threshold is 2.0: give a number from 0 to 1
export {checkpoint} --max-detections 0 | maximum number of detections is 0
export {checkpoint} --exporter torchscript | offered for static shapes only
export {checkpoint} -o x.onnx --layout nchw | --layout nchw is of TorchScript, ONNX is NCHW
build missing.onnx --min 64x64 | --min is '64x64': give batch x height x width in pixels
build missing.onnx --max many | --max is 'many'
build missing.onnx --compute-capability sm_89 | --compute-capability is 'sm_89': give numbers
build missing.onnx -o x.onnx | --output is x.onnx: let its name end in .engine or .plan
build missing.onnx | missing.onnx does not exist: export it first
build {tiny} --opt 1x64x65 | width 65 of the profile is not a multiple of 64: use 128
build {tiny} --max 64x64x64 | batch 64 of the profile lies outside the model
build {tiny} --flavour tensorrt --compute-capability 8.6 | builds for the GPU of this
inspect x.tflite | x.tflite has the suffix '.tflite': give one of .pth
inspect x.pth | cannot read checkpoint x.pth
inspect x.ts | x.ts does not exist: export it first
inspect x.onnx | x.onnx does not exist: export it first
inspect x.engine | x.engine does not exist: build it with
detect {ts_file} none.jpg | none.jpg does not exist: name an image
detect {ts_file} none/*.jpg | none/*.jpg matches no image
detect {checkpoint} {image} --mode cuda-graph | mode cuda-graph needs a GPU, device is cpu: give \
    --device cuda
parity {ts_file} {ts_file} --levels boxes | there is no level 'boxes' of parity: choose from
parity {ts_file} {ts_file} --levels ap | parity of AP needs annotations
parity {ts_file} {ts_file} --config config.py | --config config.py does not fit:
parity {ts_file} {ts_file} --images none.png | none.png does not exist
parity {ts_file} {ts_file} --stages --levels detections | --stages looks at intermediate tensors \
    alone, so --levels detections
parity {ts_file} {ts_file} --bisect --levels detections | --bisect looks at intermediate tensors \
    alone, so --levels detections
parity {ts_file} {faster_checkpoint} | these are different models
eval {ts_file} --annotations none.json --images {val} | annotation file none.json does not exist
eval {ts_file} {annotated} --images none | 5 of 5 annotated images are missing, none/000001.png
eval {ts_file} {annotated} --images {val} --config config.py | --config config.py does not fit:
bench -o r | nothing to measure: name artefacts, or operators with --op
bench none.onnx -o r | none.onnx does not exist
bench {checkpoint} --rounds 0 -o r | greater than or equal to 1
bench {checkpoint} --rounds -4 -o r | greater than or equal to 1
bench {checkpoint} --batch-sizes 1,x -o r | --batch-sizes is '1,x': give numbers
bench {checkpoint} --batch-sizes '' -o r | --batch-sizes is '': give numbers
bench {checkpoint} --batch-sizes 0,1 -o r | batch sizes is 0: give at least 1
bench {checkpoint} --mode fast -o r | modes holds 'fast': choose from eager
bench {checkpoint} --random 640 -o r | --random is '640': give HEIGHTxWIDTH
bench {checkpoint} --random 6x4 --images x.png -o r | exclude each other
bench {checkpoint} --images none.png -o r | none.png
bench {checkpoint} --full -o r | --full belongs to --op
bench {checkpoint} --op nms -o r | --op measures operators alone: drop 1 artefact
bench --op conv -o r | conv
bench {checkpoint} {faster_checkpoint} --rounds 1 | different models or settings: architecture is \
    mask_rcnn and faster_rcnn
"""


def _words(request: pytest.FixtureRequest, line: str) -> list[str]:
    """Of a command line of :data:`REFUSED`."""
    val = request.getfixturevalue("shapes_dir") / "val"
    here = {
        "val": str(val),
        "image": str(val / "000001.png"),
        "annotated": f"--annotations {val}.json --limit 5",
        "tiny": str(request.getfixturevalue("tmp_path") / "tiny.onnx"),
    }
    if "{tiny}" in line:
        tiny_model(Path(here["tiny"]))
    names = set(re.findall(r"{(\w+)}", line)) - set(here)
    return shlex.split(line.format(**here, **{n: request.getfixturevalue(n) for n in names}))


@pytest.mark.parametrize(
    ("line", "message"),
    [case.split(" | ") for case in re.sub(" +", " ", REFUSED).strip().split("\n")],
)
def test_refused_before_anything_is_written(
    run: Run,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    message: str,
) -> None:
    if "{tiny}" in line:  # whatever is installed
        monkeypatch.setattr("carafe_deploy.engine.flavours.Flavour.load", lambda self: None)
    run(*_words(request, line)).assert_refused(message)
    assert list(Path().iterdir()) == []


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

    write = Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        write(path, b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert_error(run("export", checkpoint, "-o", target), "No space left on device")
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == {"x.ts": b"before"}


# --- images: errors ------------------------------------------------------------------------------


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
