"""Plausible run and quickstart directories, from random curves; used by the report's tests."""

import json

import numpy as np

MODEL = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": None,
    "sliding_window": 128,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
}


def dump(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def make_run(
    folder, *, kind="train", final=3.96, tokens=500_000, parameters=1_524_096, seed=1, **more
):
    """One finished run; returns its result.json."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    wh, data = more.get("wh", 12.345), more.get("data", "Python standard library")
    flops = more.get("flops_per_token", 1.1e7) * tokens
    manifest = {
        "gemmule": "0.1.0",
        "kind": kind,
        "created": "2026-11-23T10:00:00+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "machine": {"processor": "Example CPU", "cores": 2, "hostname": "secret-host"},
        "seed": seed,
        "data": {
            "name": data,
            "licence": "PSF-2.0",
            "fingerprint": "ab" * 32,
            "documents": 1234,
            "train_tokens": 3_400_000,
        },
        "tokenizer": "cd" * 32,
        "parent": {
            "path": "/home/somebody/teacher",
            "fingerprint": "ef" * 32,
            "parameters": 6_950_000,
        }
        if kind == "distill"
        else None,
        "model": MODEL,
        "parameters": parameters,
        "non_embedding_parameters": parameters - 4096 * 128,
        "objective": {"temperature": 1.0, "alpha": 1.0} if kind == "distill" else {"loss": "next"},
    }
    dump(folder / "manifest.json", manifest)
    (folder / "config.toml").write_text(
        'seed = 1\n[train]\nbatch_size = 16\nlearning_rate = 0.02\ndata = "/home/somebody/data"\n'
    )
    lines = []
    steps = 120
    for step in range(1, steps + 1):
        at = int(tokens * step / steps)
        mean = final + (8.3 - final) * np.exp(-4.5 * step / steps)
        noise = random.normal(0, 0.07)
        lines.append(
            {
                "step": step,
                "tokens": at,
                "seconds": step * 0.5,
                "loss": float(mean + noise - 0.05),
                "learning_rate": 0.02,
                "gradient_norm": 1.0,
                "tokens_per_second": 10000.0,
            }
        )
        if step % 10 == 0:
            nats = float(mean + random.normal(0, 0.01))
            lines.append(
                {
                    "step": step,
                    "tokens": at,
                    "split": "validation",
                    "nats_per_token": nats,
                    "perplexity": float(np.exp(nats)),
                    "bits_per_byte": nats / 3.1 / np.log(2),
                }
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "split": "heldout",
        "nats_per_token": final + 0.001234,
        "perplexity": float(np.exp(final)),
        "bits_per_byte": float(final / 3.1 / np.log(2)),
        "heldout_tokens": 171_234,
        "parameters": parameters,
        "train_tokens": tokens,
        "train_flops": flops,
        "seconds": 95.4,
        "energy_wh": wh,
        "gco2e": None if wh is None else wh * 0.475,
        "seed": seed,
    }
    dump(folder / "result.json", result)
    carbon = {
        "energy_wh": wh,
        "gco2e": None if wh is None else wh * 0.475,
        "seconds": 95.4,
        "grid_gco2e_per_kwh": 475.0,
        "country": None,
        "how": {
            "cpu": "modelled from TDP (TDP x (0.1 + 0.9 load^3); TDP 8 W assumed): no counter",
            "memory": "modelled: a constant 20 W, from its size",
            "gpu": "none found",
            "grid": "world average, 475 gCO2e/kWh: no country was given",
        },
        "tool": "codecarbon 3.3.2",
        "sessions": 1,
    }
    dump(folder / "carbon.json", carbon)
    return result


SAMPLES = [
    {
        "prompt": "def read_lines(path):\n",
        "scratch": "    return self._set(path)\n\n    def _set(self):\n        self.path = path\n",
        "distilled": "    with open(path) as f:\n        for line in f:\n            yield line\n",
        "teacher": "    with open(path, 'rb') as f:\n        return f.readlines()\n",
    },
    {
        "prompt": "This module provides",
        "scratch": " a the string of the string is a string and the object.",
        "distilled": " a class for the given object, and the function returns a file.",
        "teacher": " functions to read and write files in the format used by the interpreter.",
    },
]


def make_scarce_text(root, scratch, distilled):
    """The third comparison of a quickstart, with runs in scarce_text/; returns its entry."""

    def at_best(name, loss, epochs, **more):
        result = make_run(root / "scarce_text" / name, final=loss, tokens=60_000 * 8, **more)
        return {**result, "epochs": epochs, "schedule_epochs": 8}

    return {
        "text": {"tokens": 60_000, "bytes": 200_000},
        "scratch": at_best("scratch-8", scratch, 5, wh=3.0),
        "distilled": at_best("distilled-8", distilled, 8, kind="distill", wh=4.0),
        "tried": {"scratch": [{"schedule_epochs": 8}], "distilled": [{"schedule_epochs": 8}]},
        "recording": {"flops": 5.4e11, "seconds": 4.0, "energy_wh": 0.5, "gco2e": 0.2},
        "students_of_teacher": 2,
    }


def make_quickstart(root, *, samples=SAMPLES, distilled=3.75, more=3.61, scarce=None, **options):
    """A finished quickstart; returns its comparison.json. `scarce`: losses of the third pair."""
    teacher = make_run(
        root / "teacher",
        final=3.29,
        tokens=1_200_000,
        parameters=6_950_000,
        seed=7,
        wh=41.2,
        flops_per_token=4.5e7,
        **options,
    )
    scratch = make_run(root / "scratch", final=3.96, seed=8, **options)
    student = make_run(
        root / "student",
        kind="distill",
        final=distilled,
        seed=8,
        flops_per_token=2.6e7,
        wh=24.9,
        **options,
    )
    longer = make_run(
        root / "scratch_equal_compute", final=more, tokens=1_180_000, seed=8, wh=24.5, **options
    )
    comparison = {
        "equal_tokens": {"scratch": scratch, "distilled": student},
        "equal_compute": {"scratch": longer, "distilled": student},
        "heldout": {
            "name": "Python standard library, held out",
            "documents": 61,
            "tokens": 171_234,
            "bytes": 530_100,
        },
        "teacher": teacher,
        "seed": 8,
    }
    if scarce is not None:
        comparison["scarce_text"] = make_scarce_text(root, *scarce)
    dump(root / "comparison.json", comparison)
    dump(root / "samples.json", samples)
    return comparison
