"""The models of a server: one or several, by name, loaded when they are needed."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gemmule.errors import ConfigError
from gemmule.infer.async_driver import AsyncEngine
from gemmule.infer.core.engine_core import EngineStats
from gemmule.infer.language_model import LanguageModel
from gemmule.serve.api_errors import ApiError
from gemmule.serve.dispatcher import StepDispatcher
from gemmule.serve.model_source import ModelSource
from gemmule.serve.observation import Observation
from gemmule.serve.settings import ServeSettings


@dataclass
class ServedModel:
    """A loaded model and its engine.

    Attributes:
        source: where it comes from.
        lm: model and tokenizer.
        engine: runs its requests.
        dispatcher: hands their outputs to the event loop.
        created: when it was loaded, in seconds since 1970.
        users: number of requests that use it.
        last_used: `time.monotonic` of the last request's end.
    """

    source: ModelSource
    lm: LanguageModel
    engine: AsyncEngine
    dispatcher: StepDispatcher
    created: int = field(default_factory=lambda: int(time.time()))
    users: int = 0
    last_used: float = 0.0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.source.names[0]

    def info(self) -> dict[str, Any]:
        """Its entry in /v1/models."""
        config = self.lm.config
        parameters = self.lm.model.parameters()
        size = sum(p.numel() * p.element_size() for p in parameters)
        context = config.max_position_embeddings
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "gemmule",
            "max_model_len": context,
            "meta": {
                "n_vocab": config.vocab_size,
                "n_ctx_train": context,
                "n_params": config.parameters,
                "size": size,
            },
            "gemmule": {"context_length": context, "parameters": config.parameters, "loaded": True},
        }


class ServedModels:
    """Models by name.

    Attributes:
        observation: their metrics and energy.
    """

    def __init__(self, sources: Sequence[ModelSource], settings: ServeSettings) -> None:
        if not sources:
            raise ConfigError("there is no model to serve: give one at least")
        self._sources: dict[str, ModelSource] = {}
        for source in sources:
            for name in source.names:
                if name in self._sources:
                    raise ConfigError(f"two models are named {name}: give one another, NAME=PATH")
                self._sources[name] = source
        self._settings = settings
        self._loaded: dict[str, ServedModel] = {}
        self._loading = asyncio.Lock()
        self.observation = Observation(self._stats, settings)

    @classmethod
    def of(cls, models: Mapping[str, LanguageModel], settings: ServeSettings) -> "ServedModels":
        """Serves models that are loaded already."""
        return cls(
            [ModelSource((name,), lambda lm=lm: lm) for name, lm in models.items()],  # type: ignore[misc]
            settings,
        )

    @property
    def names(self) -> list[str]:
        """Names of the models, without further ones."""
        return list(dict.fromkeys(source.names[0] for source in self._sources.values()))

    @property
    def loaded(self) -> list[ServedModel]:
        """The models in memory."""
        return list(self._loaded.values())

    async def start(self) -> None:
        """Loads the models."""
        for name in self.names:
            await self._load(self._sources[name])

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Shuts the engines down; what runs has `drain_seconds` to finish."""
        drain = drain_seconds > 0
        await asyncio.gather(
            *(
                asyncio.to_thread(s.engine.shutdown, drain=drain, timeout=drain_seconds)
                for s in self._loaded.values()
            )
        )
        self._loaded.clear()

    def source(self, name: str | None) -> ModelSource:
        """The model of that name; None: the only or first one.

        Raises:
            ApiError: 404 if there is none.
        """
        if name is None:
            return next(iter(self._sources.values()))
        if name not in self._sources:
            raise ApiError(
                404,
                f"there is no model {name!r} here; there is: {', '.join(self.names)}",
                code="model_not_found",
                param="model",
            )
        return self._sources[name]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        """A model for one request; it stays loaded as long.

        Raises:
            ApiError: 404 if there is none of that name.
        """
        served = await self._load(self.source(name))
        served.users += 1
        try:
            yield served
        finally:
            served.users -= 1
            served.last_used = time.monotonic()

    def infos(self) -> list[dict[str, Any]]:
        """The entries of /v1/models."""
        return [served.info() for served in self._loaded.values()]

    def _stats(self) -> list[tuple[str, EngineStats]]:
        return [(served.name, served.engine.stats()) for served in self.loaded]

    async def _load(self, source: ModelSource) -> ServedModel:
        async with self._loading:
            name = source.names[0]
            if name not in self._loaded:
                lm = await asyncio.to_thread(source.load)
                observer = self.observation.model(name, lm.tokenizer)
                dispatcher = StepDispatcher(asyncio.get_running_loop(), observer)
                engine = lm.async_engine(
                    max_waiting=self._settings.max_waiting, after_step=dispatcher.after_step
                )
                self._loaded[name] = ServedModel(source, lm, engine, dispatcher)
            return self._loaded[name]
