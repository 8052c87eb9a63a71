"""Small files that travel with the package: two trained detectors, images, recorded results."""

from __future__ import annotations

from pathlib import Path

from carafe_deploy.errors import DataFileError

__all__ = ["CHECKPOINTS", "data_path", "validation_images"]

#: The two trained detectors, in the folder ``shapes``.
CHECKPOINTS = (
    "shapes_faster_rcnn_carafe-2a9d7f44.pth",
    "shapes_mask_rcnn_carafe-fbec7e06.pth",
)

_ROOT = Path(__file__).resolve().parent


def data_path(*parts: str) -> Path:
    """Path of a file or folder of ``carafe_deploy/data``, e.g. ``data_path("shapes", "val")``.

    Raises:
        DataFileError: there is no such file, or ``parts`` lead out of the data folder.
    """
    path = _ROOT.joinpath(*parts).resolve()
    if not path.is_relative_to(_ROOT):
        raise DataFileError(f"{'/'.join(parts)!r} is not inside the package's data folder")
    if not path.exists():
        raise DataFileError(
            f"the package's data has no {'/'.join(parts)!r} ({path}): reinstall carafe-deploy"
        )
    return path


def validation_images() -> list[Path]:
    """The images that ``shapes/val.json`` annotates, in its order."""
    return sorted(data_path("shapes", "val").iterdir())
