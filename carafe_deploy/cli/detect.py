"""``carafe-deploy detect``."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from carafe_deploy.cli.common import (
    ArtefactArgument,
    AutoBatchSizeOption,
    BodiesOption,
    Command,
    ConfigOption,
    DeviceOption,
    JsonOption,
    LayoutOption,
    MixedSizesOption,
    ModeOption,
    Tf32Option,
    UsageError,
    batch_size_of,
    evaluation,
    examples,
    hint,
    image_progress,
    line,
    open_artefact,
    plural,
    print_json,
    results_console,
)
from carafe_deploy.errors import CarafeDeployError, ImageError

if TYPE_CHECKING:
    from carafe_deploy.images import Image
    from carafe_deploy.types import Detections, ModelInfo

    _Found = tuple[Path, Detections | ImageError]

#: Images listed in the table on a terminal.
_ROWS = 20
#: By which an earlier run's JSON is known.
_DESCRIPTION = "carafe-deploy detect"
#: Written pictures are JPEG where the image was lossy.
_LOSSY = (".jpg", ".jpeg", ".webp")
_PICTURE = re.compile(r".\.(png|jpg)\Z")


def detect(
    artefact: ArtefactArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES", help="Files, folders or globs.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write to.")
    ] = Path("out"),
    score_threshold: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Draw and count detections with at least this score."),
    ] = 0.3,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Remove the pictures of earlier runs into the same folder, as its "
            "detections.json lists them, and replace files that have the names of this run's.",
        ),
    ] = False,
    draw: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Draw what is found, which takes longer than all else but the detector; or write "
            "the JSON alone.",
        ),
    ] = True,
    batch_size: AutoBatchSizeOption = "1",
    mixed_sizes: MixedSizesOption = False,
    device: DeviceOption = None,
    config: ConfigOption = None,
    mode: ModeOption = None,
    layout: LayoutOption = None,
    tf32: Tf32Option = False,
    bodies: BodiesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Detect in images, draw what is found and write it as JSON.

    detections.json is in COCO's annotation format with a score each, and
    holds all detections, drawn or not. Its category ids are labels counted
    from 1. Pictures that earlier runs left in the folder are named. A file
    that is no image is left out and named; interrupted, or when a run
    fails, what is done by then is written.
    """
    from carafe_deploy.engine.progress import signals_wait
    from carafe_deploy.files import atomic_write_text
    from carafe_deploy.images import find_images, load_image
    from carafe_deploy.pipeline import Pipeline
    from carafe_deploy.termination import interrupts_raise

    paths = find_images(images)
    pictures = picture_names(paths, output) if draw else {}
    json_path = output / "detections.json"
    if not overwrite:
        _check_targets(json_path, pictures)
    opened = open_artefact(
        artefact, device, config, mode=mode, layout=layout, tf32=tf32, bodies=bodies
    )
    with opened as runner:
        document = _Document(runner.info, score_threshold)
        size = batch_size_of(batch_size, runner, paths, "detect")
        pipeline = Pipeline(runner, size, mixed_sizes=mixed_sizes)
        drawn: set[Path] = set()
        ended: BaseException | None = None

        def finish(path: Path, image: Image, found: Detections) -> _Found:
            if path in pictures:
                drawn.add(pictures[path])
                _draw(pictures[path], image, found, runner.info, score_threshold)
            return path, found

        with image_progress("detect") as progress, interrupts_raise():
            results = pipeline.stream(paths, load_image, finish, unreadable=lambda *failed: failed)
            try:
                with contextlib.closing(results):
                    for path, found in results:
                        document.add(path, pictures.get(path), found)
                        progress(len(document.rows), len(paths))
            except (KeyboardInterrupt, CarafeDeployError, OSError) as error:
                ended = error  # what is done by then is written
    if ended is not None:
        document.end_early(drawn)
    unreadable = document.content["info"]["unreadable"]
    if len(unreadable) == len(document.rows):
        if ended is not None:
            raise ended
        raise ImageError(
            unreadable[0]["reason"]
            if len(paths) == 1
            else f"none of {len(paths)} images can be read, {unreadable[0]['reason']}"
        )
    earlier = earlier_pictures(json_path, [*paths, *document.pictures])
    if overwrite and ended is None:
        for picture in earlier:
            picture.unlink(missing_ok=True)
        earlier = []
    else:
        document.content["info"]["earlier_pictures"] = [picture.name for picture in earlier]
    with interrupts_raise(), signals_wait():  # of thousands of images it takes seconds
        atomic_write_text(json_path, json.dumps(document.content) + "\n")
    console = results_console(json_output)
    if json_output:
        print_json(document.content)
        _show_earlier(console, earlier, output)
    else:
        _show(console, document, json_path, artefact, earlier)
    if ended is not None:
        raise ended
    if unreadable:
        raise ImageError(
            f"{len(unreadable)} of {plural(len(paths), 'image')} left out, the others are done:\n  "
            + "\n  ".join(one["reason"] for one in unreadable)
        )


def picture_names(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the drawn picture of each image goes: its own name, numbered where one comes twice.

    Raises:
        UsageError: a picture would overwrite one of the images.
    """
    sources = {path.resolve() for path in paths}
    taken: set[str] = set()
    names: dict[Path, Path] = {}
    for path in paths:
        suffix = _picture_suffix(path)
        name, number = path.stem, 1
        while (name + suffix).lower() in taken:
            number += 1
            name = f"{path.stem}_{number}"
        taken.add((name + suffix).lower())
        names[path] = folder / (name + suffix)
        if names[path].resolve() in sources:
            raise UsageError(
                f"the drawn picture would overwrite the image {names[path]}: "
                "choose another folder with --output"
            )
    return names


def _picture_suffix(image: Path) -> str:
    return ".jpg" if image.suffix.lower() in _LOSSY else ".png"


def _check_targets(json_path: Path, pictures: Mapping[Path, Path]) -> None:
    """No file is replaced that no earlier run is known to have drawn.

    Raises:
        UsageError: one would be.
    """
    listed = set(_listed(json_path))
    for picture in pictures.values():
        if os.path.lexists(picture) and (picture.name not in listed or picture.is_symlink()):
            raise UsageError(
                f"the drawn picture would replace {picture}, which no finished earlier run drew: "
                "choose another folder with --output, or replace it with --overwrite"
            )


def _listed(json_path: Path) -> list[str]:
    """Names of pictures that the JSON of an earlier run lists and that this command may write."""
    try:
        content = json.loads(json_path.read_bytes())
        if content["info"]["description"] != _DESCRIPTION:
            return []
        names = [
            Path(image["picture"]).name
            for image in content["images"]
            if image["picture"] is not None
            and _is_picture_of(Path(image["picture"]), Path(image["file_name"]))
        ]
        before = content["info"].get("earlier_pictures", ())
        names += [name for name in before if Path(name).name == name and _PICTURE.search(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return list(dict.fromkeys(names))


def _is_picture_of(picture: Path, image: Path) -> bool:
    """The name is one that :func:`picture_names` gives."""
    stem = re.escape(image.stem) + r"(_[1-9][0-9]*)?"
    return picture.suffix == _picture_suffix(image) and bool(re.fullmatch(stem, picture.stem))


def earlier_pictures(json_path: Path, kept: Sequence[Path]) -> list[Path]:
    """Pictures that earlier runs drew into this folder, by what their JSON lists, and still there.

    A listed name counts if this command may have given it; a link is none of its files.

    Args:
        json_path: ``detections.json`` of an earlier run; there may be none, or another program's.
        kept: files that are not to be named: images and pictures of this run.
    """
    ours = {path.resolve() for path in kept}
    found = [json_path.parent / name for name in _listed(json_path)]
    # os.path, not Path.is_file: the latter raises on over-long names.
    return [
        path
        for path in found
        if os.path.isfile(path) and not path.is_symlink() and path.resolve() not in ours
    ]


def _draw(
    target: Path, image: Image, found: Detections, info: ModelInfo, score_threshold: float
) -> None:
    """Write the picture."""
    from carafe_deploy.images import save_image
    from carafe_deploy.visualize import draw_detections

    save_image(target, draw_detections(image, found, info.classes, score_threshold=score_threshold))


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths without the folder that they share; as they are where they share none."""
    try:
        folder = os.path.commonpath([os.path.dirname(path) or "." for path in paths])
    except ValueError:  # absolute and relative ones, or several drives
        return list(paths)
    return [os.path.relpath(path, folder) for path in paths]


class _Document:
    """COCO's annotation format, with a score for each annotation, and counts for the table."""

    def __init__(self, info: ModelInfo, score_threshold: float) -> None:
        from carafe_deploy.preprocess import Preprocessor

        self._preprocess = Preprocessor(info)
        self.classes = info.classes
        self.threshold = score_threshold
        self.floor = info.score_threshold
        # Of each source; of one without an image its path alone.
        self.rows: list[tuple[str, str, int, Counter[str]] | tuple[str]] = []
        self.content: dict[str, Any] = {
            "info": {
                "description": _DESCRIPTION,
                "model": info.name,
                "source": dict(info.source),
                "score_threshold": info.score_threshold,
                "unreadable": [],
                "interrupted": False,
            },
            "images": [],
            "categories": [
                {"id": number, "name": name} for number, name in enumerate(info.classes, 1)
            ],
            "annotations": [],
        }

    def _is_shrunk(self, size: tuple[int, int]) -> bool:
        """The artefact accepts no input as large as mmdetection would make of this image."""
        return self._preprocess.resized(*size)[2]

    def add(self, path: Path, picture: Path | None, found: Detections | ImageError) -> None:
        """Append one image, its row last; or a file that is none."""
        from carafe_deploy.coco import to_results

        if isinstance(found, ImageError):
            one = {"file_name": str(path), "reason": str(found)}
            self.content["info"]["unreadable"].append(one)
            self.rows.append((str(path),))
            return
        image_id = len(self.content["images"]) + 1
        height, width = found.image_size
        self.content["images"].append(
            {
                "id": image_id,
                "file_name": str(path),
                "width": width,
                "height": height,
                "picture": None if picture is None else str(picture),
                "shrunk": self._is_shrunk(found.image_size),
            }
        )
        annotations = self.content["annotations"]
        for result in to_results(image_id, found, range(1, len(self.classes) + 1)):
            area = result["bbox"][2] * result["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **result, "area": area, "iscrowd": 0})
        shown = found.labels[found.scores >= self.threshold]
        counts = Counter(self.classes[label] for label in shown.tolist())
        self.rows.append((str(path), f"{width}×{height}", len(shown), counts))

    @property
    def pictures(self) -> list[Path]:
        """Of images that have a row."""
        named = (image["picture"] for image in self.content["images"])
        return [Path(name) for name in named if name is not None]

    def end_early(self, drawn: set[Path]) -> None:
        """Keep what has a row, and remove pictures that were drawn of what has none."""
        info, images = self.content["info"], self.content["images"]
        info["interrupted"] = True
        listed = {row[0] for row in self.rows}
        for rows in (info["unreadable"], images):
            rows[:] = [row for row in rows if row["file_name"] in listed]
        annotations = self.content["annotations"]
        annotations[:] = [one for one in annotations if one["image_id"] <= len(images)]
        for picture in drawn - set(self.pictures):
            with contextlib.suppress(OSError):  # where it could not be written, for one
                picture.unlink()


def _show_earlier(console: Console, left: Sequence[Path], output: Path) -> None:
    if left:
        line(
            console,
            f"note: {plural(len(left), 'picture')} of earlier runs left in {output}/, "
            f"{left[0].name} first: --overwrite removes what they listed",
        )


def _show(
    console: Console, document: _Document, json_path: Path, artefact: str, left: Sequence[Path]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("size", no_wrap=True, style="dim")
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("classes", overflow="fold")
    names = short_names([row[0] for row in document.rows])
    for name, row in zip(names[:_ROWS], document.rows, strict=False):
        if len(row) == 1:
            table.add_row(name, "–", "–", "[red]left out[/red]")
            continue
        _, size, count, classes = row
        listed = ", ".join(f"{number} {label}" for label, number in classes.most_common())
        table.add_row(name, size, str(count), listed or "[dim]none[/dim]")
    console.print(table)
    if len(document.rows) > _ROWS:
        console.print(f"[dim]… and {len(document.rows) - _ROWS} more[/dim]")
    total = sum(row[2] for row in document.rows if len(row) > 1)
    line(
        console,
        f"\n{plural(total, 'detection')} with score ≥ {document.threshold:g} in "
        f"{plural(len(document.content['images']), 'image')}"
        + (f", drawn in {json_path.parent}/" if document.pictures else ""),
    )
    line(
        console,
        f"{json_path} has all {len(document.content['annotations'])} with score > "
        f"{document.floor:g}",
    )
    shrunk = sum(image["shrunk"] for image in document.content["images"])
    if shrunk:
        line(
            console,
            f"note: {plural(shrunk, 'image')} had to be made smaller than in training, since the "
            "artefact accepts no larger input: export with a larger --max-size",
        )
    _show_earlier(console, left, json_path.parent)
    hint(console, evaluation(artefact))


COMMAND = Command(
    "detect",
    detect,
    examples(
        "carafe-deploy detect detector.onnx photo.jpg",
        "carafe-deploy detect detector.onnx photos/ 'more/**/*.png' -o out/photos",
        "carafe-deploy detect detector.ts photos/ --device cuda --batch-size auto --json",
        "carafe-deploy detect detector.engine photos/ --device cuda --mode cuda-graph",
    ),
)
