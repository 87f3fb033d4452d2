"""Models whose engine is another than usual: with settings, or with answers that are given."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gemmule.infer.async_driver import AsyncEngine
from gemmule.infer.core.speculative import Speculation
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.protocol import ScheduledChunk, StepOutput
from gemmule.infer.runners.torch_runner import step_output


class ModelWithEngine(LanguageModel):
    """A model whose engine for servers has further settings."""

    def __init__(
        self, lm: LanguageModel, *, drafts: Any = None, max_step_tokens: int | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(lm.model, lm.tokenizer)
        self._settings, self._drafts, self._most = settings, drafts, max_step_tokens

    def async_engine(self, **settings: Any) -> AsyncEngine:
        runner: Any = make_runner(self.model)
        if self._most is not None:
            runner.max_step_tokens = self._most
        speculation = None
        if self._drafts is not None:
            speculation = Speculation(self._drafts(), always=True)
        return AsyncEngine(
            runner, self.tokenizer, speculation=speculation, **{**settings, **self._settings}
        )


class ScriptedRunner:
    """Makes every answer the same: ids that are given, at temperature 0; -1 gives no numbers."""

    def __init__(self, lm: LanguageModel, script: Sequence[int], step_seconds: float) -> None:
        self.config, self.device = lm.config, torch.device("cpu")
        self.page_bytes, self.cache_format, self.max_step_tokens = 1024, "float32", 64
        self._script, self._step_seconds = script, step_seconds
        self._begins: dict[int, int] = {}  # by sequence: position of the prompt's last token

    def allocate(self, pages: int) -> None:
        """Needs none."""

    def weights_changed(self) -> None:
        """Has none."""

    def copy_page(self, source: int, target: int) -> None:
        """Has none."""

    def step(self, chunks: Sequence[ScheduledChunk]) -> list[list[StepOutput]]:
        time.sleep(self._step_seconds)
        return [self._outputs(chunk) for chunk in chunks]

    def _outputs(self, chunk: ScheduledChunk) -> list[StepOutput]:
        outputs = []
        for request in chunk.logits:
            position = chunk.start + request.index
            begin = self._begins.setdefault(chunk.sequence_id, position)
            token = self._script[min(position - begin, len(self._script) - 1)]
            row = np.full(self.config.vocab_size, np.nan if token < 0 else 0, np.float32)
            row[token] += 30
            outputs.append(step_output(request, torch.from_numpy(row)))
        return outputs


class ScriptedModel(LanguageModel):
    """A model that answers with given ids, at temperature 0; the last one comes again and again."""

    def __init__(
        self,
        lm: LanguageModel,
        script: Sequence[int],
        step_seconds: float = 0.0,
        cache_tokens: int = 8192,
    ) -> None:
        super().__init__(lm.model, lm.tokenizer)
        self._script, self._step_seconds = script, step_seconds
        self._cache_tokens = cache_tokens

    def async_engine(self, **settings: Any) -> AsyncEngine:
        runner: Any = ScriptedRunner(self, self._script, self._step_seconds)
        return AsyncEngine(runner, self.tokenizer, cache_tokens=self._cache_tokens, **settings)


def byte_tokens(text: str) -> list[int]:
    """The text as tokens of one byte each."""
    return [217 + byte for byte in text.encode()]
