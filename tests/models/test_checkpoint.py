"""Checkpoints of several kinds load into the detector they belong to; others are refused."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carafe_deploy.errors import CheckpointError, ConfigError
from carafe_deploy.models import zoo
from carafe_deploy.models.checkpoint import check_state_dict, load_checkpoint, load_detector
from carafe_deploy.models.config import BackboneConfig, UpsampleConfig
from carafe_deploy.types import Preprocessing

FASTER = "shapes_faster_rcnn_carafe-2a9d7f44.pth"
MASK = "shapes_mask_rcnn_carafe-fbec7e06.pth"
Content = dict[str, Any]


@pytest.fixture(scope="module")
def published(shapes_dir: Path) -> Content:
    return torch.load(shapes_dir / MASK, weights_only=True)


@pytest.fixture
def content(published: Content) -> Content:
    """A checkpoint's content that a test may change."""
    return {"meta": dict(published["meta"]), "state_dict": dict(published["state_dict"])}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(content: Any, name: str = "epoch_24.pth", **options: Any) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.onnx", "an ONNX file"), ("x.ts", "a TorchScript file"), ("x.engine", "an engine")],
)
def test_another_kind_of_file_is_known_by_its_suffix(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x0a")
    with pytest.raises(CheckpointError, match=rf"{name} is {kind}, which was made from a checkpo"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", [FASTER, MASK])
def test_published_checkpoints(shapes_dir: Path, name: str) -> None:
    detector, checkpoint = load_detector(shapes_dir / name, num_classes=3)
    config = checkpoint.config
    assert config.architecture == ("mask_rcnn" if name == MASK else "faster_rcnn")
    assert config.backbone == BackboneConfig(depth=18, base_channels=16)
    assert config.neck.upsample == UpsampleConfig(compressed_channels=16)
    assert config.preprocessing == Preprocessing(scale=(160, 128))
    assert config.classes == ("circle", "square", "triangle")
    assert checkpoint.name == name[:-13]
    assert checkpoint.sha256 == hashlib.sha256((shapes_dir / name).read_bytes()).hexdigest()
    assert checkpoint.source == {"file": name, "sha256": checkpoint.sha256}
    assert checkpoint.notes == ()
    assert not detector.training
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    stored = torch.load(shapes_dir / name, weights_only=True)["state_dict"]
    loaded = detector.state_dict()
    assert list(loaded) == list(stored)
    assert all(torch.equal(loaded[key], stored[key]) for key in stored)


def _bare(content: Content) -> Any:
    return content["state_dict"]


def _under_model(content: Content) -> Any:
    return {"model": content["state_dict"], "epoch": 3}


def _data_parallel(content: Content) -> Any:
    return {"state_dict": {f"module.{k}": v for k, v in content["state_dict"].items()}}


def _mask_head_outside(content: Content) -> Any:
    return {k.replace("roi_head.mask_head", "mask_head"): v for k, v in _bare(content).items()}


def _heads_outside(content: Content) -> Any:
    return {k.removeprefix("roi_head."): v for k, v in _bare(content).items()}


def _without_counters(content: Content) -> Any:
    return {k: v for k, v in _bare(content).items() if not k.endswith("num_batches_tracked")}


def _averaged(content: Content) -> Any:
    copies = {f"ema_{k.replace('.', '_')}": v * 0 for k, v in _bare(content).items()}
    return {"state_dict": {**_bare(content), **copies}}


def _double(content: Content) -> Any:
    return {k: v.double() if v.is_floating_point() else v for k, v in _bare(content).items()}


def _parameters(content: Content) -> Any:
    return {
        k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in _bare(content).items()
    }


FORMS = [
    _bare, _under_model, _data_parallel, _mask_head_outside, _heads_outside, _without_counters,
    _averaged, _double, _parameters,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=[form.__name__[1:] for form in FORMS])
def test_forms_of_a_state_dict(
    content: Content, save: Callable[..., Path], form: Callable[[Content], Any]
) -> None:
    detector, _ = load_detector(save(form(content)))
    loaded = detector.state_dict()
    for key, tensor in content["state_dict"].items():
        assert loaded[key].dtype in (torch.float32, torch.int64)
        if not (form is _without_counters and key.endswith("num_batches_tracked")):
            assert torch.equal(loaded[key], tensor)


@pytest.mark.parametrize(
    ("form", "note"),
    [
        (_bare, "no config: anchors"),
        (_averaged, "180 copies of weights by EMAHook"),
        (_without_counters, "20 counters num_batches_tracked are absent"),
    ],
)
def test_what_was_assumed_is_noted(
    content: Content, save: Callable[..., Path], form: Callable[[Content], Any], note: str
) -> None:
    assert any(n.startswith(note) for n in load_checkpoint(save(form(content))).notes)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_formats(content: Content, save: Callable[..., Path], zipped: bool) -> None:
    path = save(content, _use_new_zipfile_serialization=zipped)
    assert load_checkpoint(path).config.classes == ("circle", "square", "triangle")


def test_metadata_of_2x(content: Content, save: Callable[..., Path]) -> None:
    meta = content["meta"]
    content["meta"] = {"config": meta["cfg"], "CLASSES": ["a", "b", "c"], "mmdet_version": "2.28.2"}
    checkpoint = load_checkpoint(save(content))
    assert checkpoint.config.preprocessing.scale == (160, 128)
    assert checkpoint.notes == ()


def test_names_without_config(content: Content, save: Callable[..., Path]) -> None:
    content["meta"] = {"CLASSES": ["a", "b", "c"]}
    assert load_checkpoint(save(content)).config.classes == ("a", "b", "c")


@pytest.mark.parametrize("beside", [True, False], ids=["config beside", "config inside"])
def test_a_file_of_names_is_looked_for_from_where_mmdetection_ran(
    content: Content, tmp_path: Path, beside: bool
) -> None:
    folder = tmp_path / "root" / "work_dirs" / "mine"
    folder.mkdir(parents=True)
    file = tmp_path / "root" / "data" / "names.txt"
    file.parent.mkdir()
    file.write_text("ant\nbee\ncat\n")
    text, count = re.subn(r"classes=\([^)]*\)", "classes='data/names.txt'", content["meta"]["cfg"])
    assert count == 4
    (folder / "config.py").write_text(text)
    content["meta"] = {} if beside else {"config": text}
    torch.save(content, folder / "epoch_1.pth")
    config = folder / "config.py" if beside else None
    checkpoint = load_checkpoint(folder / "epoch_1.pth", config)
    assert checkpoint.config.classes == ("ant", "bee", "cat")
    assert checkpoint.notes == (f"class names are those in {file}",)
    file.unlink()
    with pytest.raises(ConfigError, match=r"classes='data/names\.txt' names a file of class names"):
        load_checkpoint(folder / "epoch_1.pth", config)


def test_config_stored_as_a_dict(content: Content, save: Callable[..., Path]) -> None:
    content["meta"] = {"cfg": {"model": {"type": "RetinaNet"}}}
    with pytest.raises(ConfigError, match=r"model\.type='RetinaNet' .*\n.*inside the checkpoint"):
        load_checkpoint(save(content))


def test_config_beside_the_checkpoint_comes_first(
    content: Content, save: Callable[..., Path], tmp_path: Path
) -> None:
    config = tmp_path / "config.py"
    config.write_text(content["meta"]["cfg"].replace("score_thr=0.05", "score_thr=0.3"))
    content["meta"]["cfg"] = "import os"
    checkpoint = load_checkpoint(save(content), config)
    assert checkpoint.config.box.score_threshold == 0.3


def test_config_that_would_have_to_be_executed(content: Content, save: Callable[..., Path]) -> None:
    content["meta"]["cfg"] = "x = 1\nimport os"
    with pytest.raises(ConfigError, match=r"epoch_24\.pth: meta\['cfg'\], line 2: an import"):
        load_checkpoint(save(content))


def test_config_of_another_width(
    content: Content, save: Callable[..., Path], tmp_path: Path
) -> None:
    config = tmp_path / "config.py"
    config.write_text(content["meta"]["cfg"].replace("fc_out_channels=96", "fc_out_channels=64"))
    with pytest.raises(CheckpointError) as caught:
        load_detector(save(content), config)
    message = str(caught.value)
    assert "epoch_24.pth: the weights do not fit" in message
    assert "other shape (6):\n" in message
    assert "    roi_head.bbox_head.fc_cls.weight (4, 96), the detector needs (4, 64)\n" in message


def test_config_with_another_number_of_classes(
    content: Content, save: Callable[..., Path], tmp_path: Path
) -> None:
    config = tmp_path / "config.py"
    config.write_text(content["meta"]["cfg"].replace("num_classes=3", "num_classes=80"))
    with pytest.raises(
        CheckpointError, match=r"epoch_24\.pth: .*num_classes=80, but the .* weights have 3 classes"
    ):
        load_checkpoint(save(content), config)


def test_wrong_number_of_classes(shapes_dir: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"has 3 classes \(circle, square, triangle\), not 80: give"
    ):
        load_detector(shapes_dir / FASTER, num_classes=80)


def test_missing_and_unexpected_keys(content: Content, save: Callable[..., Path]) -> None:
    weights = content["state_dict"]
    for level in range(2):
        weights[f"neck.extra.{level}"] = weights.pop(f"neck.fpn_convs.{level + 1}.conv.bias")
    with pytest.raises(CheckpointError) as caught:
        load_detector(save(content))
    assert "missing (2):\n    neck.fpn_convs.1.conv.bias (32,)" in str(caught.value)
    assert "unexpected (2):\n    neck.extra.0 (32,)" in str(caught.value)


def test_long_diffs_are_cut() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_state_dict({f"a{i}": (1,) for i in range(30)}, {"b": (1,), "a0": (2,)})
    lines = str(caught.value).splitlines()
    assert "    ... and 21 more" in lines
    assert "    a0 (2,), the detector needs (1,)" in lines
    assert len(lines) == 16


def test_equal_state_dicts_pass() -> None:
    check_state_dict({"a": (1, 2)}, {"a": (1, 2)})


def test_another_architecture(save: Callable[..., Path]) -> None:
    path = save({"state_dict": {"bbox_head.retina_cls.weight": torch.zeros(9)}})
    with pytest.raises(
        CheckpointError, match=r"epoch_24\.pth: the checkpoint looks like RetinaNet"
    ):
        load_checkpoint(path)


def test_version_1(content: Content, save: Callable[..., Path]) -> None:
    weights = _heads_outside(content)
    weights["bbox_head.fc_reg.weight"] = torch.zeros(16, 96)
    with pytest.raises(
        CheckpointError, match=r"is of mmdetection 1\.x: 4 class scores with 16 box"
    ):
        load_checkpoint(save({"state_dict": weights}))


CONTENTS: list[tuple[Any, str]] = [
    ([1, 2], "holds a list, not a dict of weights"),
    (torch.zeros(2), "holds a Tensor, not a dict of weights"),
    ({"optimizer": {}, "epoch": 3}, "holds no state_dict .its entries are 'optimizer', 'epoch'."),
    ({"state_dict": {"a": 1}}, "holds no state_dict"),
    ({"state_dict": {1: torch.zeros(1)}}, "holds no state_dict"),
    ({"state_dict": {}}, "holds no tensors"),
    ({"a": torch.zeros(2).to_sparse()}, "a is sparse, quantised or without data"),
]


@pytest.mark.parametrize(("stored", "message"), CONTENTS)
def test_content_of_another_kind(save: Callable[..., Path], stored: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"epoch_24\.pth: .*{message}"):
        load_checkpoint(save(stored))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder: give the \.pth file in it"):
        load_checkpoint(tmp_path)


def test_truncated(shapes_dir: Path, tmp_path: Path) -> None:
    content = (shapes_dir / FASTER).read_bytes()
    (tmp_path / FASTER).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is truncated, damaged or no PyTorch checkpoint"):
        load_checkpoint(tmp_path / FASTER)


def test_damaged_published_file(shapes_dir: Path, tmp_path: Path) -> None:
    content = bytearray((shapes_dir / FASTER).read_bytes())
    content[-1] ^= 1
    (tmp_path / FASTER).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"by its name, its SHA-256 begins with 2a9d7f44, but .* Download it"
    ):
        load_checkpoint(tmp_path / FASTER)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("best.pth", "best"),
        ("a-b.pth", "a-b"),
        (f"renamed-{FASTER[-12:]}", "renamed"),
        ("model-20200504x.pth", "model-20200504x"),
    ],
)
def test_name(shapes_dir: Path, tmp_path: Path, name: str, expected: str) -> None:
    shutil.copy(shapes_dir / FASTER, tmp_path / name)
    assert load_checkpoint(tmp_path / name).name == expected


def test_a_published_model_needs_no_readable_config(
    content: Content, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the files of 2020 hold as config is not known; what they are, is."""
    content["meta"]["cfg"] = "model = Config.fromfile('a.py')"
    path = save(content, "model.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path = path.rename(path.with_name(f"model-{digest}.pth"))
    entry = zoo.ZooEntry("model", "mask_rcnn", f"a/{path.name}", 1.0, 1.0, 1.0)
    monkeypatch.setattr(zoo, "_MODELS", (entry,))
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.classes == ("circle", "square", "triangle")
    assert checkpoint.config.preprocessing == Preprocessing()
    assert any("the config inside published model model is not used" in n for n in checkpoint.notes)


def test_weights_are_not_shared_with_the_checkpoint(shapes_dir: Path) -> None:
    detector, checkpoint = load_detector(shapes_dir / FASTER)
    key = "rpn_head.rpn_cls.bias"
    before: Tensor = checkpoint.state_dict[key].clone()
    detector.rpn_head.rpn_cls.bias.zero_()  # type: ignore[union-attr]
    assert torch.equal(checkpoint.state_dict[key], before)
