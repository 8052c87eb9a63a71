"""What a benchmark measures, and how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from carafe_deploy.bench.subjects import Variants
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import CarafeDeployError

__all__ = ["BenchOptions"]


@dataclass(frozen=True, repr=False)
class BenchOptions(OneLine):
    """Of one run.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        variants: ways to run the artefacts.
        config: of a checkpoint that has none inside.
        rounds: in each, every subject has its turn.
        block: timed images a turn; None for as many whole passes over the images as 0.25 s hold.
        warmup: untimed runs of every subject on every image before.
        batch_sizes: of throughput.
        threads: of one operator on the CPU; None lets the runtimes choose.
        cold: measure loading, first run and memory in processes of their own.
        layers: runs that are profiled layer by layer; 0 for none.
        samples: images whose detections are kept to show.
        annotations: COCO file to compare average precision on.
        image_dir: that its file names are relative to; None for its own folder.
        limit: use its first images only.
        seed: of the order of turns.
    """

    device: str = "cpu"
    variants: Variants = field(default_factory=Variants)
    config: Path | None = None
    rounds: int = 20
    block: int | None = None
    warmup: int = 2
    batch_sizes: tuple[int, ...] = (1, 2, 4)
    threads: int | None = None
    cold: bool = True
    layers: int = 0
    samples: int = 2
    annotations: Path | None = None
    image_dir: Path | None = None
    limit: int | None = None
    seed: int = 0

    def checked(self) -> BenchOptions:
        """Self.

        Raises:
            CarafeDeployError: a number is out of range.
        """
        for name, least in (("rounds", 1), ("warmup", 1), ("layers", 0), ("samples", 0)):
            if getattr(self, name) < least:
                raise CarafeDeployError(f"{name} is {getattr(self, name)}: give at least {least}")
        for name, values in (
            ("block", (self.block,)),
            ("threads", (self.threads,)),
            ("limit", (self.limit,)),
            ("batch sizes", self.batch_sizes),
        ):
            for value in values:
                if value is not None and value < 1:
                    raise CarafeDeployError(f"{name} is {value}: give at least 1")
        self.variants.checked()
        return self
