"""Opens the toxicity scorer that the user chose."""

from dataclasses import dataclass

from gemmule.errors import ConfigError
from gemmule.evals.safety.classifier import Classifier
from gemmule.evals.safety.judge import Judge
from gemmule.evals.safety.verdict import ToxicityScorer


@dataclass(frozen=True)
class ScorerOptions:
    """What scores the toxicity of continuations; by default nothing does.

    Attributes:
        classifier: a folder or hub id of a sequence classifier.
        label: the classifier's label that counts; None: found by name.
        judge: a model that answers Yes or No, in place of a classifier.
    """

    classifier: str | None = None
    label: str | None = None
    judge: str | None = None


def open_scorer(options: ScorerOptions) -> ToxicityScorer | None:
    """Loads the scorer, if one is chosen.

    Raises:
        UserError: if it cannot be used, or both a classifier and a judge are named.
    """
    classifier, label, judge = options.classifier, options.label, options.judge
    if classifier is not None and judge is not None:
        raise ConfigError("a toxicity classifier and a judge: name one of the two")
    if label is not None and classifier is None:
        raise ConfigError("a toxicity label belongs to a classifier: name one too")
    if classifier is not None:
        return Classifier(classifier, label)
    return Judge(judge) if judge is not None else None
