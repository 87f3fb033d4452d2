"""The import rule of the design, and that optional packages are optional."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gemmule

ROOT = Path(gemmule.__file__).parent
LEVELS = [
    {"errors", "config", "files", "console", "stats", "shell", "text_encoding"},
    {"runtime", "runs", "losses"},
    {"model", "quant", "sandbox", "report"},
    {"data", "checkpoints"},
    {"teachers", "infer"},
    {"train"},
    {
        "posttrain",
        "evals",
        "serve",
        "plan",
        "ablate",
        "quickstart",
        "doctor",
        "quantize",
        "speed",
        "trim",
        "launch",
    },
    {"cli", "__main__"},
]
# Within a level, as the modules' docstrings say; nothing may lead back.
WITHIN = {
    ("files", "errors"), ("config", "errors"), ("config", "files"), ("runs", "runtime"),
    ("__main__", "cli"),
}  # fmt: skip
# The package itself offers load() and a few names, imported when first used.
LAZY = {("__init__", "infer")}


def level(part: str) -> int:
    return next(i for i, parts in enumerate(LEVELS) if part in parts)


def part_of(module: str) -> str:
    """gemmule.train.loop -> train."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of our modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "gemmule")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            if node.module == "gemmule":
                yield from (f"gemmule.{a.name}" for a in node.names)
            elif node.module and node.module.startswith("gemmule."):
                yield node.module


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).parts[0].removesuffix(".py"), ast.parse(path.read_text())


def module_graph(sources: dict[str, ast.Module]) -> dict[str, set[str]]:
    """The modules that each module imports, at its top or inside a function."""
    graph: dict[str, set[str]] = {}
    for name, tree in sources.items():
        graph[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                submodules = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [s if s in sources else str(node.module) for s in submodules]
            else:
                continue
            graph[name].update(t for t in targets if t in sources)
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every cycle that a depth-first search meets, as the modules along it."""
    done: set[str] = set()
    path: list[str] = []
    results: list[list[str]] = []

    def visit(name: str) -> None:
        if name in path:
            results.append([*path[path.index(name) :], name])
        elif name not in done:
            path.append(name)
            for target in sorted(graph[name]):
                visit(target)
            done.add(path.pop())

    for name in sorted(graph):
        visit(name)
    return results


def test_no_module_imports_itself_through_others() -> None:
    sources = {
        ".".join(("gemmule", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "__init__.py"
    }
    graph = module_graph({name: ast.parse(path.read_text()) for name, path in sources.items()})
    assert len(graph) > 200
    assert cycles(graph) == []


def test_a_lazy_import_closes_a_cycle() -> None:
    graph = module_graph(
        {
            "gemmule.a": ast.parse("from gemmule import b"),
            "gemmule.b": ast.parse("import gemmule.c\nfrom gemmule.d import x"),
            "gemmule.c": ast.parse("def f():\n    from gemmule.a import g"),
            "gemmule.d": ast.parse("import ast"),
        }
    )
    assert cycles(graph) == [["gemmule.a", "gemmule.b", "gemmule.c", "gemmule.a"]]


def is_lazy_name(part: str) -> bool:
    return part in {*gemmule.__all__}


def test_imports_go_down_only() -> None:
    wrong, seen = [], set()
    for owner, tree in sources():
        seen.add(owner)
        for module in imported(tree):
            part = part_of(module)
            if part == owner or (owner, part) in LAZY | WITHIN:
                continue
            if is_lazy_name(part):  # `from gemmule import load` is for the command line only
                part = "infer"
            if owner == "__init__" or level(part) >= level(owner):
                wrong.append(f"{owner} imports {module}")
    assert wrong == []
    known = set().union(*LEVELS)
    assert seen - {"__init__"} <= known, "a new module needs a level in the design"


def test_the_rule_can_fail() -> None:
    tree = ast.parse("def f():\n    from gemmule.train.loop import train\n    import gemmule.cli")
    assert [part_of(m) for m in imported(tree)] == ["train", "cli"]
    assert level("train") >= level("data")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_on_the_minimal_install() -> None:
    code = """
import importlib, pkgutil, sys
OPTIONAL = {"pyarrow", "zstandard", "matplotlib", "codecarbon", "transformers",
            "datasets", "pandas", "tensorboard", "psutil", "pytest", "hypothesis",
            "gguf", "llama_cpp", "lm_eval", "nltk", "rapidfuzz", "scipy", "sklearn",
            "stdnum", "starlette", "uvicorn", "httptools", "prometheus_client", "llguidance"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Block())
import importlib.util
plain = importlib.util.find_spec  # which says None of what is not installed
importlib.util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] in OPTIONAL else plain(name, package))
import gemmule
names = [m.name for m in pkgutil.walk_packages(gemmule.__path__, "gemmule.")]
names = [n for n in names if not n.endswith("libgemmule_kernels")]  # no module, though a .so
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as e:  # the server is its own extra, as a whole
        if not name.startswith("gemmule.serve.") or e.name.split(".")[0] not in OPTIONAL:
            raise
print(len(names))
"""
    assert int(run(code)) > 40


def test_reports_read_files_without_torch() -> None:
    code = "import sys, gemmule.report, gemmule.report.card; print('torch' in sys.modules)"
    assert run(code).strip() == "False"


def test_help_is_light() -> None:
    """Each help text in one process: none of them may pull in anything heavy."""
    code = """
import sys, typer
from gemmule.cli import app, main
group = typer.main.get_command(app)
paths = [[]]
for name, command in group.commands.items():
    paths += [[name]] + [[name, sub] for sub in getattr(command, "commands", ())]
for path in paths:
    try:
        main([*path, "--help"])
    except SystemExit as e:
        assert e.code == 0, (path, e.code)
heavy = {"torch", "numpy", "transformers", "matplotlib", "huggingface_hub",
         "sentencepiece", "tokenizers", "codecarbon", "tensorboardX", "starlette", "uvicorn"}
print("HEAVY", sorted(heavy & set(sys.modules)), len(paths))
"""
    found = run(code)
    assert "HEAVY [] " in found
    for command in ("quickstart", "tokenizer", "data", "train", "distill", "generate", "card"):
        assert command in found


BENCHES = sorted((ROOT.parents[1] / "bench").glob("*.py"))


@pytest.mark.parametrize("path", BENCHES, ids=lambda p: p.name)
def test_benchmarks_import_names_that_exist(path: Path) -> None:
    """mypy does not see bench/, and a rename in src/ would only show when a benchmark is run."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gemmule":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
