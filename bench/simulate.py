"""Memory and communication of Gemma 2 on 1 to 6,144 ranks: the real `shard()` next to formulas.

The ranks are simulated (plan/cluster/simulation.py), so nothing is measured: the figures are
counts, the same on every machine. Each model goes through training steps on fake tensors.

--write puts the tables into docs/scaling.md, between its markers, from the file that --json names.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import harness
from gemmule.files import write_text
from gemmule.model.config import preset
from gemmule.plan.cluster import efficiency
from gemmule.plan.cluster.choice import estimate, usable_bytes
from gemmule.plan.cluster.devices import Cluster
from gemmule.plan.cluster.layout import Layout
from gemmule.plan.cluster.memory import STATE_BYTES
from gemmule.plan.cluster.published import published_runs
from gemmule.plan.cluster.shapes import Shape
from gemmule.plan.cluster.simulation import fake_ranks, planned, simulate
from gemmule.train.sharding import data_mesh

PAGE = Path(__file__).parents[1] / "docs/scaling.md"
MODELS = ("2b", "9b", "27b")
# Ranks, and how many share the weights.
GRIDS = ((1, 1), (8, 8), (64, 64), (512, 512), (512, 64), (4096, 4096), (6144, 6144), (6144, 64))
SEQ_LEN, GB = 8192, 1e9


def layout_of(ranks: int, shards: int, **settings: Any) -> Layout:
    """FSDP, or HSDP where fewer ranks share the weights, as `gemmule train` does it."""
    return Layout(shards=shards, replicas=ranks // shards, root_bytes=4.0, **settings)


def row(name: str, ranks: int, shards: int) -> dict[str, Any]:
    """One model on one grid: simulated and by formula."""
    config, began = preset(name), time.perf_counter()
    with fake_ranks(ranks) as world:
        mesh = None if ranks == 1 else data_mesh(world, shards, "cpu")
        simulated = simulate(config, mesh)
    formula = planned(Shape.of_gemma(name, config), layout_of(ranks, shards))
    return {
        "model": name, "ranks": ranks, "shards": shards,
        "simulated": dataclasses.asdict(simulated), "formula": dataclasses.asdict(formula),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def kept(figures: dict[str, float]) -> float:
    """Bytes that a rank keeps between steps."""
    return sum(figures[name] for name in ("parameters", "gradients", "states"))


def collectives(figures: dict[str, float]) -> float:
    """Number of collectives in a pass."""
    return sum(figures[name] for name in ("gathers", "scatters", "reductions"))


def ring_bytes(figures: dict[str, float], ranks: int, shards: int) -> float:
    """Bytes that a rank receives in a pass, its collectives being rings."""
    groups = ranks // shards
    whole = figures["gathered"] + figures["scattered"]
    return whole * (shards - 1) / shards + 2 * figures["reduced"] * (groups - 1) / groups


def counts_table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table of counts."""
    lines = [
        "| model | ranks | layout | kept GiB | simulated | collectives | simulated | GB received | "
        "simulated |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        ranks, shards = r["ranks"], r["shards"]
        layout = "one process" if ranks == 1 else f"FSDP {shards}"
        if ranks > shards:
            layout = f"HSDP {ranks // shards} x {shards}"
        both = (r["formula"], r["simulated"])
        cells = [f"{kept(figures) / 2**30:,.3f}" for figures in both]
        cells += [f"{collectives(figures):,.0f}" for figures in both]
        cells += [f"{ring_bytes(figures, ranks, shards) / GB:,.2f}" for figures in both]
        lines.append(f"| {r['model']} | {ranks:,} | {layout} | {' | '.join(cells)} |")
    return lines


def planned_table() -> list[str]:
    """Lines of the table of what the planner makes of it on H100s, a sequence per rank."""
    lines = [
        "| model | H100s | layout | peak GiB | fits | tokens/s per device | waiting for others |",
        "| --- | ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for name in MODELS:
        shape = Shape.of_gemma(name, preset(name))
        for ranks, shards in GRIDS:
            cluster = Cluster.parse(f"h100x{ranks}")
            layout = layout_of(ranks, shards, recompute="full")
            one = estimate(shape, cluster, layout, SEQ_LEN)
            waiting = (one.seconds["communication"] + one.seconds["idle"]) / one.seconds["step"]
            gib = one.peak_bytes / 2**30
            text = layout.text.partition(",")[0] if ranks > 1 else "one process"
            fits = "yes" if one.peak_bytes <= usable_bytes(cluster) else "no"
            lines.append(
                f"| {name} | {ranks:,} | {text} | {gib:,.1f} | {fits} | {one.tokens:,.0f} | "
                f"{waiting:.1%} |"
            )
    return lines


def published_table() -> list[str]:
    """Lines of the table of published pairs of runs that differ in the number of devices alone."""
    lines = [
        "| run | devices | kept, freed by more ranks: GiB | by formula | speed kept | by formula |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    runs = [run for run in published_runs() if run.memory_gib is not None]
    fit = efficiency.fitted()
    for few in runs:
        for many in runs:
            same = (few.name, few.cluster.key, few.stack) == (
                many.name, many.cluster.key, many.stack,
            )  # fmt: skip
            if not same or few.cluster.count >= many.cluster.count:
                continue
            freed = [
                STATE_BYTES * (few.shape.parameters / run.layout.shards) / 2**30
                for run in (few, many)
            ]
            published = (few.memory_gib or 0) - (many.memory_gib or 0)
            speed = [efficiency.predicted_tokens(fit, run) for run in (few, many)]
            lines.append(
                f"| {few.name} | {few.cluster} to {many.cluster} | {published:.1f} | "
                f"{freed[0] - freed[1]:.1f} | {many.tokens / few.tokens:.1%} | "
                f"{speed[1] / speed[0]:.1%} |"
            )
    return lines


def main() -> None:
    """Simulates, or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="figures, written or read")
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    args = parser.parse_args()
    if not args.write:
        rows = []
        for name in MODELS:
            for ranks, shards in GRIDS:
                rows.append(row(name, ranks, shards))
                print(json.dumps(rows[-1]), flush=True)
                write_text(args.json, json.dumps({"rows": rows}, indent=1) + "\n")
        return
    rows = json.loads(args.json.read_text(encoding="utf-8"))["rows"]
    tables = {
        "counts": counts_table(rows), "planned": planned_table(), "published": published_table(),
    }  # fmt: skip
    harness.write_tables(PAGE, tables)


if __name__ == "__main__":
    main()
