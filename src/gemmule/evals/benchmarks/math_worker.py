"""Marks MATH answers as lm-eval does; a program, see `killable`."""

import importlib.util
from pathlib import Path
from typing import Any

from gemmule.evals.benchmarks import worker_pool

_NONE = "[invalidanswer]"  # lm-eval's word for a response without a final answer


def main() -> None:
    """Answers jobs {"metric", "gold", "response"} with true or false."""
    utils = _utils()

    def mark(job: Any) -> bool:
        if job["metric"] == "exact_match":
            found = utils.get_unnormalized_answer(job["response"])
            if found == _NONE:  # which sympy would take its time to find equal to nothing
                return False
            return bool(utils.is_equiv(utils.normalize_final_answer(found), job["gold"]))
        target = utils.parse(job["response"])
        return bool(utils.verify(gold=utils.parse(job["gold"]), target=target))

    worker_pool.serve(mark)


def _utils() -> Any:
    """lm-eval's functions for MATH, without the package around them, which takes seconds."""
    package = importlib.util.find_spec("lm_eval")
    assert package and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "tasks/minerva_math/utils.py"
    spec = importlib.util.spec_from_file_location("minerva_math_utils", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
