"""lm-eval's own settings of its tasks."""

import functools
from typing import Any


def settings(task: str) -> dict[str, Any]:
    """What lm-eval's YAML says of a task, its functions loaded."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(_index().task_index[task].yaml_path, resolve_func=True))


@functools.cache
def _index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()
