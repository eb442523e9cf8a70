"""How many examples Hypothesis tries."""

from hypothesis import settings

_EVERY_DAY = 100


def examples(number: int) -> int:
    """`number` in `make test-full`, and no more than a hundred in the run that somebody waits for."""
    return min(number, _EVERY_DAY) if settings.get_current_profile_name() == "keepgate" else number
