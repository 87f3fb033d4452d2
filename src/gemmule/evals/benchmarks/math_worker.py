"""Scores MATH answers as lm-eval does; a worker program for `worker_pool`."""

import importlib.util
from pathlib import Path
from typing import Any

from gemmule.evals.benchmarks import worker_pool

_NONE = "[invalidanswer]"  # what lm-eval reads from a response without a final answer


def main() -> None:
    """Replies to jobs {"metric", "gold", "response"} with true or false."""
    utils = _utils()

    def score(job: Any) -> bool:
        if job["metric"] == "exact_match":
            answer = utils.get_unnormalized_answer(job["response"])
            if answer == _NONE:  # sympy takes long to find out that it equals nothing
                return False
            return bool(utils.is_equiv(utils.normalize_final_answer(answer), job["gold"]))
        target = utils.parse(job["response"])
        return bool(utils.verify(gold=utils.parse(job["gold"]), target=target))

    worker_pool.serve(score)


def _utils() -> Any:
    """lm-eval's functions for MATH, without importing lm-eval itself, which takes seconds."""
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
