"""What is measured: every artefact in every way it is to be run, opened side by side."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carafe_deploy.artefacts import known_backend, open_runner
from carafe_deploy.backends import BACKENDS, MODES, Backend, load, title_of
from carafe_deploy.bench.record import Subject
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    CarafeDeployError,
    OptionError,
)
from carafe_deploy.failures import Failure, caught
from carafe_deploy.parity.compatible import BoundedRunner, check_same_model
from carafe_deploy.runners.base import BODIES, Runner
from carafe_deploy.types import PRECISIONS, InputFormat, ModelInfo

if TYPE_CHECKING:
    from carafe_deploy.graph.options import ExportOptions

__all__ = ["LAYOUTS", "Opened", "Opening", "Variants", "expand", "open_all", "sidecar_facts"]

#: Memory formats of PyTorch models.
LAYOUTS = ("nchw", "channels-last")


@dataclass(frozen=True, repr=False)
class Variants(OneLine):
    """Ways to run the artefacts; empty means the usual ones.

    Attributes:
        precisions: of checkpoints; by default those of the exported artefacts, else fp32.
        modes: of checkpoints and engines; by default eager, on a GPU CUDA graphs as well.
        layouts: of checkpoints; by default channels-last, as everywhere.
        providers: of ONNX files; by default all that belong to the device.
        tf32: what computes in float32 on a GPU is measured with TF32 as well.
        bodies: ONNX files are measured by their function bodies as well.
        provider_options: of ONNX Runtime's provider.
    """

    precisions: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    tf32: bool = False
    bodies: bool = False
    provider_options: Mapping[str, str] = field(default_factory=dict)

    def checked(self) -> Variants:
        """Self.

        Raises:
            CarafeDeployError: a value is unknown.
        """
        known = {
            name
            for backend in BACKENDS.values()
            for name in itertools.chain(*backend.providers.values())
        }
        for name, choices in (
            ("precisions", PRECISIONS),
            ("modes", MODES),
            ("layouts", LAYOUTS),
            ("providers", sorted(known)),
        ):
            for value in getattr(self, name):
                if value not in choices:
                    raise CarafeDeployError(
                        f"{name} holds {value!r}: choose from {', '.join(choices)}"
                    )
        return self


@dataclass(frozen=True, repr=False)
class Opening(OneLine):
    """How to open one subject, in plain values, so that another process can do it, too.

    Attributes:
        path: of the artefact.
        device: ``"cpu"`` or ``"cuda"``.
        config: of a checkpoint that has none inside; else None.
        precision: of a checkpoint; empty for what has its own.
        mode: see :data:`carafe_deploy.artefacts.MODES`.
        channels_last: of a checkpoint.
        provider: of an ONNX file; else None.
        operators: of an ONNX file, False for its function bodies; else None.
        provider_options: of an ONNX file.
        like: JSON of the :class:`~carafe_deploy.types.ModelInfo` whose settings a checkpoint
            takes; empty for its config's.
        threads: of one operator on the CPU; None lets the runtimes choose.
        tf32: float32 is computed with it.
        with_tf32: if it turns out to compute in float32, it is to be opened a second time, so.
    """

    path: str
    device: str
    config: str | None = None
    precision: str = ""
    mode: str = "eager"
    channels_last: bool = False
    provider: str | None = None
    operators: bool | None = None
    provider_options: Mapping[str, str] | None = None
    like: str = ""
    threads: int | None = None
    tf32: bool = False
    with_tf32: bool = False

    @property
    def kind(self) -> str:
        """Name of the backend that opens files of this suffix."""
        return known_backend(Path(self.path))

    @property
    def backend(self) -> Backend:
        """Its entry."""
        return BACKENDS[self.kind]

    @property
    def variant(self) -> str:
        """What is not as usual, in words."""
        words = [self.mode] * (self.mode != "eager")
        words += ["channels-last"] * self.channels_last
        if self.provider not in (None, self.device):
            words.append(f"{self.provider} provider")
        words += [f"{name} {value}" for name, value in (self.provider_options or {}).items()]
        return ", ".join(words)

    def open(self) -> Runner:
        """The runner; the caller closes it. ``threads`` are PyTorch's for the whole process.

        Raises:
            CarafeDeployError: see :func:`carafe_deploy.artefacts.open_runner`.
        """
        backend = self.backend
        own: dict[str, Any] = {
            "config": self.config,
            "channels_last": self.channels_last,
            "provider": self.provider,
            "operators": self.operators,
            "provider_options": self.provider_options,
            "threads": self.threads,
        }
        own = {option: value for option, value in own.items() if option in backend.options}
        if backend.is_model:
            own["options"] = _options_like(self.like, self.precision)
        if backend.on_torch and self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        return open_runner(
            self.path,
            device=None if self.device == "cpu" and backend.needs_gpu else self.device,
            mode=self.mode,
            tf32=self.tf32 or None,
            **own,
        )

    def to_json(self) -> str:
        """For :meth:`from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Opening:
        """Inverse of :meth:`to_json`."""
        return cls(**json.loads(text))


def _options_like(like: str, precision: str) -> ExportOptions:
    """Options that run a checkpoint as an exported artefact runs, in the precision given."""
    from carafe_deploy.graph.options import ExportOptions

    if not like:
        anything = InputFormat()
        return ExportOptions(anything.batch, anything.height, anything.width, precision or "fp32")
    info = ModelInfo.from_json(like, "the checkpoint's likeness")
    options = ExportOptions.like(info)
    return dataclasses.replace(options, precision=precision or options.precision)


def expand(
    paths: Sequence[Path],
    device: str,
    variants: Variants,
    config: Path | None = None,
    threads: int | None = None,
) -> list[Opening]:
    """All subjects, in the order of the artefacts.

    Raises:
        ArtefactError: a file does not exist or is of a kind that nothing opens.
        BackendUnavailableError: TF32 was asked for on a CPU.
        CarafeDeployError: a variant is unknown, or fits no artefact.
    """
    variants.checked()
    modes = variants.modes or (("eager",) if device == "cpu" else ("eager", "cuda-graph"))
    found: list[Opening] = []
    for path in paths:
        options = BACKENDS[known_backend(path)].options
        if not path.is_file():
            raise ArtefactError(f"{path} does not exist")
        plain = Opening(
            str(path),
            device,
            config=None if config is None or "config" not in options else str(config),
            threads=threads,
            with_tf32=variants.tf32 and device != "cpu" and "tf32" in options,
        )
        found += _variants_of(plain, variants, modes)
    if variants.tf32 and device == "cpu":
        raise BackendUnavailableError("tf32 needs a GPU, device is cpu: give --device cuda")
    if variants.tf32 and not any(opening.with_tf32 for opening in found):
        raise OptionError("tf32", True, "engines have it inside: leave it out")
    for option in ("bodies", "provider_options"):
        value = getattr(variants, option)
        if value and not any("operators" in opening.backend.options for opening in found):
            raise OptionError(option, value, "none of the artefacts is an ONNX file: leave it out")
    return found


def _variants_of(plain: Opening, variants: Variants, modes: Sequence[str]) -> Iterable[Opening]:
    """All that the backend can be told, in every combination."""
    backend = plain.backend
    options = backend.options
    precisions = variants.precisions if "precision" in options else ()
    layouts = (variants.layouts or ("channels-last",)) if "channels_last" in options else ("nchw",)
    usual = backend.providers.get(plain.device.partition(":")[0], (None,))
    for precision, mode, layout, provider, operators in itertools.product(
        precisions or ("",),
        [mode for mode in modes if mode in options["mode"]] or ["eager"],
        layouts,
        (variants.providers or usual) if "provider" in options else (None,),
        (None, False) if variants.bodies and "operators" in options else (None,),
    ):
        # What ONNX Runtime captures in no graph.
        other = plain.device != "cpu" and provider not in (None, "cuda")
        if mode == "cuda-graph" and (other or operators is False):
            continue
        given = variants.provider_options if "provider_options" in options else None
        yield dataclasses.replace(
            plain,
            precision=precision,
            mode=mode,
            channels_last=layout == "channels-last",
            provider=provider,
            operators=operators,
            provider_options=given or None,
        )


@dataclass(repr=False)
class Opened(OneLine):
    """A subject in the making.

    Attributes:
        opening: how it was opened.
        subject: what is known of it so far.
        runner: None if it could not be opened.
        bounded: the same, accepting the sizes only that all accept.
        failure: the first one.
    """

    opening: Opening
    subject: Subject
    runner: Runner | None
    bounded: Runner | None = None
    failure: Failure | None = None

    def fail(self, failure: Failure, part: str = "") -> None:
        """Mark the subject as failed, unless it is so already.

        Args:
            failure: what it raised.
            part: of the measurement, to name in the reason.
        """
        if self.failure is not None:
            return
        self.failure = failure
        self.subject = dataclasses.replace(
            self.subject,
            status="failed",
            reason=f"{part}: {failure.reason}" if part else failure.reason,
        )

    def close(self) -> None:
        """Free the runner; if that fails, so has the subject."""
        if self.runner is not None:
            with caught() as closing:
                self.runner.close()
            if closing.failure:
                self.fail(closing.failure, "closing it")
        self.runner = self.bounded = None


def open_all(openings: Sequence[Opening]) -> list[Opened]:
    """Open every subject, at the input sizes that all of them accept.

    Checkpoints come last, since the other artefacts say what they are to be run with, but keep
    their place.

    Raises:
        ArtefactError: the artefacts are of different models or settings, or accept no common size.
        OptionError: TF32 was asked for, and nothing computes in float32.
    """
    opened: dict[int, list[Opened]] = {}
    like: list[ModelInfo] = []
    order = sorted(range(len(openings)), key=lambda i: openings[i].backend.is_model)
    for index in order:
        opened[index] = []
        for opening in _filled_in(openings[index], like):
            if _ran_already(opening, opened):
                continue
            entry = _open(opening)
            if entry.runner is not None and not opening.backend.is_model:
                like.append(_exported(entry.runner.info))
            opened[index].append(entry)
            # One that could not be opened with float32 may be skipped for just that.
            if opening.with_tf32 and entry.subject.precision in ("", "fp32"):
                opened[index].append(_open(dataclasses.replace(opening, tf32=True)))
    entries = [entry for index in sorted(opened) for entry in opened[index]]
    try:
        if any(one.with_tf32 for one in openings) and not any(e.opening.tf32 for e in entries):
            raise OptionError("tf32", True, "nothing here computes in fp32: leave it out")
        _bound(entries)
    except BaseException:
        for entry in entries:
            entry.close()
        raise
    return _named(entries)


def _ran_already(opening: Opening, opened: Mapping[int, Sequence[Opened]]) -> bool:
    """Its function bodies, where there were no kernels."""
    usual = dataclasses.replace(opening, operators=None)
    return opening.operators is False and any(
        entry.opening == usual and entry.subject.implementation == BODIES
        for entries in opened.values()
        for entry in entries
    )


def _exported(info: ModelInfo) -> ModelInfo:
    """As a checkpoint is exported; TF32 is how float32 runs."""
    return dataclasses.replace(info, precision="fp32") if info.precision == "tf32" else info


def _filled_in(opening: Opening, like: Sequence[ModelInfo]) -> Iterable[Opening]:
    """A checkpoint with the settings of the exported artefacts, in each of their precisions."""
    if not opening.backend.is_model:
        return [opening]
    precisions = [opening.precision]
    if not opening.precision:
        precisions = list(dict.fromkeys(info.float_precision for info in like)) or ["fp32"]
    settings = like[0].to_json() if like else ""
    return [
        dataclasses.replace(opening, precision=precision, like=settings) for precision in precisions
    ]


def _open(opening: Opening) -> Opened:
    path = Path(opening.path)
    facts: dict[str, Any] = {
        "backend": opening.kind,
        "device": opening.backend.device if opening.backend.needs_gpu else opening.device,
        "precision": "tf32" if opening.tf32 else opening.precision,
        "variant": opening.variant,
        "file": path.name,
        "file_mb": path.stat().st_size / 1e6,
    }
    runner = None
    with caught() as attempt:
        if opening.backend.known:
            facts |= load(opening.backend.known)(path)
        runner = opening.open()
        facts |= {"backend": runner.backend, "precision": runner.info.precision}
        facts["implementation"] = runner.implementations[0]
    name = f"{title_of(facts['backend'])} {facts['precision']}".strip()
    # One that could not be opened says by what it was to run.
    by = facts.get("implementation", BODIES if opening.operators is False else "")
    words = (facts["variant"], by)
    name = ", ".join([name, *filter(None, words)])
    entry = Opened(opening, Subject(name=name, **facts), runner)
    if attempt.failure and attempt.failure.lacking:
        entry.subject = dataclasses.replace(
            entry.subject, status="skipped", reason=attempt.failure.reason
        )
    elif attempt.failure:
        entry.fail(attempt.failure)
    return entry


def sidecar_facts(path: Path) -> Mapping[str, Any]:
    """What the sidecar of an engine tells of it."""
    from carafe_deploy.engine.sidecar import read_sidecar

    sidecar = read_sidecar(path)
    return {
        "backend": sidecar.flavour,
        "precision": sidecar.computed.precision,
        "build_s": sidecar.build.get("seconds"),
    }


def _bound(entries: Sequence[Opened]) -> None:
    """Wrap the runners so that all accept the same sizes."""
    infos = [(entry.subject.file, entry.runner.info) for entry in entries if entry.runner]
    common: dict[str, tuple[int, int]] = {}
    for file, info in infos:
        check_same_model(infos[0][1], info)
        for name in ("batch", "height", "width"):
            low, high = getattr(info.input, name)
            before = common.get(name, (low, high))
            common[name] = max(low, before[0]), min(high, before[1])
            if common[name][0] > common[name][1]:
                raise ArtefactError(
                    f"{file} accepts {name} {low} to {high}, the artefacts before it "
                    f"{before[0]} to {before[1]}: measure artefacts with bounds that overlap"
                )
    for entry in entries:
        if entry.runner is not None:
            entry.bounded = BoundedRunner(entry.runner, **common)


def _named(entries: Sequence[Opened]) -> list[Opened]:
    """With the file's name where others have the same name."""
    names = [entry.subject.name for entry in entries]
    for entry in entries:
        subject = entry.subject
        if names.count(subject.name) > 1:
            name = f"{subject.name} ({subject.file})"
            entry.subject = dataclasses.replace(subject, name=name)
    return list(entries)
