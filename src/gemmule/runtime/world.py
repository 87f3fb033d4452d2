"""The processes of one run, built on torch.distributed.

    with World.from_env() as world:              # SOLO unless torchrun started this process
        totals = world.sum([loss, labels])       # the same float64 sums on every rank
        if world.first: write()
        world.barrier()

`SOLO` is the world of one process: its methods do nothing and return their arguments, so that code
is written once for any number of ranks. All methods but the properties are collective: every rank
calls them in the same order.

When one rank fails, the others must not wait for it forever. The failing rank leaves its reason in
the store that the processes met at and closes its connections, which ends a collective operation
that others are blocked in: they raise one `RankError` naming the rank and its reason. A rank that
does not come to a collective operation, being busy or blocked in one of its own, is ended by a
watching thread after `grace` seconds. A rank that vanishes without a word (SIGKILL, a lost machine)
closes its connections too, and is named because it answers no roll call; where even that fails,
operations end at the timeout.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from gemmule.errors import ConfigError, GemmuleError, Interrupted, RankError, first_line
from gemmule.runtime.roll_call import LEFT, Answering, RollCall

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store  # type: ignore[attr-defined]

TIMEOUT = 1800.0
"""Seconds an operation waits for other ranks: the first rank may be evaluating or saving."""

_MEETING = 300.0  # seconds for all processes to come up
_GRACE = 30.0
_POLL = 0.5  # seconds between looks at whether another rank has failed
_LINGER = 15.0  # seconds the rank that holds the store stays for the others to read it
_LEAD = 1.0  # seconds that a rank which has failed ends before those that end because of it
_ANSWER = 8.0  # seconds for the answer of a rank that lives
_FAILURE = "gemmule/failure"
_AGAIN = "Start again; what is saved is kept (train and distill continue with --resume)"
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class World:
    """The world of one process; `from_env` makes one of several.

    Attributes:
        rank: number of this process among all, from 0.
        size: how many processes there are.
        local_rank: number of this process among those on its machine.
        local_size: how many processes run on this machine.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    @staticmethod
    def from_env(
        device: Literal["auto", "cpu", "cuda"] = "auto",
        *,
        timeout: float = TIMEOUT,
        grace: float = _GRACE,
    ) -> "World":
        """The world that torchrun's environment variables describe; SOLO where there are none.

        Args:
            device: what the ranks compute on. Where it is a GPU, NCCL joins it and this process
                takes the GPU of its local rank; on CPU tensors gloo is used.
            timeout: seconds an operation waits for the other ranks.
            grace: seconds a rank may go on by itself after another has failed.

        Raises:
            ConfigError: when the environment is not a complete description.
            RankError: when the other processes cannot be reached.
        """
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            return SOLO
        place = _place(os.environ)
        if place["WORLD_SIZE"] == 1:
            return SOLO
        return _Group(place, device, timeout, grace)

    @property
    def first(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    @property
    def every(self) -> "World":
        """All ranks, each by itself: this world, or the one that `in_groups` was asked of."""
        return self

    def in_groups(self, copies: int) -> "World":
        """The same ranks with `copies` consecutive ones as one, since they compute the same.

        Rank and size count groups, a sum counts a group once; all ranks call its methods.

        Args:
            copies: ranks of a group, a divisor of the size.
        """
        return self if copies == 1 else _InGroups(self, copies)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64 and the same bits on every rank."""
        return list(values)

    def agree(self, answer: bool) -> bool:
        """The first rank's answer, for what must not be decided by each rank alone."""
        return self.sum([float(answer and self.first)])[0] > 0

    def barrier(self) -> None:
        """Waits until every rank is here.

        Raises:
            RankError: naming the ranks that did not come.
        """

    @property
    def failed(self) -> bool:
        """Whether another rank is known to have failed; not collective."""
        return False

    def check(self, seconds: float = _ANSWER) -> None:
        """Asks whether all ranks still live; not collective.

        Args:
            seconds: how long to wait for their answers.

        Raises:
            RankError: when one has failed, or is gone.
        """

    def notes(self) -> "Store | None":
        """A new store of keys and values that all ranks see; None: there is one rank."""
        return None

    def device(self, kind: str) -> "torch.device":
        """The device of this rank: "cpu", or the GPU of its local rank for "cuda"."""
        import torch

        return torch.device(kind, self.local_rank) if kind == "cuda" else torch.device(kind)

    def __enter__(self) -> Self:
        """Nothing to do: a world is open once it is made."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the world: waits for the others, or tells them why this rank has failed."""


SOLO = World()


class _InGroups(World):
    """Ranks in groups that compute the same."""

    def __init__(self, world: World, copies: int) -> None:
        self._world, self._copies = world, copies
        self.rank, self.size = world.rank // copies, world.size // copies
        self.local_rank, self.local_size = world.local_rank, world.local_size

    @property
    def every(self) -> World:
        return self._world

    @property
    def first(self) -> bool:
        return self._world.first

    def sum(self, values: Sequence[float]) -> list[float]:
        return [value / self._copies for value in self._world.sum(values)]

    def barrier(self) -> None:
        self._world.barrier()

    @property
    def failed(self) -> bool:
        return self._world.failed

    def check(self, seconds: float = _ANSWER) -> None:
        self._world.check(seconds)

    def notes(self) -> "Store | None":
        return self._world.notes()


class _Group(World):
    """Several processes."""

    def __init__(
        self,
        place: Mapping[str, Any],
        device: Literal["auto", "cpu", "cuda"],
        timeout: float,
        grace: float,
    ) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.size = place["RANK"], place["WORLD_SIZE"]
        self.local_rank, self.local_size = place["LOCAL_RANK"], place["LOCAL_WORLD_SIZE"]
        self._timeout, self._grace = timeout, grace
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda and self.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"LOCAL_RANK is {self.local_rank} and this machine has "
                f"{torch.cuda.device_count()} GPUs: start one process per GPU, or use device = cpu"
            )
        address, began = f"{place['MASTER_ADDR']}:{place['MASTER_PORT']}", time.monotonic()
        meeting = datetime.timedelta(seconds=min(timeout, _MEETING))
        try:
            shared, _, _ = next(iter(rendezvous("env://", self.rank, self.size, timeout=meeting)))
            start = _start(shared, self.rank, self.size, meeting)
            self._server = shared  # on the first rank, the store lives as long as this does
            store, self._store, self._watched = (
                dist.PrefixStore(start, each)  # type: ignore[attr-defined]
                for each in (shared, shared.clone(), shared.clone())
            )
            if cuda:
                torch.cuda.set_device(self.local_rank)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=datetime.timedelta(seconds=timeout),
            )
            # A group of its own: a save in the background may be using the default one.
            self._group = dist.new_group(
                backend="gloo", timeout=datetime.timedelta(seconds=timeout)
            )
        except (RuntimeError, OSError, ValueError) as e:
            raise RankError(
                f"rank {self.rank} cannot reach the other processes at {address}, after "
                f"{time.monotonic() - began:.0f} s ({first_line(e)}): check that all "
                f"{self.size} were started and that MASTER_ADDR and MASTER_PORT are the first's"
            ) from None
        self._failure: RankError | None = None  # of another rank, once it is known
        self._leaving = threading.Event()
        self._stores = 0
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._watcher.start()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64 and the same bits on every rank."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(list(values), dtype=torch.float64)
        with self._naming_who_failed():
            dist.all_reduce(tensor, group=self._group)
        return [float(value) for value in tensor.tolist()]

    def barrier(self) -> None:
        """Waits until every rank is here; the error names the ranks that did not come."""
        import torch.distributed as dist

        with self._naming_who_failed():
            dist.monitored_barrier(
                self._group,
                timeout=datetime.timedelta(seconds=self._timeout),
                wait_all_ranks=True,
            )

    @property
    def failed(self) -> bool:
        """Whether another rank is known to have failed."""
        return self._failure_of_another(wait=0.0) is not None

    def check(self, seconds: float = _ANSWER) -> None:
        """Asks whether all ranks still live."""
        gone = self._gone(seconds)
        if gone is not None:
            raise gone

    def notes(self) -> "Store":
        """A new store of keys and values that all ranks see; they make it in the same order."""
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        self._stores += 1
        return PrefixStore(f"gemmule/notes/{self._stores}", self._store)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for the others, or tells them why this rank has failed, and disconnects."""
        import torch.distributed as dist

        lost: RankError | None = None
        try:
            if error is None:
                self.barrier()
            elif isinstance(error, RuntimeError) and not isinstance(error, GemmuleError):
                # A collective of somewhere else, broken off because its partner has failed.
                lost = self._failure_of_another(wait=0.0) or self._vanished(error)
            elif isinstance(error, KeyboardInterrupt | Interrupted):
                # torchrun stops all once one was killed. A stop of another rank does not count.
                failure = self._gone(_ANSWER)
                lost = failure if failure is not None and failure.gone else None
        finally:
            ended = lost or error
            gone = ended.gone if isinstance(ended, RankError) else ()
            if ended is not None and self._failure is None:
                self._tell(ended, gone)
            self._leaving.set()
            del self._group  # or its connections stay open
            dist.destroy_process_group()  # closes the connections, which wakes the others
            self._part(gone)
            if self._failure is not None and not gone:
                # torchrun reports the exit status of the rank that ends first, and stops the rest.
                with contextlib.suppress(KeyboardInterrupt):
                    time.sleep(_LEAD)
        if lost is not None:
            raise lost from error

    @contextlib.contextmanager
    def _naming_who_failed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except RuntimeError as e:
            failure = self._gone(_ANSWER) or self._failure_of_another(wait=2.0)
            if failure is None:
                failure = RankError(
                    f"rank {self.rank} of {self.size} lost contact with another rank after "
                    f"{time.monotonic() - began:.0f} s, which hangs ({first_line(e)}). {_AGAIN}"
                )
            raise failure from None

    def _vanished(self, error: RuntimeError) -> RankError | None:
        """The error for a collective whose partner was killed, by what its library says."""
        text = str(error).lower()
        if not any(words in text for words in ("remote worker", "closed by peer", "gloo", "nccl")):
            return None
        return self._gone(_ANSWER) or RankError(
            f"rank {self.rank} of {self.size} lost contact with another rank "
            f"({first_line(error)}). {_AGAIN}"
        )

    def _gone(self, seconds: float) -> RankError | None:
        """The error that another rank left, or one that names ranks without a sign of life."""
        try:
            call, end = RollCall(self._store, self.rank, self.size), time.monotonic() + seconds
            while (failure := self._failure_of_another(wait=0.0)) is None and call.missing():
                if time.monotonic() >= end:
                    return _killed(call.missing(), self.size)
                time.sleep(0.05)
        except RuntimeError:
            return self._without_store()
        return failure

    def _without_store(self) -> RankError:
        return RankError(
            f"rank {self.rank} of {self.size} lost contact with the first rank, which was killed "
            f"or whose machine is gone. {_AGAIN}"
        )

    def _tell(self, error: BaseException, gone: Collection[int]) -> None:
        """Leaves the reason for the others, unless another rank has left one."""
        reason = f"{type(error).__name__}: {first_line(error)}" if str(error) else repr(error)
        where = f"{socket.gethostname()}, process {os.getpid()}"
        value = {"rank": self.rank, "where": where, "reason": reason, "gone": gone}
        with contextlib.suppress(RuntimeError):  # the one that holds the store is gone
            self._store.compare_set(_FAILURE, "", json.dumps(value))

    def _failure_of_another(self, wait: float) -> RankError | None:
        """The error that another rank left; waits some seconds for it to arrive."""
        end = time.monotonic() + wait
        while self._failure is None:
            with contextlib.suppress(RuntimeError, ValueError):
                if self._store.check([_FAILURE]):
                    self._failure = self._named(json.loads(self._store.get(_FAILURE)))
                    break
            if time.monotonic() >= end:
                break
            time.sleep(0.05)
        return self._failure

    def _named(self, failure: Mapping[str, Any]) -> RankError | None:
        if failure["rank"] == self.rank:
            return None
        if failure["gone"]:  # the same message on all ranks
            return _killed(failure["gone"], self.size)
        return RankError(
            f"rank {failure['rank']} of {self.size} ({failure['where']}) failed, which ends this "
            f"one: {failure['reason']}"
        )

    def _part(self, gone: Collection[int]) -> None:
        """Says that this rank has left; the rank that holds the store is the last to leave.

        Args:
            gone: ranks that will not say so.

        `set` waits for no reply, which the first rank might not be there to send.
        """
        self._watcher.join(timeout=_LINGER)  # it may be waiting for a reply
        with contextlib.suppress(RuntimeError):
            self._store.set(f"{LEFT}/{self.rank}", "")
            all_left = [f"{LEFT}/{rank}" for rank in range(self.size) if rank not in gone]
            end = time.monotonic() + _LINGER
            while self.first and not self._store.check(all_left) and time.monotonic() < end:
                time.sleep(0.02)

    def _watch(self) -> None:
        """Ends this process when another has failed and this one does not notice."""
        answering = Answering(self._watched, self.rank)
        while not self._leaving.wait(_POLL):
            try:
                answering.answer()
                if not self._watched.check([_FAILURE]):
                    continue
                error = self._named(json.loads(self._watched.get(_FAILURE)))
            except RuntimeError:
                error = self._without_store()
            self._failure = self._failure or error
            if error is None or self._leaving.wait(self._grace):
                return
            print(f"gemmule: {error}", file=sys.stderr, flush=True)
            with contextlib.suppress(RuntimeError):
                self._watched.set(f"{LEFT}/{self.rank}", "")
            os._exit(error.exit_code)


@dataclasses.dataclass(frozen=True)
class StepSums:
    """What the ranks must agree on in an optimizer step, added up by one `World.sum`.

    Attributes:
        sums: named sums of this rank's batches: a denominator, losses, counts.
        non_finite: whether a loss or gradient of this rank is NaN or infinite.
        stop: whether this rank was asked to stop.
        due: whether this rank's clock says that a checkpoint is due.
    """

    sums: Mapping[str, float]
    non_finite: bool = False
    stop: bool = False
    due: bool = False

    def over(self, world: World) -> "StepSums":
        """The sums over all ranks, and for each flag whether it is set on any; the same on all.

        Every rank names the same sums in the same order.
        """
        flags = [self.non_finite, self.stop, self.due]
        totals = world.sum([*self.sums.values(), *map(float, flags)])
        values, flagged = totals[: len(self.sums)], totals[len(self.sums) :]
        non_finite, stop, due = (count > 0 for count in flagged)
        return StepSums(dict(zip(self.sums, values, strict=True)), non_finite, stop, due)


def _killed(ranks: Sequence[int], size: int) -> RankError:
    """The error for ranks that give no sign of life."""
    names = ", ".join(map(str, ranks))
    what = (
        f"rank {names} of {size} is gone: it was killed, or its machine is gone"
        if len(ranks) == 1
        else f"ranks {names} of {size} are gone: they were killed, or their machines are gone"
    )
    error = RankError(f"{what}. {_AGAIN}")
    error.gone = tuple(ranks)
    return error


def _start(store: Any, rank: int, size: int, timeout: datetime.timedelta) -> str:
    """A prefix for the keys of this start of the processes, the same on every rank.

    torchrun's store outlives the ranks: those it starts again would find the addresses, and the
    failure, of those before. (Its count of restarts is not the same on every machine.) So each rank
    says a word of its own and waits for the first rank's answer to that word.

    Raises:
        RuntimeError: when a rank does not come in time.
    """
    word = uuid.uuid4().hex
    if rank:
        store.set(f"gemmule/word/{rank}", word)
        store.wait([f"gemmule/start/{word}"], timeout)
        start = store.get(f"gemmule/start/{word}").decode()
        store.set(f"{start}/here/{rank}", "")
        return start
    answered: dict[int, bytes] = {}
    end = time.monotonic() + timeout.total_seconds()
    while missing := [r for r in range(1, size) if not store.check([f"{word}/here/{r}"])]:
        if time.monotonic() > end:
            raise RuntimeError(f"rank {missing[0]} has not come")
        for other in missing:
            key = f"gemmule/word/{other}"
            heard = store.get(key) if store.check([key]) else None
            if heard and heard != answered.get(other):  # the word of an earlier start, at first
                answered[other] = heard
                store.set(f"gemmule/start/{heard.decode()}", word)
        time.sleep(0.02)
    return word


def restarted() -> bool:
    """Whether torchrun or Slurm may have started this process again after its run had failed.

    Every rank has the same answer. torchrun's own count of restarts would differ: on the machines
    whose ranks did not fail it stays 0. So where it may restart, it is taken to have done so.
    """
    names = ("TORCHELASTIC_MAX_RESTARTS", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name) not in (None, "", "0") for name in names)


def _place(environment: Mapping[str, str]) -> dict[str, Any]:
    """Checked values of torchrun's environment variables."""
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if missing:
        known = "RANK" if environment.get("RANK") else "WORLD_SIZE"
        raise ConfigError(
            f"{known} is set in the environment and {', '.join(missing)} is not: start the "
            "processes with torchrun, or unset RANK and WORLD_SIZE to run alone"
        )
    place: dict[str, Any] = {"MASTER_ADDR": environment["MASTER_ADDR"]}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        text = environment.get(name) or "1"  # only LOCAL_WORLD_SIZE may be missing
        if not (text.isascii() and text.isdigit()):
            raise ConfigError(f"the environment variable {name} is {text!r}; it must be a number")
        place[name] = int(text)
    if place["WORLD_SIZE"] < 1:
        raise ConfigError("the environment variable WORLD_SIZE is 0; it must be 1 or more")
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if place[rank] >= place[size] and (rank == "RANK" or "LOCAL_WORLD_SIZE" in environment):
            raise ConfigError(
                f"the environment variable {rank} is {place[rank]} and {size} is {place[size]}: "
                "ranks count from 0"
            )
    return place
