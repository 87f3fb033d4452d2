"""The use of served models, for their ledgers: requests by model, and idle time in equal parts."""

from gemmule.runs.emissions.settings import load_footprint
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.ledger.compose import Share
from gemmule.serve.served_models import ServedModels


def note_use(models: ServedModels) -> None:
    """Notes which part of the server's activity belongs to which model.

    The meter of the activity runs longer than that of requests, by the time that models took to be
    loaded: this counts as idle.
    """
    totals, used = models.observation.energy.totals(), models.observation.energy.by_model()
    if totals.requests is None or totals.idle is None:
        return
    idle = totals.idle / len(models.sources)
    total = totals.idle + sum(about.joules for about in used.values())
    if not total:
        return
    pue = load_footprint().pue or 1.0  # joules of requests contain it, those of lines do not
    shares = {}
    for source in models.sources:
        about = used.get(source.name)
        joules = about.joules if about is not None else 0.0
        if source.place is not None:
            shares[source.place] = Share(
                fraction=(joules + idle) / total,
                tokens_in=about.tokens_in if about is not None else 0,
                tokens_out=about.tokens_out if about is not None else 0,
                request_joules=joules / pue,
            )
    if shares:
        ledger.note(shares=shares)
