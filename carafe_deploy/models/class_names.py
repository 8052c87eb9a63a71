"""Class names from mmdetection's configs, from the files these name, and from checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from carafe_deploy.errors import CheckpointError, ConfigError
from carafe_deploy.models.config_text import short

#: The 80 categories of COCO 2017 by ascending category id, in the order of mmdetection's labels.
COCO_CLASSES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,
    stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,
    umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,
    baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,
    banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,
    bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,
    refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace(
        "\n    ", ""
    ).split(",")
)
#: Where a config describes the data it is tested on, first match first.
DATASETS = (
    ("test_dataloader", "dataset"),
    ("data", "test"),
    ("val_dataloader", "dataset"),
    ("data", "val"),
)
#: Bytes of a file of class names; the path may come from a stranger's checkpoint.
_LARGEST = 1 << 20
#: What the kernel shows as files: reading them may block, or tell of this machine.
_KERNEL = tuple(map(Path, ("/proc", "/sys", "/dev")))


def class_names(
    cfg: Mapping[str, Any],
    stored: Sequence[str] | None,
    num_classes: int,
    notes: list[str],
    folders: Sequence[Path] = (),
) -> tuple[str, ...]:
    """Names by label: the config's, else the checkpoint's, else COCO's 80, else ``class_0``...

    mmdetection takes a string in place of a list for the path of a text file with a name a line.

    Args:
        cfg: values of the config.
        stored: names in the checkpoint's metadata.
        num_classes: of the weights.
        notes: gets what was assumed.
        folders: where such a file is looked for, first match first.

    Raises:
        CheckpointError: there are names, but not as many as the weights have classes.
        ConfigError: a setting is no list of names, or a file of names is nowhere.
    """
    absent: ConfigError | None = None
    for names, origin in (*_configured(cfg), (stored, "the checkpoint's metadata")):
        if names is None:
            continue
        if isinstance(names, str):
            file = _find(names, folders)
            if file is not None:
                origin, names = f"{file}, which {origin} names,", _read(file, origin)
                other = stored is not None and tuple(stored) != tuple(names)
                notes.append(
                    f"class names are those in {file}"
                    + (", not those in the checkpoint's metadata" if other else "")
                )
            elif num_classes == 1 and not _looks_like_a_file(names):
                names = (names,)
            else:
                absent = absent or _not_found(origin, names, folders)
                continue
        if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise ConfigError(f"{origin}={short(names)} is not a list of class names")
        if len(names) != num_classes:
            raise CheckpointError(
                f"{origin} names {len(names)} classes ({short(tuple(names))}), but the "
                f"checkpoint's weights have {num_classes}: give the config that it was trained with"
            )
        if absent is not None:
            notes.append(f"{absent}; {origin} has the names")
        return tuple(names)
    if absent is not None:
        raise absent
    if num_classes == len(COCO_CLASSES):
        notes.append("no class names: 80 classes are taken for COCO's")
        return COCO_CLASSES
    notes.append(f"no class names: classes are called class_0 to class_{num_classes - 1}")
    return tuple(f"class_{i}" for i in range(num_classes))


def config_value(cfg: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """What lies at a path of keys; None where one is absent."""
    value: Any = cfg
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _configured(cfg: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    for path in DATASETS:
        dataset = config_value(cfg, path)
        if isinstance(dataset, Mapping):
            yield dataset.get("classes"), f"{'.'.join(path)}.classes"
            yield from _metainfo(dataset, f"{'.'.join(path)}.")
    yield from _metainfo(cfg, "")
    yield cfg.get("classes"), "classes"


def _metainfo(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[Any, str]]:
    metainfo = values.get("metainfo")
    if isinstance(metainfo, Mapping):
        for key in ("classes", "CLASSES"):
            yield metainfo.get(key), f"{prefix}metainfo.{key}"


def _looks_like_a_file(name: str) -> bool:
    return "/" in name or "\\" in name or Path(name).suffix.lower() in (".txt", ".names", ".lst")


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    # A config written on Windows may be read elsewhere.
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        for folder in folders:
            path = folder / spelling
            # os.path, not Path.exists: the latter raises on over-long names.
            if os.path.exists(path) and not os.path.isdir(path):
                return path
    return None


def _read(file: Path, origin: str) -> list[str]:
    try:
        real = file.resolve()
        # Before it is opened, which waits for the other end of a pipe.
        if not real.is_file() or any(real.is_relative_to(folder) for folder in _KERNEL):
            raise ConfigError(
                f"{origin} names {file}, which is no regular file: give a UTF-8 file with one "
                "class name a line"
            )
        with real.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{origin} names {file}, which cannot be read as text ({error}): give a UTF-8 file "
            "with one class name a line"
        ) from error
    if len(data) > _LARGEST:
        raise ConfigError(
            f"{origin} names {file}, which is larger than {_LARGEST >> 20} MiB: give a file with "
            "one class name a line"
        )
    # Not splitlines: a name may have characters that it takes for ends of lines.
    return [line.strip() for line in text.split("\n") if line.strip()]


def _not_found(origin: str, name: str, folders: Sequence[Path]) -> ConfigError:
    looked = ", ".join(str(folder) for folder in folders) or "no folder"
    return ConfigError(
        f"{origin}={short(name)} names a file of class names, as mmdetection reads a string, and "
        f"it is not there (looked in {looked}): put it there, or write the names as a list into a "
        "config given with --config"
    )
