"""Predictions of the scaling law, fitted to measured runs, for a teacher and a student."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmule.data.dataset import Dataset
from gemmule.model.config import GemmaConfig
from gemmule.plan import scaling
from gemmule.plan.calibrate import Measurement
from gemmule.plan.measured_runs import MeasuredRun, held_out_loss
from gemmule.plan.models import Planned
from gemmule.plan.routes import Route
from gemmule.plan.scaling import Floats, Interval, LawPoint
from gemmule.plan.settings import TOKENS_PER_PARAMETER, PlanRequest

SOURCE = "Busbridge et al., Distillation Scaling Laws, arXiv 2502.08606"
DECISIVE = 0.9  # probability from which the plan takes a side


class Law:
    """Predictions for one plan.

    Args:
        request: the plan.
        teacher, student: the models.
        measured: the teacher's calibration; None if there is none.
        dataset: the corpus.
        runs: measured runs.
    """

    def __init__(
        self,
        request: PlanRequest,
        teacher: Planned,
        student: Planned,
        measured: Measurement | None,
        dataset: Dataset | None,
        runs: Sequence[MeasuredRun],
    ) -> None:
        self.request, self.teacher, self.student, self.runs = request, teacher, student, runs
        self.vocab_size = student.config.vocab_size
        self.draws = scaling.posterior_draws([(run.point, run.loss) for run in runs])
        self.teacher_tokens = float(
            request.teacher_tokens or TOKENS_PER_PARAMETER * teacher.config.non_embedding_parameters
        )
        self.teacher_loss, self.teacher_how = self._teacher_loss(measured, dataset)

    def predict(self, routes: Sequence[Route]) -> dict[str, Any]:
        """JSON-able: the teacher's loss, the measured runs, and the comparisons."""
        by_name = {route.name: route for route in routes}
        distilled = by_name["online"].tokens
        comparisons = {
            "equal_tokens": by_name["scratch"].tokens,
            "equal_compute_online": by_name["scratch_equal_online"].tokens,
            "equal_compute_stored": by_name["scratch_equal_stored"].tokens,
        }
        if self.teacher.path is None:  # it has to be trained first
            flops = by_name["online"].flops + self._training_flops(by_name) / self.request.students
            per_token = by_name["scratch"].flops / by_name["scratch"].tokens
            comparisons["equal_compute_with_teacher"] = flops / per_token
        compared = {name: self._compare(tokens, distilled) for name, tokens in comparisons.items()}
        return {
            "source": SOURCE,
            "basis": self._basis(),
            "teacher_loss": {
                **scaling.interval(self._losses()).to_json(), "how": self.teacher_how,
            },
            "runs": [self._run(run) for run in self.runs],
            **compared,
            "verdict": self._verdict(compared["equal_compute_online"]),
        }  # fmt: skip

    def losses_of(self, config: GemmaConfig, tokens: float, *, distilled: bool) -> Floats:
        """Losses of a run, one per sample of the law, without a run's own deviation."""
        teacher = self.teacher_loss if distilled else None
        point = LawPoint(config.non_embedding_parameters, tokens, teacher)
        return np.minimum(scaling.loss(self.draws, point), np.log(self.vocab_size))

    def _teacher_loss(
        self, measured: Measurement | None, dataset: Dataset | None
    ) -> tuple[float | Floats, str]:
        if self.teacher.path is not None:
            held_out = held_out_loss(self.teacher.path, dataset.fingerprint if dataset else None)
            if held_out is not None:
                return held_out, "its run's held-out loss"
            if measured is not None and measured.get("nats_per_token") is not None:
                return float(measured["nats_per_token"]), (
                    f"measured on {measured['tokens']:,} validation tokens"
                )
        point = LawPoint(self.teacher.config.non_embedding_parameters, self.teacher_tokens)
        law = np.minimum(scaling.loss(self.draws, point), np.log(self.vocab_size))
        return law, f"predicted for {self.teacher_tokens:,.0f} tokens of training"

    def _losses(self) -> Floats:
        return np.broadcast_to(np.asarray(self.teacher_loss, np.float64), (len(self.draws),))

    def _training_flops(self, by_name: dict[str, Route]) -> float:
        recorded = by_name["record"]
        return 3 * recorded.flops / recorded.tokens * self.teacher_tokens

    def _compare(self, scratch_tokens: float, distilled_tokens: float) -> dict[str, Any]:
        size = self.student.config.non_embedding_parameters
        result = scaling.compare(
            self.draws,
            LawPoint(size, scratch_tokens),
            LawPoint(size, distilled_tokens, self.teacher_loss),
            self.vocab_size,
        )
        return {
            "scratch_tokens": round(scratch_tokens),
            "distilled_tokens": round(distilled_tokens),
            "scratch": result.scratch.to_json(),
            "distilled": result.distilled.to_json(),
            "gap": result.gap.to_json(),
            "probability": round(result.probability, 3),
        }

    def _run(self, run: MeasuredRun) -> dict[str, Any]:
        predicted: Interval = scaling.interval(
            scaling.predict(self.draws, run.point, self.vocab_size)
        )
        return {
            "name": run.name, "parameters": run.point.parameters, "tokens": run.point.tokens,
            "teacher_loss": run.point.teacher_loss, "loss": run.loss, "law": predicted.to_json(),
        }  # fmt: skip

    def _basis(self) -> str:
        if not self.runs:
            return (
                "the published law alone, with wide priors: it was fitted to 143M parameters and "
                "more on another text and tokenizer, and is unreliable for small models; measured "
                "runs (--runs) correct it"
            )
        distilled = sum(run.point.teacher_loss is not None for run in self.runs)
        return (
            f"the published law, corrected by {len(self.runs)} runs, {distilled} of them distilled"
        )

    def _verdict(self, compared: dict[str, Any]) -> str:
        p = compared["probability"]
        side = (
            "distilling should beat plain training" if p >= DECISIVE
            else "plain training should beat distilling" if p <= 1 - DECISIVE
            else "the law cannot tell whether distilling beats plain training"
        )  # fmt: skip
        alone = "" if self.runs else "; from the published law alone, so do not rely on it"
        return f"at equal compute {side} (probability {p:.2f}{alone})"
