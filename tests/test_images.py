"""Finding, reading and writing images."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from carafe_deploy.errors import CarafeDeployError, ImageError, InputShapeError
from carafe_deploy.images import as_images, find_images, load_image, save_image


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth picture whose four quarters differ, so that JPEG and rotations keep apart."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = x * 255 / width, y * 255 / height, 255 - x * 255 / width
    return np.stack(planes, axis=-1).astype(np.uint8)


def encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def loaded(folder: Path, data: bytes, suffix: str = ".jpg") -> np.ndarray:
    """The image of a file that holds these bytes."""
    path = folder / f"a{suffix}"
    path.write_bytes(data)
    return load_image(path)


def with_exif(jpeg: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    """Insert an EXIF segment that holds an orientation and, after it, a thumbnail's bytes."""
    entry = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0\0\0\0" + thumbnail
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("img10.png", "img2.PNG", "img1.jpg", "notes.txt", ".hidden.png", "sub/img3.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not read")
    return tmp_path


NATURAL = ["img1.jpg", "img2.PNG", "img10.png"]


class TestFindImages:
    def test_folder_gives_its_images_in_natural_order(self, folder):
        assert [p.name for p in find_images([str(folder)])] == NATURAL

    def test_glob_takes_images_only(self, folder):
        assert [p.name for p in find_images([f"{folder}/*"])] == NATURAL

    def test_double_star_descends(self, folder):
        assert folder / "sub" / "img3.png" in find_images([f"{folder}/**"])

    def test_named_file_may_have_any_suffix(self, folder):
        assert find_images([folder / "notes.txt"]) == [folder / "notes.txt"]

    def test_inputs_keep_their_order_and_repeats_are_dropped(self, folder):
        inputs = [str(folder / "img10.png"), str(folder)]
        assert [p.name for p in find_images(inputs)] == ["img10.png", "img1.jpg", "img2.PNG"]

    def test_existing_name_with_brackets_is_no_glob(self, tmp_path):
        path = tmp_path / "a[1].png"
        path.write_bytes(b"not read")
        assert find_images([str(path)]) == [path]

    def test_empty_folder(self, tmp_path):
        with pytest.raises(ImageError, match=r"folder .* holds no image: put \.bmp, .* in it"):
            find_images([str(tmp_path)])

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("no.png", r"no\.png does not exist: name an image file"),
            ("*.gif", r"\*\.gif matches no image"),
            ("x" * 5000, r"does not exist"),
        ],
    )
    def test_no_match(self, folder, name, message):
        with pytest.raises(ImageError, match=message):
            find_images([f"{folder}/{name}"])

    def test_no_input(self):
        with pytest.raises(ImageError, match="no images given"):
            find_images([])

    def test_one_name_is_not_taken_for_its_letters(self, folder):
        assert find_images(str(folder / "img1.jpg")) == [folder / "img1.jpg"]
        assert find_images(folder) == find_images([folder])


class TestAsImages:
    """See the pipeline's tests for containers."""

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    def test_a_pil_image_is_what_load_image_reads(self, tmp_path, orientation):
        pillow = pytest.importorskip("PIL.Image")
        path = tmp_path / "a.jpg"
        path.write_bytes(with_exif(encoded(".jpg", picture()), orientation))
        [image] = as_images(pillow.open(path))
        assert np.abs(image.astype(int) - load_image(path)).max() <= 4  # other decoders

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
    def test_pil_modes(self, mode):
        pillow = pytest.importorskip("PIL.Image")
        black_and_white = (np.repeat(picture()[..., :1], 3, axis=2) > 127).astype(np.uint8) * 255
        [image] = as_images([pillow.fromarray(black_and_white).convert(mode)])
        np.testing.assert_array_equal(image, black_and_white)

    @pytest.mark.parametrize("mode", ["I;16", "I", "F"])
    def test_pil_modes_that_pil_would_clip(self, mode):
        pillow = pytest.importorskip("PIL.Image")
        with pytest.raises(InputShapeError, match=rf"mode '{mode}'.*load_image"):
            list(as_images(pillow.new(mode, (8, 8))))


class TestLoadImage:
    @pytest.mark.parametrize("value", [None, 3, picture()])
    def test_what_is_no_path(self, value):
        with pytest.raises(
            ImageError, match=r"path is (None|of type).*: give the name of an image"
        ):
            load_image(value)

    @pytest.mark.parametrize(
        ("suffix", "stored", "expected"),
        [
            (".png", picture(), picture()),
            (".bmp", picture(), picture()),
            (".tiff", picture(), picture()),
            (".png", picture()[..., 0], np.repeat(picture()[..., :1], 3, axis=2)),  # grayscale
            (".png", np.dstack((picture(), picture()[..., :1])), picture()),  # alpha is dropped
            (".png", picture().astype(np.uint16) * 256, picture()),  # sixteen bits
            (".png", np.array([[[1, 2, 3]]], np.uint8), np.array([[[1, 2, 3]]])),
        ],
        ids=["png", "bmp", "tiff", "grayscale", "alpha", "16 bit", "one pixel"],
    )
    def test_lossless_formats_come_back_as_written(self, tmp_path, suffix, stored, expected):
        image = loaded(tmp_path, encoded(suffix, stored), suffix)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)

    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_lossy_formats_come_back_nearly(self, tmp_path, suffix):
        image = loaded(tmp_path, encoded(suffix, picture()), suffix)
        assert np.abs(image.astype(int) - picture()).mean() < 4

    @pytest.mark.parametrize(
        ("orientation", "turn"),
        [
            (1, lambda image: image),
            (3, lambda image: image[::-1, ::-1]),
            (6, lambda image: np.rot90(image, -1)),
            (8, np.rot90),
        ],
    )
    def test_exif_orientation_is_applied(self, tmp_path, orientation, turn):
        image = loaded(tmp_path, with_exif(encoded(".jpg", picture()), orientation))
        expected = turn(picture())
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).mean() < 4

    def test_bytes_after_a_complete_jpeg_are_ignored(self, tmp_path):
        assert loaded(tmp_path, encoded(".jpg", picture()) + b"maker notes").shape == (40, 60, 3)

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
    @pytest.mark.parametrize("kept", [0.1, 0.6, 0.99])
    def test_truncated(self, tmp_path, suffix, kept):
        data = encoded(suffix, np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
        with pytest.raises(ImageError, match=rf"a\{suffix}.* truncated.*: copy it again"):
            loaded(tmp_path, data[: int(len(data) * kept)], suffix)

    def test_truncated_jpeg_with_complete_thumbnail(self, tmp_path):
        thumbnail = encoded(".jpg", picture(8, 12))
        data = with_exif(encoded(".jpg", picture()), 1, thumbnail)
        with pytest.raises(ImageError, match="truncated JPEG"):
            loaded(tmp_path, data[:-40])

    def test_progressive_jpeg_with_restarts_is_complete(self, tmp_path):
        options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
        data = cv2.imencode(".jpg", picture(), options)[1].tobytes()
        assert loaded(tmp_path, data).shape == (40, 60, 3)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"is empty \(0 bytes\)"),
            (b"hello", "truncated, damaged or no image"),
            (b"\xff\xd8\xff", "truncated JPEG"),
        ],
    )
    def test_no_image(self, tmp_path, content, message):
        with pytest.raises(ImageError, match=message):
            loaded(tmp_path, content, ".png")

    def test_missing(self, tmp_path):
        with pytest.raises(ImageError, match=r"image .*no\.png does not exist: check the path"):
            load_image(tmp_path / "no.png")

    def test_folder(self, tmp_path):
        with pytest.raises(ImageError, match="cannot read image"):
            load_image(tmp_path)


class TestSaveImage:
    def test_round_trip(self, tmp_path):
        path = tmp_path / "new" / "a.png"
        save_image(path, picture())
        np.testing.assert_array_equal(load_image(path), picture())
        assert [p.name for p in path.parent.iterdir()] == ["a.png"]

    @pytest.mark.parametrize("name", ["a.xyz", "a"])
    def test_unknown_suffix_writes_nothing(self, tmp_path, name):
        with pytest.raises(ImageError, match=r"no writer for suffix .*: use \.jpg or \.png"):
            save_image(tmp_path / name, picture())
        assert not list(tmp_path.iterdir())

    def test_unwritable_path(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(CarafeDeployError, match="choose another output path"):
            save_image(tmp_path / "file" / "a.png", picture())
