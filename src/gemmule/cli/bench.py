"""gemmule bench."""

import dataclasses
import json
from typing import Annotated

import typer

from gemmule.cli.app import RUN, command, stoppable
from gemmule.cli.options import AsJson, Model, Options, Quantize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured(Options):
    """What is measured (SpeedRequest)."""

    quantize: Quantize = None
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: every core.")] = None
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt, for prefill.")] = 512
    context: Annotated[int, typer.Option(help="Tokens already in the cache, for decode.")] = 128
    batch: Annotated[str, typer.Option(help="Batch sizes for decode, as in 1,8.")] = "1,8"
    beside: Annotated[int, typer.Option(help="Measure again next to that many busy processes.")] = 0


@command(RUN)
def bench(model: Model, measured: Measured, as_json: AsJson = False) -> None:
    """Measure a model's speed here, next to the roofline of memory and processor.

    Takes seconds for a small model and about a minute for a 2B.

    Example: gemmule bench runs/quickstart/student --batch 1,4
    """
    from gemmule.console import ProgressBar
    from gemmule.speed.settings import SpeedRequest

    request = SpeedRequest.parse({"model": model, **measured.given()}, source="bench")
    from gemmule.speed.benchmark import measure
    from gemmule.speed.tables import show

    with stoppable("nothing was written"), ProgressBar("measuring", 100, "%") as bar:

        def progress(done: int, total: int, note: str) -> None:
            bar.update(100 * done / total, note)

        result = measure(request, progress)
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
