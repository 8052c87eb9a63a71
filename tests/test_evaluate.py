"""Average precision: mmdetection's recorded numbers, hand-made cases, and broken input."""

from __future__ import annotations

import json

import numpy as np
import pytest

from carafe_deploy.coco import from_results, load_annotations
from carafe_deploy.errors import AnnotationError
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


class TestBadInput:
    def test_result_of_unknown_image(self):
        with pytest.raises(AnnotationError, match="image_id 99 is not in the annotations"):
            evaluate_results([result((1, 1, 5, 5), image_id=99)], annotations(), ("cat",))

    def test_chosen_image_unknown(self):
        with pytest.raises(AnnotationError, match="image_id 4 is not in the annotations"):
            evaluate_results([], annotations(), ("cat",), image_ids=[4])

    def test_class_without_category(self):
        with pytest.raises(AnnotationError, match="lack 'fox'"):
            evaluate_results([], annotations(), ("fox",))

    def test_masks_of_results_without(self):
        with pytest.raises(AnnotationError, match="a result of image 1 has no mask"):
            evaluate_results([result((1, 1, 5, 5))], annotations(), ("cat",), ("segm",))

    @pytest.mark.parametrize("kinds", [(), ("keypoints",)])
    def test_other_kinds(self, kinds):
        with pytest.raises(ValueError, match="expected 'bbox', 'segm' or both"):
            evaluate_results([], annotations(), ("cat",), kinds)

    @pytest.mark.parametrize("max_dets", [(1, 10), (1, 10, 50), (100, 10, 1)])
    def test_other_max_dets(self, max_dets):
        with pytest.raises(ValueError, match="three ascending with 100 in them"):
            evaluate_results([], annotations(), ("cat",), max_dets=max_dets)


class ReplayRunner:
    """Answers with recorded detections, in the order of the annotation file's images."""

    backend = "fake"
    inputs = ()
    outputs = ()

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


class TestEvaluateRunner:
    @pytest.fixture
    def recorded(self, shapes_dir, val):
        path = shapes_dir / "shapes_faster_rcnn_carafe.val.bbox.json"
        return list(from_results(path, val, CLASSES).values())

    def test_recorded_detections_give_the_recorded_number(self, shapes_dir, recorded):
        calls: list[tuple[int, int]] = []
        found, detections = evaluate_runner(
            ReplayRunner(recorded),
            shapes_dir / "val.json",
            shapes_dir / "val",
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

    def test_limit(self, shapes_dir, recorded):
        found, detections = evaluate_runner(
            ReplayRunner(recorded), shapes_dir / "val.json", shapes_dir / "val", limit=3
        )
        assert found.images == 3
        assert list(detections) == [1, 2, 3]

    def test_limit_below_one(self, shapes_dir):
        with pytest.raises(AnnotationError, match="limit 0 leaves no image to evaluate"):
            evaluate_runner(ReplayRunner([]), shapes_dir / "val.json", shapes_dir / "val", limit=0)

    def test_missing_images_are_found_before_anything_runs(self, shapes_dir, tmp_path):
        with pytest.raises(
            AnnotationError, match=r"100 of 100 annotated images are missing, .*000001\.png first"
        ):
            evaluate_runner(ReplayRunner([]), shapes_dir / "val.json", tmp_path)

    def test_image_of_another_size_than_annotated(self, tmp_path):
        save_image(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
        (tmp_path / "a.json").write_text(json.dumps(annotations(height=30, width=20)))
        empty = Detections(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), (20, 30)
        )
        with pytest.raises(AnnotationError, match=r"has 30x20 pixels, the annotations say 20x30"):
            evaluate_runner(ReplayRunner([empty], ("cat",)), tmp_path / "a.json", tmp_path)

    def test_classes_that_are_not_annotated(self, shapes_dir):
        with pytest.raises(AnnotationError, match="lack 'fox'"):
            evaluate_runner(
                ReplayRunner([], ("circle", "fox")), shapes_dir / "val.json", shapes_dir / "val"
            )
