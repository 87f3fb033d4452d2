"""What several processes on this machine would gain or lose: measured exchanges, and one sum.

N processes share the machine's cores, so their products take as long as those of one process that
uses as many threads. What they add is communication: the gradients of each step, or with shards the
weights and gradients of each pass. An exchange of tensors of the model's own sizes is timed, with
gloo over the loopback interface, in processes of its own.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from gemmule.errors import GemmuleError
from gemmule.model.config import GemmaConfig
from gemmule.runtime import host
from gemmule.train.config import RunConfig

_SECONDS = 120.0  # the longest exchange that is waited for, start of the processes included


class ExchangeError(GemmuleError):
    """The processes that time an exchange failed; the message holds their output."""


@dataclass(frozen=True)
class Together:
    """Seconds of a training step alone and in several processes.

    Attributes:
        count: number of processes.
        alone: seconds of a step in one process.
        compute, communication: seconds of the parts of a step in `count` processes.
    """

    count: int
    alone: float
    compute: float
    communication: float

    def to_json(self) -> dict[str, Any]:
        """The numbers, and a sentence on them."""
        together = self.compute + self.communication
        ratio = together / self.alone
        takes = f"takes {ratio:.2f} times as long as that of one"
        if ratio < 1:
            takes = f"is {1 / ratio:.2f} times as fast as that of one"
        return {
            "count": self.count, "alone_seconds": self.alone, "compute_seconds": self.compute,
            "communication_seconds": self.communication, "together_seconds": together,
            "verdict": f"a step of {self.count} processes {takes}",
        }  # fmt: skip


def predict(
    model: GemmaConfig, config: RunConfig, alone: float, threads: int, count: int
) -> Together:
    """A step of `count` processes that share each batch.

    Args:
        model: shape of the trained model.
        config: settings of the run, as for one process.
        alone: seconds of a step in one process, all of its micro-batches.
        threads: threads of that process.
        count: number of processes.

    Raises:
        ConfigError: when the processes cannot share a batch.
        ExchangeError: when the processes that time an exchange failed.
    """
    shared, groups = config.shared_by(count), config.data_ranks(count)
    cores = host.usable_cores()
    each = config.runtime.threads or max(1, cores // count)
    compute = alone * threads / min(cores, count * each)
    sharded = config.parallel.data_parallel_shard_degree != 1
    passes = shared.batch_size // groups // shared.micro_batch if sharded else 1
    return Together(count, alone, compute, passes * exchange_seconds(model, count, sharded))


def exchange_seconds(model: GemmaConfig, count: int, sharded: bool) -> float:
    """Times what the processes of a run send each other in a pass.

    Args:
        model: shape of the trained model.
        count: number of processes.
        sharded: whether they hold the weights in shards: weights are gathered, gradients reduced
            and scattered. Otherwise gradients are added up once a step.

    Raises:
        ExchangeError: when the processes failed, or took too long.
    """
    spec = {"model": model.model_dump(mode="json"), "sharded": sharded}
    command = [
        sys.executable, "-P", "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={count}", "-m", "gemmule.plan.exchange_worker", json.dumps(spec),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ExchangeError(
            f"{count} processes did not exchange a model within {_SECONDS:.0f} s"
        ) from None
    if done.returncode != 0:
        end = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise ExchangeError(f"the exchange between {count} processes failed:\n{end}")
    seconds: float = json.loads(done.stdout.strip().splitlines()[-1])["seconds"]
    return seconds
