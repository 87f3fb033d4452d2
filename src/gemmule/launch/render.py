"""Launch scripts from their templates.

All three end in torchrun. A run of training gets --resume-if-started: every rank looks before it
waits for the others, and none writes before all have come, so all of them see the same. A recording
continues by itself.
"""

import json

import jinja2

from gemmule.launch.request import CONTINUED_BY, LaunchRequest
from gemmule.shell import quoted

NOTICE = 120
"""Seconds between a scheduler's request to stop and its end: time to save a training state."""

PORT = 29500
_FILES = {"slurm": "slurm.sh", "sky": "sky.yaml", "kubeflow": "kubeflow.yaml"}


def render(request: LaunchRequest) -> str:
    """The script, or YAML file, that starts a run.

    Args:
        request: settings of the script.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gemmule.launch"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # shell and YAML: `quoted` and `json` do it
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["json"] = json.dumps  # a JSON string is a YAML string
    return environment.get_template(_FILES[request.scheduler]).render(
        **dict(request),
        job=request.job,
        mounted=request.mounted,
        bucket="://" in (request.volume or ""),
        words=_words(request),
        notice=NOTICE,
        port=PORT,
    )


def _words(request: LaunchRequest) -> str:
    """The command for the shell; it starts the run, or continues it."""
    verb, *words = request.command
    options = [option for option in CONTINUED_BY[verb] if option not in words]
    return " ".join(map(quoted, [verb, *options, *words]))
