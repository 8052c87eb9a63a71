"""Average precision: mmdetection's recorded numbers, hand-made cases, and broken input."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from carafe_deploy.coco import from_results, load_annotations
from carafe_deploy.errors import AnnotationError, ImageError
from carafe_deploy.evaluate import evaluate, evaluate_results, evaluate_runner
from carafe_deploy.images import save_image
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.types import Detections, ModelInfo, Preprocessing

CLASSES = ("circle", "square", "triangle")
MMDETECTION_MAX_DETS = (100, 300, 1000)

TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
TWELVE += ["AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def annotations(*boxes, height: int = 200, width: int = 200, **image) -> dict:
    """One image with a cat on every box (x, y, width, height), and unused categories."""
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width, **image}],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": 17,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [
                    [box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]
                ],
            }
            for number, box in enumerate(boxes)
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def result(box, score: float = 0.9, **changes) -> dict:
    return {"image_id": 1, "category_id": 17, "bbox": list(box), "score": score, **changes}


@pytest.fixture(scope="module")
def val(shapes_dir):
    return load_annotations(shapes_dir / "val.json", with_masks=True)


class TestRecordedByMmdetection:
    @pytest.mark.parametrize(
        ("model", "kind"), [("faster", "bbox"), ("mask", "bbox"), ("mask", "segm")]
    )
    @pytest.mark.parametrize("max_dets", [(1, 10, 100), MMDETECTION_MAX_DETS])
    def test_recorded_results_give_recorded_numbers(self, shapes_dir, val, model, kind, max_dets):
        stem = f"shapes_{model}_rcnn_carafe"
        expected = json.loads((shapes_dir / f"{stem}.metrics.json").read_text())[kind]
        results = json.loads((shapes_dir / f"{stem}.val.{kind}.json").read_text())
        found = evaluate_results(results, val, CLASSES, (kind,), max_dets=max_dets)
        numbers = found.numbers[kind]
        assert numbers["AP"] == pytest.approx(expected["mAP"], abs=1e-9)
        assert numbers["AP50"] == pytest.approx(expected["mAP50"], abs=1e-9)
        assert numbers["AP75"] == pytest.approx(expected["mAP75"], abs=1e-9)
        assert found.per_class[kind] == pytest.approx(expected["per_class_AP"], abs=1e-9)
        assert found.detections == expected["n_dets"]
        assert found.images == 100

    @pytest.mark.parametrize("kind", ["bbox", "segm"])
    @pytest.mark.parametrize("max_dets", [(1, 10, 100), MMDETECTION_MAX_DETS, (3, 100, 200)])
    def test_all_numbers_are_those_that_pycocotools_prints(self, shapes_dir, val, kind, max_dets):
        path = shapes_dir / "shapes_mask_rcnn_carafe.val.segm.json"
        results = json.loads(path.read_text())
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(shapes_dir / "val.json")
            scorer = COCOeval(truth, truth.loadRes(str(path)), kind)
            if kind == "segm":  # loadRes took the areas of the boxes where there are boxes
                for entry in scorer.cocoDt.anns.values():
                    entry["area"] = float(coco_mask.area(entry["segmentation"]))
            scorer.params.maxDets = list(max_dets)
            scorer.evaluate()
            scorer.accumulate()
            scorer.summarize()
        found = evaluate_results(results, val, CLASSES, (kind,), max_dets=max_dets)
        numbers = [-1 if value is None else value for value in found.numbers[kind].values()]
        assert numbers == scorer.stats.tolist()  # to the last digit

    def test_detections_in_float32_give_the_same(self, shapes_dir, val):
        path = shapes_dir / "shapes_mask_rcnn_carafe.val.segm.json"
        detections = from_results(path, val, CLASSES)
        found = evaluate(detections, shapes_dir / "val.json", CLASSES, ("bbox", "segm"))
        expected = json.loads((shapes_dir / "shapes_mask_rcnn_carafe.metrics.json").read_text())
        for kind in ("bbox", "segm"):
            assert found.numbers[kind]["AP"] == pytest.approx(expected[kind]["mAP"], abs=1e-6)


class TestNumbers:
    def test_names_are_cocos_twelve(self):
        found = evaluate_results([], annotations((10, 10, 50, 50)), ("cat",))
        assert list(found.numbers["bbox"]) == TWELVE

    def test_perfect_detection(self):
        box = (10, 10, 50, 50)  # 32**2 < area < 96**2: medium
        found = evaluate_results([result(box)], annotations(box), ("cat",))
        numbers = found.numbers["bbox"]
        for name in ("AP", "APm", "AR1"):
            assert numbers[name] == pytest.approx(1)
        assert numbers["APs"] is None
        assert numbers["APl"] is None
        assert found.per_class == {"bbox": {"cat": pytest.approx(1)}}
        assert (found.images, found.detections) == (1, 1)

    def test_overlap_counts_at_the_thresholds_it_reaches(self):
        # IoU 40/50 = 0.8: right at 0.5, 0.55, ..., 0.8, seven of ten thresholds.
        truth, box = (10, 10, 50, 50), (10, 10, 40, 50)
        numbers = evaluate_results([result(box)], annotations(truth), ("cat",)).numbers["bbox"]
        assert numbers["AP"] == pytest.approx(0.7)
        assert numbers["AP75"] == pytest.approx(1)

    def test_annotation_with_id_zero_counts(self):
        # `annotations` numbers from 0, which pycocotools by itself takes for "not matched".
        box = (10, 10, 50, 50)
        assert annotations(box)["annotations"][0]["id"] == 0
        numbers = evaluate_results([result(box)], annotations(box), ("cat",)).numbers["bbox"]
        assert numbers["AP50"] == pytest.approx(1)

    def test_no_detections_at_all(self):
        found = evaluate({}, self.write(annotations((10, 10, 50, 50))), ("cat",), ("bbox", "segm"))
        for kind in ("bbox", "segm"):
            assert found.numbers[kind]["AP"] == 0
            assert found.numbers[kind]["AR100"] == 0
        assert found.detections == 0

    def test_no_objects_at_all(self):
        found = evaluate_results([result((1, 1, 5, 5))], annotations(), ("cat",))
        assert set(found.numbers["bbox"].values()) == {None}
        assert found.per_class["bbox"] == {"cat": None}

    def test_categories_follow_names_not_order(self):
        box = (10, 10, 50, 50)
        detections = Detections(
            boxes=np.array([[10, 10, 60, 60]], np.float32),
            scores=np.array([0.9], np.float32),
            labels=np.array([1]),
            image_size=(200, 200),
        )
        found = evaluate({1: detections}, self.write(annotations(box)), ("dog", "cat"))
        assert found.per_class["bbox"] == {"dog": None, "cat": pytest.approx(1)}

    def test_categories_that_the_detector_does_not_know_are_left_out(self):
        box = (10, 10, 50, 50)
        other = {**annotations(box)["annotations"][0], "id": 5, "category_id": 2}
        content = annotations(box)
        content["annotations"].append(other)
        found = evaluate_results([result(box), result(box, category_id=2)], content, ("cat",))
        assert found.numbers["bbox"]["AP"] == pytest.approx(1)
        assert found.ignored_categories == ("dog",)
        assert found.detections == 1

    def test_some_images_only(self):
        box = (10, 10, 50, 50)
        content = annotations(box)
        content["images"].append({**content["images"][0], "id": 2})
        content["annotations"].append({**content["annotations"][0], "id": 9, "image_id": 2})
        assert evaluate_results([result(box)], content, ("cat",)).numbers["bbox"]["AR1"] == 0.5
        found = evaluate_results([result(box)], content, ("cat",), image_ids=[1])
        assert found.numbers["bbox"]["AR1"] == 1
        assert found.images == 1

    def test_inputs_are_left_as_they_were(self):
        content, results = annotations((10, 10, 50, 50)), [result((10, 10, 50, 50))]
        before = json.dumps([content, results])
        evaluate_results(results, content, ("cat",))
        assert json.dumps([content, results]) == before

    def test_nothing_is_printed(self, capsys):
        evaluate_results([result((10, 10, 50, 50))], annotations((10, 10, 50, 50)), ("cat",))
        assert capsys.readouterr() == ("", "")

    def test_threads_leave_stdout_alone(self, capsys):
        """What others print meanwhile arrives, and the stream is the same before and after."""
        box = (10, 10, 50, 50)
        before, done, seen = sys.stdout, threading.Event(), set()

        def chatter() -> int:
            count = 0
            while not done.is_set():
                seen.add(sys.stdout)
                print("a line")
                count += 1
            return count

        with ThreadPoolExecutor(5) as pool:
            talking = pool.submit(chatter)
            try:
                scores = pool.map(
                    lambda _: evaluate_results([result(box)], annotations(box), ("cat",)),
                    range(40),
                )
                values = [found.numbers["bbox"]["AP50"] for found in scores]
            finally:
                done.set()
        assert values == [pytest.approx(1)] * 40
        assert seen == {before}
        assert sys.stdout is before
        assert capsys.readouterr().out == "a line\n" * talking.result()

    def test_json(self):
        found = evaluate_results([], annotations((10, 10, 50, 50)), ("cat",))
        assert json.loads(json.dumps(found.to_dict()))["numbers"]["bbox"]["AP"] == 0

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def write(self, content: dict):
        path = self.folder / "a.json"
        path.write_text(json.dumps(content))
        return path


def filled(box, size=(200, 200)) -> dict:
    """Encoding of a mask that fills a box."""
    x, y, width, height = box
    pixels = np.zeros(size, np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    encoding = coco_mask.encode(pixels)
    return {**encoding, "counts": encoding["counts"].decode()}


#: Three cats in a row, 40 by 40 pixels.
BOXES = ((0, 0, 40, 40), (60, 0, 40, 40), (120, 0, 40, 40))


class TestWhatPeopleHave:
    """Annotations with gaps. The right numbers are worked out by hand."""

    @staticmethod
    def truth(*segmentations) -> dict:
        content = annotations(*BOXES)
        for entry, segmentation in zip(content["annotations"], segmentations, strict=True):
            entry["segmentation"] = segmentation
            if segmentation == "absent":
                del entry["segmentation"]
        return content

    @staticmethod
    def found(*scores) -> list[dict]:
        """A cat's mask on each of the three boxes."""
        return [
            result(box, score, segmentation=filled(box))
            for box, score in zip(BOXES, scores, strict=True)
        ]

    @pytest.mark.parametrize("empty", ["absent", None, [], [[]], [[0, 0, 40, 40]]])
    def test_boxes_alone_where_there_are_no_masks(self, empty):
        found = evaluate_results(
            self.found(0.9, 0.8, 0.7), self.truth(empty, empty, empty), ("cat",), ("bbox", "segm")
        )
        assert list(found.numbers) == list(found.per_class) == ["bbox"]
        assert found.numbers["bbox"]["AP"] == pytest.approx(1)
        assert found.notes == ("no annotated object has a mask: only boxes are evaluated",)

    @pytest.mark.parametrize("empty", ["absent", None, [], [[]], [[0, 0, 40, 40]]])
    def test_masks_for_what_has_them(self, empty):
        # The best detection is on the cat without a mask, the second misses by half a mask (IoU
        # 0.5: right at the first of ten thresholds), the third fits.
        content = self.truth(empty, filled(BOXES[1]), filled(BOXES[2]))
        results = self.found(0.9, 0.8, 0.7)
        results[1]["segmentation"] = filled((60, 0, 20, 40))
        found = evaluate_results(results, content, ("cat",), ("bbox", "segm"))
        assert found.numbers["bbox"]["AP"] == pytest.approx(1)
        # At IoU 0.5 both are right: 1. Above it one false positive comes before the one that is
        # right: recall ends at 1/2, precision is 1/2 up to there: 51 of 101 points with 1/2.
        assert found.numbers["segm"]["AP50"] == pytest.approx(1)
        assert found.numbers["segm"]["AP75"] == pytest.approx(51 / 101 / 2)
        assert found.numbers["segm"]["AP"] == pytest.approx((1 + 9 * 51 / 101 / 2) / 10)
        assert found.numbers["segm"]["AR100"] == pytest.approx((1 + 9 / 2) / 10)
        assert found.objects == 3
        assert found.notes == (
            "1 of 3 annotated objects have no mask: detections on them count for boxes only",
        )

    def test_a_polygon_of_two_points_beside_others_has_no_part(self):
        x, y, side = 0, 0, 40
        square = [x, y, x + side, y, x + side, y + side, x, y + side]
        content = self.truth([[0, 0, 90, 90], square], filled(BOXES[1]), filled(BOXES[2]))
        found = evaluate_results(self.found(0.9, 0.8, 0.7), content, ("cat",), ("segm",))
        assert (found.numbers["segm"]["AP"], found.notes) == (pytest.approx(1), ())

    def test_shared_classes_alone_count(self):
        # Of the annotated cats two of three are found; foxes are not annotated at all.
        content = annotations(*BOXES)
        found = evaluate_results(
            [result(box) for box in BOXES[:2]], content, ("fox", "cat", "emu", "dog")
        )
        assert found.numbers["bbox"]["AP"] == pytest.approx(67 / 101)  # recall 0.00 to 0.66
        assert found.per_class["bbox"] == {
            "fox": None, "cat": pytest.approx(67 / 101), "emu": None, "dog": None
        }  # fmt: skip
        assert found.missing_classes == ("fox", "emu")
        assert found.notes == (
            "the annotations have 2 of the detector's 4 classes, AP is theirs; not annotated, and "
            "left out of the results: 'fox', 'emu'",
        )

    @pytest.mark.parametrize("root", [0, 99])
    def test_an_unused_category_of_the_same_name(self, root):
        content = annotations(*BOXES)
        content["categories"].insert(0, {"id": root, "name": "cat", "supercategory": "none"})
        found = evaluate_results([result(box) for box in BOXES], content, ("cat", "dog"))
        assert found.per_class["bbox"] == {"cat": pytest.approx(1), "dog": None}
        assert found.ignored_categories == ()
        assert found.notes == (
            f"category {root} is ignored: no annotation uses it, and another one is called 'cat' "
            "too",
        )

    def test_nothing_annotated(self):
        found = evaluate_results(
            self.found(0.9, 0.8, 0.7), annotations(), ("cat",), ("bbox", "segm")
        )
        assert set(found.numbers["bbox"].values()) == set(found.numbers["segm"].values()) == {None}
        assert (found.objects, found.detections) == (0, 3)
        assert found.notes == ("no object of the detector's classes is annotated: there is no AP",)


class TestBadInput:
    @pytest.mark.parametrize(
        ("results", "classes", "options", "error", "message"),
        [
            (
                [result((1, 1, 5, 5), image_id=99)],
                ("cat",),
                {},
                AnnotationError,
                "image_id 99 is n",
            ),
            ([], ("cat",), {"image_ids": [4]}, AnnotationError, "image_id 4 is not in the annot"),
            ([], ("fox",), {}, AnnotationError, r"none of the detector's classes: .*knows 'fox'"),
            (
                [result((1, 1, 5, 5))],
                ("cat",),
                {"iou_types": ("segm",)},
                AnnotationError,
                "a result of image 1 has no mask",
            ),
            *(
                ([], ("cat",), {"iou_types": kinds}, ValueError, "expected 'bbox', 'segm' or both")
                for kinds in ((), ("keypoints",))
            ),
            *(
                ([], ("cat",), {"max_dets": dets}, ValueError, "three ascending with 100 in them")
                for dets in ((1, 10), (1, 10, 50), (100, 10, 1))
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, results, classes, options, error, message):
        with pytest.raises(error, match=message):
            evaluate_results(results, annotations(), classes, **options)

    def test_masks_alone_where_none_is_annotated(self):
        content = annotations((10, 10, 50, 50))
        del content["annotations"][0]["segmentation"]
        with pytest.raises(AnnotationError, match=r"no annotated object has a mask: evaluate box"):
            evaluate_results([], content, ("cat",), ("segm",))


class ReplayRunner:
    """Answers with recorded detections, in the order of the annotation file's images."""

    backend = "fake"
    inputs = ()
    outputs = ()
    preprocesses = False

    def __init__(self, detections: list[Detections], classes=CLASSES) -> None:
        self.info = ModelInfo(
            "replay", "faster_rcnn", tuple(classes), preprocessing=Preprocessing((160, 128))
        )
        self._detections = iter(detections)

    def run(self, inputs):
        batch = [next(self._detections) for _ in inputs["images"]]
        rows = max(map(len, batch))
        outputs = {
            "num_dets": np.array([[len(found)] for found in batch], np.int32),
            "det_boxes": np.zeros((len(batch), rows, 4), np.float32),
            "det_scores": np.zeros((len(batch), rows), np.float32),
            "det_classes": np.zeros((len(batch), rows), np.int32),
        }
        for row, found in enumerate(batch):
            blank = np.zeros((*found.image_size, 3), np.uint8)
            scale = Preprocessor(self.info)([blank]).scale_factors[0]
            outputs["det_boxes"][row, : len(found)] = found.boxes * np.tile(scale, 2)
            outputs["det_scores"][row, : len(found)] = found.scores
            outputs["det_classes"][row, : len(found)] = found.labels
        return outputs

    def start(self, inputs):
        results = self.run(inputs)
        return lambda: results


class TestEvaluateRunner:
    @pytest.fixture
    def recorded(self, shapes_dir, val):
        path = shapes_dir / "shapes_faster_rcnn_carafe.val.bbox.json"
        return list(from_results(path, val, CLASSES).values())

    def test_recorded_detections_give_the_recorded_number(self, run, shapes_dir, recorded):
        calls: list[tuple[int, int]] = []
        found, detections = run(
            recorded,
            batch_size=8,
            mixed_sizes=True,  # what is replayed is in the order of the images
            progress=lambda *call: calls.append(call),
        )
        metrics = json.loads((shapes_dir / "shapes_faster_rcnn_carafe.metrics.json").read_text())
        assert found.numbers["bbox"]["AP"] == pytest.approx(metrics["bbox"]["mAP"], abs=1e-3)
        assert list(found.numbers) == ["bbox"]
        assert found.detections == sum(map(len, detections.values())) == metrics["bbox"]["n_dets"]
        assert calls[-1] == (100, 100)
        assert len(calls) == 100

    @pytest.fixture
    def run(self, shapes_dir):
        """Evaluate a replay on the validation set, or on other images or annotations."""

        def run(recorded=(), classes=CLASSES, *, ann_file=None, image_dir=None, **options):
            return evaluate_runner(
                ReplayRunner(recorded, classes),
                ann_file or shapes_dir / "val.json",
                image_dir or shapes_dir / "val",
                **options,
            )

        return run

    def test_limit(self, run, recorded):
        found, detections = run(recorded, limit=3)
        assert found.images == 3
        assert list(detections) == [1, 2, 3]

    def test_limit_below_one(self, run):
        with pytest.raises(AnnotationError, match="limit 0 leaves no image to evaluate"):
            run(limit=0)

    def test_missing_images_are_found_before_anything_runs(self, run, tmp_path):
        message = r"100 of 100 annotated images are missing, .*000001\.png first"
        with pytest.raises(AnnotationError, match=message):
            run(image_dir=tmp_path)

    def test_image_of_another_size_than_annotated(self, run, tmp_path):
        save_image(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
        (tmp_path / "a.json").write_text(json.dumps(annotations(height=30, width=20)))
        with pytest.raises(AnnotationError, match=r"has 30x20 pixels, the annotations say 20x30"):
            run((), ("cat",), ann_file=tmp_path / "a.json", image_dir=tmp_path)

    def test_classes_that_are_not_annotated(self, run):
        with pytest.raises(AnnotationError, match="the detector knows 'fox'"):
            run((), ("fox",))

    @pytest.fixture
    def broken(self, shapes_dir, tmp_path):
        """The validation set; its images 2, 3 and 5 are garbage, missing and of another size."""
        for path in (shapes_dir / "val").iterdir():
            (tmp_path / path.name).symlink_to(path)
        for name in ("000002.png", "000003.png", "000005.png"):
            (tmp_path / name).unlink()
        (tmp_path / "000002.png").write_bytes(b"no image")
        save_image(tmp_path / "000005.png", np.zeros((7, 9, 3), np.uint8))
        return tmp_path

    def test_broken_images_are_found_before_anything_runs(self, run, shapes_dir, broken):
        for error, message, mended in (
            (AnnotationError, r"1 of 100 .* are missing, .*3\.png.*skip_broken", "000003.png"),
            (ImageError, r"2 of 100 .* evaluated: cannot decode .*2\.png.*skip_brok", "000002.png"),
            (AnnotationError, r"1 of 100 .*5\.png has 9x7 pixels, the annotati", "000005.png"),
        ):
            with pytest.raises(error, match=message):
                run(image_dir=broken)
            (broken / mended).unlink(missing_ok=True)
            (broken / mended).symlink_to(shapes_dir / "val" / mended)

    def test_broken_images_may_be_left_out(self, run, shapes_dir, broken, recorded, val):
        left = [image["id"] for image in val["images"] if image["id"] not in (2, 3, 5)]
        kept = [found for image, found in zip(val["images"], recorded, strict=True)
                if image["id"] in left]  # fmt: skip
        found, detections = run(kept, image_dir=broken, skip_broken=True)
        assert list(detections) == left
        assert [reason.split("/")[-1][:10] for reason in found.skipped] == [
            "000002.png", "000003.png", "000005.png"
        ]  # fmt: skip
        # The same images by another way: mmdetection's recorded results, scored on those ids.
        path = shapes_dir / "shapes_faster_rcnn_carafe.val.bbox.json"
        results = json.loads(path.read_text())
        expected = evaluate_results(
            [entry for entry in results if entry["image_id"] in left], val, CLASSES, image_ids=left
        )
        assert found.images == expected.images == 97
        assert found.numbers["bbox"]["AP"] == pytest.approx(
            expected.numbers["bbox"]["AP"], abs=1e-3
        )

    def test_nothing_is_left(self, run, tmp_path):
        for name in ("000001.png", "000002.png"):
            (tmp_path / name).write_bytes(b"no image")
        with pytest.raises(ImageError, match=r"2 of 2 annotated images cannot be evaluated: "):
            run(image_dir=tmp_path, limit=2, skip_broken=True)

    @pytest.mark.parametrize("name", ["a" * 400 + ".png", "a\0.png"])
    def test_impossible_file_names(self, run, tmp_path, recorded, val, name):
        content = copy.deepcopy(val)
        content["images"][1]["file_name"] = name
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content))
        with pytest.raises(AnnotationError, match=r"1 of 2 annotated images are missing, .*/a"):
            run(ann_file=path, limit=2)
        found, detections = run(recorded[:1], ann_file=path, limit=2, skip_broken=True)
        assert list(detections) == [val["images"][0]["id"]]
        assert len(found.skipped) == 1

    def test_a_test_set_gives_detections_and_no_ap(self, run, tmp_path, recorded, val):
        content = {key: val[key] for key in ("images", "categories")}
        path = tmp_path / "image_info.json"
        path.write_text(json.dumps(content))
        found, detections = run(recorded, ann_file=path)
        assert set(found.numbers["bbox"].values()) == {None}
        assert found.objects == 0
        assert found.detections == sum(map(len, recorded)) == sum(map(len, detections.values()))


def test_one_text_is_no_list_of_classes(tmp_path) -> None:
    with pytest.raises(AnnotationError, match=r"classes is 'shapes': give the names of classes"):
        evaluate({}, tmp_path / "none.json", "shapes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, "result 1 has score nan: give a finite number"),
        ({"score": float("inf")}, "result 1 has score inf: give"),
        ({"bbox": [0, 0, float("nan"), 40]}, r"result 1 has bbox \[0, 0, nan, 40\]: give x"),
        ({"segmentation": filled((0, 0, 9, 9), (9, 9))}, r"has segmentation size \[9, 9\]: give"),
        ({"segmentation": {"size": [200, 200], "counts": "1"}}, "counts '1', which add up to 1: "),
    ],
)
def test_malformed_results(change, message):
    results = [result(box, segmentation=filled(box)) for box in BOXES]
    results[1].update(change)
    with pytest.raises(AnnotationError, match=message):
        evaluate_results(results, annotations(*BOXES), ("cat",), ("bbox", "segm"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["scores", "boxes"])
def test_detections_that_are_no_numbers(tmp_path, field, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(annotations(BOXES[0])))
    detections = Detections(
        boxes=np.array([[0, 0, 40, 40]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.array([0]),
        image_size=(200, 200),
    )
    getattr(detections, field)[..., 0] = value
    with pytest.raises(AnnotationError, match=r"result 0 has (score|bbox) .*(nan|inf).*: give"):
        evaluate({1: detections}, path, ("cat",))
