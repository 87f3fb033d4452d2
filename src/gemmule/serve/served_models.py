"""The models of a server: one or several, by name, loaded when they are needed.

Either one model is in memory at a time, or as many as fit. One that must leave is the least
recently used; it leaves when the requests that use it have ended. Requests for models that must be
loaded are served in order, so that two models in turn cannot starve a third.
"""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gemmule.errors import ConfigError, GemmuleError, MissingExtraError, first_line
from gemmule.infer.async_driver import AsyncEngine
from gemmule.infer.core.engine_core import EngineStats
from gemmule.infer.language_model import LanguageModel
from gemmule.runtime import memory
from gemmule.serve.api_errors import ApiError
from gemmule.serve.daemon_thread import in_daemon_thread
from gemmule.serve.dispatcher import StepDispatcher
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.model_source import ModelSource, in_memory
from gemmule.serve.observation import Observation
from gemmule.serve.queue_rate import QueueRate
from gemmule.serve.sampling_fields import DEFAULTS
from gemmule.serve.settings import ServeSettings

_ROOM = 1.5  # memory that a model needs as a multiple of its weights, for its cache and for work
_log = logging.getLogger(__name__)


@dataclass
class ServedModel:
    """A loaded model and its engine.

    Attributes:
        source: where it comes from.
        lm: model and tokenizer.
        engine: runs its requests.
        dispatcher: hands their outputs to the event loop.
        rate: how fast they end.
        grammars: compiles grammars for its answers; None: llguidance is not installed.
        created: when it was loaded, in seconds since 1970.
        users: number of requests that use it.
        last_used: `time.monotonic` of the last request's end.
    """

    source: ModelSource
    lm: LanguageModel
    engine: AsyncEngine
    dispatcher: StepDispatcher
    rate: QueueRate
    grammars: GrammarCompiler | None
    created: int = field(default_factory=lambda: int(time.time()))
    users: int = 0
    last_used: float = 0.0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.source.name

    def retry_after(self) -> int:
        """Seconds after which a request that was refused may find room."""
        return self.rate.retry_after(self.engine.num_waiting)

    def shutdown(self, *, drain: bool = True) -> None:
        """Ends its threads and processes; `drain` finishes what runs first."""
        if self.grammars is not None:
            self.grammars.close()
        self.engine.shutdown(drain=drain)


class ServedModels:
    """Models by name.

    Attributes:
        observation: their metrics and energy.
    """

    def __init__(
        self, sources: Sequence[ModelSource], settings: ServeSettings, *, keep_all: bool = False
    ) -> None:
        """Takes models that are to be served.

        Args:
            sources: where they come from; the first one is loaded at the start.
            settings: settings of the server.
            keep_all: keep as many in memory as fit, and load those at the start.

        Raises:
            ConfigError: if there is no model, or two have one name.
        """
        if not sources:
            raise ConfigError("there is no model to serve: give one at least")
        self.sources = tuple(sources)
        self._by_name: dict[str, ModelSource] = {}
        for source in sources:
            for name in source.names:
                if name in self._by_name:
                    raise ConfigError(
                        f"two models are named {name!r}: name them differently, NAME=PATH"
                    )
                self._by_name[name] = source
        self._settings, self._keep_all = settings, keep_all
        self._loaded: dict[str, ServedModel] = {}
        self._turn = asyncio.Lock()  # held while models come and go
        self._waiting_for_turn = 0
        self._idle = asyncio.Event()  # set when a model has lost its last user
        self.observation = Observation(self._stats, settings)

    @classmethod
    def of(cls, models: Mapping[str, LanguageModel], settings: ServeSettings) -> "ServedModels":
        """Serves models that are loaded already."""
        sources = [in_memory(name, lm) for name, lm in models.items()]
        return cls(sources, settings, keep_all=True)

    @property
    def names(self) -> list[str]:
        """Names of the models, without further ones."""
        return [source.name for source in self.sources]

    @property
    def loaded(self) -> list[ServedModel]:
        """The models in memory."""
        return list(self._loaded.values())

    async def start(self) -> None:
        """Loads the first model, and with `keep_all` the others that fit.

        Raises:
            GemmuleError: if one cannot be loaded.
        """
        for i, source in enumerate(self.sources):
            if i == 0 or (self._keep_all and self._fits(source)):
                async with self._turn:
                    await self._load(source)

    async def stop(self) -> None:
        """Cancels what runs and ends the engines."""
        await asyncio.to_thread(self.abandon)

    def abandon(self) -> None:
        """Does the same without an event loop; more calls do nothing."""
        loaded, self._loaded = self._loaded, {}
        for served in loaded.values():
            served.shutdown(drain=False)

    def find(self, name: str | None) -> ModelSource:
        """The model of that name; None: the first one.

        Raises:
            ApiError: 404 if there is none.
        """
        if name is None:
            return self.sources[0]
        if name not in self._by_name:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r} here; there is: {', '.join(self.names)}",
                code="model_not_found",
                param="model",
            )
        return self._by_name[name]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        """A model for one request; it stays loaded as long.

        Raises:
            ApiError: 404 if there is none of that name, 429 if too many requests wait for models
                to be loaded, 503 if it cannot be loaded.
        """
        served = await self._take(self.find(name))
        try:
            yield served
        finally:
            self._leave(served)

    def infos(self) -> list[dict[str, Any]]:
        """The entries of /v1/models."""
        return [self.info(source) for source in self.sources]

    def info(self, source: ModelSource) -> dict[str, Any]:
        """The entry of one model."""
        config, served = source.config, self._loaded.get(source.name)
        context = config.max_position_embeddings
        return {
            "id": source.name,
            "object": "model",
            "created": served.created if served else 0,
            "owned_by": "gemmule",
            "max_model_len": context,
            "meta": {
                "n_vocab": config.vocab_size,
                "n_ctx_train": context,
                "n_params": config.parameters,
                "size": source.size,
            },
            "gemmule": {
                "aliases": list(source.names[1:]),
                "context_length": context,
                "parameters": config.parameters,
                "quantization": source.quantization,
                "defaults": {**DEFAULTS, "max_tokens": self._settings.default_max_tokens},
                "card": source.card is not None,
                "loaded": served is not None,
            },
        }

    async def _take(self, source: ModelSource) -> ServedModel:
        """The model, with one user more; loads it if it is not there."""
        served = self._loaded.get(source.name)
        if served is not None and not self._waiting_for_turn:
            served.users += 1
            return served
        if self._waiting_for_turn >= self._settings.max_samples:
            message = f"{self._waiting_for_turn} requests wait for models to be loaded"
            raise ApiError(429, f"{message}: try again later", code="queue_full", retry_after=10)
        # A task of its own: what has begun to be loaded is there for the next one if this client
        # leaves meanwhile, and two models are never loaded at one time.
        self._waiting_for_turn += 1
        wanted = asyncio.Event()
        wanted.set()
        task = asyncio.create_task(self._load_in_turn(source, wanted))
        try:
            async with asyncio.timeout(self._settings.queue_timeout):
                served = await asyncio.shield(task)
        except BaseException as e:
            wanted.clear()
            task.add_done_callback(self._give_back)
            if not isinstance(e, TimeoutError):
                raise
            message = "the model was not loaded in time, as others are in use"
            raise ApiError(503, message, code="queue_timeout", retry_after=10) from None
        assert served is not None
        return served

    async def _load_in_turn(self, source: ModelSource, wanted: asyncio.Event) -> ServedModel | None:
        """The model, with one user more, unless it is not wanted any more when it is its turn."""
        try:
            async with self._turn:
                if not wanted.is_set():
                    return None
                served = await self._load(source)
                served.users += 1
                return served
        except GemmuleError as e:
            _log.error("the model %s cannot be loaded: %s", source.name, first_line(e))
            message = f"the model {source.name!r} cannot be loaded: the server's log says why"
            raise ApiError(503, message, code="model_not_loaded") from e
        finally:
            self._waiting_for_turn -= 1

    def _give_back(self, task: "asyncio.Task[ServedModel | None]") -> None:
        """Ends the use of a model whose client has left before it was there."""
        if not task.cancelled() and task.exception() is None:
            served = task.result()
            if served is not None:
                self._leave(served)

    def _leave(self, served: ServedModel) -> None:
        served.users -= 1
        served.last_used = time.monotonic()
        if not served.users:
            self._idle.set()

    def _stats(self) -> list[tuple[str, EngineStats]]:
        return [(served.name, served.engine.stats()) for served in self.loaded]

    async def _load(self, source: ModelSource) -> ServedModel:
        """The model, loaded in a thread after others have left; `_turn` is held.

        Raises:
            GemmuleError: if it cannot be loaded.
        """
        if source.name in self._loaded:
            return self._loaded[source.name]
        while self._loaded and not (self._keep_all and self._fits(source)):
            in_order = sorted(self._loaded.values(), key=lambda s: (s.users > 0, s.last_used))
            await self._unload(in_order[0])
        lm, grammars = await in_daemon_thread(lambda: _load_with_grammars(source))
        rate = QueueRate()
        observer = self.observation.model(source.name, lm.tokenizer)
        dispatcher = StepDispatcher(asyncio.get_running_loop(), observer, rate)
        engine = lm.async_engine(
            max_waiting=self._settings.max_waiting,
            max_running=self._settings.max_running,
            max_prompt_delay=self._settings.max_prompt_delay,
            after_step=dispatcher.after_step,
        )
        served = ServedModel(source, lm, engine, dispatcher, rate, grammars)
        self._loaded[source.name] = served
        return served

    async def _unload(self, served: ServedModel) -> None:
        """Waits until a model is not used, then frees it."""
        while served.users:
            self._idle.clear()
            await self._idle.wait()
        self._loaded.pop(served.name, None)
        await asyncio.to_thread(served.shutdown)
        gc.unfreeze()  # see server.py
        gc.collect()

    def _fits(self, source: ModelSource) -> bool:
        free = memory.available()
        return source.in_process or free is None or source.size * _ROOM <= free


def _load_with_grammars(source: ModelSource) -> tuple[LanguageModel, GrammarCompiler | None]:
    """A model and the compiler of its grammars, whose vocabulary takes a while to read as well."""
    lm = source.load()
    try:
        return lm, GrammarCompiler(lm.tokenizer)
    except MissingExtraError:
        return lm, None
