import pytest

pytest.importorskip("detect_secrets")

from guardrails.detectors.detect_secrets import DetectSecretsDetector
from models.finding import Segment

AWS = "AKI" + "AQWERTYUIOPASDFGH"
STRIPE = "sk_" + "live_" + "ReTllpYQYfIZu2Jnf2lAPFjD"


@pytest.fixture(scope="module")
def detector() -> DetectSecretsDetector:
    return DetectSecretsDetector()


async def found(detector: DetectSecretsDetector, text: str) -> list[tuple[str, str]]:
    findings = await detector.detect([Segment(4, text)])
    assert all(finding.segment == 4 and finding.kind in detector.kinds for finding in findings)
    return [(finding.kind, text[finding.start : finding.end]) for finding in findings]


@pytest.mark.parametrize(
    "text",
    [
        f"key {STRIPE} there",
        f"first line\r\n🙂 {STRIPE}\n",
        f"{STRIPE} # pragma: allowlist secret",
        "x" * 3000 + " " + STRIPE + " " + "y" * 3000,
        " " * 2030 + STRIPE,
    ],
)
async def test_says_where_the_secret_is(detector: DetectSecretsDetector, text: str) -> None:
    assert ("stripe_access_key", STRIPE) in await found(detector, text)


async def test_reports_each_place_of_a_secret_once(detector: DetectSecretsDetector) -> None:
    secrets = await found(detector, f"{AWS} and {AWS}")

    assert secrets == [("aws_access_key", AWS), ("aws_access_key", AWS)]


async def test_entropy_counts_only_beside_a_keyword(detector: DetectSecretsDetector) -> None:
    value = "c3VwZXIgbG9uZyBzdHJpbmcgc2hvdWxkIGNhdXNlIGVub3VnaCBlbnRyb3B5"

    beside = await found(detector, f"the signature '{value}'")
    alone = await found(detector, f"the picture '{value}'")

    assert ("base64_high_entropy_string", value) in beside
    assert alone == []


async def test_prose_holds_nothing(detector: DetectSecretsDetector) -> None:
    assert await found(detector, "What makes a good secret? Nobody else may know it.\n" * 50) == []


def test_is_asked_aside_and_says_which_version_it_is(detector: DetectSecretsDetector) -> None:
    assert detector.inline is False
    assert detector.revision == DetectSecretsDetector().revision
