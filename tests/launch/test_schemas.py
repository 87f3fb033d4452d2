"""Rendered YAML against the schemas of SkyPilot and Kubeflow Trainer.

    python -m pip install skypilot kubeflow-trainer-api    # in an environment of its own
    python -m pytest -m slow tests/launch/test_schemas.py

skypilot pins click and some fifty other packages, so it is not in the extra `dev`.
"""

import itertools
from typing import Any

import pytest
import yaml
from test_launch import SHARED, request

from gemmule.launch.render import render

pytestmark = pytest.mark.slow
SOME = {"cpus": 8, "memory": 64, "setup": "export HERE='a b'"}
CASES = list(itertools.product(({}, SOME), ({}, {"gpu": None})))


@pytest.mark.parametrize(("more", "gpu"), CASES)
def test_skypilot_takes_the_task(more: dict[str, Any], gpu: dict[str, Any]) -> None:
    pytest.importorskip("sky", reason="needs skypilot, an environment of its own")
    import jsonschema
    from sky.utils import schemas

    for place in ({"volume": "claim:/shared"}, {"nodes": 1, "volume": "s3://b/x:/shared"}):
        task = yaml.safe_load(render(request("sky", **{**SHARED["sky"], **more, **gpu, **place})))
        jsonschema.validate(task, schemas.get_task_schema())
        # What the schema of a task leaves open has schemas of its own.
        jsonschema.validate(task["resources"], schemas.get_resources_schema())
        for storage in task.get("file_mounts", {}).values():
            jsonschema.validate(storage, schemas.get_storage_schema())
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**task, "node": 2}, schemas.get_task_schema())


@pytest.mark.parametrize(("more", "gpu"), CASES)
def test_kubeflow_takes_the_trainjob(more: dict[str, Any], gpu: dict[str, Any]) -> None:
    pytest.importorskip("kubeflow_trainer_api", reason="needs kubeflow, an environment of its own")
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob as TrainJob

    job = yaml.safe_load(render(request("kubeflow", **more, **gpu)))
    read = TrainJob.from_dict(job)
    assert read is not None
    assert read.to_dict() == job, "a field that the model does not know is dropped"
