"""The work of one call of `record` on a store, alone or as one of several ranks.

Sequences are recorded in batches. They are written as a shard when a unit of sequences is complete,
when a minute has passed, or when recording is stopped. A shard is written atomically. What a unit
becomes does not depend on who records it, so any number of ranks leaves the same shards.
"""

import contextlib
import datetime
import itertools
import os
import time
from collections.abc import Sequence

import numpy as np
import torch

from gemmule import files
from gemmule.console import ProgressBar
from gemmule.data.dataset import Split
from gemmule.data.packed_text import batch_of
from gemmule.errors import ConfigError, Interrupted, UserError
from gemmule.runs.carbon import EnergyMeter
from gemmule.runs.ledger import activity as ledger
from gemmule.runtime import host
from gemmule.runtime.shared_work import SharedWork
from gemmule.runtime.signals import stop_signals
from gemmule.runtime.world import World
from gemmule.teachers import logit_store as stores
from gemmule.teachers.logit_store import Store
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.teacher import Teacher


class RecordSession:
    """What one process does for a store.

    Args:
        config: settings, without any "auto".
        store: the store.
        teacher: the teacher, on its device.
        split: tokens of the corpus.
        world: the ranks that share out the work. The first one of each machine meters it.

    Attributes:
        tokens: tokens that this process has recorded; after `run`, all ranks together.
        tokens_per_second: rate of all ranks together; None when nothing was recorded.
    """

    def __init__(
        self, config: RecordConfig, store: Store, teacher: Teacher, split: Split, world: World
    ) -> None:
        self._config, self._store, self._teacher = config, store, teacher
        self._split, self._world = split, world
        self.tokens, self._seconds = 0, 0.0
        self.tokens_per_second: float | None = None
        self._began = datetime.datetime.now(datetime.UTC)
        self._meter = EnergyMeter(config.country) if world.local_rank == 0 else None

    def run(self, pieces: Sequence[range]) -> None:
        """Records sequences, and waits for the other ranks.

        Args:
            pieces: sequences in pieces that one rank records; the same on every rank.

        Raises:
            Interrupted: when stopped; everything recorded is saved.
            UserError: when a server went away, or the folder cannot be written.
            RankError: when another rank has failed.
        """
        ends = [*itertools.accumulate((len(p) * self._store.seq_len for p in pieces), initial=0)]
        if not pieces:
            return
        world = self._world
        with (
            stop_signals(patient=world.size > 1) as stop,
            self._meter or contextlib.nullcontext(),
            ProgressBar("recording", ends[-1], "tok") as bar,
            torch.compiler.set_stance("eager_on_recompile"),
        ):
            work = SharedWork(world, stop)
            while not work.stopping and (number := work.next()) < len(pieces):
                self._record(pieces[number], work, bar, ends[number])
            work.finish()
            if world.size > 1 and self._meter is not None:
                self._note_cost()  # with what was used until the last rank was done
            rate = self.tokens / self._seconds if self.tokens else 0.0
            tokens, rate, stopped = world.sum([self.tokens, rate, float(work.stopping)])
        self.tokens = int(tokens)
        self.tokens_per_second = round(rate, 1) if rate else None
        self._note_tokens()
        if stopped and self.tokens < ends[-1]:
            raise Interrupted(
                f"stopped; {self.tokens:,} more tokens are saved in {self._store.path}: the same "
                "command continues from there"
            )

    def _record(self, piece: range, work: SharedWork, bar: ProgressBar, before: int) -> None:
        """Records the sequences of a piece, before which all pieces have `before` tokens."""
        config, seq_len = self._config, self._store.seq_len
        done: list[bytes] = []
        first, written = piece.start, time.monotonic()
        for start in piece[:: config.batch_size]:
            began = time.perf_counter()
            try:
                done += self._encoded(range(start, min(start + config.batch_size, piece.stop)))
            except UserError as e:  # a server went away: its earlier answers are kept
                if done:
                    self._write(first, done)
                raise ConfigError(
                    f"{e} What is recorded is kept: the same command continues from there."
                ) from None
            self._seconds += time.perf_counter() - began
            ledger.pulse()
            bar.update(before + (first + len(done) - piece.start) * seq_len)
            overdue = time.monotonic() - written > config.shard_minutes * 60
            stopping = work.stopping
            if overdue or stopping or first + len(done) == piece.stop:
                self._write(first, done)
                first, done, written = first + len(done), [], time.monotonic()
            if stopping:
                return

    def _encoded(self, indices: range) -> list[bytes]:
        """The encoded targets of a batch of sequences."""
        config, store = self._config, self._store
        spec, seed = store.spec, store.manifest["seed"]
        batch = batch_of(self._split, np.array(indices), store.seq_len).to(config.device)
        half = config.dtype == "bfloat16"
        with torch.autocast(config.device, torch.bfloat16, enabled=half):
            kept = self._teacher.targets(
                batch, [spec.choice(seed, i) for i in indices], spec.temperature
            )
        return [store.codec.encode(targets) for targets in kept]

    def _write(self, first: int, sequences: list[bytes]) -> None:
        """Writes a shard, then the cost of the session up to now."""
        stores.write_shard(self._store.path, self._store.identity, first, sequences)
        self.tokens += len(sequences) * self._store.seq_len
        self._note_tokens()
        self._note_cost()

    def _note_tokens(self) -> None:
        per_token = self._teacher.forward_flops_per_token(self._store.seq_len)
        ledger.note(tokens_in=self.tokens, flop_per_token=per_token)

    def _note_cost(self) -> None:
        """Writes the session's file, of which each rank has one of its own."""
        rate = round(self.tokens / self._seconds, 1) if self.tokens else None
        value = {
            "began": self._began.isoformat(timespec="seconds"),
            "part": self._config.part,
            "rank": self._world.rank,
            "ranks": self._world.size,
            "tokens": self.tokens,
            "seconds": round(self._seconds, 3),
            "tokens_per_second": rate,
            "machine": host.machine(),
            "carbon": None if self._meter is None else self._meter.reading().to_json(),
        }
        if self._teacher.dropped is not None:
            value["dropped_probability"] = self._teacher.dropped.to_json()
        name = f"{self._began:%Y%m%dT%H%M%S.%f}-{os.getpid()}.json"
        files.write_json(self._store.path / stores.SESSIONS / name, value)
