"""`merge`: from models of one shape to a folder with their merge, and what their angles are."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from gemmule import files
from gemmule.checkpoints.checkpoint import Checkpoint, stored_fingerprint
from gemmule.checkpoints.hf.writer import layouts, write_companions
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.tensor_layout import write
from gemmule.errors import CheckpointError, ConfigError
from gemmule.posttrain.merging import coefficients as mixing
from gemmule.posttrain.merging.coefficients import Method, checked_method
from gemmule.posttrain.merging.task_vectors import grams, layer_of, merged_tensors
from gemmule.runs.layout import RESULT, RunLayout
from gemmule.runs.lock import locked_output
from gemmule.runs.run_dir import RunDir, free_folder
from gemmule.runs.schema import Manifest, RunResult


def merge(
    models: Sequence[str | Path],
    out: Path,
    *,
    base: str | Path | None = None,
    method: Method = "average",
    weights: Sequence[float] | None = None,
    eta: float = 1.0,
) -> dict[str, Any]:
    """Merges models into a new folder, which appears once everything is there.

    Args:
        models: runs, folders, files or hub ids; for SLERP of more than two their order counts.
        out: a folder that does not exist yet, or is empty.
        base: the model that all of them were fine-tuned from.
        method: "average" or "lerp" (a weighted average), or "slerp", which needs the base.
        weights: a weight for each model; None: equal ones.
        eta: how far to go from the base to the merge, 0 to 1 (LITI); below 1 it needs the base.

    Returns:
        The content of the folder's result.json.

    Raises:
        ConfigError: for settings that do not go together.
        CheckpointError: when a model cannot be read, or they differ in shape or tokenizer.
        OutputError: when `out` is in use or cannot be written.
    """
    shares = _checked(models, base, method, weights, eta)
    out = free_folder(out)
    with locked_output(out), files.atomic_dir(out) as partial:
        return _write(models, partial, base, method, shares, eta)


def merge_into(
    models: Sequence[str | Path], out: Path, *, base: str | Path, method: Method, eta: float
) -> dict[str, Any]:
    """As `merge`, into a folder that holds other files, too; result.json is written last."""
    shares = _checked(models, base, method, None, eta)
    return _write(models, out, base, method, shares, eta)


def _checked(
    models: Sequence[str | Path],
    base: str | Path | None,
    method: str,
    weights: Sequence[float] | None,
    eta: float,
) -> list[float]:
    """The models' weights, adding up to 1."""
    checked_method(method)
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta is {eta:g}: it must be between 0 (the base) and 1 (the merge)")
    if method == "average" and weights is not None:
        raise ConfigError("an average has equal weights: use lerp, or leave out the weights")
    if base is None and method == "slerp":
        raise ConfigError("slerp merges what models have learned: name the base they started from")
    if base is None and eta != 1:
        raise ConfigError(f"eta = {eta:g} is a part of the way from the base: name the base")
    if not models:
        raise ConfigError("there is nothing to merge: name two models or more")
    if len(models) == 1 and (base is None or method == "slerp"):
        raise ConfigError(
            "one model alone: name two or more, or interpolate between a base and it with lerp "
            "and eta"
        )
    return mixing.normalized(weights, len(models))


def _write(
    names: Sequence[str | Path],
    folder: Path,
    base_name: str | Path | None,
    method: Method,
    weights: Sequence[float],
    eta: float,
) -> dict[str, Any]:
    began = time.monotonic()
    with ExitStack() as stack:
        models = [stack.enter_context(_opened(name)) for name in names]
        base = None if base_name is None else stack.enter_context(_opened(base_name))
        _check_fit(names, models, base_name, base)
        inner = grams(base, models) if base is not None else {}
        taken = _coefficients(models[0], method, weights, inner)
        scaled = {layer: [eta * c for c in part] for layer, part in taken.items()}
        dtype = reduce(torch.promote_types, (m.load_dtype for m in models))
        tensors = merged_tensors(base, models, scaled, dtype)
        result = Checkpoint(folder, "memory", models[0].config, tensors, models[0].read_tokenizer)
        layout = RunLayout(folder)
        with files.atomic_dir(layout.model) as partial:
            write(layouts(result), partial)
            write_companions(result, partial, None)
        parents = [_parent(n, m, "model") for n, m in zip(names, models, strict=True)]
        if base is not None and base_name is not None:
            parents.append(_parent(base_name, base, "base"))
        RunDir(folder).write_manifest(
            _manifest(models[0], names, parents, method, weights, eta, base is not None)
        )
        summary = _result(models[0], taken, inner, time.monotonic() - began)
        summary.write(layout.result)
    return summary.to_json()


def _opened(name: str | Path) -> Checkpoint:
    checkpoint = open_checkpoint(name)
    if checkpoint.quantized:
        checkpoint.stack.close()
        raise CheckpointError(
            f"{name} is quantized, and a merge needs the weights themselves: merge the models that "
            "the quantized ones were made from, then quantize the merge"
        )
    checkpoint.check_head()  # a head of its own would be lost: the merge has one matrix for both
    return checkpoint


def _check_fit(
    names: Sequence[str | Path],
    models: Sequence[Checkpoint],
    base_name: str | Path | None,
    base: Checkpoint | None,
) -> None:
    first, shape = models[0], models[0].config.model_dump()
    others = [*zip(names, models, strict=True)][1:]
    others += [(base_name, base)] if base_name is not None and base is not None else []
    for name, other in others:
        theirs = other.config.model_dump()
        differing = [key for key in shape if theirs[key] != shape[key]]
        if differing:
            key = differing[0]
            raise CheckpointError(
                f"{name} is another model than {names[0]}: its {key} is {theirs[key]}, not "
                f"{shape[key]}. Only fine-tunes of one base can be merged"
            )
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise CheckpointError(
                f"{name} has another tokenizer than {names[0]}, so equal rows of their embeddings "
                "are not equal tokens. Only fine-tunes of one base can be merged"
            )


def _coefficients(
    model: Checkpoint,
    method: Method,
    weights: Sequence[float],
    inner: Mapping[str, Sequence[Sequence[float]]],
) -> dict[str, list[float]]:
    """The coefficient of each model, by layer."""
    layers = dict.fromkeys(layer_of(tensor.name) for tensor in model.weights())
    return {layer: mixing.coefficients(method, inner.get(layer, ()), weights) for layer in layers}


def _parent(name: str | Path, checkpoint: Checkpoint, role: str) -> dict[str, Any]:
    return {
        "path": str(name),
        "fingerprint": stored_fingerprint(checkpoint),
        "parameters": checkpoint.config.parameters,
        "role": role,
    }


def _manifest(
    first: Checkpoint,
    names: Sequence[str | Path],
    parents: Sequence[Mapping[str, Any]],
    method: Method,
    weights: Sequence[float],
    eta: float,
    has_base: bool,
) -> dict[str, Any]:
    shape = first.config
    settings: dict[str, Any] = {"name": "merge", "method": method, "weights": list(weights)}
    if has_base:
        settings["eta"] = eta
    return {
        "kind": "merge",
        "data": _common_data(names),
        "tokenizer": first.tokenizer.fingerprint,
        "parent": parents[0],
        "parents": list(parents),
        "model": shape.model_dump(mode="json"),
        "parameters": shape.parameters,
        "non_embedding_parameters": shape.non_embedding_parameters,
        "objective": settings,
    }


def _common_data(names: Sequence[str | Path]) -> dict[str, Any]:
    """The data that all models were trained on, if they are runs on the same."""
    manifests = [RunLayout(files.expand(name)).manifest for name in names]
    if not all(path.is_file() for path in manifests):
        return {}
    data = [Manifest.read(path).data for path in manifests]
    prints = {corpus.fingerprint for corpus in data}
    return data[0].model_dump(exclude_unset=True) if len(prints) == 1 else {}


def _result(
    first: Checkpoint,
    taken: Mapping[str, Sequence[float]],
    inner: Mapping[str, Sequence[Sequence[float]]],
    seconds: float,
) -> RunResult:
    """result.json: each layer's coefficients and, with a base, lengths and angles in degrees."""
    layers: dict[str, Any] = {}
    for layer, part in taken.items():
        layers[layer] = {"coefficients": list(part)}
        if layer in inner:
            gram = inner[layer]
            layers[layer] |= {
                "norms": [mixing.norm([float(i == m) for i in range(len(gram))], gram)
                          for m in range(len(gram))],
                "merged_norm": mixing.norm(part, gram),
                "angles": mixing.angles(gram),
            }  # fmt: skip
    values = {
        "parameters": first.config.parameters,
        "train_tokens": 0,
        "train_flops": 0,
        "seconds": round(seconds, 3),
        "layers": layers,
    }
    return RunResult.parse(values, RESULT)


def describe(result: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table: layer, lengths of the task vectors, angles, length of the merge."""
    rows = []
    for layer, values in result["layers"].items():
        if "norms" not in values:
            continue
        size = range(len(values["norms"]))
        pairs = [values["angles"][i][j] for i in size for j in size if i < j]
        rows.append(
            [
                layer,
                ", ".join(f"{norm:.3g}" for norm in values["norms"]),
                ", ".join("none" if angle is None else f"{angle:.1f}°" for angle in pairs),
                f"{values['merged_norm']:.3g}",
            ]
        )
    return rows
