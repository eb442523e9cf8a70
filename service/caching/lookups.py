"""What semantic look-ups came to, as an endpoint's log keeps it: rows to learn from, without texts.

A row is a label where it has an outcome: on a miss the upstream's fresh answer
was compared with what the nearest entry would have said, on an audited hit
with what it did say. Verdicts come later, from people or a judge model, and
outweigh both.

All endpoints share the file `LOG` in `storage.path`, JSON Lines of `Row`;
the writer renames it to `OLDER` when it has grown, and begins anew.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

import msgspec

from service.caching.agreement import Agreement
from service.caching.certificate import Label, Labeller

LOG, OLDER = "lookups.jsonl", "lookups.1.jsonl"

Outcome = Literal["", "same", "different"]


class Lookup(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="lookup", tag_field="kind"):
    """A look-up that had a candidate: the one that decided, or would have. That is the first of ten that nothing
    vetoes, whatever rule decides now: a certificate is about what an endpoint's own fit would be told.

    `time` in seconds since the epoch. `asked` stands for the question and
    where it was asked, `entry` is the candidate's id. `cosine` in [-1, 1],
    `chance` the verifier's P. `served`: it was a hit. `why` is the reason for the
    decision, as in `Cache-Status`. `outcome` compares the candidate's answer
    with a fresh one; "" where there was none. The texts are there only where
    the endpoint allows it.
    """

    time: float
    endpoint: str
    request_id: str
    asked: str
    entry: str
    cosine: float
    embedder: str
    verifier: str = ""
    chance: float | None = None
    agreement: Agreement | None = None
    served: bool = False
    why: str = ""
    outcome: Outcome = ""
    by: Labeller = "automatic"
    question: str = ""
    stored: str = ""  # the candidate's question
    fresh: str = ""  # the upstream's answer
    kept: str = ""  # the candidate's answer


class Verdict(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="verdict", tag_field="kind"):
    """What somebody said later of the look-up with these `asked` and `entry`. A report that names no request has no
    `asked`: it is about the entry as such. One that is `undone` takes back what the same kind of labeller said of the
    pair before."""

    time: float
    endpoint: str
    entry: str
    wrong: bool
    by: Labeller
    asked: str = ""
    request_id: str = ""
    undone: bool = False


Row = Lookup | Verdict

encoded = msgspec.json.Encoder().encode
decoded = msgspec.json.Decoder(Row).decode


def asked_as(namespace: str, question: str, *, secret: bytes) -> str:
    """32 hex digits that stand for a question in its namespace: keyed, so that nobody can try texts out on them."""
    text = f"{namespace}\0{question}".encode("utf-8", "surrogatepass")
    return blake2b(text, key=secret, digest_size=16).hexdigest()


def labels(rows: Iterable[Row]) -> list[Label]:
    """Every outcome and every verdict that stands, in order. `certificate.settle` makes one of those about one pair."""
    found: list[Label] = []
    for row in rows:
        if isinstance(row, Verdict):
            if row.undone:
                back = (row.asked, row.entry, row.by)
                found = [label for label in found if (label.asked, label.stored, label.by) != back]
            elif row.asked:
                found.append(Label(asked=row.asked, stored=row.entry, wrong=row.wrong, by=row.by))
        elif row.outcome:
            found.append(Label(asked=row.asked, stored=row.entry, wrong=row.outcome == "different", by=row.by))
    return found
