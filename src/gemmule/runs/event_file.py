"""TensorBoard events, written in the calling thread.

tensorboardX's SummaryWriter writes from a thread of its own: when the disk is full that thread dies
with a traceback, and the training that goes on feeding it waits for it for ever.
"""

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboardX.record_writer import RecordWriter

from gemmule import files
from gemmule.errors import OutputError


class EventFile:
    """One session's events of a run.

    Args:
        folder: made when it is not there.
        step: the first one to come; what earlier sessions logged from there on is hidden.

    Raises:
        OutputError: by every method, when the disk refuses.
    """

    def __init__(self, folder: Path, step: int) -> None:
        now = time.time()
        self.path = folder / f"events.out.tfevents.{int(now):010}.{socket.gethostname()}.{step}"
        with files.writing_to(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(str(self.path))
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=now, step=step, session_log=start))

    def add(self, tag: str, value: float, step: int) -> None:
        """Adds one point to the curve `tag`."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Makes what was added visible to TensorBoard."""
        with files.writing_to(self.path):
            self._records.flush()

    def _write(self, event: Event) -> None:
        with files.writing_to(self.path):
            self._records.write(event.SerializeToString())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with files.writing_to(self.path):
                self._records.close()
        except OutputError:
            if error is None:  # else the first failure is the one to report
                raise
