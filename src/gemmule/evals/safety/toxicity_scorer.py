"""Opens whoever the user wants to say how toxic a continuation is."""

from gemmule.errors import ConfigError
from gemmule.evals.safety.classifier import Classifier
from gemmule.evals.safety.judge import Judge
from gemmule.evals.safety.verdict import Scorer


def open_scorer(classifier: str | None, label: str | None, judge: str | None) -> Scorer | None:
    """The scorer, if one is named.

    Args:
        classifier: a folder or hub id of a sequence classifier.
        label: of the classifier; None: found by name.
        judge: a model that answers Yes or No.

    Raises:
        UserError: when it cannot be used, or two are named.
    """
    if classifier is not None and judge is not None:
        raise ConfigError("a toxicity classifier and a judge: name one of the two")
    if label is not None and classifier is None:
        raise ConfigError("a toxicity label belongs to a classifier: name one too")
    if classifier is not None:
        return Classifier(classifier, label)
    return Judge(judge) if judge is not None else None
