"""What a schema, a regular expression or a grammar from a client may cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class GrammarLimits:
    """Limits of one grammar, and of all that are compiled.

    Attributes:
        source_bytes: UTF-8 bytes of a schema, expression or grammar, those of all tools together.
        depth: levels of objects and arrays in a schema.
        compile_seconds: processor time for compiling it and for its first tokens.
        compile_bytes: memory for the same.
        mask_seconds: processor time for the masks of one answer; besides, each may take
            `seconds_per_mask`. A single one never uses it up.
        seconds_per_mask: processor time for each mask, on average.
        lexer_states: states of its lexer.
        grammar_symbols: symbols of its rules.
        lexer_fuel: work on its expressions when it is compiled, in llguidance's unit.
        step_fuel: the same for one mask.
        step_items: Earley items of one mask.
        cached: number of compiled grammars that are kept.
        cached_bytes: UTF-8 bytes of their sources, all together.
        waiting: number of grammars that may wait to be compiled.
        workers: number of grammars that are compiled at a time.
    """

    source_bytes: int = 256 * 1024
    depth: int = 64
    compile_seconds: float = 3.0
    compile_bytes: int = 64 * MIB
    mask_seconds: float = 0.3
    seconds_per_mask: float = 0.005
    lexer_states: int = 50_000
    grammar_symbols: int = 200_000
    lexer_fuel: int = 1_000_000
    step_fuel: int = 200_000
    step_items: int = 20_000
    cached: int = 32
    cached_bytes: int = MIB
    waiting: int = 64
    workers: int = 2

    def of_parser(self) -> Mapping[str, Any]:
        """The arguments of llguidance's LLParserLimits."""
        return {
            "max_lexer_states": self.lexer_states,
            "max_grammar_size": self.grammar_symbols,
            "initial_lexer_fuel": self.lexer_fuel,
            "step_lexer_fuel": self.step_fuel,
            "step_max_items": self.step_items,
            "verbose_errors": False,
        }
