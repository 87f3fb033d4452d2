"""Keeps banned wording out of code, messages and docs; part of `make check`.

The rules exist because readers come from vLLM, torchtitan, TRL and llama.cpp: each banned word has
a plainer one, or a term of the field, named in the message. Usage: tools/check_language.py [PATH…].
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# On a line of its own above a string that is data, such as text that a model reads.
EXEMPT = "wording: data"
# From Python 3.12 on, the text of an f-string is a token of its own.
FSTRING_TEXT = getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)
DEFAULT = ("src", "native", "bench", "tools", "configs", "docs", "README.md", "CHANGELOG.md")

# Names that say nothing of what a variable holds.
NAMES = {
    "found": "name what it holds: result, matches, scores, rows",
    "said": "name what it holds: reply, message, predictions",
}
# Wording in comments, docstrings, string literals and prose.
WORDING = [
    (r"\b(?:is|are|was|were) no "
     r"(?!longer|more|less|fewer|other|one|better|worse|larger|smaller)(?=[a-z])",
     'write "is not a …" or "there is no …"'),
    (r"\banew\b", 'write "again"'),
    (r"\b(?:whoever|whomever)\b", "name who or what it is"),
    (r"\b(?:somebody|nobody)\b", 'write "someone", "another user", "no one", or name the thing'),
    (r"\balike\b", 'write "the same", "equal" or "both"'),
    (r"(?<!--)\bbeside\b(?!:)", 'write "next to", "alongside" or "with"'),
    (r"\blikeliest\b", 'write "most likely" or "top-k"'),
    (r"\bin (?:any|what|whatever) company\b",
     'write "whatever else is in the batch" or "batch-invariant"'),
    (r"\bso many\b", "say how many, or name the number"),
    (r"\bpieces of the vocabulary\b|\bwords of the (?:vocabulary|head)\b", 'write "tokens"'),
    (r"\bjournal\b(?!\.jsonl)", 'write "response cache"'),  # safety.journal.jsonl is on disk
    (r"\bgives? back\b(?= .*\btext\b)", 'write "reproduces"'),
]  # fmt: skip
# "There is no x" is good English; the lookbehind cannot hold it, being of variable width.
THERE = re.compile(r"\b(?:there|it|which|that)\s+(?:is|are|was|were) no\b", re.IGNORECASE)
ATTRIBUTE = re.compile(r"^\s+\**\w+: (?:of|that|whose) ", re.MULTILINE)
SEE = re.compile(r"^See `[^`]+`\.?$")


def wording(text: str) -> Iterator[tuple[int, str]]:
    """Offsets of banned wording in `text`, each with the advice."""
    for pattern, advice in WORDING:
        for match in re.finditer(pattern, text, re.IGNORECASE):
            if " no" in match[0] and THERE.match(text, max(0, _word_before(text, match.start()))):
                continue
            yield match.start(), f"{match[0].strip()!r}: {advice}"


def _word_before(text: str, at: int) -> int:
    before = re.search(r"\w+\s+$", text[:at])
    return before.start() if before else at


def check_python(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and messages for a Python file."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Store):
            yield node.lineno, f"variable {node.id!r}: {NAMES[node.id]}"
        elif isinstance(node, ast.arg) and node.arg in NAMES:
            yield node.lineno, f"parameter {node.arg!r}: {NAMES[node.arg]}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text is None:
                continue
            line = node.body[0].lineno
            if SEE.match(text.strip()):
                yield line, 'a docstring that only says "See X": drop it, or say what it does'
            for match in ATTRIBUTE.finditer(text):
                advice = "an attribute's text is a noun phrase that stands alone"
                yield line + text[: match.start()].count("\n"), f"{match[0].strip()!r}: {advice}"
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if EXEMPT in lines[max(0, token.start[0] - 2)]:
            continue
        if token.type in (tokenize.COMMENT, tokenize.STRING, FSTRING_TEXT):
            for offset, message in wording(token.string):
                yield token.start[0] + token.string[:offset].count("\n"), message


def check_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and messages for Markdown, TOML and C++ files; fenced code is left out."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"```.*?```", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    for offset, message in wording(text):
        yield text[:offset].count("\n") + 1, message


def files(paths: list[Path]) -> Iterator[Path]:
    """The files that are checked, in order."""
    suffixes = {".py", ".md", ".toml", ".hpp", ".cpp", ".h", ".html"}
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
        else:
            yield path


def main() -> int:
    """Prints what is wrong; the exit status is 1 when anything is."""
    paths = [Path(a) for a in sys.argv[1:]] or [ROOT / d for d in DEFAULT if (ROOT / d).exists()]
    count = 0
    for path in files(paths):
        if path.resolve() == Path(__file__).resolve():
            continue
        check = check_python if path.suffix == ".py" else check_prose
        for line, message in sorted(check(path)):
            count += 1
            print(f"{path}:{line}: {message}")
    if count:
        print(f"{count} uses of banned wording; STYLE: the field's terms, plain English")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
