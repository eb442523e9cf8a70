"""What was found out about an endpoint, and what was said of it at run time: the forms in which both are kept."""

import msgspec

from service.caching.certificate import Certificate, Curve, Shortfall
from service.caching.fit import Fit

# Names under which an endpoint's parts lie in the store of tuning.
TUNED, OVERRIDE, WATCH = "tuned", "override", "watch"


class Tuned(msgspec.Struct, frozen=True):
    """What `keepgate tune` found: the endpoint's own score, what it is expected to do at each cut, and the certificate
    or what is missing for one. `misjudged` is the share of pairs with one answer, by people or a judge, that comparing
    answers automatically calls different: an upstream that words each answer anew has a large one."""

    endpoint: str
    fit: Fit
    curve: Curve
    certificate: Certificate | None = None
    shortfall: Shortfall | None = None
    misjudged: float = 0.0

    def __post_init__(self) -> None:
        """Raises `ValueError` for what contradicts itself: it may come from a file."""
        if not self.curve.cuts or len(self.curve.cuts) != len(self.curve.wrong):
            raise ValueError("the curve is none")
        if self.certificate is not None and self.certificate.cut not in self.curve.cuts:
            raise ValueError("the certificate is not about this curve")


class Override(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the management API put in the place of an endpoint's settings; None leaves the file's. At most one of
    `threshold` and `max_wrong_hit_rate`: it takes the place of either."""

    threshold: float | None = None
    max_wrong_hit_rate: float | None = None
    audit_rate: float | None = None
    changed_at: float = 0.0


def refusal(tuned: Tuned, *, embedder: str, verifier: str, limit: float) -> str:
    """Why a certificate does not hold here, in a word or two; "" where it does."""
    certificate = tuned.certificate
    if certificate is None:
        return "not certified"
    if not certificate.certifies:
        return "labelled automatically: it only informs"
    if certificate.origin.embedder != embedder:
        return "certified for another embedder"
    if certificate.origin.verifier != verifier:
        return "certified for another verifier"
    if certificate.limit > limit:
        return f"certified for {certificate.limit:g}, the limit is {limit:g}"
    return ""
