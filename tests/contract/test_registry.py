"""Every implementation the registry knows is run by a contract suite.

A suite says what it runs over in its module's `SUITE`: names by seam. Its
fixture takes its parameters from there, so the claim cannot be empty.
"""

from importlib import import_module
from pathlib import Path

import pytest

from backends.registry import BUILT_IN, create, names
from models.errors import ConfigError


def _claimed(seam: str) -> set[str]:
    modules = sorted(Path(__file__).parent.glob("test_*.py"))
    suites = [getattr(import_module(f"tests.contract.{module.stem}"), "SUITE", {}) for module in modules]
    return {name for suite in suites for name in suite.get(seam, ())}


@pytest.mark.parametrize("seam", sorted(BUILT_IN))
def test_every_implementation_has_a_contract_suite(seam: str) -> None:
    missing = set(BUILT_IN[seam]) - _claimed(seam)

    assert not missing, f"no module in tests/contract has these in its SUITE: {seam} {sorted(missing)}"


@pytest.mark.parametrize("seam", sorted(BUILT_IN))
def test_no_suite_claims_what_does_not_exist(seam: str) -> None:
    assert _claimed(seam) <= names(seam)


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"'papyrus'; known: lmdb, memory, redis"):
        create("exact", "papyrus")
