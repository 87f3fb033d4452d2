"""A measurement as tables."""

from collections.abc import Mapping
from typing import Any

from gemmule.console import key_values, table


def show(found: Mapping[str, Any]) -> None:
    """Prints it."""
    model, machine = found["model"], found["machine"]
    cache = machine["last_level_cache_bytes"]
    key_values(
        [
            ["model", f"{model['parameters'] / 1e6:,.1f}M parameters in {model['format']}, head "
             f"{model['head']}: {size(model['weight_bytes'])}, "
             f"{model['bits_per_weight']:.2f} bits a weight"],
            ["keys and values",
             f"{model['cache']}, {size(model['cache_bytes_per_token'])} a token"],
            ["machine", f"{machine['processor']}, {machine['cores']} cores"],
            ["kernels", _kernels(machine)],
            ["memory read", _speeds(machine["read_bytes_per_second"])],
            ["arithmetic", _arithmetic(machine)],
            ["load", f"{found['load_seconds']:.2f} s"],
            ["first token", f"{found['first_token_seconds']:.3f} s after a prompt of "
             f"{found['prefill']['tokens']} tokens"],
            ["peak memory", size(found["peak_bytes"])],
        ],
        title=str(model["path"]),
    )  # fmt: skip
    prefill, long = found["prefill"], found["long_context"]
    rows = [[f"prompt of {prefill['tokens']}", *_row(prefill, "")]]
    for decode in [*found["decode"], *([long] if long else [])]:
        at_once = "" if decode["batch"] == 1 else f", {decode['batch']} at once"
        name = f"decoding after {decode['context']}{at_once}"
        rows.append([name, *_row(decode, size(decode["bytes_per_token"]))])
    table(["", "tokens/s", "bytes/token", "at most", "share", "bound by"], rows)
    if said := notes(found, cache):
        key_values([["note", note] for note in said])


def notes(found: Mapping[str, Any], cache: int | None) -> list[str]:
    """What to know when reading the figures."""
    said, long = [], found["long_context"]
    if cache and found["model"]["weight_bytes"] < cache:
        said.append(
            f"the model is smaller than the processor's last cache ({size(cache)}): it need not be "
            "read from memory, and may be faster than memory allows"
        )
    if long:
        said.append(f"a step after {long['context']} tokens takes {long['slowdown']:.2f} times as "
                    f"long as after {found['decode'][0]['context']}")  # fmt: skip
        if not long["whole"]:
            said.append("the whole context would take too long to fill here")
    return said


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count:.0f} B"


def _row(figures: Mapping[str, Any], nbytes: str) -> list[str]:
    return [
        _rate(figures["tokens_per_second"]),
        nbytes,
        _rate(figures["floor_tokens_per_second"]),
        f"{figures['share_of_floor']:.0%}",
        figures["bound"],
    ]


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _kernels(machine: Mapping[str, Any]) -> str:
    name = machine["instruction_set"] if machine["runner"] == "NativeRunner" else "torch"
    return f"{name}, {machine['threads']} threads"


def _speeds(speeds: Mapping[str, float]) -> str:
    return ", ".join(
        f"{speed / 1e9:.1f} GB/s on {count} {'thread' if count == '1' else 'threads'}"
        for count, speed in speeds.items()
    )


def _arithmetic(machine: Mapping[str, Any]) -> str:
    integers = machine["int8_operations_per_second"]
    floats = f"float32 {machine['float32_operations_per_second'] / 1e9:,.0f} GFLOP/s"
    return floats if integers is None else f"int8 {integers / 1e9:,.0f} GOP/s, {floats}"
