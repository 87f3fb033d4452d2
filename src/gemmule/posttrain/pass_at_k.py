"""pass@k: the probability that one of k samples of a problem is right.

The estimator is the unbiased one of Chen et al. (2021, "Evaluating Large Language Models Trained on
Code", equation 1): from n samples of a problem of which c are right, 1 - C(n-c, k) / C(n, k).
"""

import math
from collections.abc import Sequence

from gemmule.stats import Estimate, mean, paired


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate for one problem.

    Args:
        n: number of samples.
        correct: number of right ones.
        k: number of attempts, at most n.

    Raises:
        ValueError: unless 0 <= correct <= n and 1 <= k <= n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {correct} right among {n} samples is not defined")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def estimate(correct: Sequence[int], n: int, k: int) -> Estimate:
    """pass@k of a set of problems, with a 95% interval over problems.

    Args:
        correct: number of right samples of each problem.
        n: number of samples of each problem.
        k: number of attempts.

    Raises:
        ValueError: without problems, or as for `pass_at_k`.
    """
    return mean([pass_at_k(n, c, k) for c in correct])


def difference(after: Sequence[int], before: Sequence[int], n: int, k: int) -> Estimate:
    """How much pass@k differs between two models, paired by problem, with a 95% interval.

    Args:
        after: number of right samples of each problem, by the model of interest.
        before: the same by the model that it is compared with, of the same problems in order.
        n: number of samples of each problem, for both.
        k: number of attempts.

    Raises:
        ValueError: if the lengths differ, without problems, or as for `pass_at_k`.
    """
    return paired([pass_at_k(n, c, k) for c in after], [pass_at_k(n, c, k) for c in before])
