"""Swap other implementations' CARAFE modules for this package's, in any network.

Recognised without importing where they come from:

- mmcv's ``CARAFE``, ``CARAFENaive`` and ``CARAFEPack``, whose definition the operators share;
- the ``CARAFE`` of YOLO forks: ``comp`` (1x1), ``enc`` (k_enc x k_enc), pixel shuffle and softmax
  for the kernels; nearest upsampling and a dilated unfold of the upsampled map for the taps.

The second reads tap (u, v) of output pixel (i, j) from the upsampled map at
``(i + (u-r)*d, j + (v-r)*d)`` with ``r = k//2`` and dilation d. That is
``features[i//s + u - r, j//s + v - r]`` for every pixel when d = s, k is odd and the upsampling is
nearest: then both fall outside the map together, so borders agree as well, and the order of taps
is the same (row slowest). It is something else, and refused, when

- the upsampling is bilinear or another: a tap is a mixture of source pixels, and outputs of one
  source pixel no longer share their taps;
- the dilation is not s: taps lie closer or farther, as in forks that leave it out;
- k is even, the padding is not ``(k//2)*s`` or the stride not 1: the map of taps has another size
  than the kernels, or is shifted;
- a module is missing or there are more (``bn``, ``out``): the forward does more than the above.

A last difference is below rounding in float32: softmax runs in float32 here, in the dtype of the
encoder there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from carafe_deploy.ops.carafe import carafe_encoded
from carafe_deploy.ops.modules import CARAFE, CARAFEPack, _like

__all__ = ["YoloCARAFE", "replace_carafe"]

_MMCV_NAMES = ("CARAFE", "CARAFENaive", "CARAFEPack")
_YOLO_PARTS = {
    "comp": nn.Module,
    "enc": nn.Module,
    "pix_shf": nn.PixelShuffle,
    "upsmp": nn.Upsample,
    "unfold": nn.Unfold,
}

_Module = TypeVar("_Module", bound=nn.Module)


class YoloCARAFE(nn.Module):
    """CARAFE with the submodule names of YOLO forks, so that their state_dicts load.

    Args:
        comp: compressor, [N, C, H, W] -> [N, C_mid, H, W].
        enc: encoder, [N, C_mid, H, W] -> [N, scale_factor**2 * kernel_size**2, H, W].
        kernel_size: odd side of a reassembly kernel in source pixels.
        scale_factor: integer upsampling ratio.
    """

    def __init__(
        self, comp: nn.Module, enc: nn.Module, kernel_size: int, scale_factor: int
    ) -> None:
        super().__init__()
        self.comp = comp
        self.enc = enc
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, sH, sW]."""
        return carafe_encoded(
            features,
            _like(self.enc(self.comp(features)), features),
            kernel_size=self.kernel_size,
            group_size=1,
            scale_factor=self.scale_factor,
        )

    def extra_repr(self) -> str:
        """Settings, for ``print(module)``."""
        return f"kernel_size={self.kernel_size}, scale_factor={self.scale_factor}"


def replace_carafe(model: nn.Module, *, verify: bool = True) -> list[str]:
    """Swap every CARAFE of mmcv or of a YOLO fork for the operators here, in place.

    Weights, their names, dtype, device and ``requires_grad``, training mode, hooks and attributes
    set from outside (YOLO's ``i``, ``f``, ``type``) stay as they are; a module used in several
    places stays one module. Either all are replaced or, on an error, none. Modules of this package
    are left alone, so a second call finds nothing.

    Args:
        model: any network; only modules registered in it are found.
        verify: run each YOLO variant against its replacement (random kernels, float64, on the CPU)
            before anything is swapped. mmcv's modules run on its own kernels only and are judged
            by their settings.

    Returns:
        Paths of the replaced modules as in ``named_modules()``, all of a shared one; empty if
        there is none.

    Raises:
        ValueError: a CARAFE does something else than the operators (see the module's docstring),
            or `model` itself is one; the message names path, setting and remedy.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    places: list[tuple[nn.Module, str, nn.Module]] = []
    paths: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if module not in replacements:
            replacement = _replacement(path, module, verify)
            if replacement is None:
                continue
            replacements[module] = replacement
        if not path:
            raise ValueError(
                f"the model itself is a {type(module).__name__}, which cannot be swapped in place: "
                "give the network that holds it, or nn.Sequential(model)"
            )
        parent, _, name = path.rpartition(".")
        places.append((model.get_submodule(parent), name, replacements[module]))
        paths.append(path)
    for holder, name, replacement in places:
        holder.add_module(name, replacement)
    return paths


# --- recognition ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """A module that may be a CARAFE, and where in the model it is."""

    path: str
    module: nn.Module

    def get(self, name: str) -> Any:
        """A setting by its dotted name; None where it is missing."""
        value: Any = self.module
        for part in name.split("."):
            value = getattr(value, part, None)
        return value

    def integer(self, name: str, *, odd: bool = False) -> int:
        """A setting that must be a positive integer, or the same one on both axes."""
        value = _integer(self.get(name))
        if value is None or value < 1 or (odd and value % 2 == 0):
            kind = "a positive odd integer" if odd else "a positive integer"
            raise self.refusal(f"{name} is {self.get(name)!r}, expected {kind}")
        return value

    def require(self, **settings: int | None) -> None:
        """Refuse the first setting (``__`` for a dot) that is not the integer or None given."""
        for name, expected in settings.items():
            dotted = name.replace("__", ".")
            found = self.get(dotted)
            if (None if found is None else _integer(found)) != expected:
                raise self.refusal(f"{dotted} is {found!r}, expected {expected}")

    def require_nothing_more(self) -> None:
        """Refuse what a forward may use besides the submodules, and a forward set from outside."""
        tensors = (self.module.named_parameters, self.module.named_buffers)
        own = [name for named in tensors for name, _ in named(recurse=False)]
        if own:
            raise self.refusal(f"it has parameters or buffers of its own ({', '.join(own)})")
        if "forward" in vars(self.module):
            raise self.refusal("its forward was replaced on the instance")

    def refusal(self, problem: str) -> ValueError:
        kind = type(self.module)
        return ValueError(
            f"{self.path or 'the model'} ({kind.__module__}.{kind.__qualname__}) is not CARAFE as "
            f"defined here: {problem}. Where it fits, call carafe_deploy.ops.carafe_encoded in its "
            "forward instead; to leave it alone, rename its class"
        )


def _integer(value: Any) -> int | None:
    """The integer that `value` is, or consists of on both axes; else None, for None as well."""
    values = set(value) if isinstance(value, tuple | list) else {value}
    only = values.pop() if len(values) == 1 else None
    return int(only) if isinstance(only, int | float) and only == only // 1 else None


def _replacement(path: str, module: nn.Module, verify: bool) -> nn.Module | None:
    """What takes the place of `module`, or None if it is no CARAFE or one of this package's."""
    if isinstance(module, CARAFE | CARAFEPack | YoloCARAFE):
        return None
    name = type(module).__name__
    children = dict(module.named_children())
    found = _Candidate(path, module)
    if "carafe" in name.lower() and children.keys() == _YOLO_PARTS.keys():
        return _from_yolo(found, children, verify)
    if name not in _MMCV_NAMES:
        return None
    if name == "CARAFEPack" and children.keys() == {"channel_compressor", "content_encoder"}:
        return _from_mmcv_pack(found, children)
    if name != "CARAFEPack" and not children and found.get("group_size") is not None:
        return _from_mmcv(found)
    raise found.refusal(
        f"its submodules are {', '.join(children) or 'none'}, neither mmcv's nor those of YOLO "
        f"forks ({', '.join(_YOLO_PARTS)})"
    )


def _from_mmcv(found: _Candidate) -> CARAFE:
    settings = {
        "kernel_size": found.integer("kernel_size", odd=True),
        "group_size": found.integer("group_size"),
        "scale_factor": found.integer("scale_factor"),
    }
    found.require_nothing_more()
    return _rebuilt(CARAFE, found.module, {}, settings)


def _from_mmcv_pack(found: _Candidate, children: Mapping[str, nn.Module]) -> CARAFEPack:
    k = found.integer("up_kernel", odd=True)
    groups, s = found.integer("up_group"), found.integer("scale_factor")
    settings = {"up_kernel": k, "up_group": groups, "scale_factor": s}
    settings["channels"] = found.integer("channels")
    found.require(content_encoder__out_channels=s * s * groups * k * k)
    found.require_nothing_more()
    return _rebuilt(CARAFEPack, found.module, children, settings)


def _from_yolo(found: _Candidate, children: Mapping[str, nn.Module], verify: bool) -> YoloCARAFE:
    for name, kind in _YOLO_PARTS.items():
        if not isinstance(children[name], kind):
            raise found.refusal(
                f"{name} is a {type(children[name]).__name__}, expected a {kind.__name__}"
            )
    s = found.integer("pix_shf.upscale_factor")
    k = found.integer("unfold.kernel_size", odd=True)
    found.require(
        unfold__dilation=s,
        unfold__padding=k // 2 * s,
        unfold__stride=1,
        upsmp__scale_factor=s,
        upsmp__size=None,
    )
    # Both modes take source pixel i//s for an integer ratio.
    if found.get("upsmp.mode") not in ("nearest", "nearest-exact"):
        raise found.refusal(f"upsmp.mode is {found.get('upsmp.mode')!r}, expected 'nearest'")
    found.require_nothing_more()
    if verify:
        _verify(found, children, k, s)
    kept = {name: children[name] for name in ("comp", "enc")}
    return _rebuilt(YoloCARAFE, found.module, kept, {"kernel_size": k, "scale_factor": s})


def _rebuilt(
    kind: type[_Module],
    original: nn.Module,
    children: Mapping[str, nn.Module],
    settings: Mapping[str, Any],
) -> _Module:
    """Make a `kind` with the state of `original`: mode, hooks and whatever else was set on it."""
    rebuilt = kind.__new__(kind)
    rebuilt.__dict__.update(vars(original) | {"_modules": dict(children)} | dict(settings))
    return rebuilt


def _verify(found: _Candidate, children: Mapping[str, nn.Module], k: int, s: int) -> None:
    """Compare forwards with a random compressor and encoder in place of the trained ones.

    Trained ones may be all but constant, and then every order of taps gives the same result.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        features = torch.randn(2, 3, k + 1, k + 2, dtype=torch.float64)  # interior and borders
        comp = nn.Conv2d(3, 4, 1, dtype=torch.float64)
        enc = nn.Conv2d(4, (k * s) ** 2, 3, padding=1, dtype=torch.float64)
        expected = YoloCARAFE(comp, enc, k, s)(features)
        parts = {**children, "comp": comp, "enc": enc}
        trial = _rebuilt(type(found.module), found.module, parts, {})
        try:
            actual = trial.forward(features)  # calling the module would run its hooks
        except Exception as error:
            raise found.refusal(
                f"its forward fails on features {tuple(features.shape)}: {error}"
            ) from error
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        got = tuple(actual.shape) if isinstance(actual, Tensor) else f"a {type(actual).__name__}"
        raise found.refusal(f"it returns {got}, expected {tuple(expected.shape)}")
    difference = float((actual - expected).abs().max())
    if not difference <= 1e-9:
        raise found.refusal(f"its output is off by {difference:.2g} in float64")
