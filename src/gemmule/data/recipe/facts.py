"""What a run's manifest and its card say of what a recipe did to the text."""

from collections.abc import Mapping
from typing import Any


def facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The facts, from the manifest of a data folder; none where no recipe made it.

    Returns:
        "decontaminated": the benchmarks, words in a row, and number of documents that were dropped
        for them; "redacted": number of values of each kind and what became of them. Either is
        there only if the recipe has the stage.
    """
    recipe = manifest.get("recipe")
    if not isinstance(recipe, Mapping):
        return {}
    stages = {stage["name"]: stage for stage in recipe["stages"]}
    result: dict[str, Any] = {}
    if "decontaminate" in stages:
        stage, passage = stages["decontaminate"], recipe["funnel"]["decontaminate"]
        result["decontaminated"] = {
            "n": stage["n"],
            "benchmarks": stage["benchmarks"],
            "dropped": sum(documents for documents, _ in passage["dropped"].values()),
        }
    if "redact" in stages:
        result["redacted"] = dict(recipe["funnel"]["redact"]["counts"])
    return result
