"""Runs a chat template from a stranger's file, in bounded time and memory.

jinja2's sandbox keeps a template from reaching Python's internals, but not from looping for years
or asking for a terabyte. So the compiled template is instrumented: every loop step, call, filter,
operator and output spends from a budget before it happens, in proportion to the size of what it
makes, and every list and dictionary is measured when it is made. What is not instrumented
(subscripts, truth) therefore works on small values only, and the processor time of the thread is
limited as well. All of this works in any thread.

Templates see what transformers gives them (facts read from its chat_template_utils.py): trim_blocks
and lstrip_blocks, `break` and `continue`, `generation` blocks, raise_exception, strftime_now, and a
`tojson` that does not escape HTML. Filters and methods that no chat template needs are left out.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache, lru_cache, wraps
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from gemmule.model.template_budget import (
    CHARS_PER_UNIT,
    MAX_BITS,
    MAX_DEPTH,
    MAX_WIDTH,
    Rendering,
    TooLargeError,
    check_format,
    check_percent,
    check_width,
    counted,
    current,
    measured,
    size_of,
    spend,
    spend_replacing,
    text_of,
    weighed,
)

MAX_TEMPLATE = 100_000  # characters; the longest published templates have about 20,000

_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby",
    "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "reverse", "select", "selectattr", "sort", "string", "sum", "title", "trim", "truncate",
    "unique", "upper", "wordcount",
)  # fmt: skip
_STR_METHODS = {
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition",
    "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
}  # fmt: skip
_OTHER_METHODS = {"copy", "count", "get", "index", "items", "keys", "values", "is_integer"}


class RefusedError(jinja2.TemplateError):
    """A template called raise_exception: it does not accept the conversation."""


class _Instrument(NodeTransformer):
    """Makes loops, comparisons, literals and concatenations spend."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("concatenated", nodes.List(node.nodes).set_lineno(node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered("weighed", node.expr)
        for operand in node.ops:
            operand.expr = _filtered("weighed", operand.expr)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data).set_lineno(node.lineno)  # which is counted when it is output

    def _display(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("measured", node)

    visit_List = visit_Dict = _display

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _filtered("measured", node)

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> NoReturn:
        raise SecurityError("autoescape blocks are not allowed in a chat template")


def _filtered(name: str, node: Any) -> nodes.Expr:
    wrapped = nodes.Filter(node, name, [], [], None, None)
    wrapped.set_lineno(node.lineno)
    return wrapped


class _Generation(Extension):
    """`{% generation %}`: the text in it is what the model produces."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_record"), [], [], body).set_lineno(line)

    def _record(self, caller: Callable[[], str]) -> str:
        text = caller()
        rendering = current.get()
        start = sum(map(len, rendering.parts))
        rendering.generated.append((start, start + len(text)))
        return text


class _Namespace(Namespace):
    """jinja2's namespace; its text is short whatever it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=_finalize,
            optimized=False,
        )
        kept = {name: _spending(self.filters[name]) for name in _FILTERS}
        self.filters.clear()
        self.filters.update(kept, **_OWN_FILTERS)
        limited_range = self.globals["range"]
        self.globals.clear()
        self.globals.update(
            range=limited_range,
            dict=_dict,
            namespace=_Namespace,
            cycler=jinja2.utils.Cycler,
            joiner=jinja2.utils.Joiner,
            raise_exception=_refuse,
            strftime_now=_strftime_now,
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Applies an operator whose result is small enough."""
        match operator, left, right:
            case "*", str() | list() | tuple() | bytes(), int():
                spend(len(left) * max(0, right))
            case "*", int(), str() | list() | tuple() | bytes():
                spend(len(right) * max(0, left))
            case "**", int(), int() if left.bit_length() * max(0, right) > MAX_BITS:
                raise TooLargeError("it makes a number of thousands of digits")
            case "+", str() | list() | tuple(), str() | list() | tuple():
                spend(1, len(left) + len(right))
            case "%", str(), _:
                check_percent(left, right)
            case _:
                spend()
        return measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a macro, a global function, or a method of plain data that is known to be cheap."""
        spend(4)
        target = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped
        if isinstance(target, BuiltinMethodType):
            _check_method(target.__self__, target.__name__, args, kwargs)
        elif isinstance(__obj, LoopContext):  # the next level of a recursive loop
            args = (counted(args[0]), *args[1:])
        elif not isinstance(__obj, Macro):
            for value in (*args, *kwargs.values()):
                measured(value)
        return measured(super().call(__context, __obj, *args, **kwargs))


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuses methods that are not known, and spends what the known ones will make."""
    if isinstance(owner, str):
        if name in {"format", "format_map"}:
            check_format(owner, (*args, *kwargs.values()))
        elif name == "replace" and len(args) >= 2:
            spend_replacing(owner, *args[:3])
        elif name == "join" and args:
            if not isinstance(args[0], list | tuple | dict):
                raise SecurityError("join takes a list here: write items | list")
            spend(len(args[0]), sum(len(text_of(item)) + len(owner) for item in args[0]))
        elif name in {"ljust", "rjust", "center", "zfill"} and args:
            check_width(args[0])
            spend(1, len(owner) + MAX_WIDTH)
        elif name in _STR_METHODS:
            spend(1, len(owner))
        else:
            raise SecurityError(f"the method {name} of a text is not allowed in a chat template")
    elif isinstance(owner, dict | list | tuple | float | range) and name in _OTHER_METHODS:
        spend(len(owner) if isinstance(owner, dict | list | tuple) else 1)
    else:
        kind = type(owner).__name__
        raise SecurityError(f"the method {name} of a {kind} is not allowed in a chat template")


def _spending(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps one of jinja2's filters: its input costs something, and its result is measured."""

    @wraps(function)  # which keeps the marks of pass_environment and the like
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value = next((a for a in args if not isinstance(a, _PASSED)), None)
        if isinstance(value, str):
            spend(1, len(value))
        else:
            spend(1 + len(value) if isinstance(value, list | tuple | dict) else 1)
        return measured(function(*args, **kwargs))

    return wrapper


@pass_context
def _finalize(_: Context, value: Any) -> str:
    # Depending on the context keeps jinja2 from computing constants while it compiles.
    return text_of(value)


def _concatenated(values: list[Any]) -> str:
    return "".join([text_of(value) for value in values])


def _join(values: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        environment = _environment()
        values = [environment.getitem(value, attribute) for value in counted(values)]
    texts = [text_of(value) for value in counted(values)]
    spend(len(texts), len(texts) * len(d))
    return str(d).join(texts)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = text_of(value), text_of(old), text_of(new)
    spend_replacing(text, old, new, -1 if count is None else count)
    return text.replace(old, new, -1 if count is None else count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = text_of(value)
    step = len(width) if isinstance(width, str) else width
    check_width(step)
    spend(1, len(text) + step * (1 + text.count("\n")))
    return str(filters.do_indent(text, width, first, blank))


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    check_width(precision)
    measured(value)
    spend()
    return filters.do_round(value, precision, method)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    form = text_of(value)
    check_percent(form, tuple(kwargs.values()) or args)
    return str(form % (kwargs or args))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= int(indent) <= 16:
        raise TooLargeError(f"it indents JSON by {indent}")
    spend(size_of(value) * (1 + MAX_DEPTH * int(indent or 0) // CHARS_PER_UNIT))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    spend(1, len(text))
    return text


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _refuse(message: Any = "") -> NoReturn:
    raise RefusedError(text_of(message))


def _strftime_now(form: str) -> str:
    if len(form) > MAX_WIDTH or re.search(r"%[^a-zA-Z%]*\d{3}", form):
        raise TooLargeError("its date is too long")
    return datetime.now().strftime(form)


# What jinja2 passes to a filter before its input.
_PASSED = (Context, nodes.EvalContext, jinja2.Environment)
_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "counted": counted,
    "concatenated": _concatenated,
    "measured": measured,
    "format": _spending(_format),
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "safe": text_of,  # nothing is escaped, so every text is safe
    "tojson": _to_json,
    "weighed": weighed,
}


@cache
def _environment() -> _Environment:
    return _Environment()


@lru_cache(16)
def compile_template(text: str) -> jinja2.Template:
    """Compiles a template; raises jinja2's errors, or Python's for one that nests too deep."""
    if len(text) > MAX_TEMPLATE:
        raise TooLargeError(f"it has {len(text)} characters; at most {MAX_TEMPLATE} are read")
    return _environment().from_string(text)


def run_template(template: jinja2.Template, variables: Mapping[str, Any]) -> Rendering:
    """Renders a compiled template; raises what the template raises, and TooLargeError."""
    rendering = Rendering(sum(len(str(m)) for m in variables["messages"]))
    token = current.set(rendering)
    try:
        for part in template.root_render_func(template.new_context(dict(variables))):
            rendering.parts.append(part)
    finally:
        current.reset(token)
    return rendering


def tokens_of(text: str) -> list[tuple[str, str]]:
    """The tokens of a template by kind, for comparing two; white space in tags does not count.

    Raises:
        jinja2.TemplateSyntaxError: for a text that is not a template.
    """
    return [
        (token.type, "" if token.type.endswith(("_begin", "_end")) else str(token.value))
        for token in _environment().lexer.tokenize(text)
    ]
