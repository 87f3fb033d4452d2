"""Brings a teacher's weights into the form in which this machine multiplies them."""

from gemmule.console import console
from gemmule.errors import ConfigError
from gemmule.quant.int8_linear import quantize_linears, speed
from gemmule.runtime.config import RuntimeConfig
from gemmule.teachers.teacher import LocalTeacher


def check_int8(int8: bool, device: str) -> None:
    """Refuses int8 on another device than a CPU.

    Raises:
        ConfigError: when it is asked for there.
    """
    if int8 and device != "cpu":
        raise ConfigError("int8 = true is for teachers on a CPU: leave it out, or set device=cpu")


def prepare(teacher: LocalTeacher, runtime: RuntimeConfig, *, int8: bool, tokens: int) -> None:
    """Moves a teacher to its device, rounds its linear layers, and compiles it.

    Args:
        teacher: the teacher, with weights in fp32.
        runtime: device, type of activations and whether blocks are compiled, with every "auto"
            resolved. With "bfloat16", linear layers are stored in it.
        int8: quantize linear layers, except the head, to int8; prints whether that is faster here.
            Nothing is compiled then, as the product takes the time.
        tokens: tokens of a forward pass, for measuring int8.

    Raises:
        ConfigError: for int8 without linear layers.
    """
    teacher.to(runtime.device)
    if int8:
        _quantize(teacher, tokens)
        return
    if runtime.dtype == "bfloat16":
        teacher.store_bfloat16()
    if runtime.compile:
        teacher.compile()


def _quantize(teacher: LocalTeacher, tokens: int) -> None:
    if quantize_linears(teacher.model, keep=teacher.whole_head.weight_VD) == 0:
        raise ConfigError(
            "int8 = true: this teacher has no linear layers to quantize; leave it out"
        )
    gain = speed(teacher.model, tokens)
    if gain > 1:
        message = f"int8: the largest linear layer takes 1/{gain:.1f} of its time in float32"
    else:
        message = (
            f"int8 does not help here: the largest linear layer takes {1 / gain:.1f} times as long "
            "as in float32 (the processor needs VNNI); leave int8 out"
        )
    console.print(message)
