"""What the documentation says can be typed, opened and imported."""

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

import gemmule
import gemmule.posttrain.kinds
from gemmule.cli import app, main
from gemmule.config import Config
from gemmule.infer.core.sampling import SamplingParams
from gemmule.model.config import PRESETS, preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.recipes.sft import SftConfig
from gemmule.train.adapters.settings import AdapterSettings
from gemmule.train.config import (
    CheckpointConfig,
    DataConfig,
    DistillConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    TrainingRuntime,
    load_run_config,
)

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
RECIPES = [path for path in CONFIGS if path.stem != "safety-gate"]
GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
NEEDS_NOTHING = ("quickstart", "tasks", "launch")  # verbs that work in an empty folder
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND: Any = typer.main.get_command(app)


def blocks(page: Path, language: str) -> list[str]:
    return [b for kind, b in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def lines(script: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, comments and pipes taken apart."""
    for line in script.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "|"]:
            if word == "|":
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def commands() -> list[list[str]]:
    documented = [c for page in PAGES for block in blocks(page, "sh") for c in lines(block)]
    for config in CONFIGS:
        comments = re.findall(r"^#   (.*)$", config.read_text(encoding="utf-8"), re.MULTILINE)
        documented += lines("\n".join(comments))
    return documented


def gemmule_commands() -> list[list[str]]:
    return [c[1:] for c in commands() if Path(c[0]).name == "gemmule"]


def verb_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `words` name, and what is left of them."""
    node, rest = COMMAND, list(words)
    while hasattr(node, "commands"):
        assert rest[0] in node.commands, f"gemmule has no verb {' '.join(words)}"
        node = node.commands[rest.pop(0)]
    return node, rest


def verbs(node: Any = COMMAND, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, child in node.commands.items():
        if hasattr(child, "commands"):
            yield from verbs(child, (*path, name))
        else:
            yield (*path, name)


def test_documented_tests_exist() -> None:
    """Each row of the table of files names the test that shows it."""
    page = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 40
    for file, test in named:
        source = (ROOT / "tests/checkpoints" / file).read_text(encoding="utf-8")
        assert f"\ndef {test}(" in source, f"docs/checkpoints.md names {file}::{test}"


@pytest.mark.parametrize("words", gemmule_commands(), ids=" ".join)
def test_documented_commands_parse(words: list[str]) -> None:
    verb, rest = verb_of(words)
    verb.make_context("gemmule", rest)  # an unknown option or a missing argument raises


def names_a_config(words: list[str]) -> bool:
    """Whether a training command's settings are all at hand: a run's own config.toml is not."""
    if words[0] not in ("train", "distill", "warp") or "--resume" in words:
        return False
    return not words[1].endswith(".toml") or words[1].startswith("configs/")


@pytest.mark.parametrize(
    "words", [c for c in gemmule_commands() if names_a_config(c)], ids=" ".join
)
def test_documented_settings_exist(words: list[str]) -> None:
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    for name in ("teacher", "targets"):
        paths = [words[i + 1] for i, word in enumerate(words) if word == f"--{name}"]
        settings += [f"objective.{name}={path}" for path in paths]
    if words[0] == "distill":
        settings.append("objective.kind=distill")
    config = ROOT / words[1] if words[1].endswith(".toml") else None
    load_run_config(config, settings)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder that holds the repository's configs and nothing else, without a network."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO("a prompt"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def refusal(words: list[str]) -> str:
    with pytest.raises(SystemExit) as e, contextlib.redirect_stderr(io.StringIO()) as err:
        main(words)
    assert e.value.code == 2, err.getvalue()
    return " ".join(err.getvalue().split())


def missing_paths(words: list[str]) -> list[str]:
    """What a command reads that an empty folder lacks: words that look like a path or a hub id."""
    paths = [word.rpartition("=")[2] for word in words[1:]]
    is_path = re.compile(r"~?[\w*.-]*(/[\w*.-]+)+|\w+\.(gguf|ckpt|txt)|benchmarks")
    found = [path for path in paths if is_path.fullmatch(path) and not path.startswith("configs/")]
    return [str(Path(path).expanduser()) for path in found]


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(
    "words",
    [c for c in gemmule_commands() if c[0] not in NEEDS_NOTHING and missing_paths(c)],
    ids=" ".join,
)
def test_documented_commands_lack_nothing_but_their_files(words: list[str]) -> None:
    """In an empty folder each is refused, and for a file: its settings were accepted before."""
    message = refusal(words)
    assert any(path in message for path in missing_paths(words)), message


@pytest.mark.parametrize("words", gemmule_commands(), ids=" ".join)
def test_documented_values_are_in_the_help(words: list[str]) -> None:
    """Options that take one of a few names list them in their help text."""
    verb, rest = verb_of(words)
    values = verb.make_context("gemmule", rest).params
    for option in verb.params:
        value = values[option.name]
        if option.name in ("quantize", "dtype", "cache", "to", "head", "backend", "kind", "suite"):
            assert value in (option.default, *re.findall(r"\w+", option.help)), option.name


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(Exception, match="--loud"):
        test_documented_commands_parse(["card", "runs/x", "--loud"])
    with pytest.raises(AssertionError, match="no verb"):
        test_documented_commands_parse(["fly"])
    with pytest.raises(AssertionError, match="dtype"):
        test_documented_values_are_in_the_help(["convert", "a", "b", "--to", "hf", "--dtype", "Q9"])


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(
    "command",
    ["eval runs/x --tasks nonsense", "record runs/x --data runs/d --out runs/o --set k=3"],
)
def test_a_wrong_setting_would_be_noticed(command: str) -> None:
    with pytest.raises(AssertionError, match=r"there is no benchmark|unknown key"):
        test_documented_commands_lack_nothing_but_their_files(command.split())


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_every_verb_is_documented_and_helps(verb: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*verb, "--help"])
    assert done.exit_code == 0
    assert "Example: gemmule " in done.output
    assert any(tuple(words[: len(verb)]) == verb for words in gemmule_commands())


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [c[c.index("make") + 1] for c in commands() if "make" in c]
    assert named
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_relative_to(ROOT), target
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them: lower case, punctuation dropped, spaces to dashes."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_load(path: Path) -> None:
    name = path.stem.partition("-")[0]
    teacher = ["objective.teacher=x"] if name in ("distill", "opd") else []
    config = load_run_config(path, ["data.path=x", *teacher])
    kinds = {"train": "pretrain", "rloo": "rl", "warp": "rl", "dpo": "preference"}
    assert config.objective.kind == kinds.get(name, name)
    shape = preset(config.model.preset, vocab_size=4096)
    assert config.data.seq_len <= shape.max_position_embeddings
    assert config.model.preset in path.stem


def test_distilled_and_scratch_recipes_differ_in_the_objective_alone() -> None:
    scratch = load_run_config(ROOT / "configs/train-1m.toml", ["data.path=x"])
    given = ["data.path=x", "objective.teacher=x"]
    distilled = load_run_config(ROOT / "configs/distill-1m.toml", given)
    left, right = (c.model_dump(exclude={"objective"}) for c in (scratch, distilled))
    assert left == right
    assert scratch.objective != distilled.objective


def table(title: str, page: str = GUIDE) -> dict[str, list[str]]:
    """The first table after the heading or line `title` in a page, by first column."""
    match = re.search(r"^\|.*?(?=\n\n|\Z)", page[page.index(title) :], re.MULTILINE | re.DOTALL)
    assert match is not None
    rows = [row.strip("|").split("|") for row in match[0].splitlines()[2:]]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows}


GROUPS = {name for name in RunConfig.model_fields if name not in ("steps", "seed", "log_every")}


def written(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, tuple) and default:
        return ", ".join(f"`{value}`" for value in default)
    return "none" if default in (None, (), {}) else str(default)


@pytest.mark.parametrize(
    ("title", "kind", "elsewhere"),
    [
        ("## Training", RunConfig, GROUPS),
        ("The group `data`", DataConfig, set()),
        ("The group `model`", ModelConfig, set()),
        ("The group `adapter`", AdapterSettings, set()),
        ("The group `optimizer`", OptimizerConfig, set()),
        ("The group `schedule`", ScheduleConfig, set()),
        ("The group `evaluation`", EvaluationConfig, set()),
        ("The group `checkpoint`", CheckpointConfig, set()),
        ("The group `runtime`", TrainingRuntime, set()),
        ("The group `parallel`", ParallelConfig, set()),
        ("## Distilling", DistillConfig, set()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_setting_is_in_the_guide(title: str, kind: type[Config], elsewhere: set[str]) -> None:
    fields = {k: f for k, f in kind.model_fields.items() if k not in elsewhere}
    defaults = {
        name: written({} if field.default_factory else field.default)
        for name, field in fields.items()
    }
    assert {name: cells[0] for name, cells in table(title).items()} == defaults


def test_the_settings_of_fine_tuning_are_on_their_page() -> None:
    page = (ROOT / "docs/post-training.md").read_text(encoding="utf-8")
    defaults = {name: written(f.default) for name, f in SftConfig.model_fields.items()}
    shown = {k: cells[0] for k, cells in table("of kind `sft`", page).items()}
    assert shown == defaults


def test_sampling_settings_are_in_the_guide() -> None:
    parameters = inspect.signature(SamplingParams).parameters
    defaults = {name: written(p.default) for name, p in parameters.items()}
    assert {name: cells[0] for name, cells in table("### Sampling").items()} == defaults


def test_presets_are_in_the_guide() -> None:
    shown = table("### Presets")
    assert list(shown) == list(PRESETS)
    for name, cells in shown.items():
        c = preset(name, vocab_size=4096)
        heads = f"{c.num_attention_heads} / {c.num_key_value_heads}"
        sizes = [c.hidden_size, c.num_hidden_layers, heads, c.head_dim, c.intermediate_size]
        sizes += [c.sliding_window, c.max_position_embeddings]
        assert cells == [f"{c.non_embedding_parameters:,}", *map(str, sizes)], name


PYTHON = [(page.name, code) for page in PAGES for code in blocks(page, "python")]
INSTANCES = {
    "gemmule": gemmule,
    "lm": gemmule.LanguageModel,
    "lm.tokenizer": Tokenizer,
    "lm.model": Gemma,
}
GIVEN = {"lm.model", "lm.tokenizer"}  # set by LanguageModel's constructor
CLIENTS = {"openai", "anthropic"}  # of the server; not installed with gemmule


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_snippets_use_names_that_exist(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.module in CLIENTS:
                continue
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            owner, name = ast.unparse(node.value), ast.unparse(node)
            if owner in INSTANCES and name not in GIVEN:
                assert hasattr(INSTANCES[owner], node.attr), name
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("lm.generate", "lm.stream", "lm.chat", "lm.stream_chat"):
                allowed = set(inspect.signature(SamplingParams).parameters)
                assert {str(k.arg) for k in node.keywords} <= allowed


def test_the_source_tree_in_the_readme_exists() -> None:
    trees = blocks(ROOT / "README.md", "text")
    assert len(trees) == 1
    names = re.findall(r"^  ([\w/]+(?:\.py)?)  ", trees[0], re.MULTILINE)
    source = ROOT / "src/gemmule"
    assert all((source / name).exists() for name in names)
    shown = {name.rstrip("/") for name in names}
    there = {p.name for p in source.iterdir() if (p / "__init__.py").exists() or p.suffix == ".py"}
    assert there - {"__init__.py"} == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_named_in_prose_exist(page: Path) -> None:
    known = {option for verb in verbs() for option in options(verb)} | {"--help", "--version"}
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for option in re.findall(r"`(?:gemmule [^`]*?)?(--[a-z][a-z0-9-]*)", text):
        assert option in known, option


def options(verb: tuple[str, ...]) -> set[str]:
    command, _ = verb_of(list(verb))
    return {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
