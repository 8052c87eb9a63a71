"""Finding, reading and writing image files."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from carafe_deploy.errors import ImageError, InputShapeError
from carafe_deploy.files import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

#: [H, W, 3] uint8, BGR.
Image = npt.NDArray[np.uint8]
#: What :func:`as_images` makes an :data:`Image` of.
GivenImage: TypeAlias = "Image | str | os.PathLike[str] | PillowImage"

#: What counts as an image inside a folder or a glob; a file named outright may have any suffix.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_images(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[Path]:
    """Expand files, folders and globs to image files; one alone needs no list around it.

    The order of ``inputs`` is kept; inside a folder (not recursive) or a glob (``**`` is
    recursive) names are sorted naturally, ``img2`` before ``img10``. A file named twice is
    returned once. Hidden files are left out.

    Raises:
        ImageError: no input at all, an input does not exist, a folder holds no image, or a glob
            matches none.
    """
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    if not inputs:
        raise ImageError("no images given: name files, folders or globs")
    found: dict[Path, None] = {}
    for text in inputs:
        found.update(dict.fromkeys(_expand(os.fspath(text))))
    return list(found)


def _expand(text: str) -> list[Path]:
    accepted = ", ".join(IMAGE_SUFFIXES)
    # os.path, not Path.is_dir: the latter raises on over-long names.
    if os.path.isdir(text):
        try:
            names = [os.path.join(text, name) for name in os.listdir(text)]
        except OSError as error:
            raise ImageError(
                f"cannot list folder {text}: {error.strerror}: check its permissions"
            ) from error
        paths = _images_among(name for name in names if not os.path.basename(name).startswith("."))
        if not paths:
            raise ImageError(f"folder {text} holds no image: put {accepted} files directly in it")
        return paths
    if os.path.exists(text):
        return [Path(text)]
    if glob.has_magic(text):
        paths = _images_among(glob.iglob(text, recursive=True))
        if not paths:
            raise ImageError(f"{text} matches no image: it is tried on {accepted} files")
        return paths
    raise ImageError(f"{text} does not exist: name an image file, a folder or a glob")


def _images_among(names: Iterable[str]) -> list[Path]:
    images = [n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(n)]
    return [Path(name) for name in sorted(images, key=_natural_key)]


def _natural_key(name: str) -> list[str | int]:
    # re.split with a group alternates text and digits, so equal positions have equal types.
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def load_image(path: str | os.PathLike[str]) -> Image:
    """Read an image, [H, W, 3] uint8, BGR, as mmdetection 3.3's LoadImageFromFile does by default.

    EXIF orientation is applied, grayscale becomes three equal channels, alpha is dropped, deeper
    samples become 8 bit. Unlike there, a truncated file is an error with every OpenCV: 4.x returns
    a truncated JPEG with its lower part grey.

    Raises:
        ImageError: the file is missing, unreadable, truncated or no image, or this is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ImageError(f"path is {_kind(path)}: give the name of an image file")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(None, "it is no file")  # a pipe would be waited for
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"image {path} does not exist: check the path") from error
    except OSError as error:
        raise ImageError(
            f"cannot read image {path}: {error.strerror or error}: check the path and permissions"
        ) from error
    if not data:
        raise ImageError(f"image {path} is empty (0 bytes): copy it again")
    if data.startswith(b"\xff\xd8") and not _jpeg_is_complete(data):
        raise ImageError(f"image {path} is a truncated JPEG: copy it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # more pixels than OpenCV admits, for one
        raise ImageError(
            f"cannot decode image {path}: {error.err or error}: convert it to PNG or JPEG"
        ) from error
    if image is None:
        raise ImageError(
            f"cannot decode image {path}: truncated, damaged or no image: "
            "copy it again, or convert it to PNG or JPEG"
        )
    return image.astype(np.uint8, copy=False)


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first start of scan.

    Looking from the scan on skips the thumbnail inside EXIF, which has an end marker of its own.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:  # start of scan: entropy-coded data, where FF is always escaped
            return data.find(b"\xff\xd9", position) >= 0
    return False


def as_images(images: Any) -> Iterator[Image]:
    """Images one by one, [H, W, 3] uint8, BGR, from one or an iterable of them.

    Args:
        images: arrays [H, W, 3] uint8 BGR, a stack [N, H, W, 3] of them, paths of files (see
            :func:`load_image`), or PIL images, whose EXIF orientation is applied.

    Raises:
        InputShapeError: ``images`` is neither, or one of them is no image.
        ImageError: see :func:`load_image`.
    """
    if isinstance(images, (str, os.PathLike)) or _is_pillow(images):
        images = [images]
    elif (
        isinstance(images, np.ndarray)
        and images.ndim != 4
        and (images.dtype != object or not images.ndim)
    ):
        check_image(images)
        images = [images]
    elif isinstance(images, (Mapping, bytes, bytearray)) or not isinstance(images, Iterable):
        raise InputShapeError(f"images is {_kind(images)}: {_EXPECTED}")
    return _each_image(images)


#: What an image should be, and how one comes by it.
_EXPECTED = (
    "expected images as non-empty uint8 [H, W, 3] arrays in BGR order: read them with "
    "carafe_deploy.images.load_image"
)


def _each_image(images: Iterable[Any]) -> Iterator[Image]:
    for number, given in enumerate(images):
        image = given
        if isinstance(given, (str, os.PathLike)):
            image = load_image(given)
        elif _is_pillow(given):
            image = _from_pillow(given)
        check_image(image, f"image {number}")
        yield image


def check_image(image: Any, name: str = "image") -> tuple[int, int]:
    """Height and width of an image, [H, W, 3] uint8, BGR; InputShapeError if it is none."""
    if not isinstance(image, np.ndarray):
        raise InputShapeError(f"{name} is {_kind(image)}: {_EXPECTED}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputShapeError(
            f"{name} is {image.dtype} {list(image.shape)}, expected non-empty uint8 [H, W, 3] in "
            f"BGR order: {_remedy(image)}"
        )
    return image.shape[0], image.shape[1]


def _remedy(image: npt.NDArray[Any]) -> str:
    """How this array becomes an image."""
    channels = image.shape[2] if image.ndim == 3 else 1 if image.ndim == 2 else 0
    if 0 not in image.shape and image.dtype != np.uint8 and channels in (1, 3, 4):
        return "scale it to 0..255 and convert it with astype(numpy.uint8)"
    if 0 not in image.shape and channels == 1:
        return "convert it with cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)"
    if 0 not in image.shape and channels == 4:
        return "convert it with cv2.cvtColor(image, cv2.COLOR_BGRA2BGR), or COLOR_RGBA2BGR"
    if image.ndim == 3 and image.shape[0] == 3:
        return "move the channels last with image.transpose(1, 2, 0)"
    return "read it with carafe_deploy.images.load_image"


def _kind(value: Any) -> str:
    """What something is, for a message."""
    if value is None:
        return "None (cv2.imread returns it for a file that it cannot read)"
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def _is_pillow(image: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")  # whoever hands one over has imported it
    return pillow is not None and isinstance(image, pillow.Image)


#: With 8 bit samples or fewer.
_PILLOW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def _from_pillow(image: Any) -> Image:
    from PIL import ImageOps

    if image.mode not in _PILLOW_MODES:
        raise InputShapeError(
            f"a PIL image has mode {image.mode!r}, which PIL does not scale to 8 bit: read its "
            "file with carafe_deploy.images.load_image"
        )
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.ascontiguousarray(np.asarray(upright, np.uint8)[:, :, ::-1])


def save_image(path: str | os.PathLike[str], image: Image) -> None:
    """Write [H, W, 3] uint8, BGR, atomically, in the format of the path's suffix.

    Raises:
        ImageError: OpenCV cannot write files of this suffix.
        CarafeDeployError: the path is not writable.
    """
    path = Path(path)
    try:
        _, data = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise ImageError(
            f"cannot write {path}: no writer for suffix {path.suffix!r}: use .jpg or .png"
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())
