"""What a launch script is rendered from."""

import re
from pathlib import Path
from typing import Literal, Self

import pydantic
from pydantic import Field

from gemmule.config import Config

Scheduler = Literal["slurm", "sky", "kubeflow"]
SCHEDULERS: dict[str, str] = {
    "slurm": "Slurm", "sky": "SkyPilot", "kubeflow": "Kubeflow Trainer",
}  # fmt: skip
CONTINUED_BY: dict[str, tuple[str, ...]] = {
    "train": ("--resume-if-started",), "distill": ("--resume-if-started",), "record": (),
}  # fmt: skip
"""Commands that several processes share, and the options that continue what is there."""

# Options that only some schedulers use, and what to do with the others.
_ONLY: dict[str, tuple[tuple[Scheduler, ...], str]] = {
    "options": (("slurm",), "edit the YAML for what gemmule has no option for"),
    "image": (("sky", "kubeflow"), "start the container in --setup, or with --option"),
    "volume": (("sky", "kubeflow"), "the nodes of a Slurm cluster share their file system"),
    "hours": (("slurm", "kubeflow"), "sky launch has --idle-minutes-to-autostop"),
}
# Names that Slurm, SkyPilot's clusters and Kubernetes all take.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")
_VOLUME = re.compile(r"(?P<source>[^:]+(://[^:]+)?):(?P<path>/[^:]*)")


class LaunchRequest(Config):
    """Settings of a launch script.

    Attributes:
        scheduler: what starts the processes.
        command: the command, one of CONTINUED_BY, from its verb on.
        out: the folder that it writes, as in the command.
        name: name of the job; None: made from the folder's.
        nodes: machines.
        nproc: processes per machine, each with a GPU of its own where `gpu` is given.
        gpu: type of the GPUs, or "any"; None: the processes compute on CPUs.
        cpus: cores per machine; None: the scheduler's default.
        memory: GiB per machine; None: the scheduler's default.
        hours: time limit; None: the scheduler's default.
        setup: shell line that each machine runs first.
        image: container image.
        volume: shared storage and where it is mounted, as source:/path.
        options: further options of sbatch, as in "partition=gpu".
    """

    scheduler: Scheduler
    command: tuple[str, ...]
    out: Path
    name: str | None = None
    nodes: int = Field(default=1, ge=1, le=100_000)
    nproc: int = Field(default=1, ge=1, le=1024)
    gpu: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]+$")
    cpus: int | None = Field(default=None, ge=1)
    memory: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0, le=24 * 365, allow_inf_nan=False)
    setup: str | None = None
    image: str | None = Field(default=None, pattern=r"^\S+$")
    volume: str | None = None
    options: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _used(self) -> Self:
        for field, (schedulers, advice) in _ONLY.items():
            if getattr(self, field) and self.scheduler not in schedulers:
                name = "option" if field == "options" else field
                raise ValueError(f"--{name} is not for {SCHEDULERS[self.scheduler]}: {advice}")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(
                f"--name {self.name!r}: lower-case letters, digits and dashes, at most 50, "
                "beginning with a letter"
            )
        if self.volume is not None and not _VOLUME.fullmatch(self.volume):
            raise ValueError(f"--volume {self.volume!r}: write SOURCE:/PATH")
        wrong = [option for option in self.options if not re.fullmatch(r"[a-z-]+(=\S+)?", option)]
        if wrong:
            raise ValueError(
                f"--option {wrong[0]!r}: write an option of sbatch without its dashes, as in "
                "partition=gpu"
            )
        if self.setup is not None and not self.setup.isprintable():
            raise ValueError("--setup is one line of shell")
        return self

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Self:
        if self.scheduler == "sky" and self.gpu == "any":
            raise ValueError("--gpu any: SkyPilot needs a type, as in --gpu H100 (sky show-gpus)")
        if self.scheduler == "kubeflow" and self.image is None:
            raise ValueError("Kubeflow runs containers: give --image, one that has gemmule")
        if self.scheduler == "sky" and self.image is None and self.setup is None:
            raise ValueError(
                "a new machine has no gemmule: give --setup, as in --setup 'pip install .', or "
                "--image"
            )
        if self.scheduler != "slurm" and self.volume is None:
            raise ValueError(
                f"machines of {SCHEDULERS[self.scheduler]} lose their disks when they are "
                "replaced: give --volume SOURCE:/PATH, and put the run below /PATH"
            )
        if self.mounted is not None:
            source, mounted = self.mounted
            if "://" in source and self.scheduler == "kubeflow":
                raise ValueError(f"--volume {source}: Kubernetes mounts a claim; give its name")
            if "://" in source and self.nodes > 1:
                raise ValueError(
                    f"--volume {source}: each machine has its own view of a bucket; with --nodes "
                    f"{self.nodes} name a volume that all can write (sky volumes apply)"
                )
            if not self.out.is_relative_to(mounted):
                raise ValueError(
                    f"--out {self.out} is not on the shared storage, which is mounted at {mounted}"
                )
        return self

    @property
    def job(self) -> str:
        """Name of the job."""
        if self.name is not None:
            return self.name
        words = re.sub(r"[^a-z0-9]+", "-", self.out.name.lower()).strip("-")
        return f"gemmule-{words}"[:50].strip("-")

    @property
    def mounted(self) -> tuple[str, str] | None:
        """The shared storage (a bucket, or the name of a volume) and the path of its mount."""
        match = _VOLUME.fullmatch(self.volume or "")
        return None if match is None else (match["source"], match["path"])
