"""One rank of several recordings, one after the other, as a list of them says.

Argument: a file of JSON, a list of recordings: "settings", "out", and optionally the number of the
batch before which the second rank alone gets SIGTERM ("stop_at") or SIGKILL ("kill_at"), and
whether no rank ends its first batch before both have begun one ("together"). Prints, line by line,
what became of each: the result, or the kind of the error and its message.
"""

import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gemmule.runs.carbon
from gemmule.errors import GemmuleError, RankError
from gemmule.runs.power.machine import MachineMeter, Source
from gemmule.runtime import shared_work
from gemmule.runtime.world import World
from gemmule.teachers import record_session
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig

plain = record_session.batch_of


def run(recording: Mapping[str, Any], world: World) -> Any:
    batches = 0

    def batch_of(*args: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 1 and recording.get("together"):
            begin_together(Path(recording["out"]), world)
        time.sleep(0.03)  # neither has done all before the other is through with its first
        for moment, number in (("stop_at", signal.SIGTERM), ("kill_at", signal.SIGKILL)):
            if batches == recording.get(moment) and world.rank == 1:
                signal.raise_signal(number)
        return plain(*args)

    record_session.batch_of = batch_of
    try:
        return record(RecordConfig.parse(recording["settings"]), Path(recording["out"]), world)
    except RankError:
        raise
    except GemmuleError as e:
        return f"{type(e).__name__}: {e}"


def begin_together(out: Path, world: World) -> None:
    """Waits until both ranks are here."""
    (out.parent / f"{out.name}-{world.rank}").touch()
    end = time.monotonic() + 30
    while not (out.parent / f"{out.name}-{1 - world.rank}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def meter() -> MachineMeter:
    """A machine of 3,600 W."""
    source = Source(lambda: 3600 * time.monotonic(), "counter")
    return MachineMeter({"cpu": [source]}, {"cpu": "by the clock"})


def main(recordings: list[dict[str, Any]]) -> None:
    gemmule.runs.carbon.start_tracker = meter  # type: ignore[assignment]
    shared_work._CALL_AFTER, shared_work._PATIENCE = 0.5, 5.0
    try:
        with World.from_env("cpu", timeout=60) as world:
            for recording in recordings:
                print(json.dumps(run(recording, world)), flush=True)
    except GemmuleError as e:
        print(f"gemmule: {e}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
