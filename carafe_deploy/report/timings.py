"""What reports need to know of the subjects of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from carafe_deploy.bench.record import BenchResult, Samples, Subject
from carafe_deploy.bench.statistics import Ratio
from carafe_deploy.brief import OneLine
from carafe_deploy.types import ARCHITECTURES

__all__ = ["Timed", "fastest", "gpus", "machine", "ratio_over", "timed", "title"]


@dataclass(frozen=True, repr=False)
class Timed(OneLine):
    """A subject that has samples; an interrupted run may leave some without."""

    subject: Subject
    samples: Samples

    @property
    def name(self) -> str:
        """Of the subject."""
        return self.subject.name

    @property
    def median(self) -> float:
        """Milliseconds of an image."""
        return self.samples.total.median

    @property
    def agrees(self) -> bool:
        """It detects what the first subject does, or nothing says otherwise."""
        return self.subject.agreement is None or self.subject.agreement.passed is not False


def timed(result: BenchResult) -> list[Timed]:
    """The subjects to compare, in their order; the first is the reference of the others."""
    return [
        Timed(subject, subject.samples)
        for subject in result.measured
        if subject.samples is not None and subject.samples.total_ms
    ]


def fastest(subjects: Sequence[Timed]) -> Timed:
    """By median, among those that agree.

    Args:
        subjects: at least one, the reference first; it agrees with itself.
    """
    return min((entry for entry in subjects if entry.agrees), key=lambda entry: entry.median)


def ratio_over(candidate: Timed, reference: Timed) -> Ratio | None:
    """Of whole images; None if an interrupted run left the two no common round."""
    try:
        return candidate.samples.over(reference.samples)
    except ValueError:
        return None


def title(result: BenchResult) -> str:
    """``Mask R-CNN, mask_rcnn_r50``."""
    return f"{ARCHITECTURES.get(result.architecture, result.architecture)}, {result.model}"


#: Facts that tell most about a machine, in this order -> their names in one line.
_FACTS = {
    "GPU": "",
    "processor": "",
    "torch": "torch",
    "ONNX Runtime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "tensorrt-rtx-cu13": "TensorRT-RTX",
    "commit": "commit",
}


def machine(environment: Mapping[str, str]) -> str:
    """The most important facts in one line."""
    words = []
    for key, name in _FACTS.items():
        value = environment.get(key, "")
        if not value or value.startswith(("none", "not ")):
            continue
        if key == "GPU":
            value = gpus(value)
        elif key == "commit":
            commit, _, changed = value.partition(" ")
            value = f"{commit[:10]} {changed}".rstrip()
        elif name:
            value = value.partition(" (")[0]
        words.append(f"{name} {value}".lstrip())
    return " · ".join(words)


def gpus(text: str) -> str:
    """What nvidia-smi lists of each GPU, with the names of its numbers."""
    listed = (re.fullmatch(r"(.+), ([\d.]+), ([\d.]+)", gpu) for gpu in text.split("; "))
    named = [f"{m[1]} (compute capability {m[2]}, driver {m[3]})" if m else "" for m in listed]
    return "; ".join(named) if all(named) else text
