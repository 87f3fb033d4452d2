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
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
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

MAX_TEMPLATE = 100_000  # characters; the longest published templates have about 20,000
UNITS = 1_000_000  # a step of a loop, a call or an element of a list costs one
CHARS_PER_UNIT = 32
SECONDS = 3.0  # of the thread's processor time
MAX_SIZE, MAX_DEPTH = 200_000, 40  # of a value: in units, and lists within lists
MAX_BITS = 4096  # of a number
MAX_WIDTH = 999  # of a padded number or text

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
_TOO_WIDE = re.compile(r"\d{4,}|\*")
_PERCENT = re.compile(r"%[^a-zA-Z%]*")


class TooLargeError(jinja2.TemplateRuntimeError):
    """A template asked for more work or memory than a chat can need."""


class RefusedError(jinja2.TemplateError):
    """A template called raise_exception: it does not accept the conversation."""


class Rendering:
    """The budget of one rendering, and what it has produced.

    Attributes:
        parts: text so far, as the template yields it.
        generated: (start, end) of each generation block, in characters of the joined parts.
    """

    def __init__(self, extra: int) -> None:
        """Starts the clock; `extra` characters of messages raise the limit."""
        self.parts: list[str] = []
        self.generated: list[tuple[int, int]] = []
        self._left = UNITS + extra
        self._until = time.thread_time() + SECONDS

    def spend(self, units: int = 1, chars: int = 0) -> None:
        """Takes from the budget, before the work is done.

        Raises:
            TooLargeError: when it is used up.
        """
        self._left -= units + chars // CHARS_PER_UNIT
        if self._left < 0 or time.thread_time() > self._until:
            raise TooLargeError("it asks for more work or text than any chat needs")


_current: ContextVar[Rendering] = ContextVar("rendering")


def _spend(units: int = 1, chars: int = 0) -> None:
    _current.get().spend(units, chars)


def _measured(value: Any) -> Any:
    """Returns a value that was made, after spending its size.

    Raises:
        TooLargeError: for a value that is too large or too deep to be compared or printed.
    """
    if isinstance(value, str):
        _spend(0, len(value))
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise TooLargeError("it makes a number of thousands of digits")
    elif isinstance(value, list | tuple | dict):
        _spend(_size(value))
    elif isinstance(value, Iterator):
        return _counted(value)
    return value


def _weighed(value: Any) -> Any:
    """Returns a value that is about to be compared, or searched in or for."""
    if isinstance(value, str | list | tuple | dict):
        _spend(1, len(value))
    return value


def _size(value: Any) -> int:
    """The units that a value of lists, dictionaries and texts costs to print, copy or compare."""
    size, stack = 0, [(value, 0)]
    while stack:
        item, depth = stack.pop()
        size += 1 + (len(item) // CHARS_PER_UNIT if isinstance(item, str) else 0)
        if depth > MAX_DEPTH or size > MAX_SIZE:
            raise TooLargeError("it builds a list that is too large or too deep")
        if isinstance(item, list | tuple | dict):
            if len(item) > MAX_SIZE:
                raise TooLargeError("it builds a list that is too large")
            inner = (x for kv in item.items() for x in kv) if isinstance(item, dict) else item
            stack += [(x, depth + 1) for x in inner]
    return size


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend()
        yield item


def _text(value: Any) -> str:
    """The text that jinja2 shows for a value; every value was measured when it was made."""
    text = value if isinstance(value, str) else str(value)
    _spend(1, len(text))
    return text


def _check_width(width: Any) -> None:
    if isinstance(width, int) and abs(width) > MAX_WIDTH:
        raise TooLargeError(f"it pads to {width} characters")


def _check_percent(form: str, values: Any) -> None:
    if any(_TOO_WIDE.search(spec) for spec in _PERCENT.findall(form)):
        raise TooLargeError("it pads a number or a text too far")
    if isinstance(values, dict):  # each may be shown many times
        times, parts = form.count("%"), list(values.values())
    else:
        times, parts = 1, list(values) if isinstance(values, tuple) else [values]
    _spend(1, len(form) + times * sum(len(_text(part)) for part in parts))


def _check_format(form: str, arguments: Iterable[Any]) -> None:
    """Checks what str.format is about to do with sized arguments."""
    fields = 0
    for _, name, spec, _ in string.Formatter().parse(form):
        fields += name is not None
        if spec and (_TOO_WIDE.search(spec) or "{" in spec):
            raise TooLargeError("it pads a number or a text too far")
    _spend(1, len(form) + fields * sum(len(_text(argument)) for argument in arguments))


def _replaced(text: str, old: str, new: str, count: int = -1) -> None:
    """Spends the growth of text.replace(old, new)."""
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    _spend(1, len(text) + times * len(new))


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
        rendering = _current.get()
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
                _spend(len(left) * max(0, right))
            case "*", int(), str() | list() | tuple() | bytes():
                _spend(len(right) * max(0, left))
            case "**", int(), int() if left.bit_length() * max(0, right) > MAX_BITS:
                raise TooLargeError("it makes a number of thousands of digits")
            case "+", str() | list() | tuple(), str() | list() | tuple():
                _spend(1, len(left) + len(right))
            case "%", str(), _:
                _check_percent(left, right)
            case _:
                _spend()
        return _measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a macro, a global function, or a method of plain data that is known to be cheap."""
        _spend(4)
        target = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped
        if isinstance(target, BuiltinMethodType):
            _check_method(target.__self__, target.__name__, args, kwargs)
        elif isinstance(__obj, LoopContext):  # the next level of a recursive loop
            args = (_counted(args[0]), *args[1:])
        elif not isinstance(__obj, Macro):
            for value in (*args, *kwargs.values()):
                _measured(value)
        return _measured(super().call(__context, __obj, *args, **kwargs))


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuses methods that are not known, and spends what the known ones will make."""
    if isinstance(owner, str):
        if name in {"format", "format_map"}:
            _check_format(owner, (*args, *kwargs.values()))
        elif name == "replace" and len(args) >= 2:
            _replaced(owner, *args[:3])
        elif name == "join" and args:
            if not isinstance(args[0], list | tuple | dict):
                raise SecurityError("join takes a list here: write items | list")
            _spend(len(args[0]), sum(len(_text(item)) + len(owner) for item in args[0]))
        elif name in {"ljust", "rjust", "center", "zfill"} and args:
            _check_width(args[0])
            _spend(1, len(owner) + MAX_WIDTH)
        elif name in _STR_METHODS:
            _spend(1, len(owner))
        else:
            raise SecurityError(f"the method {name} of a text is not allowed in a chat template")
    elif isinstance(owner, dict | list | tuple | float | range) and name in _OTHER_METHODS:
        _spend(len(owner) if isinstance(owner, dict | list | tuple) else 1)
    else:
        kind = type(owner).__name__
        raise SecurityError(f"the method {name} of a {kind} is not allowed in a chat template")


def _spending(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps one of jinja2's filters: its input costs something, and its result is measured."""

    @wraps(function)  # which keeps the marks of pass_environment and the like
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value = next((a for a in args if not isinstance(a, _PASSED)), None)
        if isinstance(value, str):
            _spend(1, len(value))
        else:
            _spend(1 + len(value) if isinstance(value, list | tuple | dict) else 1)
        return _measured(function(*args, **kwargs))

    return wrapper


@pass_context
def _finalize(_: Context, value: Any) -> str:
    # Depending on the context keeps jinja2 from computing constants while it compiles.
    return _text(value)


def _concatenated(values: list[Any]) -> str:
    return "".join([_text(value) for value in values])


def _join(values: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        environment = _environment()
        values = [environment.getitem(value, attribute) for value in _counted(values)]
    texts = [_text(value) for value in _counted(values)]
    _spend(len(texts), len(texts) * len(d))
    return str(d).join(texts)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = _text(value), _text(old), _text(new)
    _replaced(text, old, new, -1 if count is None else count)
    return text.replace(old, new, -1 if count is None else count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(value)
    step = len(width) if isinstance(width, str) else width
    _check_width(step)
    _spend(1, len(text) + step * (1 + text.count("\n")))
    return str(filters.do_indent(text, width, first, blank))


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    _check_width(precision)
    _measured(value)
    _spend()
    return filters.do_round(value, precision, method)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    form = _text(value)
    _check_percent(form, tuple(kwargs.values()) or args)
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
    _spend(_size(value) * (1 + MAX_DEPTH * int(indent or 0) // CHARS_PER_UNIT))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    _spend(1, len(text))
    return text


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _refuse(message: Any = "") -> NoReturn:
    raise RefusedError(_text(message))


def _strftime_now(form: str) -> str:
    if len(form) > MAX_WIDTH or re.search(r"%[^a-zA-Z%]*\d{3}", form):
        raise TooLargeError("its date is too long")
    return datetime.now().strftime(form)


# What jinja2 passes to a filter before its input.
_PASSED = (Context, nodes.EvalContext, jinja2.Environment)
_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "counted": _counted,
    "concatenated": _concatenated,
    "measured": _measured,
    "format": _spending(_format),
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "safe": _text,  # nothing is escaped, so every text is safe
    "tojson": _to_json,
    "weighed": _weighed,
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
    token = _current.set(rendering)
    try:
        for part in template.root_render_func(template.new_context(dict(variables))):
            rendering.parts.append(part)
    finally:
        _current.reset(token)
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
