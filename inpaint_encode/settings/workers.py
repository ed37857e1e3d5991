"""Batches, and the resources of a cluster that a job uses."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from cyclopts import Parameter
from pydantic import Field, ValidationInfo, field_validator, model_validator

from .base import Frozen, section, unit

__all__ = ["Batches", "Workers", "label_selector"]

_CONDITION = r"[\w./-]+=!?(?:in\([\w.-]+(?:, ?[\w.-]+)*\)|[\w.-]+)"


def label_selector(labels: str) -> dict[str, str] | None:
    """Return the conditions of `Workers.encode_on` or `Workers.fetch_on` by key, for Ray's ``label_selector``.

    Returns:
        None if there are no conditions.
    """
    return dict(one.split("=", 1) for one in re.findall(_CONDITION, labels)) or None


@section("Workers", 6)
class Batches(Frozen):
    """What one VAE worker does at a time, and on which device."""

    batch_size: Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], unit("IMAGES")] = "auto"
    """Maximum number of images of one size in a forward pass. Larger batches use a GPU better and need more memory.
    auto: up to 8, fewer if they do not fit in the GPU's free memory; on a CPU, at most half a million pixels in a
    pass."""
    compile: Annotated[bool, Parameter(negative="--no-compile")] = True
    """On a GPU, compile the VAE for frequent batch shapes. This is faster; results differ only by rounding.
    --no-compile: compile none."""
    gpus_per_worker: Annotated[str, unit("GPUS")] = "auto"
    """GPUs per VAE worker. 0: the worker uses the CPU. 0.5: two workers share a GPU. auto: 1 if the cluster has a GPU
    now, otherwise 0. Give a number and --max-workers if the cluster starts GPU nodes on demand."""
    fetch_threads: Annotated[int, Field(ge=1, le=256), unit("COUNT")] = 16
    """Number of concurrent downloads in a fetch task, 1 to 256."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _validate_gpus(cls, value: str) -> str:
        if not re.fullmatch(r"auto|\d+|0\.\d+", value):
            raise ValueError(f"--gpus-per-worker {value!r} must be auto, a whole number or a fraction such as 0.5")
        return value


@section("Workers", 6)
class Workers(Batches):
    """Number of workers, and the resources of the cluster that they reserve."""

    min_workers: Annotated[int, Field(ge=1), unit("WORKERS")] = 1
    """Number of VAE workers to start with."""
    max_workers: Annotated[int, Field(ge=0), unit("WORKERS")] = 0
    """Maximum number of VAE workers. 0: as many as the cluster's present GPUs allow, at --gpus-per-worker each; one if
    it has no GPU. If the cluster starts GPU nodes on demand, give a number; the cluster then starts nodes for that many
    workers."""
    fetch_cpus: Annotated[float, Field(gt=0), unit("CPUS")] = 1.0
    """CPUs to reserve for a task that fetches and decodes a chunk."""
    encode_cpus: Annotated[str, unit("CPUS")] = "auto"
    """CPUs to reserve for a VAE worker. auto: 0 for a worker with a GPU, so that CPU tasks never block it; otherwise
    2."""
    write_cpus: Annotated[float, Field(gt=0), unit("CPUS")] = 0.75
    """CPUs to reserve for a task that writes a chunk."""
    encode_on: Annotated[str, unit("LABELS")] = ""
    """Labels of the nodes for VAE workers, such as ray.io/accelerator-type=in(L4,A10G) or pool=gpu,market=!spot. All
    conditions must hold: key=value, key=!value or key=in(a,b). By default, any node with free resources."""
    fetch_on: Annotated[str, unit("LABELS")] = ""
    """Labels of the nodes for tasks that fetch, decode and write, in the form of --encode-on. By default, any node with
    free CPUs."""

    @field_validator("encode_cpus")
    @classmethod
    def _validate_cpus(cls, value: str) -> str:
        if not re.fullmatch(r"auto|\d+|\d+\.\d+", value):
            raise ValueError(f"--encode-cpus {value!r} must be auto or a number such as 2 or 0.5")
        return value

    @field_validator("encode_on", "fetch_on")
    @classmethod
    def _validate_labels(cls, value: str, info: ValidationInfo) -> str:
        if value and not re.fullmatch(rf"{_CONDITION}(?:, ?{_CONDITION})*", value):
            option = f"--{str(info.field_name).replace('_', '-')}"
            raise ValueError(f"{option} {value!r} must be key=value, key=!value or key=in(a,b), separated by commas")
        return value

    @model_validator(mode="after")
    def _validate_order(self) -> Self:
        if self.max_workers and self.max_workers < self.min_workers:
            raise ValueError(
                f"--max-workers {self.max_workers} is less than --min-workers {self.min_workers}; raise --max-workers, "
                "or set it to 0"
            )
        return self
