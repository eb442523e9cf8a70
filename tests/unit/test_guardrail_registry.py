"""Names, kinds and third parties. The detectors themselves have tests of their own."""

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails import registry
from guardrails.base import Detector
from guardrails.detectors import hidden_text, pii
from guardrails.registry import CannotBuild, Meaning, built, class_of, meaning, names, secret_kinds, words
from models.errors import ConfigError

PLUGIN = """
class Shouting:
    name = "shouting"
    kinds = frozenset({"shouting"})
    revision = "1"
    reach = 0
    inline = True

    def __init__(self, least=3, *, key=""):
        if key == "broken":
            raise RuntimeError(f"{key} is refused")
        self.least = least

    async def detect(self, segments):
        return []


def nothing():
    return object()
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "shouting_plugin.py").write_text(PLUGIN)
    package = tmp_path / "shouting-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[keepgate.detectors]\n"
        "shouting = shouting_plugin:Shouting\n"
        "nothing = shouting_plugin:nothing\n"
        "gone = no_such_module:Detector\n"
        "two words = shouting_plugin:Shouting\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("shouting_plugin", None)


def test_knows_the_detectors_it_comes_with() -> None:
    assert names() >= {
        "secrets",
        "pii",
        "regex",
        "hidden_text",
        "prompt_injection",
        "presidio",
        "detect_secrets",
    }


def test_the_kinds_it_lists_are_those_that_are_found() -> None:
    assert registry.KINDS["pii"] == pii.PiiDetector().kinds
    assert registry.KINDS["hidden_text"] == hidden_text.HiddenTextDetector.kinds


def test_the_kinds_of_secrets_are_those_of_the_shipped_rules() -> None:
    assert secret_kinds() == built("secrets").kinds


def test_a_word_means_one_thing() -> None:
    several = [*names(), *registry.KINDS["pii"], *registry.KINDS["hidden_text"], *secret_kinds()]

    assert len(several) == len(words())


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("secrets", Meaning("secrets")),
        ("email", Meaning("pii", frozenset({"email"}))),
        ("zero_width", Meaning("hidden_text", frozenset({"zero_width"}))),
        ("aws_access_key", Meaning("secrets", frozenset({"aws_access_key"}))),
        ("prompt_injection", Meaning("prompt_injection")),
        ("emial", None),
        ("", None),
    ],
)
def test_a_word_is_a_detector_or_one_of_its_kinds(word: str, meant: Meaning | None) -> None:
    assert meaning(word) == meant


def test_kinds_of_another_file_of_rules_take_the_place_of_the_shipped_ones() -> None:
    assert meaning("acme_token", secrets={"acme_token"}) == Meaning("secrets", frozenset({"acme_token"}))
    assert meaning("aws_access_key", secrets={"acme_token"}) is None


def test_detectors_with_equal_options_are_one() -> None:
    first = built("regex", pattern="PROJ-[0-9]{4}", group=0)

    assert built("regex", group=0, pattern="PROJ-[0-9]{4}") is first
    assert built("regex", pattern="PROJ-[0-9]{5}", group=0) is not first
    assert built("secrets") is built("secrets", rules=None, allow=())


def test_a_detector_nobody_has_is_not_kept() -> None:
    detector = weakref.ref(built("hidden_text"))

    gc.collect()

    assert detector() is None


def test_a_changed_file_of_rules_is_another_detector(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rules]]\nid = "acme"\nregex = "acme_[a-z]{8}"\n')
    first: Detector = built("secrets", rules=file)
    file.write_text('[[rules]]\nid = "acme"\nregex = "acme_[a-z]{9}"\n')

    second = built("secrets", rules=file)

    assert second.revision != first.revision
    assert built("secrets", rules=file) is second


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[rules]]\nid = "a"\nregex = "a("\n', "HERE:1: rule 'a': regex: missing ): a("),
        (
            '[[rules]]\nid = "b"\nregex = "b+"\n\n[[rules]]\nid = "c"\nregex = "c*"\n',
            "HERE:6: rule 'c': it matches the",
        ),
        ("[[rules]\n", "HERE: "),
    ],
)
def test_a_file_of_rules_with_an_error_is_refused_with_line_and_reason(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)

    with pytest.raises(CannotBuild) as refused:
        built("secrets", rules=file)

    assert refused.value.option == "rules"
    assert str(refused.value).replace(str(file), "HERE").startswith(problem)


def test_a_pattern_that_cannot_be_used_is_refused_with_its_reason() -> None:
    with pytest.raises(CannotBuild, match="look-around is not supported") as refused:
        built("regex", pattern="(?=a)b")

    assert refused.value.option == "pattern"


def test_a_name_nobody_registered_is_refused() -> None:
    with pytest.raises(ConfigError, match="no detector is named 'sercets'; known: detect_secrets, "):
        built("sercets")


@pytest.mark.usefixtures("third_party")
def test_third_parties_add_a_name_with_an_entry_point() -> None:
    detector = built("shouting", least=5)

    assert meaning("shouting") == Meaning("shouting")
    assert (detector.name, detector.least) == ("shouting", 5)  # type: ignore[attr-defined]  # not of the protocol
    assert built("shouting", least=5) is detector


@pytest.mark.usefixtures("third_party")
def test_a_name_that_cannot_stand_in_a_header_is_no_word() -> None:
    assert meaning("two words") is None


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("shouting", {"most": 3}, "got an unexpected keyword argument 'most'"),
        ("shouting", {"key": "broken"}, "shouting cannot be built: RuntimeError"),
        ("nothing", {}, "nothing is no detector: its 'name' is missing or of another type"),
        ("gone", {}, "gone cannot be imported: no_such_module"),
    ],
)
def test_what_third_parties_get_wrong_is_refused_without_the_value_of_an_option(
    name: str, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        built(name, **options)

    assert str(refused.value) == problem


def test_what_is_known_of_a_detector_is_known_without_building_it() -> None:
    assert class_of("presidio").inline is False
    assert class_of("presidio").reach is None
