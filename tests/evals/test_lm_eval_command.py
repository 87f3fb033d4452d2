"""lm-eval's own command with a gemmule model, as a user types it."""

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.tokenizer import train_tokenizer
from models import fresh_model, tiny_config

pytest.importorskip("lm_eval")
SOURCE = Path(__file__).parents[2] / "src"
TASK = """\
task: made_up
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {file}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a task over a file of its own."""
    root = tmp_path_factory.mktemp("command")
    tokenizer = train_tokenizer([Path(textwrap.__file__).read_text()], 540)
    config = tiny_config(
        vocab_size=540, query_pre_attn_scalar=16, sliding_window=16, max_position_embeddings=128
    )
    save_model(fresh_model(config, 0), tokenizer, root / "model")
    pick = random.Random(0)
    rows = [
        {"question": f"What wraps {i}?", "choices": ["text", "a line", "fill"], "gold": i % 3}
        for i in range(9)
    ]
    pick.shuffle(rows)
    (root / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tasks").mkdir()
    (root / "tasks/made_up.yaml").write_text(TASK.format(file=root / "rows.json"))
    return root


def lm_eval(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
    )  # fmt: skip


def test_lm_eval_takes_a_model_of_ours(folder: Path) -> None:
    done = lm_eval(
        folder, "run", "--model", "gemmule", "--model_args", f"pretrained={folder / 'model'}",
        "--tasks", "made_up", "--include_path", str(folder / "tasks"), "--limit", "4",
        "--batch_size", "8", "--output_path", str(folder / "out"), "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "made_up" in done.stdout
    (report,) = (folder / "out").glob("**/results_*.json")
    results = json.loads(report.read_text())
    assert 0 <= results["results"]["made_up"]["acc,none"] <= 1
    assert results["n-samples"]["made_up"]["effective"] == 4
    assert results["config"]["model"] == "gemmule"


def test_a_model_that_is_not_there_is_said_so(folder: Path) -> None:
    done = lm_eval(
        folder, "run", "--model", "gemmule", "--model_args", f"pretrained={folder / 'nothing'}",
        "--tasks", "made_up", "--include_path", str(folder / "tasks"), "--limit", "1",
    )  # fmt: skip
    assert done.returncode != 0
    assert "expected a run directory" in done.stderr


# ---- What every start of Python imports


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", f"import sys\nsys.path[:0] = {path()}\n{code}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def path() -> list[str]:
    return [str(SOURCE), *(p for p in sys.path if "packages" in p)]


def test_a_start_of_python_imports_next_to_nothing() -> None:
    code = "before = set(sys.modules)\nimport gemmule_lm_eval\nprint(set(sys.modules) - before)"
    assert python(code) == "{'gemmule_lm_eval'}"


def test_nothing_of_ours_is_imported_before_it_is_asked_for() -> None:
    code = """
import gemmule_lm_eval
from lm_eval.api.registry import get_model, model_registry
import lm_eval.models
print("gemmule" in model_registry, "gemmule" in sys.modules)
print(gemmule_lm_eval.Finder in sys.meta_path)
print(get_model("gemmule").__name__, len(model_registry) > 10)
"""
    assert python(code).splitlines() == ["True False", "False", "GemmuleLM True"]


def test_without_lm_eval_nothing_is_said() -> None:
    code = """
sys.path[:] = [p for p in sys.path if "packages" not in p]
import gemmule_lm_eval
try:
    import lm_eval.models
except ModuleNotFoundError as e:
    print(e.name)
"""
    assert python(code) == "lm_eval"


@pytest.mark.parametrize("registry", ["", "model_registry = {}", "raise RuntimeError"])
def test_another_lm_eval_works_without_us(tmp_path: Path, registry: str) -> None:
    """One whose registry is not there, or not as it is known here."""
    (tmp_path / "lm_eval/api").mkdir(parents=True)
    for name in ("__init__", "models", "api/__init__"):
        (tmp_path / f"lm_eval/{name}.py").write_text("")
    (tmp_path / "lm_eval/api/registry.py").write_text(registry)
    code = f"""
sys.path.insert(0, {str(tmp_path)!r})
import gemmule_lm_eval, lm_eval.models
print(lm_eval.models.__file__)
"""
    assert python(code) == str(tmp_path / "lm_eval/models.py")


def test_the_line_that_imports_it_survives_its_absence() -> None:
    """A developer's folder may be gone while its line still stands in site-packages."""
    line = (SOURCE / "gemmule_lm_eval.pth").read_text()
    assert line.startswith("import ")
    assert line.count("\n") == 1
    assert python(f"exec({line!r})\nprint('gemmule_lm_eval' in sys.modules)") == "True"
    assert python(f"sys.path[:] = sys.path[1:]\nexec({line!r})\nprint('fine')") == "fine"
