"""COCO's file formats."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from carafe_deploy.coco import (
    category_ids,
    category_names,
    from_results,
    load_annotations,
    to_results,
    write_results,
)
from carafe_deploy.coco_values import has_mask
from carafe_deploy.errors import AnnotationError
from carafe_deploy.masks import paste_masks
from carafe_deploy.types import Detections

CLASSES = ("cat", "dog")

ANNOTATIONS = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 40, "width": 50},
        {"id": 3, "file_name": "b.png", "height": 30, "width": 20},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 90,
            "bbox": [1, 2, 3, 4],
            "area": 12,
            "iscrowd": 0,
            "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]],
        }
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 6, "name": "emu"}],
}


def found(*labels: int, masks: bool = True) -> Detections:
    count = len(labels)
    boxes = np.array([[1, 2, 11, 22]] * count, np.float32).reshape(-1, 4)
    return Detections(
        boxes=boxes,
        scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
        labels=np.array(labels, np.int64),
        image_size=(40, 50),
        masks=paste_masks(np.ones((count, 28, 28), np.float32), boxes, (40, 50)) if masks else None,
    )


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def changed(group: str, index: int = 0, **values) -> dict:
    """The annotations with other values in one entry."""
    content = copy.deepcopy(ANNOTATIONS)
    content[group][index].update(values)
    return content


@pytest.fixture
def load(tmp_path):
    """Write content, and load it as annotations."""
    return lambda content, **options: load_annotations(
        write(tmp_path / "a.json", content), **options
    )


def encoded(counts, size=(40, 50)) -> dict:
    return {
        "segmentation": {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}
    }


def polygon(*numbers) -> dict:
    return {"segmentation": [[1, 2, 4, 2, 4, 6, 1, 6], list(numbers)]}


NAN, INF, HUGE = float("nan"), float("inf"), 10**400
#: 62 background pixels, 10 of the object, the rest background, as pycocotools writes it.
COMPRESSED = coco_mask.frPyObjects({"size": [40, 50], "counts": [62, 10, 1928]}, 40, 50)[
    "counts"
].decode()
#: What is wrong with an annotation, and how the message goes on after its id.
MALFORMED = [
    *(
        ({"bbox": box}, "bbox .*: give x, y, width and height, four finite numbers of at most 1000")
        for box in (
            [1, 2, 3],
            [1, 2, 3, 4] * 2,
            [NAN] * 4,
            [None] * 4,
            [0, 0, INF, 10],
            [[1], [2], [3], [4]],
            ["1", "2", "3", "4"],
            [True] * 4,
            [1, 2, HUGE, 4],
            [1e6, 2, 3, 4],
            [9, 9, -3, 4],
            [9, 9, 3, -4],
        )
    ),
    *(({"area": area}, "area .*: give pix") for area in (NAN, INF, -1, HUGE, 1e11, True)),
    *(({"iscrowd": crowd}, "iscrowd .*: give 0 or 1") for crowd in (-1, 2)),
    *(
        ({"segmentation": value}, "segmentation .*: give polygons, lists of x and y, or a run")
        for value in ("x", False, [1, 2, 3, 4, 5, 6], [{}], {"size": [40, 50]})
    ),
    *(
        (polygon(*numbers), "segmentation .*: give a polygon as x and y in turn")
        for numbers in (
            (1, 2, 3, 4, 5, 6, 7),
            (NAN, 2, 4, 2, 4, 6),
            (1, 2, 4, INF, 4, 6),
            (1e9, 2, 4, 2, 4, 6),
            (1, 2, 4, 2, 4, -1e300),
            (1, 2, 4, 2, HUGE, 6),
            ("a",) * 6,
            (None,) * 6,
            (True,) * 6,
            ([1, 2],) * 6,
            (0, 0, 1e5, 1e5) * 50,  # 10 million pixels around
        )
    ),
    *(
        (encoded([2000], size), r"segmentation size .*: give the image's .*, \[40, 50\]")
        for size in ([50, 40], [40, 51], [40, 50, 1], ["40", "50"], None, 40, [-40, -50], [0, 0])
    ),
    *(
        (encoded(counts), "segmentation counts .*: give run lengths")
        for counts in (
            [],
            [62, 10],
            [62, 10, 100000],
            [-5, 10, 1995],
            [62.5, 10, 1927.5],
            ["62", "10", "1928"],
            [True, 1999],
            [[62], 10, 1928],
            [1 << 40],
            [1] * 10_000,
            None,
            5,
            "",
            "zzzzzzzz~~~",
            "é≥" * 5,
            "a\0b",
            "_" * 50,
            "o" * 50 + "0",
            "ooooooo0",
            "Po0",
            "Pooooo@",
            COMPRESSED[:-1],
            COMPRESSED + "1",
        )
    ),
]
WELL_FORMED = [
    {"bbox": [1, 2, 0, 0], "area": 0},
    {"bbox": [-1.5, 60, 100.25, 1e5], "area": 1e10},
    {"iscrowd": 1, **encoded([62, 10, 1928])},
    encoded([0, 2000]),
    encoded(COMPRESSED),
    encoded([1] * 2000),
    polygon(),
    polygon(5, 5),  # too short to count
    polygon(-3, -3, 60, -3, 60, 60),
    polygon(*range(1000), *[0, 50000] * 10),
]


class TestLoadAnnotations:
    def test_reads_what_is_there(self, load):
        assert load(ANNOTATIONS, with_masks=True) == ANNOTATIONS

    def test_real_file(self, shapes_dir):
        assert len(load_annotations(shapes_dir / "val.json", with_masks=True)["images"]) == 100

    def test_missing(self, tmp_path):
        with pytest.raises(AnnotationError, match=r"a\.json does not exist: check the path"):
            load_annotations(tmp_path / "a.json")

    @pytest.mark.parametrize("content", ["", '{"images": [', "{1}"])
    def test_no_json(self, load, content):
        with pytest.raises(AnnotationError, match=r"a\.json is not JSON \(.*\): it may be trunc"):
            load(content)

    @pytest.mark.parametrize("content", [[], 3, {"images": []}, {**ANNOTATIONS, "images": {}}])
    def test_other_json(self, load, content):
        with pytest.raises(AnnotationError, match="lacks one of the lists images, annotations, ca"):
            load(content)

    @pytest.mark.parametrize(
        ("group", "key"),
        [
            ("images", "id"),
            ("images", "file_name"),
            ("annotations", "image_id"),
            ("annotations", "category_id"),
            ("annotations", "bbox"),
            ("annotations", "area"),
            ("annotations", "iscrowd"),
            ("categories", "name"),
        ],
    )
    @pytest.mark.parametrize("broken", [None, "absent"])
    def test_missing_or_wrong_key(self, load, group, key, broken):
        content = changed(group, **{key: None})
        if broken == "absent":
            del content[group][0][key]
        with pytest.raises(AnnotationError, match=rf"{group}\[0\] has no valid '{key}': add it"):
            load(content)

    def test_masks_need_the_size_of_their_image(self, load):
        content = copy.deepcopy(ANNOTATIONS)
        del content["images"][0]["height"]
        load(content)
        with pytest.raises(AnnotationError, match=r"images\[0\] has no valid 'height'"):
            load(content, with_masks=True)
        del content["annotations"][0]["segmentation"]
        load(content, with_masks=True)

    @pytest.mark.parametrize(
        ("segmentation", "expected"),
        [
            ([[1, 2, 4, 2, 4, 6]], True),
            ([[1, 2], [1, 2, 4, 2, 4, 6]], True),
            ({"size": [40, 50], "counts": [2000]}, True),
            ([], False),
            (None, False),
            ([[]], False),
            ([[1, 2, 3, 4]], False),  # two points; pycocotools would take it for a box
        ],
    )
    def test_what_is_a_mask(self, load, segmentation, expected):
        content = load(changed("annotations", segmentation=segmentation), with_masks=True)
        assert has_mask(content["annotations"][0]) == expected

    def test_a_test_set_has_no_annotations(self, load):
        content = {key: ANNOTATIONS[key] for key in ("images", "categories")}
        assert load(content)["annotations"] == []

    @pytest.mark.parametrize(("change", "message"), MALFORMED)
    def test_malformed_annotations(self, load, change, message):
        with pytest.raises(AnnotationError, match=rf"a\.json: annotation 1 has {message}"):
            load(changed("annotations", **change), with_masks=True)

    @pytest.mark.parametrize("change", WELL_FORMED)
    def test_unusual_annotations_are_accepted(self, load, change):
        content = changed("annotations", **change)
        assert load(content, with_masks=True) == content

    @pytest.mark.parametrize("key", ["height", "width"])
    @pytest.mark.parametrize("value", [None, 0, -3, 40.0, True, 65536, 1 << 40, "40"])
    def test_malformed_sizes(self, load, key, value):
        with pytest.raises(AnnotationError, match=rf"images\[0\] has no valid '{key}' \("):
            load(changed("images", **{key: value}), with_masks=True)

    @pytest.mark.parametrize(
        ("group", "key", "value"),
        [("images", "id", 1 << 63), ("images", "id", "7"), ("annotations", "image_id", 7.0)],
    )
    def test_malformed_ids(self, load, group, key, value):
        with pytest.raises(AnnotationError, match=rf"{group}\[0\] has no valid '{key}' \(.*corr"):
            load(changed(group, **{key: value}))

    def test_deep_nesting(self, load):
        with pytest.raises(AnnotationError, match=r"a\.json is nested too deeply: give a file"):
            load("[" * 100_000)

    def test_encodings_of_pycocotools(self, load):
        """Short, long and growing and shrinking runs, which it writes as differences."""
        random = np.random.default_rng(0)
        content = changed("images", height=700, width=900)
        template = content["annotations"].pop()
        for number, share in enumerate((0, 1e-5, 1e-3, 0.1, 0.5, 0.999, 1)):
            pixels = np.asfortranarray(random.random((700, 900)) < share, np.uint8)
            encoding = coco_mask.encode(pixels)
            segmentation = {"size": [700, 900], "counts": encoding["counts"].decode()}
            content["annotations"].append({**template, "id": number, "segmentation": segmentation})
        assert load(content, with_masks=True) == content
        for entry in content["annotations"]:  # one column more
            entry["segmentation"]["size"] = [700, 901]
        content["images"][0]["width"] = 901
        with pytest.raises(AnnotationError, match=r"annotation 0 .* add up to 630000: give"):
            load(content, with_masks=True)

    @pytest.mark.parametrize(
        ("key", "where"), [("image_id", "images"), ("category_id", "categories")]
    )
    def test_reference_to_nothing(self, load, key, where):
        with pytest.raises(AnnotationError, match=rf"annotation 1 has {key} 1234.* not in {where}"):
            load(changed("annotations", **{key: 1234}))

    @pytest.mark.parametrize("group", ["images", "categories"])
    def test_used_twice(self, load, group):
        content = changed(group, 1, id=ANNOTATIONS[group][0]["id"])
        with pytest.raises(AnnotationError, match=rf"{group} use id .* twice: make it unique"):
            load(content)

    def test_two_used_categories_of_one_name(self, load):
        content = changed("categories", 1, name="cat")
        content["annotations"].append({**content["annotations"][0], "category_id": 5})
        message = r"a\.json: categories use name 'cat' twice \(ids 90 and 5\)"
        with pytest.raises(AnnotationError, match=message):
            load(content)

    def test_no_images(self, load):
        with pytest.raises(AnnotationError, match="has no images"):
            load({"images": [], "annotations": [], "categories": []})


class TestCategoryIds:
    def test_matched_by_name_in_order_of_the_labels(self):
        assert category_ids(ANNOTATIONS, ("dog", "cat")) == (5, 90)

    def test_a_class_that_is_not_annotated_has_none(self):
        assert category_ids(ANNOTATIONS, ("fox", "dog")) == (None, 5)

    def test_no_shared_class(self):
        with pytest.raises(
            AnnotationError,
            match=r"none of the detector's classes: they have 'cat', .*, the detector knows 'fox'",
        ):
            category_ids(ANNOTATIONS, ("fox",))

    def test_long_lists_are_shortened(self):
        with pytest.raises(AnnotationError, match=r"'class_0', .*'class_4' and 75 more: eval"):
            category_ids(ANNOTATIONS, [f"class_{i}" for i in range(80)])


ROOT = {"id": 0, "name": "cat", "supercategory": "none"}
CHILD = {"id": 1, "name": "cat", "supercategory": "cat"}


class TestCategoriesOfOneName:
    @pytest.mark.parametrize("categories", [[ROOT, CHILD], [CHILD, ROOT]])
    @pytest.mark.parametrize(("used", "expected"), [(0, 0), (1, 1), (None, 1)])
    def test_the_used_one_counts_else_that_which_has_a_parent(self, categories, used, expected):
        annotations = [] if used is None else [{"category_id": used}]
        content = {"categories": categories, "annotations": annotations}
        assert category_names(content) == {"cat": expected}

    @pytest.mark.parametrize("categories", [[ROOT, {**ROOT, "id": 1}], [CHILD, {**CHILD, "id": 0}]])
    def test_nothing_tells_unused_ones_apart(self, categories):
        with pytest.raises(AnnotationError, match=r"use name 'cat' twice \(ids . and .\)"):
            category_names({"categories": categories, "annotations": []})


BAD_RESULTS = [
    ({"image_id": [7]}, r"image_id \[7\]: give the integer id"),
    ({"category_id": True}, "category_id True: give the integer id"),
    *(
        ({"bbox": box}, "bbox .*: give x, y, width and height")
        for box in (None, [1, 2], [1, 2, 3, 4] * 2, [1, 2, NAN, 4], [1, 2, -3, 4], [1, 2, HUGE, 4])
    ),
    *(
        ({"score": score}, "score .*: give a finite number")
        for score in (None, "0.9", NAN, INF, HUGE, True)
    ),
    *(
        ({"segmentation": mask}, "segmentation .*: give a compressed run-length encoding")
        for mask in (5, None, [[1, 2, 4, 2, 4, 6]], {"size": [40, 50]})
    ),
    (encoded([62, 10, 1928]), "segmentation .*: give a compressed run-length encoding"),
    (encoded(COMPRESSED, [50, 40]), r"segmentation size \[50, 40\]: give the image's"),
    (encoded(COMPRESSED[:-1]), "segmentation counts .*: give run lengths"),
]


class TestResults:
    def test_entry(self):
        (entry,) = to_results(7, found(1), (90, 5))
        mask = entry.pop("segmentation")
        score = entry.pop("score")
        assert entry == {"image_id": 7, "category_id": 5, "bbox": [1.0, 2.0, 10.0, 20.0]}
        assert score == pytest.approx(0.9)
        assert mask["size"] == [40, 50]
        assert isinstance(mask["counts"], str)

    def test_detector_without_masks(self):
        assert "segmentation" not in to_results(7, found(0, masks=False), (90, 5))[0]

    def test_a_class_without_category_is_left_out(self):
        entries = to_results(7, found(0, 1, 0), (None, 5))
        assert [entry["category_id"] for entry in entries] == [5]

    def test_nothing_detected(self):
        assert to_results(7, found(), (90, 5)) == []

    @pytest.mark.parametrize("masks", [True, False])
    def test_round_trip(self, tmp_path, masks):
        path = tmp_path / "results.json"
        detections = found(0, 1, 0, masks=masks)
        write_results(path, to_results(7, detections, (90, 5)))
        read = from_results(path, ANNOTATIONS, CLASSES)
        assert list(read) == [7, 3]
        assert len(read[3]) == 0
        assert read[3].image_size == (30, 20)
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(read[7], name), getattr(detections, name))
        assert read[7].masks == detections.masks
        assert read[7].image_size == (40, 50)

    def test_best_first(self, tmp_path):
        path = tmp_path / "results.json"
        write_results(path, to_results(7, found(0, 1), (90, 5))[::-1])
        assert from_results(path, ANNOTATIONS, CLASSES)[7].labels.tolist() == [0, 1]

    def test_empty_file(self, tmp_path):
        write_results(tmp_path / "a.json", [])
        read = from_results(tmp_path / "a.json", ANNOTATIONS, CLASSES)
        assert [len(detections) for detections in read.values()] == [0, 0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_id": 8}, "has image_id 8, which the annotations lack"),
            ({"category_id": 6}, "has category_id 6, which is none of the detector's classes"),
            *((change, f"a.json: result 0 has {message}") for change, message in BAD_RESULTS),
        ],
    )
    def test_results_of_something_else(self, tmp_path, change, message):
        results = to_results(7, found(0), (90, 5))
        path = write(tmp_path / "a.json", [{**results[0], **change}])
        with pytest.raises(AnnotationError, match=message):
            from_results(path, ANNOTATIONS, CLASSES)

    @pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", "[{}]", "[" * 100_000])
    def test_no_result_file(self, tmp_path, content):
        with pytest.raises(AnnotationError, match=r"result file .*a\.json"):
            from_results(write(tmp_path / "a.json", content), ANNOTATIONS, CLASSES)
