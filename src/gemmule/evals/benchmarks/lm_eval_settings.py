"""lm-eval's own settings of its tasks."""

import functools
import re
from pathlib import Path
from typing import Any

_TASK = re.compile(rb"""^["']?task["']?[ \t]*:[ \t]*["']?([\w\-]+)["']?[ \t]*\r?$""", re.MULTILINE)


def settings(task: str) -> dict[str, Any]:
    """The settings of a task from lm-eval's YAML, with its functions loaded."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(_files()[task], resolve_func=True))


def keep_templates() -> None:
    """Makes lm-eval compile a prompt's template once, not for each document and example.

    Compiling takes longer than the rest of making a prompt: two minutes for MMLU.
    """
    from lm_eval import utils

    templates: Any = utils.env
    if not hasattr(templates.from_string, "cache_info"):
        templates.from_string = functools.lru_cache(maxsize=256)(templates.from_string)


@functools.cache
def _files() -> dict[str, Path]:
    """The YAML file of each task, by the task's name.

    lm-eval's TaskManager would parse the YAML of fourteen thousand tasks, for several seconds.
    """
    import lm_eval

    paths: dict[str, Path] = {}
    folder = Path(lm_eval.__file__).parent / "tasks"
    for path in sorted(folder.glob("**/*.yaml")):
        named = _TASK.search(path.read_bytes())
        if named:  # if two have the same name, lm-eval takes the first as well
            paths.setdefault(named[1].decode(), path)
    return paths
