"""`carafe-deploy detect`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from carafe_deploy.cli.common import UsageError
from carafe_deploy.cli.detect import _Document, earlier_pictures, picture_names, short_names
from carafe_deploy.errors import RunError
from carafe_deploy.images import load_image, save_image

Run = Callable[..., Any]


def test_pictures_and_json(run: Run, onnx_file: Path, images: Path) -> None:
    outcome = run("detect", onnx_file, images, "-o", "found")
    assert outcome.status == 0, outcome.err
    assert sorted(path.name for path in Path("found").iterdir()) == [
        "000001.png", "000002.png", "000003.png", "detections.json"
    ]  # fmt: skip
    for path in images.iterdir():
        before, after = load_image(path), load_image(Path("found") / path.name)
        assert before.shape == after.shape
        assert (before != after).any()


def test_without_pictures(run: Run, ts_file: Path, images: Path) -> None:
    drawn = run("detect", ts_file, images, "--json").json
    alone = run("detect", ts_file, images, "--no-pictures", "-o", "found", "--json").json
    assert [path.name for path in Path("found").iterdir()] == ["detections.json"]
    assert alone["annotations"] == drawn["annotations"]
    assert [image["picture"] for image in alone["images"]] == [None] * 3
    # Pictures may come later; what has none is no earlier one.
    again = run("detect", ts_file, images, "-o", "found")
    assert again.status == 0, again.err
    assert "drawn in" in again.out
    assert "drawn in" not in run("detect", ts_file, images, "--no-pictures", "-o", "other").out


def test_json_is_coco(run: Run, ts_file: Path, images: Path) -> None:
    outcome = run("detect", ts_file, images, "--json")
    assert outcome.json == json.loads(Path("out/detections.json").read_text())
    coco = COCO("out/detections.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == [
        str(images / f"00000{number}.png") for number in (1, 2, 3)
    ]
    annotation = coco.loadAnns(coco.getAnnIds(imgIds=[1]))[0]
    # The best detection of the first image is its square, 150 x 100 pixels.
    assert coco.loadCats([annotation["category_id"]])[0]["name"] == "square"
    assert annotation["score"] > 0.9
    x, y, width, height = annotation["bbox"]
    assert annotation["area"] == pytest.approx(width * height)
    mask = coco.annToMask(annotation)
    assert mask.shape == (100, 150)
    inside = mask[int(y) : int(y + height), int(x) : int(x + width)]
    assert inside.sum() > 0.9 * mask.sum() > 0.5 * inside.size


def test_detections_are_those_that_mmdetection_recorded(
    run: Run, ts_file: Path, images: Path, shapes_dir: Path
) -> None:
    recorded = json.loads((shapes_dir / "shapes_mask_rcnn_carafe.val.bbox.json").read_text())
    found = run("detect", ts_file, images, "--json").json["annotations"]
    for image_id in (1, 2, 3):
        ours, theirs = (
            sorted(entry["score"] for entry in entries if entry["image_id"] == image_id)
            for entries in (found, recorded)
        )
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_table_counts_what_is_drawn(run: Run, ts_file: Path, images: Path) -> None:
    found = run("detect", ts_file, images, "--json").json["annotations"]
    outcome = run("detect", ts_file, images, "--score-threshold", "0.5")
    drawn = [entry for entry in found if entry["score"] >= 0.5]
    for number, line in enumerate(outcome.out.splitlines()[1:4], 1):
        count = sum(entry["image_id"] == number for entry in drawn)
        assert line.split()[0] == f"00000{number}.png"
        assert int(line.split()[2]) == count
    assert f"{len(drawn)} detections with score ≥ 0.5 in 3 images, drawn in out/" in outcome.out
    assert f"out/detections.json has all {len(found)} with score > 0.05" in outcome.out


def test_a_score_at_the_threshold_counts_and_is_drawn(
    run: Run, ts_file: Path, images: Path
) -> None:
    image = images / "000001.png"
    found = run("detect", ts_file, image, "--json").json["annotations"]
    score = found[1]["score"]
    assert found[0]["score"] > score > found[2]["score"]
    outcome = run("detect", ts_file, image, "--score-threshold", repr(score), "-o", "at")
    assert outcome.out.splitlines()[1].split()[2] == "2"
    run("detect", ts_file, image, "--score-threshold", repr(found[0]["score"]), "-o", "above")
    assert (load_image("at/000001.png") != load_image("above/000001.png")).any()


def test_display_threshold_draws_less(run: Run, ts_file: Path, images: Path) -> None:
    run("detect", ts_file, images / "000001.png", "--score-threshold", "1", "-o", "none")
    assert (load_image("none/000001.png") == load_image(images / "000001.png")).all()


def test_batches_find_the_same(run: Run, ts_file: Path, images: Path, shapes_dir: Path) -> None:
    shutil.rmtree(images)
    images.mkdir()
    for name in ("000001.png", "000002.png", "000012.png"):  # of one size
        shutil.copy(shapes_dir / "val" / name, images)
    one, two = (
        run("detect", ts_file, images, "--batch-size", size, "--json").json for size in (1, 2)
    )
    assert [entry["image_id"] for entry in one["annotations"]] == [
        entry["image_id"] for entry in two["annotations"]
    ]
    np.testing.assert_allclose(
        *([entry["bbox"] for entry in found["annotations"]] for found in (one, two)), atol=1e-2
    )


def test_globs_and_repeated_names(run: Run, ts_file: Path, images: Path) -> None:
    other = images.parent / "other"
    shutil.copytree(images, other)
    outcome = run("detect", ts_file, images / "*1.png", other / "000001.png", "--json")
    assert [image["picture"] for image in outcome.json["images"]] == [
        "out/000001.png",
        "out/000001_2.png",
    ]


def names_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_later_run_says_what_earlier_ones_left(run: Run, ts_file: Path, images: Path) -> None:
    run("detect", ts_file, images / "000001.png", images / "000002.png")
    for _ in range(2):  # a run more does not make it forget
        outcome = run("detect", ts_file, images / "000003.png")
        assert outcome.status == 0, outcome.err
        assert (
            "note: 2 pictures of earlier runs left in out/, 000001.png first: --overwrite"
        ) in outcome.out
    assert "note: 1 picture of earlier" in run("detect", ts_file, images / "000001.png", images /
                                               "000003.png", "--json").err  # fmt: skip
    assert names_in("out") == ["000001.png", "000002.png", "000003.png", "detections.json"]


def test_overwrite_leaves_what_belongs_to_this_run(run: Run, ts_file: Path, images: Path) -> None:
    run("detect", ts_file, images / "000001.png", images / "000002.png")
    run("detect", ts_file, images / "000002.png")
    Path("out/mine.png").write_bytes(b"mine")
    outcome = run("detect", ts_file, images / "000003.png", "--overwrite")
    assert "earlier" not in outcome.out
    assert names_in("out") == ["000003.png", "detections.json", "mine.png"]
    assert "earlier" not in run("detect", ts_file, images / "000003.png").out


def test_a_failing_run_removes_nothing(run: Run, ts_file: Path, images: Path) -> None:
    run("detect", ts_file, images / "000001.png")
    (images / "000002.png").write_bytes(b"no image")
    before = Path("out/detections.json").read_text()
    assert run("detect", ts_file, images / "000002.png", "--overwrite").status == 2
    assert names_in("out") == ["000001.png", "detections.json"]
    assert Path("out/detections.json").read_text() == before


def listing(*pictures: Any, earlier: Any = (), description: str = "carafe-deploy detect") -> Any:
    """JSON of a run that drew each (file_name, picture)."""
    images = [{"file_name": image, "picture": picture} for image, picture in pictures]
    return {"info": {"description": description, "earlier_pictures": earlier}, "images": images}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (listing(("in/a.png", "out/a.png")), ["a.png"]),
        (listing(("in/a.png", "../a.png"), ("c.png", "/etc/c.png")), ["a.png"]),
        (listing(("b.webp", "out/b.jpg"), ("a.bmp", "out/a_2.png")), ["b.jpg", "a_2.png"]),
        (listing(("a.png", "out/a.png"), description="another program"), []),
        (listing(("kept.png", "out/kept.png"), ("gone.png", "out/gone.png")), []),
        (listing(earlier=["a.png", "b.jpg", "a.png"]), ["a.png", "b.jpg"]),
        # Names that this command does not give:
        (listing(("thesis.tex", "thesis.tex"), (".hidden", ".hidden"), ("a.png", "b.jpg")), []),
        (listing(("a.png", "out/a_x.png"), ("b.png", "b.jpg"), ("b.jpg", "b.JPG")), []),
        (listing(("detections.json", "detections.json")), []),
        (
            listing(earlier=["thesis.tex", ".hidden", "detections.json", "sub/c.png", "link.png"]),
            [],
        ),
        (listing(earlier=["../a.png", ".png", "a" * 300 + ".png", "a\0.png"]), []),
        (listing(("link.png", "link.png"), ("folder.png", "folder.png")), []),
        (listing(("a" * 300 + ".png", "a" * 300 + ".png")), []),
        (listing(earlier=[3]), []),
        (listing(earlier=3), []),
        ({"info": {"description": "carafe-deploy detect"}, "images": [{}]}, []),
        ([], []),
        ("{", []),
        ("[" * 100_000, []),
    ],
)
def test_only_listed_pictures_of_the_folder_are_taken_for_earlier_ones(
    tmp_path: Path, content: Any, expected: list[str]
) -> None:
    for folder in ("folder.png", "sub"):
        (tmp_path / folder).mkdir()
    names = [
        "a.png",
        "a_2.png",
        "a_x.png",
        "b.jpg",
        "b.JPG",
        "kept.png",
        "thesis.tex",
        ".hidden",
        ".png",
        "sub/c.png",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    path = tmp_path / "detections.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    found = earlier_pictures(path, [tmp_path / "kept.png"])
    assert found == [tmp_path / name for name in expected]


@pytest.mark.parametrize("made", ["file", "folder", "link", "dangling"])
def test_a_file_of_somebody_elses_is_not_replaced(
    run: Run, ts_file: Path, images: Path, made: str
) -> None:
    target = Path("out/000002.png")
    run("detect", ts_file, images / "000001.png", "-o", "out")
    if made == "file":
        target.write_bytes(b"mine")
    elif made == "folder":
        target.mkdir()
    else:
        Path("mine").write_bytes(b"mine")
        target.symlink_to(Path("mine" if made == "link" else "gone").absolute())
    before = Path("out/detections.json").read_text()
    outcome = run("detect", ts_file, images)
    assert outcome.status == 2
    message = " ".join(outcome.err.split())
    assert "would replace out/000002.png, which no finished earlier run drew: choose" in message
    assert "--output, or replace it with --overwrite" in message
    assert names_in("out") == ["000001.png", "000002.png", "detections.json"]
    assert Path("out/detections.json").read_text() == before
    if made == "file":
        assert target.read_bytes() == b"mine"
        assert run("detect", ts_file, images, "--overwrite").status == 0
        assert load_image(target).shape == load_image(images / "000002.png").shape


def test_the_picture_of_an_image_that_became_unreadable_is_an_earlier_one(
    run: Run, ts_file: Path, images: Path
) -> None:
    for path in images.glob("*3.png"):
        path.unlink()
    run("detect", ts_file, images)
    (images / "000001.png").write_bytes(b"no image")
    outcome = run("detect", ts_file, images, "--json")
    assert json.loads(Path("out/detections.json").read_text())["info"]["earlier_pictures"] == [
        "000001.png"
    ]
    assert "1 picture of earlier runs left in out/, 000001.png first" in outcome.err
    run("detect", ts_file, images, "--overwrite")
    assert names_in("out") == ["000002.png", "detections.json"]


def test_absolute_and_relative_paths_in_one_run(run: Run, ts_file: Path, images: Path) -> None:
    shutil.copy(images / "000002.png", "b.png")
    outcome = run("detect", ts_file, images / "000001.png", "b.png")
    assert outcome.status == 0, outcome.err
    # The first, in the folder of a test, is folded over several lines.
    assert [line.split(" ")[0] for line in outcome.out.splitlines()].count("b.png") == 1
    assert len(json.loads(Path("out/detections.json").read_text())["images"]) == 2


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/x.png", "a/b/y.png"], ["x.png", "b/y.png"]),
        (["/a/x.png", "/b/y.png"], ["a/x.png", "b/y.png"]),
        (["/a/x.png"], ["x.png"]),
        (["/a/x.png", "y.png"], ["/a/x.png", "y.png"]),
        (["x.png", "a/y.png"], ["x.png", "a/y.png"]),
        (["../x.png", "y.png"], ["../x.png", "y.png"]),
    ],
)
def test_short_names(paths: list[str], expected: list[str]) -> None:
    assert short_names(paths) == expected


def test_a_shrunk_image_is_noted(run: Run, checkpoint: Path, images: Path) -> None:
    assert run("export", checkpoint, "-o", "small.ts", "--size", "64x128").status == 0
    outcome = run("detect", "small.ts", images / "000001.png")
    assert "1 image had to be made smaller than in training" in outcome.out


def test_next_step(run: Run, ts_file: Path, images: Path) -> None:
    assert run("detect", ts_file, images).out.splitlines()[-1].strip() == (
        f"carafe-deploy eval {ts_file} --annotations instances.json --images IMAGES"
    )


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/1.jpg", "b/1.jpg", "b/1.JPEG"], ["1.jpg", "1_2.jpg", "1_3.jpg"]),
        (["a/1.png", "a/1.bmp", "a/1.tif"], ["1.png", "1_2.png", "1_3.png"]),
        (["a/1.png", "a/1.webp"], ["1.png", "1.jpg"]),
        (["a/x.png", "b/x_2.png", "b/x.png"], ["x.png", "x_2.png", "x_3.png"]),
        (["a/Photo.png", "b/photo.png"], ["Photo.png", "photo_2.png"]),
    ],
)
def test_picture_names_are_unique(paths: list[str], expected: list[str]) -> None:
    names = picture_names([Path(path) for path in paths], Path("out"))
    assert list(names.values()) == [Path("out") / name for name in expected]


def test_an_image_is_never_overwritten() -> None:
    with pytest.raises(UsageError, match=r"would overwrite the image a/1\.png: choose another"):
        picture_names([Path("a/1.png")], Path("a"))


def test_a_batch_size_that_is_measured_finds_the_same(
    run: Run, ts_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one image of three broken, and the first, so another one is timed."""
    (images / "000001.png").write_bytes(b"no image")
    expected = run("detect", ts_file, images, "--json").json["annotations"]
    outcome = run("detect", ts_file, images, "--json", "--batch-size", "auto", "--overwrite")
    assert "detect: batch size 1, since there are too few images to measure" in outcome.err
    assert outcome.json["annotations"] == expected
    monkeypatch.setattr("carafe_deploy.batch_size.SHARE", 1e6)
    outcome = run("detect", ts_file, images, "--json", "--batch-size", "auto", "--overwrite")
    assert re.search(r"detect: batch size \d+, of .* with 1, .* with 2.* images a s", outcome.err)
    ours, theirs = (
        [entry["score"] for entry in each] for each in (outcome.json["annotations"], expected)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many", ""])
def test_a_batch_size_that_there_is_not(run: Run, ts_file: Path, images: Path, text: str) -> None:
    outcome = run("detect", ts_file, images, f"--batch-size={text}")
    assert outcome.status == 2
    assert "neither a" in outcome.err


def test_a_file_that_is_no_image_is_a_row_of_its_own(run: Run, ts_file: Path, images: Path) -> None:
    (images / "000002.png").write_bytes(b"no image")
    outcome = run("detect", ts_file, images)
    assert outcome.status == 2
    rows = [line.split() for line in outcome.out.splitlines() if line.startswith("00000")]
    assert [row[0] for row in rows] == ["000001.png", "000002.png", "000003.png"]
    assert rows[1][1:] == ["–", "–", "left", "out"]
    assert "in 2 images, drawn in out/" in outcome.out
    info = json.loads(Path("out/detections.json").read_text())["info"]
    [unreadable] = info["unreadable"]
    assert unreadable["file_name"] == str(images / "000002.png")
    assert "cannot decode image" in unreadable["reason"]
    assert not info["interrupted"]


def test_interrupted_it_leaves_what_was_done(
    run: Run, ts_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes as the third of nine images is to be taken; others may be drawn already."""
    for number in range(4, 10):
        shutil.copy(images / "000001.png", images / f"00000{number}.png")
    expected = run("detect", ts_file, images, "--json", "-o", "all").json
    add = _Document.add

    def interrupted(self: _Document, path: Path, *given: Any) -> None:
        if path.name == "000003.png":
            self.content["images"].append({"file_name": str(path)})  # half of it
            raise KeyboardInterrupt
        add(self, path, *given)

    monkeypatch.setattr(_Document, "add", interrupted)
    outcome = run("detect", ts_file, images)
    assert (outcome.status, outcome.err) == (130, "interrupted\n")
    assert "in 2 images, drawn in out/" in outcome.out
    found = json.loads(Path("out/detections.json").read_text())
    assert found["info"]["interrupted"]
    assert names_in("out") == ["000001.png", "000002.png", "detections.json"]
    assert [Path(image["picture"]).name for image in found["images"]] == names_in("out")[:2]
    assert found["annotations"] == [
        entry for entry in expected["annotations"] if entry["image_id"] <= 2
    ]
    monkeypatch.setattr(_Document, "add", add)
    assert run("detect", ts_file, images).status == 0  # it knows the pictures
    assert len(names_in("out")) == 10


def test_a_run_that_fails_leaves_what_was_done(
    run: Run, ts_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = _Document.add

    def failing(self: _Document, path: Path, *given: Any) -> None:
        if path.name == "000003.png":
            raise RunError("no memory")
        add(self, path, *given)

    monkeypatch.setattr(_Document, "add", failing)
    outcome = run("detect", ts_file, images)
    assert outcome.status != 0
    assert "no memory" in outcome.err
    assert json.loads(Path("out/detections.json").read_text())["info"]["interrupted"]
    assert names_in("out") == ["000001.png", "000002.png", "detections.json"]


def test_a_pipe_is_not_waited_for(run: Run, ts_file: Path, images: Path) -> None:
    os.mkfifo("p.png")
    outcome = run("detect", ts_file, images / "000001.png", "p.png")
    assert outcome.status == 2
    assert "cannot read image p.png: it is no file" in outcome.err


def test_interrupted_before_the_first_image_it_writes_nothing(
    run: Run, ts_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Document, "add", interrupted)
    assert run("detect", ts_file, images).status == 130
    assert not Path("out").exists() or names_in("out") == []


def test_mixed_sizes_in_batches_are_what_each_is_alone(
    run: Run, ts_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen files of four sizes with one that is no image among them, by several threads."""
    monkeypatch.setattr("carafe_deploy.pipeline.LOADERS", 4)
    monkeypatch.setattr("carafe_deploy.pipeline.FINISHERS", 2)
    sources = [load_image(path) for path in sorted(images.iterdir())]
    for number in range(4, 20):
        height, width = ((96, 144), (200, 90), (90, 200), (100, 150))[number * 7 % 4]
        picture = cv2.resize(sources[number % 3], (width, height))
        save_image(images / f"0000{number:02}.png", picture)
    (images / "000009.png").write_bytes(b"no image")
    alone, together = (
        run("detect", ts_file, images, "--batch-size", size, "--json", "-o", f"by{size}").json
        for size in (1, 3)
    )
    names = [Path(image["file_name"]).name for image in together["images"]]
    assert names == [f"0000{number:02}.png" for number in range(1, 20) if number != 9]
    assert [one["file_name"] for one in together["info"]["unreadable"]] == [
        str(images / "000009.png")
    ]
    assert len({image["width"] for image in together["images"]}) > 3
    for name in ("image_id", "category_id"):
        ours, theirs = ([one[name] for one in each["annotations"]] for each in (together, alone))
        assert ours == theirs
        assert len(ours) > 20
    for name, tolerance in (("score", 1e-4), ("bbox", 2e-2)):
        ours, theirs = ([one[name] for one in each["annotations"]] for each in (together, alone))
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
