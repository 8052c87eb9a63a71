"""Files that run code when unpickled, files of mmengine, and files that are no checkpoints."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carafe_deploy.errors import CheckpointError
from carafe_deploy.models.unpickle import Discarded, load_weights_only

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Call:
    """Pickles as a call, which happens when the file is unpickled without protection."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __call__(self) -> None:
        """Only things that can be called pickle as functions."""

    def __reduce__(self) -> Any:
        return self.call


def _save(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
@pytest.mark.parametrize("function", [os.system, eval], ids=["system", "eval"])
def test_a_pickle_with_code_is_refused(
    tmp_path: Path, zipped: bool, function: Callable[..., Any]
) -> None:
    witness = tmp_path / "witness"
    command = f"touch {witness}" if function is os.system else f"open({str(witness)!r}, 'w')"
    content = {"state_dict": {"weight": torch.zeros(2)}, "meta": Call(function, command)}
    path = _save(content, tmp_path / "evil.pth", zipped)
    with pytest.raises(CheckpointError, match=r"names \S*(system|eval), which weights") as caught:
        load_weights_only(path)
    assert "nothing in it was run" in str(caught.value)
    assert "weights_only=False" not in str(caught.value)
    assert not witness.exists()
    # The file is really one that runs its code when nothing protects from it.
    torch.load(path, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_with_code_is_refused(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "witness"
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {witness}"), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"could run any code"):
        load_weights_only(path)
    assert not witness.exists()


@FORMATS
def test_getattr_looks_nothing_up(tmp_path: Path, zipped: bool) -> None:
    content = {"x": Call(getattr, torch.Size, "numel")}
    loaded = load_weights_only(_save(content, tmp_path / "a.pth", zipped))
    assert isinstance(loaded["x"], Discarded)


def test_what_getattr_would_give_cannot_be_called(tmp_path: Path) -> None:
    content = {"x": Call(Call(getattr, torch.Size, "numel"))}
    with pytest.raises(CheckpointError, match=r"builds objects of its own, .* refused"):
        load_weights_only(_save(content, tmp_path / "a.pth"))


class HistoryBuffer:
    """As mmengine's: arrays, and statistics stored as its own methods."""

    __module__ = "mmengine.logging.history_buffer"

    def __init__(self) -> None:
        self._log_history = np.arange(3.0)
        self._statistics_methods = OrderedDict(min=HistoryBuffer.minimum)

    def minimum(self) -> float:
        return float(self._log_history.min())


# Python 3.13 pickles a method under its function's module, as in mmengine the class's own.
HistoryBuffer.minimum.__module__ = HistoryBuffer.__module__


class ConfigDict(dict):  # type: ignore[type-arg]
    """As mmengine's: rebuilt by a call with a plain dict."""

    __module__ = "mmengine.config.config"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (dict(self),)


class AddictDict(dict):  # type: ignore[type-arg]
    """mmcv's ConfigDict, which comes from addict: its state is itself."""

    __module__ = "mmcv.utils.config"
    __qualname__ = "ConfigDict"

    def __getstate__(self) -> Any:
        return self

    def __setstate__(self, state: Any) -> None:
        self.update(state)


@contextmanager
def _importable() -> Iterator[None]:
    """While a test saves, the classes above can be found under the names they pickle as."""
    with pytest.MonkeyPatch.context() as patch:
        for original in (HistoryBuffer, ConfigDict, AddictDict):
            parts = original.__module__.split(".")
            for length in range(1, len(parts) + 1):
                package = ".".join(parts[:length])
                patch.setitem(sys.modules, package, types.ModuleType(package))
            setattr(sys.modules[original.__module__], original.__qualname__, original)
        yield


@FORMATS
def test_files_saved_during_training(tmp_path: Path, zipped: bool) -> None:
    weight = torch.arange(6.0).view(2, 3)
    content = {
        "meta": {
            "cfg": "a = 1",
            "hook": ConfigDict(best=ConfigDict(ap=0.5)),
            "old": AddictDict(a=AddictDict(b=1)),
        },
        "state_dict": OrderedDict(weight=weight),
        "message_hub": {"log": OrderedDict(loss=HistoryBuffer()), "eta": np.float64(3.0)},
        "optimizer": {"state": {0: {"momentum_buffer": weight * 2}}, "param_groups": [{"lr": 0.1}]},
        "param_schedulers": [{"milestones": Counter([8, 11])}],
    }
    with _importable():
        path = _save(content, tmp_path / "epoch_1.pth", zipped)
    assert b"mmengine.logging.history_buffer" in path.read_bytes()
    loaded = load_weights_only(path)
    assert torch.equal(loaded["state_dict"]["weight"], weight)
    assert loaded["meta"] == {"cfg": "a = 1", "hook": {"best": {"ap": 0.5}}, "old": {"a": {"b": 1}}}
    assert isinstance(loaded["message_hub"]["log"]["loss"], Discarded)
    assert isinstance(loaded["message_hub"]["eta"], Discarded)
    assert loaded["param_schedulers"] == [{"milestones": {8: 1, 11: 1}}]
    assert not any(name.startswith(("mmengine", "mmcv")) for name in sys.modules)


@pytest.mark.parametrize("name", ["raw_mmengine_epoch.pth", "raw_mmengine_python313.pth"])
def test_a_file_that_mmengine_saved(data_dir: Path, name: str) -> None:
    loaded = load_weights_only(data_dir / name)
    assert {"meta", "state_dict", "message_hub", "optimizer"} <= loaded.keys()
    assert all(isinstance(t, torch.Tensor) for t in loaded["state_dict"].values())
    scalars = loaded["message_hub"]["log_scalars"]
    assert scalars
    assert all(isinstance(value, Discarded) for value in scalars.values())
    assert loaded["meta"]["cfg"].startswith(("_U = dict(", "a = 1"))


def test_names_are_let_through_for_one_load_only(data_dir: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    load_weights_only(data_dir / "raw_mmengine_epoch.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(data_dir / "raw_mmengine_epoch.pth", weights_only=True)


@FORMATS
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_truncated(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = _save({"state_dict": {"weight": torch.randn(64, 64)}}, tmp_path / "a.pth", zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"a\.pth is truncated, damaged or no PyTorch check"):
        load_weights_only(path)


FOREIGN = [
    (b"", r"a\.pth is empty"),
    (b"<!DOCTYPE html><html>404</html>", "is a web page, not a checkpoint"),
    (b"\n<HTML><body>", "is a web page"),
    (b"<?xml version='1.0'?><Error/>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer"),
    (b'{"images": []}', "is a JSON file"),
    (b'\x40\x00\x00\x00\x00\x00\x00\x00{"weight":{}}', "is a safetensors file"),
    (b"\x08\x0a\x12\x07pytorch", "is an ONNX file"),
    (b"\x1f\x8b\x08\x00", "is a gzip file"),
    (b"hello, world", "truncated, damaged or no PyTorch checkpoint"),
    (bytes(range(256)) * 8, "truncated, damaged or no PyTorch checkpoint"),
    (pickle.dumps({"a": 1}, protocol=4), "is a pickle of protocol 4 or 5"),
]


@pytest.mark.parametrize(("content", "message"), FOREIGN)
def test_files_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_weights_only(path)


def test_torchscript(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)), str(tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match="is a TorchScript file"):
        load_weights_only(tmp_path / "a.pth")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*a\.pth \(No such file"):
        load_weights_only(tmp_path / "a.pth")
