"""Whether `gemmule plan --cluster` would have predicted the runs that others have published.

Every published run (src/gemmule/plan/cluster/published.toml) is predicted by a fit that has not
seen it: leaving out the run alone, and leaving out all runs of the same page. Arithmetic only, so
the figures are the same on every machine; nothing is measured.

--write puts the tables into docs/plan-cluster.md, between its markers. A test compares that page
with what the planner says now.
"""

import argparse
import json
from pathlib import Path

import harness
from gemmule.files import write_text
from gemmule.plan.cluster import validation

PAGE = Path(__file__).parents[1] / "docs/plan-cluster.md"


def main() -> None:
    """Prints the tables, or writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    rows = validation.checks()
    tables = {
        "devices": validation.device_table(),
        "summary": validation.summary_table(rows),
        "runs": validation.speed_table(rows),
        "gemma-2": validation.gemma_2_table(),
    }
    for lines in tables.values():
        print(*lines, "", sep="\n")
    if args.json is not None:
        figures = {"summary": validation.summary(rows), "gemma_2": validation.gemma_2()}
        write_text(args.json, json.dumps(figures, indent=1) + "\n")
    if args.write:
        harness.write_tables(PAGE, tables)


if __name__ == "__main__":
    main()
