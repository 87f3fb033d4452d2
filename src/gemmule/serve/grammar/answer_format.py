"""What a request asks of its answer, as one: its grammar, its instructions, and its parser."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from gemmule.errors import ConfigError, MissingExtraError
from gemmule.infer.core.constraint import TokenConstraint
from gemmule.serve.api_errors import ApiError
from gemmule.serve.events import Event, SampleFinished, TextDelta, ToolCallDelta
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.tool_call_parser import CallPart, ToolCallParser
from gemmule.serve.grammar.tools import ToolUse


class StructuredAnswer:
    """An answer that matches a grammar, or calls tools.

    Attributes:
        instructions: what the model is told, in the system message.
    """

    def __init__(
        self,
        compiler: GrammarCompiler | None,
        spec: GrammarSpec | None,
        tools: ToolUse | None = None,
    ) -> None:
        """Puts the parts together.

        Args:
            compiler: the model's; None: llguidance is not installed.
            spec: what text must match; None: any text will do.
            tools: tools that may be called.

        Raises:
            ConfigError: if text must match something else than JSON while tools may be called, or
                a tool's schema cannot be used.
        """
        self._compiler, self._tools, self._spec, self.instructions = compiler, tools, spec, ""
        self._anywhere = spec is None  # JSON may hold the marker of calls in its texts
        if tools is not None:
            if spec is not None and spec.kind != "json":
                raise ConfigError(
                    "an answer that may call tools cannot match a regular expression or a grammar "
                    'as well: use a JSON schema, or tool_choice "none"'
                )
            self.instructions = tools.instructions(json_otherwise=spec is not None)
            self._spec = tools.spec(spec)

    def constraint(self) -> "Future[TokenConstraint] | None":
        """Starts to compile the grammar; None: there is none.

        Raises:
            ConfigError: if it is too large.
            QueueFullError: if too many wait to be compiled.
            EngineClosedError: if the model is being shut down.
            ApiError: 501 without a compiler.
        """
        if self._spec is None:
            return None
        if self._compiler is None:
            missing = MissingExtraError("llguidance", "serve", "structured output")
            raise ApiError(501, str(missing), code="not_installed")
        return self._compiler.compile(self._spec)

    def parser(self) -> "ToolCallEvents | None":
        """Returns a new parser for a sample; None: its text stays as it is."""
        return None if self._tools is None else ToolCallEvents(self._anywhere)


class ToolCallEvents:
    """Makes `ToolCallDelta` events of the text of one sample."""

    def __init__(self, anywhere: bool) -> None:
        """Starts at the beginning of the answer; `anywhere` is ToolCallParser's."""
        self._parser = ToolCallParser(anywhere)

    def feed(self, event: Event) -> Sequence[Event]:
        """Returns what takes the place of an event."""
        if isinstance(event, TextDelta):
            return self._events(event, self._parser.feed(event.text))
        if isinstance(event, SampleFinished):
            rest = self._events(TextDelta(event.sample, ""), self._parser.finish())
            if event.finish_reason == "stop" and self._parser.complete:
                event = replace(event, finish_reason="tool_calls")
            return [*rest, event]
        return [event]

    @staticmethod
    def _events(delta: TextDelta, parts: Sequence[str | CallPart]) -> list[Event]:
        """The parts as events; the first text takes the delta's tokens with it."""
        texts = "".join(part for part in parts if isinstance(part, str))
        events: list[Event] = []
        if texts or delta.ids or delta.prompt_logprobs:
            events.append(replace(delta, text=texts))
        events += [
            ToolCallDelta(delta.sample, part.index, part.id, part.name, part.arguments)
            for part in parts
            if isinstance(part, CallPart)
        ]
        return events


def structured_answer(
    compiler: GrammarCompiler | None, spec: GrammarSpec | None, tools: ToolUse | None
) -> StructuredAnswer | None:
    """What a request asks of its answer, with StructuredAnswer's arguments; None: any text."""
    return None if spec is None and tools is None else StructuredAnswer(compiler, spec, tools)


def instructions_of(answer: StructuredAnswer | None) -> str:
    """What the system message says of it; nothing of any text."""
    return "" if answer is None else answer.instructions
