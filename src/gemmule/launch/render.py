"""Launch scripts from their templates.

All three end in torchrun, start the run if its folder holds none and continue it otherwise. Every
machine looks before its torchrun waits for the others, and no rank starts before all have come:
so all of them see the same.
"""

import json

import jinja2

from gemmule.launch.request import LaunchRequest
from gemmule.runs.layout import RunLayout
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
        mounted=None if request.volume is None else request.mounted,
        bucket="://" in (request.volume or ""),
        choose=_choose(request),
        notice=NOTICE,
        port=PORT,
    )


def _choose(request: LaunchRequest) -> str:
    """Shell lines that set `command`: to start the run, or to continue it."""
    saved = quoted(str(RunLayout(request.out).config))
    resume = " ".join(map(quoted, (request.command[0], "--resume", "--out", str(request.out))))
    return (
        f"command=({' '.join(map(quoted, request.command))})\n"
        f"if [ -f {saved} ]; then command=({resume}); fi"
    )
