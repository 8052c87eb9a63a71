"""Finding, reading and writing image files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from carafe_deploy.errors import ImageError
from carafe_deploy.files import atomic_path

__all__ = ["IMAGE_SUFFIXES", "Image", "find_images", "load_image", "save_image"]

#: [H, W, 3] uint8, BGR.
Image = npt.NDArray[np.uint8]

#: What counts as an image inside a folder or a glob; a file named outright may have any suffix.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Expand files, folders and globs to image files.

    The order of ``inputs`` is kept; inside a folder (not recursive) or a glob (``**`` is
    recursive) names are sorted naturally, ``img2`` before ``img10``. A file named twice is
    returned once. Hidden files are left out.

    Raises:
        ImageError: no input at all, an input does not exist, a folder holds no image, or a glob
            matches none.
    """
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
    """Read an image as mmdetection 3.3's LoadImageFromFile does with its default backend.

    EXIF orientation is applied, grayscale becomes three equal channels, alpha is dropped, deeper
    samples become 8 bit. Unlike there, a truncated file is an error with every OpenCV: 4.x returns
    a truncated JPEG with its lower part grey.

    Returns:
        [H, W, 3] uint8, BGR.

    Raises:
        ImageError: the file is missing, unreadable, truncated or no image.
    """
    try:
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


def save_image(path: str | os.PathLike[str], image: Image) -> None:
    """Write an image atomically, in the format that the suffix of ``path`` names.

    Args:
        path: its folder is made if missing.
        image: [H, W, 3] uint8, BGR.

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
