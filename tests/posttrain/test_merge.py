"""Merging models on the disk."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemmule import files
from gemmule.checkpoints.checkpoint import stored_fingerprint, weights_fingerprint
from gemmule.checkpoints.hf.writer import save_model, write_companions
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.errors import CheckpointError, ConfigError, OutputError
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.merging.merge import describe, merge
from gemmule.posttrain.merging.task_vectors import layer_of
from killed import Killed, after
from models import GROUPED, random_model, tiny_config

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def config(pieces: Tokenizer) -> GemmaConfig:
    return tiny_config(GROUPED, vocab_size=pieces.vocab_size)


@pytest.fixture(scope="module")
def family(
    config: GemmaConfig, pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """A base and three fine-tunes of it."""
    folder = tmp_path_factory.mktemp("family")
    base = random_model(config, seed=1)
    save_model(base, pieces, folder / "base")
    for m in range(1, 4):
        tuned = random_model(config, seed=1)
        change = random_model(config, seed=10 + m)
        with torch.no_grad():
            for p, d in zip(tuned.parameters(), change.parameters(), strict=True):
                p.add_(0.05 * m * d)
        save_model(tuned, pieces, folder / f"m{m}")
    return [folder / "base", *(folder / f"m{m}" for m in range(1, 4))]


def state(folder: Path) -> State:
    return {name: t.double() for name, t in load_model(folder)[0].state_dict().items()}


def layers(names: Sequence[str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(layer_of(name), []).append(name)
    return grouped


def plain_slerp(base: State, a: State, b: State, part: float) -> State:
    """WARP's formula, with whole models in memory and one angle per layer."""
    result: State = {}
    for names in layers(list(base)).values():
        x, y = (torch.cat([(m[n] - base[n]).flatten() for n in names]) for m in (a, b))
        angle = torch.arccos(x @ y / x.norm() / y.norm())
        one, two = (torch.sin(p * angle) / torch.sin(angle) for p in (1 - part, part))
        result |= {n: base[n] + one * (a[n] - base[n]) + two * (b[n] - base[n]) for n in names}
    return result


def assert_close(ours: State, theirs: State) -> None:
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].float(), tensor.float()) or (
            (ours[name] - tensor).abs().max() < 1e-6 * tensor.abs().max()
        ), name


def test_slerp_of_two_and_of_three(family: list[Path], tmp_path: Path) -> None:
    base, *tuned = family
    states = [state(folder) for folder in tuned]
    expected = plain_slerp(state(base), states[0], states[1], 1 / 2)
    result = merge(tuned[:2], tmp_path / "two", base=base, method="slerp")
    assert_close(state(tmp_path / "two"), expected)
    expected = plain_slerp(state(base), expected, states[2], 1 / 3)
    merge(tuned, tmp_path / "three", base=base, method="slerp")
    assert_close(state(tmp_path / "three"), expected)
    assert list(result["layers"]) == ["embed_tokens", *(f"layers.{n}" for n in range(4)), "norm"]
    for values in result["layers"].values():
        assert 0 < values["angles"][0][1] < 180
    assert len(describe(result)) == 6


def test_average_lerp_and_the_way_from_the_base(family: list[Path], tmp_path: Path) -> None:
    base, a, b, _ = family
    start, first, second = state(base), state(a), state(b)
    merge([a, b], tmp_path / "average")
    assert_close(state(tmp_path / "average"), {n: (first[n] + second[n]) / 2 for n in start})
    merge([a, b], tmp_path / "lerp", method="lerp", weights=[1, 3])
    assert_close(state(tmp_path / "lerp"), {n: first[n] / 4 + 3 * second[n] / 4 for n in start})
    merge([a], tmp_path / "liti", base=base, method="lerp", eta=0.3)
    assert_close(state(tmp_path / "liti"), {n: 0.7 * start[n] + 0.3 * first[n] for n in start})
    for eta, whole in ((0.0, start), (1.0, first)):  # the two ends, bit for bit
        merge([a], tmp_path / f"end-{eta}", base=base, method="lerp", eta=eta)
        found = state(tmp_path / f"end-{eta}")
        assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_equal_models_merge_into_themselves_bit_for_bit(family: list[Path], tmp_path: Path) -> None:
    base, a, *_ = family
    merge([a, a, a], tmp_path / "same", base=base, method="slerp")
    assert weights_fingerprint(load_model(tmp_path / "same")[0]) == weights_fingerprint(
        load_model(a)[0]
    )


def test_norms_of_runs_of_equal_length_are_kept(
    config: GemmaConfig, pieces: Tokenizer, tmp_path: Path
) -> None:
    """Lemma 1, on models: an average of orthogonal task vectors is shorter by the root of 2."""
    base, changes = random_model(config, seed=1), [random_model(config, seed=s) for s in (2, 3)]
    save_model(base, pieces, tmp_path / "base")
    for m, change in enumerate(changes):
        tuned = random_model(config, seed=1)
        with torch.no_grad():
            for names in layers([n for n, _ in tuned.named_parameters()]).values():
                deltas = [change.get_parameter(n) for n in names]
                length = math.sqrt(sum(float((d.double() ** 2).sum()) for d in deltas))
                for name, delta in zip(names, deltas, strict=True):
                    tuned.get_parameter(name).add_(delta / length)
        save_model(tuned, pieces, tmp_path / f"m{m}")
    models = [tmp_path / "m0", tmp_path / "m1"]
    slerp = merge(models, tmp_path / "slerp", base=tmp_path / "base", method="slerp")
    lerp = merge(models, tmp_path / "lerp", base=tmp_path / "base", method="lerp")
    for layer in ("embed_tokens", "layers.0", "layers.3"):
        values = slerp["layers"][layer]
        assert values["norms"] == pytest.approx([1, 1], abs=1e-3)
        assert values["merged_norm"] == pytest.approx(1, abs=1e-3)
        assert values["angles"][0][1] == pytest.approx(90, abs=3)
        assert lerp["layers"][layer]["merged_norm"] == pytest.approx(math.sqrt(0.5), abs=0.03)


def test_the_folder_is_a_run_that_names_its_parents(family: list[Path], tmp_path: Path) -> None:
    base, a, b, _ = family
    merge([a, b], tmp_path / "out", base=base, method="slerp", eta=0.5)
    manifest = files.read_json(tmp_path / "out/manifest.json")
    assert (manifest["kind"], manifest["parent"]["path"]) == ("merge", str(a))
    assert [(p["path"], p["role"]) for p in manifest["parents"]] == [
        (str(a), "model"),
        (str(b), "model"),
        (str(base), "base"),
    ]
    for parent in manifest["parents"]:
        assert parent["fingerprint"] == weights_fingerprint(load_model(parent["path"])[0])
    assert manifest["objective"] == {
        "name": "merge", "method": "slerp", "weights": [0.5, 0.5], "eta": 0.5,
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json", "model", "result.json",
    ]  # fmt: skip


def test_a_stored_head_is_the_embedding_and_a_head_of_its_own_is_refused(
    config: GemmaConfig, pieces: Tokenizer, family: list[Path], tmp_path: Path
) -> None:
    """mergekit#611, #214, #469: merges of Gemma 2 that fail at, or drop, the tied head."""
    from safetensors.torch import load_file, save_file

    base, a, *_ = family

    def with_head(folder: Path, change: float) -> Path:
        model, tokenizer = load_model(a)
        save_model(model, tokenizer, folder)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + change
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    tied = with_head(tmp_path / "tied", 0.0)
    merge([tied, a], tmp_path / "out", base=base, method="slerp")
    assert weights_fingerprint(load_model(tmp_path / "out")[0]) == weights_fingerprint(
        load_model(a)[0]
    )
    own = with_head(tmp_path / "own", 0.5)
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        merge([own, a], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_what_transformers_loads_has_the_tied_head(family: list[Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base, a, b, _ = family
    merge([a, b], tmp_path / "out", base=base, method="slerp")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out/model", attn_implementation="eager"
    )
    ours: Gemma = load_model(tmp_path / "out")[0]
    tokens = torch.arange(260, 280)[None]
    with torch.no_grad():
        assert torch.allclose(ours(tokens), theirs(tokens).logits, atol=2e-4)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight


def test_half_precision_stays_half(
    config: GemmaConfig, pieces: Tokenizer, family: list[Path], tmp_path: Path
) -> None:
    for name, folder in zip("ab", family[1:], strict=False):
        save_model(load_model(folder)[0].bfloat16(), pieces, tmp_path / name)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.dtype == torch.bfloat16
    first, second = state(tmp_path / "a"), state(tmp_path / "b")
    for name, tensor in load_model(tmp_path / "out")[0].state_dict().items():
        mean = (first[name] + second[name]) / 2
        assert torch.equal(tensor, mean.to(torch.bfloat16)), name  # rounded once


def test_parents_that_do_not_fit(
    pieces: Tokenizer, other_pieces: Tokenizer, family: list[Path], tmp_path: Path
) -> None:
    _, a, b, _ = family
    vocab = pieces.vocab_size
    wide = tiny_config(GROUPED, vocab_size=vocab, intermediate_size=64)
    save_model(random_model(wide), pieces, tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"its intermediate_size is 64, not 48"):
        merge([a, tmp_path / "wide"], tmp_path / "out")
    capped = tiny_config(GROUPED, vocab_size=vocab, final_logit_softcapping=None)
    save_model(random_model(capped), pieces, tmp_path / "capped")
    with pytest.raises(CheckpointError, match="its final_logit_softcapping is None, not 30"):
        merge([a, b], tmp_path / "out", base=tmp_path / "capped", method="slerp")
    save_model(load_model(a)[0], other_pieces, tmp_path / "other")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        merge([a, tmp_path / "other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_that_do_not_go_together(family: list[Path], tmp_path: Path) -> None:
    base, a, b, _ = family
    out = tmp_path / "out"
    for message, make in (
        ("name the base they started from", lambda: merge([a, b], out, method="slerp")),
        ("eta = 0.3 is a part of the way", lambda: merge([a, b], out, eta=0.3)),
        ("eta is 1.5", lambda: merge([a, b], out, base=base, eta=1.5)),
        ("one model alone", lambda: merge([a], out)),
        ("one model alone", lambda: merge([a], out, base=base, method="slerp")),
        ("nothing to merge", lambda: merge([], out)),
        ("an average has equal weights", lambda: merge([a, b], out, weights=[1, 2])),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="already in use"):
        merge([a, b], out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_a_merge_that_was_killed_leaves_nothing_and_is_made_again_in_the_same_bytes(
    family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, a, b, _ = family
    merge([a, b], tmp_path / "whole", base=base, method="slerp")

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            "gemmule.posttrain.merging.merge.write_companions", after(1, write_companions)
        )
        merge([a, b], tmp_path / "out", base=base, method="slerp")
    assert not (tmp_path / "out").exists()
    merge([a, b], tmp_path / "out", base=base, method="slerp")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        ours, theirs = (tmp_path / f / "model" / name for f in ("out", "whole"))
        assert not theirs.exists() or ours.read_bytes() == theirs.read_bytes()
    angles = [json.loads((tmp_path / f / "result.json").read_text()) for f in ("out", "whole")]
    assert angles[0]["layers"] == angles[1]["layers"]


def test_a_checkpoints_fingerprint_is_that_of_its_model(family: list[Path]) -> None:
    for folder in family[:2]:
        with open_checkpoint(folder) as checkpoint:
            found = stored_fingerprint(checkpoint)
        assert found == weights_fingerprint(load_model(folder, torch.float32)[0])
