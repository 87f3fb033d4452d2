"""Settings of the hardware a run uses; the resolved ones are saved with the run."""

from typing import Literal

from pydantic import Field

from gemmule.config import Config


class RuntimeConfig(Config):
    """How a run uses the machine; every "auto" is resolved at the start and saved (device.py).

    Attributes:
        device: "auto", "cpu" or "cuda".
        dtype: type of activations; "auto" takes the one that multiplies fastest on this machine.
        compile: torch.compile each block; "auto" does where the run is long enough to pay for it.
        threads: CPU threads; 0 takes all cores, shared among the processes of a run.
        activation_checkpointing: what a block keeps for the backward pass: all that it needs
            ("none"), its input and the outputs of its linear layers ("selective"), or its input
            ("full"); the rest is computed again. The result is the same.
        country: ISO 3166 three-letter code for the carbon intensity of electricity.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    country: str | None = None
