import errno
from pathlib import Path

import pytest

from gemmule.errors import OutputError
from gemmule.runs.event_file import EventFile


def scalars(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(e.step, e.value) for e in EventAccumulator(str(folder)).Reload().Scalars("loss")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow")
def test_tensorboard_reads_it(tmp_path: Path) -> None:
    with EventFile(tmp_path / "board", 1) as board:
        for step in (1, 2, 3):
            board.add("loss", 4.0 / step, step)
    assert scalars(tmp_path / "board") == [(1, 4.0), (2, 2.0), (3, pytest.approx(4 / 3))]
    # A session resumed at step 3, within the same second, hides what came after.
    with EventFile(tmp_path / "board", 3) as board:
        board.add("loss", 0.5, 3)
    assert scalars(tmp_path / "board") == [(1, 4.0), (2, 2.0), (3, 0.5)]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = EventFile(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(board._records, "write", full)
    with board, pytest.raises(OutputError, match="the disk is full"):
        board.add("loss", 1.0, 1)
    board = EventFile(tmp_path, 2)
    board.flush()
    board._records.close()
    monkeypatch.setattr(board._records, "close", full)
    with pytest.raises(OutputError, match="the disk is full"), board:
        pass
    # On the way out of another failure that one is reported.
    with pytest.raises(ZeroDivisionError), board:
        raise ZeroDivisionError
