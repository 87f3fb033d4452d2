"""The world of a run: alone, and as two processes over gloo."""

import datetime
import json
import math
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from gemmule.errors import ConfigError
from gemmule.runtime import world
from gemmule.runtime.roll_call import LEFT, Answering, RollCall
from gemmule.runtime.world import SOLO, StepSums, World
from ranks import Ended, run_ranks

PLACE = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}  # fmt: skip


def in_ranks(body: str, **options: float) -> list[Ended]:
    """Runs the body of a `with World.from_env() as world` block in two processes."""
    lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
    grace = options.pop("grace", 20)
    code = f"""
import json, os, sys, time
from gemmule.errors import ConfigError, GemmuleError, Interrupted
from gemmule.runtime.world import StepSums, World
try:
    with World.from_env("cpu", timeout={options.pop("timeout", 60)}, grace={grace}) as world:
{lines}
except GemmuleError as e:
    print(f"gemmule: {{e}}", file=sys.stderr)
    raise SystemExit(e.exit_code) from None
"""
    return run_ranks(["-c", code])


def test_alone_nothing_happens() -> None:
    values = [0.1, -0.0, 1e308, 5e-324]
    sums = SOLO.sum(values)
    assert [struct.pack("d", x) for x in sums] == [struct.pack("d", x) for x in values]
    assert math.isnan(SOLO.sum([math.nan])[0])
    assert (SOLO.rank, SOLO.size, SOLO.first, SOLO.local_rank) == (0, 1, True, 0)
    SOLO.barrier()
    assert SOLO.agree(True) is True
    assert SOLO.agree(False) is False
    with SOLO as entered:
        assert entered is SOLO
    step = StepSums({"loss": 0.1, "targets": 3.0}, stop=True)
    assert step.over(SOLO) == step


def test_a_group_that_computes_the_same_counts_once() -> None:
    class Four(World):
        rank, size, local_rank, local_size = 3, 4, 1, 2

        def sum(self, values: Sequence[float]) -> list[float]:
            return [self.size * value for value in values]

    world = Four()
    pairs = world.in_groups(2)
    assert (pairs.rank, pairs.size, pairs.first, pairs.every) == (1, 2, False, world)
    assert (pairs.local_rank, pairs.local_size) == (1, 2)
    assert pairs.sum([0.1, 3.0]) == [0.2, 6.0]
    assert world.in_groups(1) is world
    assert SOLO.every is SOLO


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    assert World.from_env() is SOLO
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert World.from_env() is SOLO


def test_processes_that_are_started_again_do_not_meet_those_before() -> None:
    shared = HashStore()  # as torchrun's, which outlives them
    starts = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            ranks = []
            for rank in range(3):
                seconds = datetime.timedelta(seconds=20)
                ranks.append(threads.submit(world._start, shared, rank, 3, seconds))
                time.sleep(0.1)  # the first one finds the words of those before
        (start,) = {rank.result() for rank in ranks}
        starts.append(start)
    assert starts[0] != starts[1]
    with pytest.raises(RuntimeError, match="rank 1 has not come"):
        world._start(shared, 0, 2, datetime.timedelta(seconds=0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_ADDR": "", "LOCAL_RANK": ""}, "RANK is set .* LOCAL_RANK, MASTER_ADDR is not"),
        ({"RANK": ""}, "WORLD_SIZE is set in the environment and RANK is not: start .* torchrun"),
        ({"RANK": "one"}, "RANK is 'one'; it must be a number"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'; it must be a number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0; it must be 1 or more"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2: ranks count from 0"),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK is 3 and LOCAL_WORLD_SIZE is 2"),
    ],
)
def test_a_wrong_environment_is_named(
    change: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**PLACE, **change}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        World.from_env()


def test_sums_barrier_and_agreement() -> None:
    both = in_ranks("""
world.barrier()
results = {"place": [world.rank, world.size, world.local_rank, world.first]}
results["sum"] = world.sum([0.1 * (world.rank + 1), float(world.rank)])
results["agreed"] = [world.agree(world.rank == 0), world.agree(world.rank == 1)]
step = StepSums({"loss": 1.5 + world.rank, "targets": 2.0}, stop=world.rank == 1, due=False)
total = step.over(world)
results["step"] = [dict(total.sums), total.non_finite, total.stop, total.due]
began = time.monotonic()
if world.first:
    time.sleep(1.0)
world.barrier()
results["waited"] = time.monotonic() - began
print(json.dumps(results))
""")
    assert [rank.code for rank in both] == [0, 0], both
    results = [json.loads(rank.out) for rank in both]
    assert [r["place"] for r in results] == [[0, 2, 0, True], [1, 2, 1, False]]
    for result in results:
        assert result["sum"] == [0.1 + 0.2, 1.0]  # float64: to the last bit
        assert result["agreed"] == [True, False]
        assert result["step"] == [{"loss": 4.0, "targets": 4.0}, False, True, False]
        assert result["waited"] >= 0.9


@pytest.mark.parametrize("failing", [0, 1])
def test_when_one_rank_fails_the_other_ends_with_one_message(failing: int) -> None:
    both = in_ranks(f"""
world.sum([1.0])
if world.rank == {failing}:
    raise ConfigError("seq_len = 3 is too short")
world.sum([1.0])
print("not reached")
""")
    failed, other = both[failing], both[1 - failing]
    assert failed.code == 2
    assert failed.err == "gemmule: seq_len = 3 is too short\n"
    assert other.code == 1
    assert other.out == ""
    messages = [line for line in other.err.splitlines() if not line.startswith("[W")]
    assert len(messages) == 1, other.err
    assert messages[0].startswith(f"gemmule: rank {failing} of 2 (")
    assert messages[0].endswith(
        "failed, which ends this one: ConfigError: seq_len = 3 is too short"
    )


def test_a_collective_that_is_not_ours_is_explained_too() -> None:
    first, second = in_ranks("""
import torch, torch.distributed as dist
if world.rank == 1:
    raise MemoryError
dist.all_reduce(torch.ones(3))  # as a sharded model does
""")
    assert second.code == 1
    assert "MemoryError" in second.err
    assert first.code == 1
    assert "rank 1 of 2" in first.err
    assert "failed, which ends this one: MemoryError()" in first.err
    assert "Connection closed" not in first.err


def test_a_killed_rank_ends_the_other() -> None:
    first, second = in_ranks("""
import signal
if world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
world.sum([1.0])
""")
    assert second.code == -9
    assert first.code == 1
    assert first.err.count("gemmule: rank 1 of 2 is gone: it was killed, or its machine is") == 1


@pytest.mark.slow
def test_a_killed_rank_is_named_by_all() -> None:
    """By one that waits for it, one that computes, and one that torchrun stops for its sake."""
    code = """
import os, signal, sys, time
from gemmule.errors import GemmuleError
from gemmule.runtime.world import World
try:
    with World.from_env("cpu", timeout=60) as world:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if world.rank == 2:
            time.sleep(2)
        if world.rank == 3:
            raise KeyboardInterrupt
        world.sum([1.0])
except GemmuleError as e:
    print(f"gemmule: {e}", file=sys.stderr)
    raise SystemExit(e.exit_code) from None
"""
    ranks = run_ranks(["-c", code], 4)
    assert [rank.code for rank in ranks] == [1, -9, 1, 1], ranks
    for rank in (ranks[0], *ranks[2:]):
        assert rank.err.count("gemmule: rank 1 of 4 is gone: it was killed") == 1, rank.err


def test_a_stop_is_no_failure() -> None:
    """Each rank is stopped by itself, and none takes that of the other for a reason."""
    both = in_ranks("""
from gemmule.errors import Interrupted
time.sleep(world.rank)
raise Interrupted(f"stopped; saved by {world.rank}")
""")
    assert [rank.code for rank in both] == [130, 130], both
    assert [f"saved by {i}" in rank.err for i, rank in enumerate(both)] == [True, True]


def test_a_roll_call() -> None:
    store = HashStore()
    threads = [Answering(store, rank) for rank in range(3)]
    call = RollCall(store, 0, 4)
    assert call.missing() == [1, 2, 3]
    threads[1].answer()
    assert call.missing() == [2, 3]
    store.set(f"{LEFT}/3", "")
    threads[2].answer()
    assert call.missing() == []
    again = RollCall(store, 2, 4)
    assert again.missing() == [0, 1]  # the answer to an earlier call is none
    for thread in threads:
        thread.answer()
    assert again.missing() == []


def test_a_rank_that_is_busy_is_ended_after_the_grace() -> None:
    first, second = in_ranks(
        """
if world.rank == 1:
    raise ConfigError("no such file")
time.sleep(100)
""",
        grace=0.5,
    )
    assert second.code == 2
    assert first.code == 1
    assert first.err.count("failed, which ends this one: ConfigError: no such file") == 1


def test_who_does_not_come_to_the_barrier_is_named() -> None:
    first, second = in_ranks(
        """
if world.first:
    world.barrier()
time.sleep(100)
""",
        timeout=3,
        grace=0.5,
    )
    assert first.code == 1
    assert "lost contact with another rank" in first.err
    assert "1" in first.err.partition("Ranks")[2], first.err
    assert second.code == 1
    assert "rank 0 of 2" in second.err


def test_ranks_that_never_come_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from gemmule.runtime.world import World; World.from_env('cpu', timeout=2)"
    (alone,) = run_ranks(["-c", code], size=1, WORLD_SIZE="2")
    assert alone.code == 1
    assert "RankError: rank 0 cannot reach the other processes at 127.0.0.1:" in alone.err


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    place = {**PLACE, "LOCAL_RANK": "1", "RANK": "1"}
    with pytest.raises(ConfigError, match="LOCAL_RANK is 1 and this machine has 1 GPUs"):
        world._Group(world._place(place), "auto", 1.0, 1.0)
