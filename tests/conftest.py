"""What every test runs under."""

from hypothesis import settings

# Shared machines stall now and then: a slow example is no failure, a slow suite is pytest-timeout's to end.
settings.register_profile("keepgate", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=5_000)
settings.load_profile("keepgate")
