"""Settings of the machine; the resolved ones are saved with the run."""

from typing import Literal

from pydantic import Field

from gemmule.config import Config


class MachineConfig(Config):
    """How the machine is used; "auto" is settled at the start and saved (runtime/machine.py).

    Attributes:
        device: "auto", "cpu", "cuda".
        dtype: of activations; "auto" takes what multiplies fastest on this machine.
        compile: torch.compile the block; "auto" does where the run is long enough to earn it.
        threads: CPU threads; 0 takes the cores there are.
        country: ISO 3166 three-letter code for the carbon intensity of electricity.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    country: str | None = None
