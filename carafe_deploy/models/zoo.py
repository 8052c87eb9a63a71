"""The two published CARAFE detectors: what they are, and fetching them into PyTorch's cache."""

from __future__ import annotations

import difflib
import http.client
import os
import re
import socket
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from carafe_deploy.errors import DownloadError
from carafe_deploy.files import sha256_of, temporary_folder

#: Where the model card's addresses begin.
BASE_URL = "http://download.openmmlab.com/"
#: Environment variable with another beginning, for mirrors that keep the rest of the address.
BASE_URL_VARIABLE = "CARAFE_DEPLOY_ZOO_URL"
#: A server that is silent for so long counts as gone.
_TIMEOUT_SECONDS = 30.0
_NO_CONNECTION = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


@dataclass(frozen=True)
class ZooEntry:
    """A published checkpoint and the numbers on its model card.

    Attributes:
        name: mmdetection's name of the config.
        architecture: ``"faster_rcnn"`` or ``"mask_rcnn"``.
        file_name: last part of the address, and name in the cache.
        box_ap: COCO AP of boxes on val2017, in percent.
        mask_ap: COCO AP of masks, in percent; None without masks.
        fps: images a second on one V100 in mmdetection.
    """

    name: str
    architecture: str
    file_name: str
    box_ap: float
    mask_ap: float | None
    fps: float

    @property
    def sha256_prefix(self) -> str:
        """First 8 hex digits of the file's SHA-256, as its name has them."""
        return self.file_name.removesuffix(".pth").rpartition("-")[2]

    def url(self, base_url: str | None = None) -> str:
        """Full address below `base_url`, the environment's, or the model card's."""
        base = base_url or os.environ.get(BASE_URL_VARIABLE) or BASE_URL
        return f"{base.rstrip('/')}/mmdetection/v2.0/carafe/{self.name}/{self.file_name}"


#: All published models.
MODELS = (
    ZooEntry(
        name="faster_rcnn_r50_fpn_carafe_1x_coco",
        architecture="faster_rcnn",
        file_name="faster_rcnn_r50_fpn_carafe_1x_coco_bbox_mAP-0.386_20200504_175733-385a75b7.pth",
        box_ap=38.6,
        mask_ap=None,
        fps=16.5,
    ),
    ZooEntry(
        name="mask_rcnn_r50_fpn_carafe_1x_coco",
        architecture="mask_rcnn",
        file_name="mask_rcnn_r50_fpn_carafe_1x_coco_bbox_mAP-0.393__segm_mAP-0.358_20200503_135957-"
        "8687f195.pth",
        box_ap=39.3,
        mask_ap=35.8,
        fps=14.0,
    ),
)


def find(name: str) -> ZooEntry:
    """The model of that name; case, dashes and a ``.py`` or ``.pth`` at the end do not matter.

    Raises:
        DownloadError: there is none; the message names the closest and all.
    """
    wanted = _plain(name)
    for entry in MODELS:
        if wanted in (_plain(entry.name), _plain(entry.file_name)):
            return entry
    names = {_plain(entry.name): entry.name for entry in MODELS}
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    hint = f" Did you mean {names[close[0]]}?" if close else ""
    raise DownloadError(
        f"there is neither a file nor a published model called {name!r}.{hint} "
        f"Published models: {', '.join(names.values())}"
    )


def entry_of(file_name: str, sha256: str) -> ZooEntry | None:
    """The published model that a file is, judged by name and SHA-256."""
    for entry in MODELS:
        if file_name == entry.file_name and sha256.startswith(entry.sha256_prefix):
            return entry
    return None


def fetch(name: str, progress: bool = True, base_url: str | None = None) -> Path:
    """Path of a published checkpoint in PyTorch's cache, downloaded if it is not there yet.

    The cache is ``checkpoints`` below ``torch.hub.get_dir()`` (``TORCH_HOME`` moves it). A file has
    its name there when it is complete and its SHA-256 begins as its name says; others are replaced.

    Args:
        name: as for :func:`find`.
        progress: show a progress bar on stderr.
        base_url: see :meth:`ZooEntry.url`.

    Raises:
        DownloadError: unknown name, no connection, not found, not the published file, or the cache
            cannot be written.
    """
    import torch.hub  # here, so that listing the models does not need torch

    entry = find(name)
    url = entry.url(base_url)
    target = Path(torch.hub.get_dir()) / "checkpoints" / entry.file_name
    if not re.match(r"(https?|file)://", url):
        raise DownloadError(
            f"cannot fetch {entry.name}: {url!r} is no address. Check {BASE_URL_VARIABLE}"
        )
    by_hand = f"Or download {url} elsewhere and put it at {target}"
    try:
        if target.exists() and sha256_of(target).startswith(entry.sha256_prefix):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        # It keeps what has come so far under a name of its own, which only a folder holds together.
        with temporary_folder(target.parent) as folder, _timeout(_TIMEOUT_SECONDS):
            torch.hub.download_url_to_file(
                url,
                str(folder / target.name),
                hash_prefix=entry.sha256_prefix,
                progress=progress,
            )
            os.replace(folder / target.name, target)
    except urllib.error.HTTPError as error:
        raise DownloadError(
            f"cannot fetch {entry.name}: {url} answers {error.code} {error.reason}. Check "
            f"{BASE_URL_VARIABLE} if it is set. {by_hand}"
        ) from error
    except (RuntimeError, http.client.IncompleteRead) as error:
        raise DownloadError(
            f"cannot fetch {entry.name}: what {url} sent is incomplete or not the published file "
            f"({error}). Nothing was kept; try again. {by_hand}"
        ) from error
    except _NO_CONNECTION as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise DownloadError(
            f"cannot fetch {entry.name}: no connection to {url} ({reason}). Check the network, a "
            f"proxy (http_proxy), or {BASE_URL_VARIABLE}. {by_hand}"
        ) from error
    except OSError as error:
        raise DownloadError(
            f"cannot fetch {entry.name}: {target} cannot be written ({error.strerror or error}). "
            "Set TORCH_HOME to a folder that can"
        ) from error
    return target


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Give up on silent servers; torch.hub has no argument for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _plain(name: str) -> str:
    return re.sub(r"[-_]+", "_", re.sub(r"\.(py|pth)$", "", name.strip().lower()))
