"""A gateway's outcomes where a test is about something else: nothing is logged, no endpoint is tuned."""

from pathlib import Path

from backends.tuning.files import TuningFiles
from service.pipeline.exact_tier import ExactTier
from service.pipeline.outcomes import Outcomes
from service.pipeline.tuning import Tuning
from service.telemetry.metrics import Metrics


def forgotten(exact: ExactTier, metrics: Metrics) -> Outcomes:
    tuning = Tuning(TuningFiles(path=Path("no-endpoint-is-tuned")))
    return Outcomes(exact, tuning, recorder=None, secret=b"s" * 32, retune=_nothing, metrics=metrics)


async def _nothing() -> None: ...
