"""Class names: where they may stand, and files that a config names in place of a list."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.errors import CheckpointError, ConfigError
from carafe_deploy.models.class_names import COCO_CLASSES, class_names

NAMES = ("ant", "bee", "big cat")
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"data": {"test": {"classes": "data/classes.txt"}}}, "data.test.classes"),
    ({"data": {"val": {"classes": "data\\classes.txt"}}}, "data.val.classes"),
    ({"classes": "data/classes.txt"}, "classes"),
    (
        {"test_dataloader": {"dataset": {"metainfo": {"classes": "data/classes.txt"}}}},
        "test_dataloader.dataset.metainfo.classes",
    ),
    ({"metainfo": {"CLASSES": "data/classes.txt"}}, "metainfo.CLASSES"),
]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two places to look in; the second has the file."""
    file = tmp_path / "root" / "data" / "classes.txt"
    file.parent.mkdir(parents=True)
    file.write_text("\ufeffant\r\nbee  \nbig cat\n\n", encoding="utf-8")
    return [tmp_path / "elsewhere", tmp_path / "root"]


@pytest.mark.parametrize(("cfg", "origin"), CONFIGS)
def test_a_string_is_a_file_of_names(folders: list[Path], cfg: dict[str, Any], origin: str) -> None:
    notes: list[str] = []
    assert class_names(cfg, None, 3, notes, folders) == NAMES
    assert notes == [f"class names are those in {folders[1] / 'data/classes.txt'}"]


@pytest.mark.parametrize(("cfg", "origin"), CONFIGS)
def test_a_file_that_is_not_there_leaves_the_checkpoints_names(
    tmp_path: Path, cfg: dict[str, Any], origin: str
) -> None:
    notes: list[str] = []
    assert class_names(cfg, NAMES, 3, notes, [tmp_path]) == NAMES
    assert notes[0].startswith(f"{origin}='data")
    assert notes[0].endswith("the checkpoint's metadata has the names")


@pytest.mark.parametrize("count", [1, 3, 80])
@pytest.mark.parametrize(("cfg", "origin"), CONFIGS)
def test_a_file_that_is_nowhere(
    tmp_path: Path, cfg: dict[str, Any], origin: str, count: int
) -> None:
    with pytest.raises(ConfigError) as raised:
        class_names(cfg, None, count, [], [tmp_path])
    assert str(raised.value).startswith(f"{origin}='data")
    assert "names a file of class names" in str(raised.value)
    assert f"looked in {tmp_path}" in str(raised.value)


def test_an_absolute_path(folders: list[Path], tmp_path: Path) -> None:
    cfg = {"classes": str(folders[1] / "data" / "classes.txt")}
    assert class_names(cfg, None, 3, [], [tmp_path]) == NAMES


def test_the_file_comes_before_the_metadata(folders: list[Path]) -> None:
    notes: list[str] = []
    cfg = {"classes": "data/classes.txt"}
    assert class_names(cfg, ("x", "y", "z"), 3, notes, folders) == NAMES
    assert notes[0].endswith("classes.txt, not those in the checkpoint's metadata")


def test_a_file_with_another_number_of_names(folders: list[Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"classes\.txt, which classes names, names 3 classes .* have 80"
    ):
        class_names({"classes": "data/classes.txt"}, None, 80, [], folders)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "cannot be read as text"), (b"a\n" * (1 << 19) + b"b", "larger than 1 MiB")],
)
def test_a_file_that_holds_no_names(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"classes names .*classes\.txt, which .*{message}|{message}"
    ):
        class_names({"classes": "classes.txt"}, None, 3, [], [tmp_path])


@pytest.mark.parametrize("stored", [None, "dog"])
def test_the_name_of_the_only_class(tmp_path: Path, stored: Any) -> None:
    assert class_names({"classes": "cat"}, stored, 1, [], [tmp_path]) == ("cat",)


def test_a_name_for_several_classes_is_taken_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^classes='cat' names a file of class names"):
        class_names({"classes": "cat"}, None, 80, [], [tmp_path])
    assert class_names({}, None, 80, [], [tmp_path]) == COCO_CLASSES


@pytest.mark.parametrize(
    "name", ["/dev/null", "/dev/zero", "/proc/self/status", "/proc/kmsg", "pipe", "link", "socket"]
)
def test_only_regular_files_are_read(tmp_path: Path, name: str) -> None:
    """None of them is even waited for."""
    if name.startswith("/") and not Path(name).exists():
        pytest.skip(f"this machine has no {name}")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/proc/self/status")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
        server.bind("socket")
        with pytest.raises(ConfigError, match=rf"classes names .*{name}, which is no regular"):
            class_names({"classes": name}, None, 3, [], [tmp_path])


def test_lines_end_with_newlines_only(tmp_path: Path) -> None:
    names = ("a\x0bb", "c\u2028d", "e\x85f")
    (tmp_path / "classes.txt").write_bytes("\r\n\n".join(names).encode() + b" \n\r\n")
    assert class_names({"classes": "classes.txt"}, None, 3, [], [tmp_path]) == names
