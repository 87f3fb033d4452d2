"""Definitions in Python's own library, read from syntax trees: the material of questions."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gemmule.data.stdlib import stdlib_files

_MAX_CHARS = 72  # of a line with a definition: longer ones make long answers, and are rare
_MAX_SENTENCE = 90


@dataclass(frozen=True)
class Definition:
    """A function, method or class.

    Attributes:
        module: file that it is in, relative to the library's folder.
        kind: "function", "method" or "class".
        name: its name.
        line: the line that defines it, without annotations: "def read(self, size=-1):".
        parameters: names of a function's parameters, in order, without * and **.
        defaults: source of the defaults, by parameter.
        bases: source of a class's bases.
        summary: first sentence of its docstring; "" without one.
    """

    module: str
    kind: str
    name: str
    line: str
    parameters: tuple[str, ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()
    bases: tuple[str, ...] = ()
    summary: str = ""


def library_definitions() -> Iterator[Definition]:
    """Every definition of the embedded corpus whose line is short enough, module by module.

    Raises:
        DataError: when this Python was installed without its library's source.
    """
    for key, path in stdlib_files():
        if not key.endswith(".py") or key.startswith("pydoc_data"):
            continue
        yield from definitions(key, path.read_text(encoding="utf-8", errors="replace"))


def definitions(module: str, source: str) -> Iterator[Definition]:
    """The definitions in a module's source; none if this Python cannot parse it."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    methods = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for child in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            definition = _function(module, node, id(node) in methods)
        elif isinstance(node, ast.ClassDef):
            definition = _class(module, node)
        else:
            continue
        if len(definition.line) <= _MAX_CHARS and "\n" not in definition.line:
            yield definition


def _function(module: str, node: ast.FunctionDef, in_class: bool) -> Definition:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    every = [*positional, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    for argument in every:
        if argument is not None:
            argument.annotation = None
    with_default = positional[len(positional) - len(arguments.defaults) :]
    defaults = [
        (argument.arg, ast.unparse(value))
        for argument, value in [
            *zip(with_default, arguments.defaults, strict=True),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]
        if value is not None
    ]
    parameters = tuple(argument.arg for argument in every if argument is not None)
    is_method = in_class and parameters[:1] == ("self",)
    return Definition(
        module,
        "method" if is_method else "function",
        node.name,
        f"def {node.name}({ast.unparse(arguments)}):",
        parameters,
        tuple(defaults),
        summary=_summary(node),
    )


def _class(module: str, node: ast.ClassDef) -> Definition:
    bases = tuple(ast.unparse(base) for base in node.bases)
    inside = [*bases, *(f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords if k.arg)]
    line = f"class {node.name}({', '.join(inside)}):" if inside else f"class {node.name}:"
    return Definition(module, "class", node.name, line, bases=bases, summary=_summary(node))


def _summary(node: ast.FunctionDef | ast.ClassDef) -> str:
    """The docstring's first sentence, if it is one and short; otherwise ""."""
    paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    match = re.match(r"([A-Z][^.]*[a-z)]\.)(?:\s|$)", paragraph)
    return match[1] if match and len(match[1]) <= _MAX_SENTENCE else ""
