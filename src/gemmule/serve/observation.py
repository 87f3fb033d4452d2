"""What is seen of a server from outside: metrics, energy and the log, in one place.

A model's observer follows its engine: it is called in the engine's thread after each step, and by
generations when they submit requests and when they end.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence

from gemmule.infer.core.engine_core import EngineStats
from gemmule.infer.core.request import RequestOutput
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.step_loop import StepReport
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.carbon import EnergyMeter
from gemmule.serve.access_log import RequestRecord
from gemmule.serve.energy import EnergyLedger, Meter, RequestEnergy
from gemmule.serve.metrics import ServerMetrics
from gemmule.serve.request_metrics import ModelMetrics
from gemmule.serve.settings import ServeSettings


class ModelObserver:
    """Follows the requests of one model.

    Attributes:
        name: the model's name.
        tokenizer: its tokenizer.
    """

    def __init__(
        self, name: str, tokenizer: Tokenizer, metrics: ModelMetrics, energy: EnergyLedger
    ) -> None:
        self.name, self.tokenizer = name, tokenizer
        self._metrics, self._energy = metrics, energy

    def begin(self) -> None:
        """Notes that requests are about to be submitted."""
        self._energy.begin()

    def submitted(self, params: SamplingParams) -> None:
        """Notes that a request was taken."""
        self._metrics.submitted(params)

    def observe_step(self, report: StepReport, outputs: Sequence[RequestOutput]) -> None:
        """Observes a step and all its outputs; called in the engine's thread."""
        self._metrics.observe_step(report, outputs)
        self._energy.observe_step(self.name, report, outputs)

    def take_energy(self, request_ids: Iterable[int]) -> RequestEnergy:
        """Returns the energy of requests that have ended, all together, once."""
        return RequestEnergy.total(self._energy.take(self.name, i) for i in request_ids)


class Observation:
    """Metrics and energy of one server.

    Attributes:
        metrics: what /metrics shows.
        energy: energy of each request.
    """

    def __init__(
        self,
        stats: Callable[[], Iterable[tuple[str, EngineStats]]],
        settings: ServeSettings,
        meter: Meter | None = None,
    ) -> None:
        """Starts without figures.

        Args:
            stats: returns names and statistics of the models in memory.
            settings: settings of the server.
            meter: measures energy; None: the machine's.

        Raises:
            ConfigError: for a country that is not known.
        """
        self.energy = EnergyLedger(meter or EnergyMeter(settings.country))
        self.metrics = ServerMetrics(stats, self.energy.totals)
        self._starting: threading.Thread | None = None

    def start(self) -> None:
        """Starts the meter, in a thread: looking at the machine takes a second or two."""
        self._starting = threading.Thread(
            target=self.energy.start, name="energy-start", daemon=True
        )
        self._starting.start()

    async def stop(self) -> None:
        """Stops the meter; the engines have ended."""
        if self._starting is not None:
            await asyncio.to_thread(self._starting.join)
            await asyncio.to_thread(self.energy.stop)

    def model(self, name: str, tokenizer: Tokenizer) -> ModelObserver:
        """An observer for a model that was loaded."""
        return ModelObserver(name, tokenizer, self.metrics.model(name), self.energy)

    def observe_request(self, record: RequestRecord) -> None:
        """Counts an HTTP request that has been answered."""
        self.metrics.observe_http(record.handler, record.method, record.status, record.rejected)
