"""Result of gemmule bench as tables."""

from collections.abc import Mapping
from typing import Any

from gemmule.console import key_values, table


def show(result: Mapping[str, Any]) -> None:
    """Prints the result of `measure`."""
    model, machine = result["model"], result["machine"]
    cache = machine["last_level_cache_bytes"]
    key_values(
        [
            ["model", f"{model['parameters'] / 1e6:,.1f}M parameters in {model['format']}, head "
             f"{model['head']}: {size(model['weight_bytes'])}, "
             f"{model['bits_per_weight']:.2f} bits per weight"],
            ["KV cache",
             f"{model['cache']}, {size(model['cache_bytes_per_token'])} per token"],
            ["machine", f"{machine['processor']}, {machine['cores']} cores"],
            ["kernels", _kernels(machine)],
            ["memory read", _speeds(machine["read_bytes_per_second"])],
            ["arithmetic", _arithmetic(machine)],
            ["load", f"{result['load_seconds']:.2f} s"],
            ["first token", f"{result['first_token_seconds']:.3f} s after a prompt of "
             f"{result['prefill']['tokens']} tokens"],
            ["peak memory", size(result["peak_bytes"])],
        ],
        title=str(model["path"]),
    )  # fmt: skip
    prefill, long = result["prefill"], result["long_context"]
    rows = [[f"prefill of {prefill['tokens']}", *_row(prefill, "")]]
    for decode in [*result["decode"], *([long] if long else [])]:
        batch = "" if decode["batch"] == 1 else f", batch size {decode['batch']}"
        name = f"decode after {decode['context']}{batch}"
        rows.append([name, *_row(decode, size(decode["bytes_per_token"]))])
    table(["", "tokens/s", "bytes/token", "roofline", "reached", "bound by"], rows)
    if busy := result["busy"]:
        rows = [[f"prefill of {prefill['tokens']}", f"{busy['prefill']:.0%}"]]
        for row in busy["decode"]:
            rows.append([f"decode, batch size {row['batch']}", f"{row['share']:.0%}"])
        number = busy["processes"]
        others = "one busy process" if number == 1 else f"{number} busy processes"
        table(["", "of the speed alone"], rows, title=f"next to {others}")
    if lines := notes(result, cache):
        key_values([["note", line] for line in lines])


def notes(result: Mapping[str, Any], cache: int | None) -> list[str]:
    """What to know when reading the numbers."""
    lines, long = [], result["long_context"]
    if cache and result["model"]["weight_bytes"] < cache:
        lines.append(
            f"the model is smaller than the processor's last cache ({size(cache)}): it is read "
            "from there, and may be faster than memory allows"
        )
    if long:
        lines.append(f"a step after {long['context']} tokens takes {long['slowdown']:.2f} times as "
                    f"long as after {result['decode'][0]['context']}")  # fmt: skip
        if not long["whole"]:
            lines.append("the model's whole context would take too long to fill here")
    return lines


def size(count: float) -> str:
    """Bytes with a unit: 1.20 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count:.0f} B"


def _row(speed: Mapping[str, Any], nbytes: str) -> list[str]:
    return [
        _rate(speed["tokens_per_second"]),
        nbytes,
        _rate(speed["floor_tokens_per_second"]),
        f"{speed['share_of_floor']:.0%}",
        speed["bound"],
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
