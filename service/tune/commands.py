"""`keepgate tune`: what an endpoint's labels prove, kept where running gateways look for it.

Progress and what is said beforehand go to stderr, results to stdout. 0 is
certified or shown, 1 is not certified, with the reason; what cannot be begun
at all raises `BadUsage`.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from backends.embedding.base import Embedder
from models.errors import BackendError
from service.caching.lookups import LOG
from service.caching.rule import judged_by
from service.caching.tuned import Override, Tuned, refusal
from service.caching.verifier import TreesRefused, Verifier, load
from service.pipeline.tuning import Known, Tuning
from service.settings import EndpointSettings, Settings
from service.telemetry.metrics import Metrics
from service.tune import certifying, judging, labelled, lookup_log
from service.tune.certifying import Found
from service.tune.labelled import Labelled
from service.tune.lookup_log import Learned, Log
from service.tune.review import review as ask_about
from service.tune.review import standard_keys
from service.tune.samples import Measure, Samples, joined
from service.tune.telling import (
    Json,
    Told,
    about,
    chance,
    counted,
    date,
    tell_beforehand,
    tell_certificate,
    tell_found,
    tell_log,
    tell_unread,
    why,
    worth,
)
from service.tune.undecided import Undecided, undecided
from service.tune.wording import count, percent, plain, tell
from service.wiring import make_embedder, make_second_opinion, make_upstream, open_tuning, storage

LIMIT = 0.01
# Pairs that people or a judge called right, before it is believed how many of such come out different.
_ENOUGH_COMPARED = 20
_MUCH_MISJUDGED = 0.05


class BadUsage(Exception):
    """What was asked for cannot be begun."""


class Place(NamedTuple):
    """An endpoint, and what its look-ups are decided with here and now. `limit` is None where it has none. `trained` is
    what a certificate is for: the verifier's revision and that of a second opinion."""

    settings: Settings
    endpoint: EndpointSettings
    tuning: Tuning
    known: Known
    limit: float | None
    embedder: Embedder
    verifier: Verifier | None
    trained: str

    @property
    def name(self) -> str:
        return self.endpoint.name

    @property
    def home(self) -> Path:
        return storage(self.settings)


class Asked(NamedTuple):
    """What is to be certified."""

    limit: float | None
    confidence: float
    dry_run: bool
    as_json: bool


def from_labels(settings: Settings, endpoint: str, file: Path, asked: Asked, *, strict: bool) -> int:
    place = _place(settings, endpoint)
    if place.endpoint.cache.second_opinion is not None:
        raise BadUsage(
            f"{endpoint} has a second opinion, which labelled pairs would be certified without: use --from-log"
        )
    limit = _limit(place, asked)
    bar = Told("bytes read")
    try:
        read = labelled.read(file, progress=bar)
    except OSError as error:
        raise BadUsage(f"{file} cannot be read: {error.strerror or error}") from error
    finally:
        bar.end()
    tell_unread(read.unread, read.named)
    if strict and read.unread:
        raise BadUsage(f"{file}: {count(sum(read.unread.values()), 'line')} cannot be used, and --strict refuses that")
    found = " and ".join(
        part
        for part in (
            count(len(read.pairs), "labelled pair") if read.pairs or not read.questions else "",
            f"{count(len(read.questions), 'question')} in clusters" if read.questions else "",
        )
        if part
    )
    tell_beforehand(limit, asked.confidence, f"{file.name} has {found}.")
    for number, one, what in (
        (read.repeated, "line", "repeated from another one"),
        (read.contradictory, "label", "against others of the same pair: such a pair counts as wrong"),
        (read.left_out, "line", "left out by lot: more would not make the certificate better"),
    ):
        if number:
            tell(f"  {count(number, one)} {what}", sys.stderr)
    if read.pairs and read.questions:
        tell("  pairs have no neighbours: agreement is used for none of them", sys.stderr)
    if read.pairs and not any(label.wrong for label in read.pairs):
        tell(
            "  no pair is labelled 0: unless that is how your look-ups are, these pairs were picked, and what they "
            "certify does not hold",
            sys.stderr,
        )
    samples = asyncio.run(_measured(place, read))
    return _certify(
        place, samples, limit, asked, read={"file": str(file), **counted(read), "left_out": samples.left_out}
    )


def from_log(settings: Settings, endpoint: str, files: Sequence[Path], asked: Asked, *, since: float | None) -> int:
    """`since` in seconds before now."""
    place = _place(settings, endpoint)
    limit = _limit(place, asked)
    log, learned = _log(place, files, since=since)
    tell_beforehand(limit, asked.confidence, about(log))
    tell_log(log, learned)
    different, compared = lookup_log.misjudged(log)
    misjudged = different / compared if compared >= _ENOUGH_COMPARED else 0.0
    if misjudged > _MUCH_MISJUDGED:
        tell(
            f"  {percent(misjudged)} of {count(compared, 'pair')} with one answer came out different when answers were "
            "compared automatically: audits bear so many more before they tighten the cut",
            sys.stderr,
        )
    return _certify(
        place,
        learned.samples,
        limit,
        asked,
        misjudged=misjudged,
        read={
            "files": [str(file) for file in log.files],
            "rows": log.rows,
            "pairs": len(log.pairs),
            "labels": dict(log.labels),
            "repeated": learned.repeated,
            "contradictory": learned.contradictory,
            "left_out": {**log.left_out, **learned.samples.left_out},
            "unread": dict(log.unread),
            "verdicts_without_lookup": log.orphans,
            "reports_without_question": log.reports,
        },
    )


def review(settings: Settings, endpoint: str, *, most: int | None) -> int:
    place = _place(settings, endpoint)
    log, found = _undecided(place)
    if not found.pairs:
        return 1
    tell(f"{worth(found)} Every verdict is kept at once: stop whenever you like.")
    try:
        with standard_keys() as keys:
            done = ask_about(log, found, storage=place.home, endpoint=place.name, keys=keys, most=most)
    except OSError as error:
        tell(f"keepgate: {place.home / LOG} cannot be written: {error.strerror or error}", sys.stderr)
        return 1
    tell(f"\n{count(done.same, 'pair')} said to be the same, {done.different:,} different, {done.skipped:,} skipped.")
    if done.gone:
        tell(f"{count(done.gone, 'pair')} could not be shown: their texts are in the log no more.")
    _tell_next(place)
    return 0


def judge(settings: Settings, endpoint: str, model: str, *, most: int | None, deadline: float) -> int:
    place = _place(settings, endpoint)
    name, _, asked = model.partition("/")
    chosen = next((one for one in settings.upstreams if one.name == name), None)
    if chosen is None or not asked:
        known = ", ".join(f"{one.name}/MODEL" for one in settings.upstreams)
        raise BadUsage(f"{plain(model)!r} is no upstream and its model; there are: {known}")
    if chosen.auth == "passthrough":
        raise BadUsage(f"the upstream {name} has no key of its own: auth is passthrough")
    log, found = _undecided(place)
    if not found.pairs:
        return 1
    pairs = found.pairs[:most]
    rows = [row for pair in pairs[:100] if (row := lookup_log.texts(log, pair)) is not None]
    sent = judging.tokens(rows) * len(pairs) // max(len(rows), 1)
    tell(
        f"{worth(found)} {count(len(pairs), 'call')} to {plain(model)}, about {sent:,} tokens in and "
        f"{count(len(pairs), 'word')} out; what that costs is for the provider's price list.",
        sys.stderr,
    )
    bar = Told("judged")
    upstream = make_upstream(chosen)

    async def work() -> judging.Judged:
        try:
            return await judging.judge(
                log,
                pairs,
                upstream,
                asked,
                storage=place.home,
                endpoint=place.name,
                deadline=deadline,
                progress=bar,
            )
        finally:
            await upstream.close()

    try:
        done = asyncio.run(work())
    except OSError as error:
        tell(f"keepgate: {place.home / LOG} cannot be written: {error.strerror or error}", sys.stderr)
        return 1
    finally:
        bar.end()
    tell(
        f"{count(done.same, 'pair')} judged to be the same, {done.different:,} different; "
        f"{done.unclear:,} answers were neither word, {count(done.failed, 'call')} failed."
    )
    for problem, times in done.problems.items():
        tell(f"  {times:,} times: {plain(problem)}", sys.stderr)
    if done.stopped:
        tell("keepgate: too many calls failed in a row, the rest was not tried; the same command goes on", sys.stderr)
    if done.gone:
        tell(f"{count(done.gone, 'pair')} could not be judged: their texts are in the log no more.")
    _tell_next(place)
    return 0 if done.same + done.different else 1


def show(settings: Settings, endpoint: str, *, as_json: bool) -> int:
    place = _place(settings, endpoint)
    log, _ = _log(place, (), since=None, required=False)
    tuned, watch, override = place.known.tuned, place.known.watch, place.known.override
    holds = _holds(place, tuned)
    if as_json:
        print(
            json.dumps(
                {
                    "endpoint": place.name,
                    "limit": place.limit,
                    "threshold": _threshold(place),
                    "embedder": place.embedder.revision,
                    "verifier": place.trained,
                    "certificate": None if tuned is None else msgspec.to_builtins(tuned.certificate),
                    "shortfall": None if tuned is None else msgspec.to_builtins(tuned.shortfall),
                    "fit": None if tuned is None else msgspec.to_builtins(tuned.fit),
                    "holds": not holds,
                    "why_not": holds,
                    "watch": None
                    if watch is None
                    else {
                        **{name: getattr(watch, name) for name in ("cut", "seen", "wrong", "tightened", "relaxed")},
                        "upper": watch.upper,
                    },
                    "override": msgspec.to_builtins(override),
                    "log": {
                        "rows": log.rows,
                        "hits": log.hits,
                        "pairs": len(log.pairs),
                        "labels": dict(log.labels),
                        "left_out": dict(log.left_out),
                        "unread": dict(log.unread),
                    },
                }
            )
        )
        return 0
    threshold = _threshold(place)
    if threshold is not None:
        tell(f"{place.name}: decides by cosine, at a threshold of {threshold:g}")
    else:
        limit = "no limit of wrong hits" if place.limit is None else f"at most {percent(place.limit)} wrong hits"
        tell(f"{place.name}: {limit}, cache mode {place.endpoint.cache.mode}")
    if tuned is None:
        tell("Nothing was tuned yet.")
    elif tuned.certificate is not None:
        tell_certificate(tuned.certificate)
        if holds:
            tell(f"It does not hold here: {holds}.")
        elif watch is not None and watch.cut is None:
            tell("It would hold here and now, but audits found the limit broken at every cut: nothing is served.")
        else:
            tell("It holds here and now.")
    elif tuned.shortfall is not None:
        tell(f"Not certified: {why(tuned.shortfall)}")
    if tuned is not None:
        tell(f"Fitted to {count(tuned.fit.labels, 'label')} by {', '.join(tuned.fit.columns)}.")
    if watch is not None:
        at = "nothing is served" if watch.cut is None else f"cut at a chance of {chance(watch.cut)}"
        tell(
            f"Audits: {watch.seen:,} since the cut was last moved, {watch.wrong:,} wrong, at most "
            f"{percent(watch.upper)}; {at}, tightened {watch.tightened:,} and relaxed {watch.relaxed:,} times."
        )
    changed = {
        name: value
        for name in ("threshold", "max_wrong_hit_rate", "audit_rate")
        if (value := getattr(override, name)) is not None
    }
    if changed:
        values = ", ".join(f"{name} {value:g}" for name, value in changed.items())
        tell(f"Changed at run time ({date(override.changed_at)}): {values}.")
    tell(about(log))
    return 0


def remove(settings: Settings, endpoint: str, *, as_json: bool) -> int:
    place = _place(settings, endpoint)
    there = place.known.tuned is not None
    place.tuning.tuned(place.name, None)
    if as_json:
        print(json.dumps({"endpoint": place.name, "removed": there}))
    else:
        tell(
            f"What was tuned for {place.name} is taken back: running gateways serve without it within seconds."
            if there
            else f"Nothing was tuned for {place.name}."
        )
    return 0


# --- where


def _place(settings: Settings, name: str) -> Place:
    endpoint = next((one for one in settings.endpoints if one.name == name), None)
    if endpoint is None:
        known = ", ".join(sorted(one.name for one in settings.endpoints))
        raise BadUsage(f"no endpoint is named {plain(name)!r}; known: {known}")
    tuning = open_tuning(settings)
    known_of = tuning.known(name)
    embedder = make_embedder(settings)
    try:
        verifier: Verifier | None = load(embedder.revision)
    except TreesRefused as error:
        tell(f"without a verifier: {error}", sys.stderr)
        verifier = None
    opinion = ""
    if endpoint.cache.second_opinion is not None and verifier is not None:
        wanted = endpoint.cache.second_opinion
        opinion = make_second_opinion(wanted, verifier=verifier, ask=_nobody_is_asked, metrics=Metrics()).revision
    limit, trained = _own_limit(endpoint, known_of.override), judged_by(verifier, opinion)
    return Place(settings, endpoint, tuning, known_of, limit, embedder, verifier, trained)


async def _nobody_is_asked(_: Sequence[Mapping[str, str]]) -> str:
    raise BackendError("only the judge's name is needed here")


def _own_limit(endpoint: EndpointSettings, override: Override) -> float | None:
    if override.threshold is not None or override.max_wrong_hit_rate is not None:
        return override.max_wrong_hit_rate
    return endpoint.cache.max_wrong_hit_rate


def _threshold(place: Place) -> float | None:
    override = place.known.override
    if override.threshold is not None or override.max_wrong_hit_rate is not None:
        return override.threshold
    return place.endpoint.cache.threshold


def _limit(place: Place, asked: Asked) -> float:
    limit = asked.limit if asked.limit is not None else place.limit if place.limit is not None else LIMIT
    for name, value in (("--limit", limit), ("--confidence", asked.confidence)):
        if not 0 < value < 1:
            raise BadUsage(f"{name} {value:g}: a share between 0 and 1 is meant, like 0.01 or 0.95")
    return limit


def _log(place: Place, files: Sequence[Path], *, since: float | None, required: bool = True) -> tuple[Log, Learned]:
    files = list(files) or lookup_log.files_of(place.home)
    if not files and required:
        raise BadUsage(
            f"{place.home / LOG} is not there: look-ups are logged while the gateway runs, unless cache.lookups is off"
        )
    bar = Told("bytes of the log read")
    try:
        log = lookup_log.read(
            files,
            endpoint=place.name,
            embedder=place.embedder.revision,
            verifier=place.trained,
            since=None if since is None else time.time() - since,
            progress=bar,
        )
    except OSError as error:
        raise BadUsage(f"the log cannot be read: {error.strerror or error}: {error.filename}") from error
    finally:
        bar.end()
    return log, lookup_log.learned(log, verifier=place.verifier is not None)


def _undecided(place: Place) -> tuple[Log, Undecided]:
    log, learned = _log(place, (), since=None)
    tell_unread(log.unread, log.named)
    limit = place.limit if place.limit is not None else LIMIT
    found = undecided(learned, limit=limit, tuned=place.known.tuned)
    if not found.pairs:
        if found.without_texts:
            tell(
                f"keepgate: {count(found.without_texts, 'pair')} could be asked about, but the log has no texts of "
                f"them: set `lookups: texts` in the cache section of the endpoint {place.name}, and look again when "
                "there was traffic",
                sys.stderr,
            )
        else:
            decided = f", {count(found.decided, 'pair')} have a verdict" if found.decided else ""
            tell(f"keepgate: nothing is undecided: {about(log)[:-1]}{decided}.", sys.stderr)
    return log, found


# --- labels to certificate


async def _measured(place: Place, read: Labelled) -> Samples:
    measure = Measure(place.embedder, place.verifier, off=frozenset(place.endpoint.cache.ignore_rules))
    bar = Told("embedded")
    try:
        await place.embedder.load()
        kinds = []
        if read.pairs or not read.questions:
            kinds.append(await measure.pairs(read.pairs, bar))
        if read.questions:
            kinds.append(await measure.questions(read.questions, bar))
    finally:
        await place.embedder.close()
        bar.end()
    return joined(kinds)


def _certify(place: Place, samples: Samples, limit: float, asked: Asked, *, read: Json, misjudged: float = 0.0) -> int:
    for what, number in samples.left_out.items():
        tell(f"  {number:,} left out: {what}", sys.stderr)
    found = certifying.certified(
        samples,
        endpoint=place.name,
        limit=limit,
        confidence=asked.confidence,
        embedder=place.embedder.revision,
        verifier=place.trained,
        date=date(time.time()),
    )
    found = found._replace(tuned=msgspec.structs.replace(found.tuned, misjudged=misjudged))
    stays = certifying.stays(
        place.known.tuned, found, limit=place.limit, embedder=place.embedder.revision, verifier=place.trained
    )
    kept = not stays and not asked.dry_run and bool(len(samples.wrong))
    if kept:
        place.tuning.tuned(place.name, found.tuned)
    effect = _effect(place, found, limit, kept=kept, stays=stays, dry_run=asked.dry_run)
    if asked.as_json:
        print(
            json.dumps(
                {
                    "endpoint": place.name,
                    "certified": found.certified,
                    "limit": limit,
                    "confidence": asked.confidence,
                    "read": read,
                    "samples": len(samples.wrong),
                    "certificate": msgspec.to_builtins(found.tuned.certificate),
                    "shortfall": msgspec.to_builtins(found.tuned.shortfall),
                    "informs": msgspec.to_builtins(found.informs),
                    "fit": msgspec.to_builtins(found.tuned.fit),
                    "thinned": found.thinned,
                    "kept": kept,
                    "effect": effect,
                }
            )
        )
    else:
        tell_found(found, samples)
        tell(effect)
    return 0 if found.certified else 1


def _effect(place: Place, found: Found, limit: float, *, kept: bool, stays: str, dry_run: bool) -> str:
    if dry_run:
        return "Nothing was written: --dry-run."
    if stays:
        return f"The certificate that is there stays: {stays}. --remove takes it back."
    if not kept:
        return "Nothing was written: there is nothing to keep."
    if not found.certified:
        return "Kept for --show; hits are decided as without it."
    if place.limit is None:
        return (
            f"Kept. It takes effect only where the endpoint has a limit: set max_wrong_hit_rate to {limit:g} or more "
            "in its cache section, or at run time."
        )
    refused = _holds(place, found.tuned)
    if refused:
        return f"Kept, but it does not hold: {refused}."
    if place.endpoint.cache.mode not in ("semantic", "shadow"):
        return f"Kept. The endpoint's cache mode is {place.endpoint.cache.mode}: nothing is decided by it there."
    return "Kept: running gateways go by it within seconds."


def _holds(place: Place, tuned: Tuned | None) -> str:
    """Why it does not, "" where it does."""
    if tuned is None:
        return "not certified"
    if place.limit is None and tuned.certificate is not None:
        return "the endpoint has no max_wrong_hit_rate"
    return refusal(tuned, embedder=place.embedder.revision, verifier=place.trained, limit=place.limit or 1.0)


def _tell_next(place: Place) -> None:
    tell(f"What they prove: keepgate tune --endpoint {place.name} --from-log")
