"""lm-eval's own settings of its tasks."""

import functools
import re
from pathlib import Path
from typing import Any

_TASK = re.compile(rb"""^["']?task["']?[ \t]*:[ \t]*["']?([\w\-]+)["']?[ \t]*\r?$""", re.MULTILINE)


def settings(task: str) -> dict[str, Any]:
    """What lm-eval's YAML says of a task, its functions loaded."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(_files()[task], resolve_func=True))


def keep_templates() -> None:
    """Has lm-eval compile a prompt's template once, rather than for each document and example.

    Compiling takes longer than all else in making a prompt: two minutes of MMLU's.
    """
    from lm_eval import utils

    templates: Any = utils.env
    if not hasattr(templates.from_string, "cache_info"):
        templates.from_string = functools.lru_cache(maxsize=256)(templates.from_string)


@functools.cache
def _files() -> dict[str, Path]:
    """The file of each task, by name.

    lm-eval's TaskManager parses the YAML of fourteen thousand tasks first, for several seconds.
    """
    import lm_eval

    found: dict[str, Path] = {}
    folder = Path(lm_eval.__file__).parent / "tasks"
    for path in sorted(folder.glob("**/*.yaml")):
        named = _TASK.search(path.read_bytes())
        if named:  # where two have one name, lm-eval too takes the first
            found.setdefault(named[1].decode(), path)
    return found
