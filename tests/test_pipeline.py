"""The pipeline over a runner that answers from its inputs."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import EngineError, ImageError, InputShapeError
from carafe_deploy.images import save_image
from carafe_deploy.masks import decode_mask
from carafe_deploy.parity.compatible import BoundedRunner
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners.base import Runner, RunTimes, check_inputs
from carafe_deploy.types import InputFormat, ModelInfo, Preprocessing


class FrameRunner:
    """Finds one box an image, its frame, with the image's first pixel as score."""

    backend = "fake"
    inputs = ()
    outputs = ()
    device = "cpu"
    preprocesses = False
    implementations = ("",)

    def __init__(self, batch: tuple[int, int] = (1, 8), architecture: str = "faster_rcnn") -> None:
        self.info = ModelInfo(
            name="frames",
            architecture=architecture,
            classes=("frame",),
            preprocessing=Preprocessing((64, 64), (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
            input=InputFormat(batch=batch),
        )
        self.batches: list[int] = []
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs):
        check_inputs(self.info, inputs)
        images, sizes = inputs["images"], inputs["image_sizes"]
        batch = len(images)
        self.batches.append(batch)
        self.shapes.append(images.shape)
        boxes = np.zeros((batch, 3, 4), np.float32)
        boxes[:, 0, 2:] = sizes[:, ::-1]
        scores = np.zeros((batch, 3), np.float32)
        scores[:, 0] = images[:, 0, 0, 0]
        outputs = {
            "num_dets": np.ones((batch, 1), np.int32),
            "det_boxes": boxes,
            "det_scores": scores,
            "det_classes": np.zeros((batch, 3), np.int32),
        }
        if self.info.has_masks:
            outputs["det_masks"] = np.ones((batch, 3, 28, 28), np.float32)
        return outputs

    def start(self, inputs):
        results = self.run(inputs)
        return lambda: results

    def run_timed(self, inputs):
        return self.run(inputs), RunTimes(0.5, 2.0, 0.25)

    def run_stages(self, inputs):
        return self.run(inputs)

    def run_operator(self, call, inputs):
        raise NotImplementedError

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def images(count: int) -> list[np.ndarray]:
    """Of different sizes, each filled with its index."""
    return [np.full((20 + 3 * i, 50 - 2 * i, 3), i, np.uint8) for i in range(count)]


def indices(detections) -> list[int]:
    return [round(float(item.scores[0]) * 255) for item in detections]


def itself(image):
    """Loads what needs no loading."""
    return image


def what_is_found(source, image, detections):
    """Finishes with the detections."""
    return detections


def test_fake_is_a_runner():
    assert isinstance(FrameRunner(), Runner)


@pytest.mark.parametrize(
    ("count", "batch_size", "batches"),
    [(5, 1, [1] * 5), (5, 2, [2, 2, 1]), (5, 8, [5]), (0, 2, [])],
)
def test_every_image_in_order(count, batch_size, batches):
    runner = FrameRunner()
    found = Pipeline(runner, batch_size).detect(images(count))
    assert indices(found) == list(range(count))
    assert runner.batches == batches


def test_boxes_are_in_pixels_of_the_original():
    for image, found in zip(images(3), Pipeline(FrameRunner(), 3).detect(images(3)), strict=True):
        height, width = image.shape[:2]
        assert found.image_size == (height, width)
        np.testing.assert_allclose(found.boxes, [[0, 0, width, height]], rtol=1e-6)


def test_masks_of_a_mask_rcnn():
    runner = FrameRunner(architecture="mask_rcnn")
    (found,) = Pipeline(runner).detect([np.zeros((30, 40, 3), np.uint8)])
    assert decode_mask(found.masks[0]).mean() > 0.9


@pytest.mark.parametrize("batch", [(1, 8), (4, 4)])
def test_a_runner_that_preprocesses_gets_the_images_as_they_came(monkeypatch, batch):
    """What it makes of them is tested on its own."""
    given = []

    class Preprocessing(FrameRunner):
        preprocesses = True

        def run(self, inputs):
            raw = inputs["images"]
            given.append(raw.images)
            whole = Preprocessor(self.info)(raw.images).images
            return super().run({**inputs, "images": whole})

    pictures = images(2)
    found = Pipeline(Preprocessing(batch), 2).detect(pictures)
    (batch_given,) = given
    count = max(batch[0], 2)
    assert all(one is pictures[min(at, 1)] for at, one in enumerate(batch_given))
    assert len(batch_given) == count
    bounded = BoundedRunner(Preprocessing(batch), (batch[0], 4), (64, 128), (64, 128))
    assert indices(Pipeline(bounded).detect(pictures)) == indices(found) == [0, 1]


@pytest.mark.parametrize(("count", "batches"), [(1, [4]), (4, [4]), (6, [4, 4])])
def test_static_batch_is_filled_up(count, batches):
    runner = FrameRunner(batch=(4, 4))
    assert indices(Pipeline(runner).detect(images(count))) == list(range(count))
    assert runner.batches == batches


@pytest.mark.parametrize("batch_size", [0, -1, 9, 2.5, "2", None, True])
def test_batch_size_that_the_artefact_refuses(batch_size):
    with pytest.raises(
        InputShapeError, match=rf"batch size {batch_size!r} is not within 1 to 8.*: choose another"
    ):
        Pipeline(FrameRunner(), batch_size)


# --- one padded size a batch ---------------------------------------------------------------------


class PaddingRunner(FrameRunner):
    """Finds as many boxes as its input has columns of 64 pixels, as detectors do in effect."""

    def __init__(self, batch: tuple[int, int] = (1, 8)) -> None:
        super().__init__(batch)
        self.info = dataclasses.replace(self.info, preprocessing=WIDE)

    def run(self, inputs):
        outputs = super().run(inputs)
        outputs["num_dets"][:] = inputs["images"].shape[3] // 64
        return outputs


WIDE = Preprocessing((192, 64), (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
#: Padded to 64 x 192, 128 and 64 pixels.
WIDTHS = {"w": 96, "m": 60, "s": 32}


def of_sizes(text: str) -> list[np.ndarray]:
    """Of the padded sizes that the letters name, each filled with its index."""
    return [np.full((32, WIDTHS[letter], 3), i, np.uint8) for i, letter in enumerate(text)]


def counts(detections) -> str:
    return "".join(" smw"[len(one)] for one in detections)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("text", "batch_size", "window", "runs"),
    [
        ("wsws", 1, None, "w1 s1 w1 s1"),
        ("wsws", 2, None, "w2 s2"),
        ("wwmss", 2, None, "w2 s2 m1"),
        ("wsmwsmwsm", 8, None, "w3 s3 m3"),
        # As many as the window holds wait for one of another size.
        ("mwwwwww", 2, 4, "w2 m1 w2 w2"),
        ("s" * 9 + "w", 4, 4, "s4 s4 s1 w1"),
        ("", 2, None, ""),
    ],
)
def test_any_batch_size_finds_what_batches_of_one_find(text, batch_size, window, runs, overlap):
    runner = PaddingRunner()
    pipeline = Pipeline(runner, batch_size, window=window)
    found = list(pipeline.stream(of_sizes(text), itself, what_is_found, overlap=overlap))
    assert counts(found) == text
    assert indices(found) == list(range(len(text)))
    assert " ".join(f"{' smw'[w // 64]}{b}" for b, _, _, w in runner.shapes) == runs


def test_mixing_sizes_is_a_choice_and_pads_to_the_largest():
    runner = PaddingRunner()
    found = Pipeline(runner, 3, mixed_sizes=True).detect(of_sizes("swsms"))
    assert counts(found) == "wwwmm"
    assert indices(found) == [0, 1, 2, 3, 4]
    assert runner.batches == [3, 2]


def test_a_fixed_batch_is_filled_up_with_its_own_size():
    runner = PaddingRunner(batch=(4, 4))
    assert counts(Pipeline(runner).detect(of_sizes("swsws"))) == "swsws"
    assert runner.shapes == [(4, 3, 64, 64), (4, 3, 64, 192)]


def test_an_artefact_of_one_size_waits_for_nothing():
    runner = PaddingRunner()
    fixed = InputFormat(batch=(1, 8), height=(64, 64), width=(192, 192))
    runner.info = dataclasses.replace(runner.info, input=fixed)
    assert counts(Pipeline(runner, 2).detect(of_sizes("swms"))) == "wwww"
    assert runner.batches == [2, 2]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("bad", ["load", "shape", "sources"])
def test_what_comes_before_a_failure_is_out_although_it_waited(bad, overlap):
    """The images before it are of other sizes, and no batch is full."""

    def sources():
        yield from enumerate(of_sizes("swmsw"))
        if bad == "sources":
            raise OSError("the camera is gone")
        yield 5, None
        yield from enumerate(of_sizes("ssssss"))

    def load(source):
        if source[1] is None and bad == "load":
            raise ImageError("5.png is truncated")
        return np.zeros((8, 8), np.uint8) if source[1] is None else source[1]

    found = []
    stream = Pipeline(PaddingRunner(), 8).stream(
        sources(), load, lambda source, _, one: (source[0], len(one)), overlap=overlap
    )
    with pytest.raises(
        (OSError, ImageError, InputShapeError), match=r"camera|truncated|uint8 \[8, 8\]"
    ):
        found.extend(stream)
    assert found == [(0, 1), (1, 3), (2, 2), (3, 1), (4, 3)]


def test_no_more_sources_are_taken_than_the_window_and_the_batches_on_their_way(monkeypatch):
    monkeypatch.setattr("carafe_deploy.pipeline.LOADERS", 3)
    taken = []

    def sources():
        for number, image in enumerate(of_sizes("m" + "ws" * 100)):
            taken.append(number)
            yield image

    stream = Pipeline(PaddingRunner(), 2, window=10).stream(sources(), itself, what_is_found)
    assert len(next(stream)) == 2
    assert 10 <= len(taken) <= 10 + 5 * 2 + 3
    stream.close()


@pytest.mark.parametrize("window", [0, 3])
def test_a_window_smaller_than_a_batch(window):
    with pytest.raises(InputShapeError, match=f"window {window} holds no batch of 4: choose"):
        Pipeline(FrameRunner(), 4, window=window)


def test_one_timed_batch_has_one_size():
    pipeline = Pipeline(PaddingRunner(), 2)
    for call in (pipeline.detect_timed, pipeline.inputs):
        with pytest.raises(InputShapeError, match="padded sizes 64x64, 64x192: give images of one"):
            call(of_sizes("ws"))
    mixing = Pipeline(PaddingRunner(), 2, mixed_sizes=True)
    assert mixing.inputs(of_sizes("ws"))["images"].shape == (2, 3, 64, 192)


# --- what people hand over -----------------------------------------------------------------------


def _pillow(image: np.ndarray):
    pillow = pytest.importorskip("PIL.Image")
    return pillow.fromarray(image[:, :, ::-1])


GIVEN = {
    "one image": (lambda folder, i: i[2], [2]),
    "a tuple": (lambda folder, i: tuple(i), [0, 1, 2]),
    "a generator": (lambda folder, i: iter(i), [0, 1, 2]),
    "a stack": (lambda folder, i: np.stack([i[1], i[1]]), [1, 1]),
    "an array of objects": (lambda folder, i: np.array([i[2], i[0], None], object)[:2], [2, 0]),
    "an empty stack": (lambda folder, i: np.zeros((0, 8, 8, 3), np.uint8), []),
    "an empty list": (lambda folder, i: [], []),
    "a path": (lambda folder, i: folder / "1.png", [1]),
    "the name of a file": (lambda folder, i: str(folder / "2.png"), [2]),
    "paths": (lambda folder, i: [str(folder / "2.png"), folder / "0.png"], [2, 0]),
    "a PIL image": (lambda folder, i: _pillow(i[1]), [1]),
    "a mixture": (lambda folder, i: [_pillow(i[1]), folder / "0.png", i[2]], [1, 0, 2]),
    "a view": (lambda folder, i: i[1][::-1, ::-1], [1]),
}


@pytest.mark.parametrize("given", GIVEN)
def test_images_as_people_have_them(tmp_path, given):
    saved(tmp_path, 3)
    make, expected = GIVEN[given]
    assert indices(Pipeline(FrameRunner(), 2).detect(make(tmp_path, images(3)))) == expected


def test_one_path_is_not_taken_for_its_letters(tmp_path):
    saved(tmp_path, 2)
    [(path, found)] = Pipeline(FrameRunner()).detect_paths(str(tmp_path / "1.png"))
    assert path == tmp_path / "1.png"
    assert indices([found]) == [1]


GOOD = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"images is None .*: expected images as .*load_image"),
        ([GOOD, None], r"image 1 is None .*: expected images as .*load_image"),
        (3, "images is of type int: expected images as .*load_image"),
        (b"\x89PNG", "images is of type bytes: .*load_image"),
        ({"a.png": GOOD}, "images is of type dict: .*load_image"),
        ([[1, 2], [3, 4]], "image 0 is of type list: .*load_image"),
        (GOOD[:, :, 0], r"image is uint8 \[8, 8\], .*COLOR_GRAY2BGR"),
        ([GOOD, GOOD[:, :, :1]], r"image 1 is uint8 \[8, 8, 1\], .*COLOR_GRAY2BGR"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 \[8, 8, 4\], .*COLOR_BGRA2BGR"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"image 0 is uint8 \[8, 8, 4\], .*COLOR_BGRA2BGR"),
        (np.zeros((8, 8, 3)), r"float64 \[8, 8, 3\], .*scale it to 0\.\.255"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\], .*transpose\(1, 2, 0\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"image 0 is uint8 \[3, 8, 8\], .*transpose"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\], expected non-empty"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"uint8 \[1, 2, 8, 8, 3\], .*load_image"),
        (np.uint8(4), "images is of type numpy.uint8"),
    ],
)
@pytest.mark.parametrize("method", ["detect", "detect_timed", "inputs"])
def test_what_is_no_image_is_named(given, message, method):
    with pytest.raises(InputShapeError, match=message):
        getattr(Pipeline(FrameRunner(), 2), method)(given)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ImageError, match=r"nowhere\.jpg does not exist"):
        Pipeline(FrameRunner()).detect("nowhere.jpg")


def saved(folder: Path, count: int) -> list[Path]:
    """Paths of the images of :func:`images`."""
    paths = [folder / f"{i}.png" for i in range(count)]
    for path, image in zip(paths, images(count), strict=True):
        save_image(path, image)
    return paths


@pytest.mark.parametrize("overlap", [True, False])
def test_paths_in_order(tmp_path, overlap):
    paths = saved(tmp_path, 5)
    runner = FrameRunner()
    calls: list[tuple[int, int]] = []
    found = Pipeline(runner, 2).detect_paths(
        paths, lambda *call: calls.append(call), overlap=overlap
    )
    assert runner.batches == []
    results = list(found)
    assert [path for path, _ in results] == paths
    assert indices(item for _, item in results) == list(range(5))
    assert runner.batches == [2, 2, 1]
    assert calls == [(done, 5) for done in range(1, 6)]


def test_one_after_the_other_reads_no_further_than_asked(tmp_path):
    runner = FrameRunner()
    found = Pipeline(runner, 2).detect_paths(saved(tmp_path, 5), overlap=False)
    next(found)
    assert runner.batches == [2]


def test_a_stream_finds_what_detect_finds():
    expected = Pipeline(FrameRunner(architecture="mask_rcnn"), 3).detect(images(8))
    pipeline = Pipeline(FrameRunner(architecture="mask_rcnn"), 3)
    found = list(pipeline.stream(images(8), itself, lambda *result: result))
    for image, (source, loaded, one), other in zip(images(8), found, expected, strict=True):
        assert source is loaded
        np.testing.assert_array_equal(source, image)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        assert one.masks == other.masks


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_what_does_not_load_has_a_result_in_its_place(batch_size, overlap):
    runner = FrameRunner()

    def load(number):
        if number in (0, 2, 3, 6):
            raise ImageError(f"{number}.png is truncated")
        return images(7)[number]

    found = Pipeline(runner, batch_size).stream(
        range(7),
        load,
        lambda i, _, detections: (i, round(float(detections.scores[0]) * 255)),
        unreadable=lambda i, error: (i, str(error)),
        overlap=overlap,
    )
    assert list(found) == [
        (i, f"{i}.png is truncated" if i in (0, 2, 3, 6) else i) for i in range(7)
    ]
    assert sum(runner.batches) == 3


@pytest.mark.parametrize("batch_size", [1, 4])
def test_only_files_that_are_no_images_are_gone_past(batch_size):
    def load(number):
        if number == 5:
            raise MemoryError("5.png is enormous")
        return images(6)[number]

    stream = Pipeline(FrameRunner(), batch_size).stream(
        range(6), load, lambda number, *_: number, unreadable=lambda number, error: number
    )
    found = []
    with pytest.raises(MemoryError, match="enormous"):
        found.extend(stream)
    assert found == [0, 1, 2, 3, 4]


def test_a_device_works_on_the_next_batch_before_the_one_before_is_there():
    """Each waits for its outputs until another run has begun; order is kept."""

    class Device(FrameRunner):
        def start(self, inputs):
            number, later = len(self.batches), threading.Event()
            self.waiting.append(later)
            if number:
                self.waiting[number - 1].set()
            results = self.run(inputs)

            def finish():
                if number < 3:
                    assert later.wait(10)
                return results

            return finish

    runner = Device()
    runner.waiting = []
    stream = Pipeline(runner, 2).stream(images(8), itself, what_is_found)
    assert indices(stream) == list(range(8))


def test_the_runner_stays_in_the_callers_thread_and_the_rest_leaves_it(monkeypatch):
    monkeypatch.setattr("carafe_deploy.pipeline.LOADERS", 3)
    monkeypatch.setattr("carafe_deploy.pipeline.FINISHERS", 2)
    here = threading.get_ident()
    threads: dict[str, set[int]] = {"load": set(), "run": set(), "finish": set()}
    meetings = {
        "load": threading.Barrier(3, timeout=10),
        "finish": threading.Barrier(2, timeout=10),
    }

    class Noting(FrameRunner):
        def run(self, inputs):
            threads["run"].add(threading.get_ident())
            return super().run(inputs)

    def note(stage):
        threads[stage].add(threading.get_ident())
        meetings[stage].wait()

    def load(image):
        note("load")
        return image

    list(Pipeline(Noting()).stream(images(6), load, lambda *_: note("finish")))
    assert threads["run"] == {here}
    assert len(threads["load"]) == 3
    assert len(threads["finish"]) == 2
    assert len({here} | threads["load"] | threads["finish"]) == 6


@pytest.mark.parametrize("overlap", [True, False])
def test_a_runner_that_fails_does_not_cost_earlier_results(overlap):
    class Failing(FrameRunner):
        def run(self, inputs):
            if len(self.batches) == 3:
                raise EngineError("the GPU fell off the bus")
            return super().run(inputs)

    found = Pipeline(Failing()).stream(images(6), itself, what_is_found, overlap=overlap)
    assert indices(next(found) for _ in range(3)) == [0, 1, 2]
    with pytest.raises(EngineError, match="fell off"):
        next(found)


def test_unreadable_image_is_named(tmp_path):
    save_image(tmp_path / "0.png", images(1)[0])
    (tmp_path / "1.png").write_bytes(b"no image")
    found = Pipeline(FrameRunner()).detect_paths([tmp_path / "0.png", tmp_path / "1.png"])
    assert next(found)[0].name == "0.png"
    with pytest.raises(ImageError, match=r"1\.png"):
        next(found)


@pytest.mark.parametrize("shape", [(1, 1, 3), (10000, 50, 3)])
def test_extreme_sizes(shape):
    (found,) = Pipeline(FrameRunner()).detect([np.zeros(shape, np.uint8)])
    np.testing.assert_allclose(found.boxes, [[0, 0, shape[1], shape[0]]], rtol=1e-6)


def test_a_timed_batch_finds_the_same_and_tells_its_parts():
    runner = FrameRunner()
    pipeline = Pipeline(runner, batch_size=3)
    found, times = pipeline.detect_timed(images(3))
    assert indices(found) == indices(pipeline.detect(images(3))) == [0, 1, 2]
    assert times.run == RunTimes(0.5, 2.0, 0.25)
    assert min(times.preprocess, times.postprocess) > 0
    assert times.total >= times.preprocess + times.postprocess
    assert runner.batches == [3, 3]


def test_a_timed_batch_is_filled_up():
    runner = FrameRunner(batch=(4, 4))
    found, _ = Pipeline(runner).detect_timed(images(1))
    assert runner.batches == [4]
    assert len(found) == 1


def test_a_trained_detector_finds_the_same_with_any_batch_size(shapes_dir):
    """The first 16 validation images have three padded sizes."""
    paths = sorted((shapes_dir / "val").iterdir())[:16]
    with open_runner(shapes_dir / "shapes_faster_rcnn_carafe-2a9d7f44.pth") as runner:
        alone, together = (Pipeline(runner, size).detect(paths) for size in (1, 8))
        mixed = Pipeline(runner, 8, mixed_sizes=True).detect(paths)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
    assert list(map(len, mixed)) != list(map(len, alone))


def test_a_smallest_batch_that_no_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr("carafe_deploy.pipeline.FILLED_BYTES", 3 * 64 * 64 * 3 * 4)
    image = np.zeros((64, 64, 3), np.uint8)
    assert len(Pipeline(FrameRunner((3, 8))).detect([image])) == 1
    with pytest.raises(InputShapeError, match=r"smallest batch is 4 images, of this size 0\.0 GB"):
        Pipeline(FrameRunner((4, 8))).detect([image])
