"""Texts through rules: every detector looks once, what is found is acted on, and what could not be looked at stops.

Detectors in the process come first, in one pass over the texts as they came.
Then all others at once, each with its deadline, over texts that are already
masked. Offsets of both are of the texts as they came, so one merge of all
spans decides what a text becomes.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import index
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import msgspec

from guardrails.base import Detector, DetectorError
from guardrails.placeholders import Placeholders, restorations
from guardrails.policy import Phase, Rule
from guardrails.redact import Edit, applied, label, origin, redaction
from guardrails.spans import Action, Joint, Span, joints, merged
from guardrails.view import let_go
from models.errors import ContentBlocked, GuardrailUnavailable
from models.finding import Finding, Role, Segment

_Result = TypeVar("_Result")

# Past so many code points, or texts, the event loop is left alone.
_LARGE = 64 * 1024
_MANY = 2000
# Threads of their own: a plug-in that hangs in one must not take those that others need.
_THREADS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="guardrails")
# A detector that ignores its cancellation is not waited for, but must not be collected half-way.
_ABANDONED: set[asyncio.Future[Any]] = set()


class Found(NamedTuple):
    """A finding that a rule acted on, or in a dry run would have. `start` and `end` are of the text as it came."""

    segment: int
    start: int
    end: int
    kind: str
    rule: Rule


class Tally:
    """What metrics are told, filled also where a request ends here.

    `counts` by rule, detector, action and phase: of findings in different
    texts, `dry_run` as an action of its own. `seconds` by detector. `failed`
    are the rules whose detector could not look, each with the reason.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str, str, str], int] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[tuple[str, str]] = []
        self.acted: tuple[str, ...] = ()


class Screened(msgspec.Struct, frozen=True, gc=False):
    """Texts by the index of their segment: those that are to be others, and the edits that make them so.

    `acted` is such as `default/secrets=redact`, in the order of the rules;
    `;dry-run` is after what would have been done. `issued` are the values
    behind placeholders. `resealed` are the segments in which all edits can
    be undone (see `View.rewritten`). Not `keepable`: a rule that gates could
    not look and was passed over, or would have acted but for its dry run.
    """

    texts: dict[int, str]
    edits: dict[int, tuple[Edit, ...]]
    acted: tuple[str, ...]
    issued: dict[str, str]
    resealed: frozenset[int]
    keepable: bool
    found: tuple[Found, ...]


async def screen(
    segments: Sequence[Segment],
    rules: Sequence[Rule],
    *,
    phase: Phase,
    joints: Sequence[Sequence[int]] = (),
    placeholders: Placeholders | None = None,
    tally: Tally | None = None,
) -> Screened:
    """Raises `ContentBlocked`, and `GuardrailUnavailable` where a rule that fails closed could not look.

    `joints` are runs of segments, by index, that are read as one text.
    `placeholders` may be missing where no rule masks.
    """
    work = _Screening(segments, rules, phase, joints, tally if tally is not None else Tally())
    masks = phase == "input" and any(rule.acts == "mask" and not rule.dry_run for rule in rules)
    if masks and placeholders is None:
        raise ValueError("a rule masks, and there are no placeholders")
    calls = _calls(rules, await work.aside(lambda: {segment.role for segment in segments}), phase)
    try:
        await work.look_inline([call for call in calls if call.detector.inline])
        work.judge()
        external = [call for call in calls if not call.detector.inline]
        if external:
            await work.look_elsewhere(external, placeholders if masks else None)
            work.judge()
    finally:
        work.tally.acted = work.acted()
    return await work.aside(lambda: work.finished(placeholders if masks else None))


class Glance:
    """Whether a rule may find anything in a few short texts of one role: where none does, `screen` has nothing to do.

    `finds_nothing` says so only if every detector has looked. It is several
    times as quick, for a text that is looked at again whenever it grows.
    """

    def __init__(self, rules: Sequence[Rule], role: Role, phase: Phase) -> None:
        self._role: Role = role
        self._calls = _calls(rules, {role}, phase)
        self._inline = all(call.detector.inline for call in self._calls)
        # The kinds that are asked for; None: all.
        self._wanted = [_wanted([rules[number] for number in call.rules]) for call in self._calls]

    def finds_nothing(self, texts: Sequence[str], tally: Tally) -> bool:
        if not self._inline or sum(map(len, texts)) > _LARGE:
            return False
        segments = [Segment(at, text, self._role) for at, text in enumerate(texts)]
        for call, wanted in zip(self._calls, self._wanted, strict=True):
            began = perf_counter()
            findings = _sensible(_driven(call.detector, segments), segments)
            name = call.detector.name
            tally.seconds[name] = tally.seconds.get(name, 0.0) + perf_counter() - began
            if isinstance(findings, _Failed):
                return False  # `screen` makes the same of it, and says so
            if findings and (wanted is None or any(finding.kind in wanted for finding in findings)):
                return False
        return True


def _wanted(rules: Sequence[Rule]) -> frozenset[str] | None:
    kinds = [rule.kinds for rule in rules]
    return None if None in kinds else frozenset().union(*(some for some in kinds if some is not None))


class Restored(NamedTuple):
    """As in `Screened`: for `View.rewritten`, with all of them resealed."""

    texts: dict[int, str]
    edits: dict[int, tuple[Edit, ...]]


def restored(segments: Iterable[Segment], issued: Mapping[str, str]) -> Restored:
    """An answer's texts with the values in place of what this request issued."""
    result = Restored({}, {})
    for segment in segments:
        edits = restorations(segment.text, issued)
        if edits:
            result.texts[segment.index] = applied(segment.text, edits)
            result.edits[segment.index] = tuple(edits)
    return result


class _Call(NamedTuple):
    """One detector on its way, with the rules it looks for by their number."""

    detector: Detector
    rules: list[int]
    roles: frozenset[Role]
    original: bool
    timeout: float


def _calls(rules: Sequence[Rule], present: Iterable[Role], phase: Phase) -> list[_Call]:
    """One for each detector, but two where one elsewhere is to see some texts as they came and some masked."""
    asked: dict[tuple[int, bool], _Call] = {}
    roles = sorted(present)
    for number, rule in enumerate(rules):
        looks_at = frozenset(role for role in roles if rule.looks_at(role, phase))
        if not looks_at:
            continue
        original = rule.original or rule.detector.inline
        key = (id(rule.detector), original)
        call = asked.get(key) or _Call(rule.detector, [], frozenset(), original, 0.0)
        call.rules.append(number)
        asked[key] = call._replace(roles=call.roles | looks_at, timeout=max(call.timeout, rule.timeout))
    return list(asked.values())


class _Failed(NamedTuple):
    reason: str  # never holds a text


class _Table:
    """Different texts with the places they are at: each is looked at once."""

    def __init__(self, texts: Iterable[str], segments: Sequence[Segment]) -> None:
        """`texts` in place of those of the segments."""
        self.segments: list[Segment] = []
        self.places: list[list[int]] = []
        self.joints: dict[int, list[Joint]] = {}  # by the entry of their text
        self._known: dict[tuple[str, Role], int] = {}
        for at, (text, segment) in enumerate(zip(texts, segments, strict=True)):
            if text:
                self.places[self._entry(text, segment.role, segment.path)].append(at)

    def let_go(self) -> None:
        known = self._known
        while known:
            known.popitem()
        let_go(self.places, self.segments)

    def add_joint(self, joint: Joint, role: Role) -> None:
        self.joints.setdefault(self._entry(joint.text, role, ()), []).append(joint)

    def _entry(self, text: str, role: Role, path: tuple[str | int, ...]) -> int:
        entry = self._known.setdefault((text, role), len(self.segments))
        if entry == len(self.segments):
            self.segments.append(Segment(entry, text, role, path))
            self.places.append([])
        return entry


class _Look:
    """What one detector is shown. Texts are numbered from 0, whichever of the table they are: `entries` says."""

    def __init__(self, call: _Call, table: _Table, *, joined: bool) -> None:
        self.call = call
        self.table = table
        self.joints = table.joints if joined else {}
        shown = [
            segment
            for segment in table.segments
            if segment.role in call.roles and (joined or table.places[segment.index])
        ]
        self.entries = [segment.index for segment in shown]
        self.texts = shown if len(shown) == len(table.segments) else _numbered(shown)


class _Screening:
    def __init__(
        self,
        segments: Sequence[Segment],
        rules: Sequence[Rule],
        phase: Phase,
        runs: Sequence[Sequence[int]],
        tally: Tally,
    ) -> None:
        self.tally = tally
        self.keepable = True
        self.found: list[Found] = []
        self._segments = segments
        self._rules = rules
        self._phase: Phase = phase
        self._runs = runs
        self._spans: dict[int, list[Span]] = {}
        self._kinds: dict[int, set[str]] = {}  # what each rule found
        self._unavailable: list[Rule] = []
        self._table: _Table | None = None
        self._large = _is_large(segments)

    async def aside(self, step: Callable[[], _Result]) -> _Result:
        """Steps over very many texts take turns with the event loop, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(_THREADS, step) if self._large else step()

    def finished(self, placeholders: Placeholders | None) -> Screened:
        screened = self.screened(placeholders)
        if self._large and self._table is not None:
            self._table.let_go()
        return screened

    async def look_inline(self, calls: Sequence[_Call]) -> None:
        if not calls:
            return
        table = await self.aside(self._original)
        for call in calls:
            look = _Look(call, table, joined=True)
            began = perf_counter()
            findings: Sequence[Finding] | _Failed
            if not _is_large(look.texts):
                findings = _driven(call.detector, look.texts)
            else:
                loop = asyncio.get_running_loop()
                waiting = loop.run_in_executor(_THREADS, _aside, call.detector, look.texts, call.timeout)
                findings = await _in_time(waiting, call.timeout)
            seconds = perf_counter() - began
            await self.aside(partial(self._take, look, findings, seconds))

    async def look_elsewhere(self, calls: Sequence[_Call], placeholders: Placeholders | None) -> None:
        edits: dict[int, list[Edit]] = {}
        tables: dict[bool, _Table] = {}  # by whether it has the texts as they came
        for original in {call.original for call in calls}:
            if original:
                tables[original] = await self.aside(self._original)
            else:
                tables[original], edits = await self.aside(partial(self._masked, placeholders))
        looks = [_Look(call, tables[call.original], joined=False) for call in calls]
        for look, (findings, seconds) in zip(looks, await asyncio.gather(*map(_elsewhere, looks)), strict=True):
            await self.aside(partial(self._take, look, findings, seconds, {} if look.call.original else edits))

    def judge(self) -> None:
        """A block first: it stays one when the others can look again."""
        blocking = [
            (rule, sorted(self._kinds[number]))
            for number, rule in enumerate(self._rules)
            if rule.action == "block" and not rule.dry_run and self._kinds.get(number)
        ]
        if blocking:
            named = "; ".join(f"{rule.name} ({', '.join(kinds[:10])})" for rule, kinds in blocking[:5])
            raise ContentBlocked(f"blocked by the guardrail {named}")
        if self._unavailable:
            raise GuardrailUnavailable(f"the guardrail {self._unavailable[0].name} could not look at all of it")

    def edits(
        self, placeholders: Placeholders | None, issued: dict[str, str]
    ) -> tuple[dict[int, list[Edit]], set[int]]:
        """By place, in order; and the places where each can be undone. `placeholders` None: nothing is masked."""
        result: dict[int, list[Edit]] = {}
        undone: set[int] = set()
        for at, segment in enumerate(self._segments):
            spans = self._spans.get(at, ())
            edits = [self._edit(segment.text, span, placeholders, issued) for span in merged(spans)] if spans else []
            if placeholders is not None and "<" in segment.text:
                edits = sorted([*edits, *placeholders.escapes(segment.text, issued, beside=edits)])
            if edits:
                result[at] = edits
                if all(span.action == "mask" for span in spans):
                    undone.add(at)
        return result, undone

    def screened(self, placeholders: Placeholders | None) -> Screened:
        segments = self._segments
        issued: dict[str, str] = {}
        edits, resealed = self.edits(placeholders, issued)
        return Screened(
            texts={segments[at].index: applied(segments[at].text, edit) for at, edit in edits.items()},
            edits={segments[at].index: tuple(edit) for at, edit in edits.items()},
            acted=self.tally.acted,
            issued=issued,
            resealed=frozenset(segments[at].index for at in resealed),
            keepable=self.keepable,
            found=tuple(self.found),
        )

    def acted(self) -> tuple[str, ...]:
        return tuple(
            f"{rule.name}={rule.acts}{';dry-run' if rule.dry_run else ''}"
            for number, rule in enumerate(self._rules)
            if self._kinds.get(number)
        )

    # --- findings

    def _original(self) -> _Table:
        if self._table is None:
            segments = self._segments
            self._table = _Table([segment.text for segment in segments], segments)
            places = {segment.index: at for at, segment in enumerate(segments)} if self._runs else {}
            for run in self._runs:
                members = [places[index] for index in run]
                for joint in joints([(at, segments[at].text) for at in members]):
                    self._table.add_joint(joint, segments[members[0]].role)
        return self._table

    def _masked(self, placeholders: Placeholders | None) -> tuple[_Table, dict[int, list[Edit]]]:
        edits, _ = self.edits(placeholders, {})
        texts = [
            applied(segment.text, edits[at]) if at in edits else segment.text
            for at, segment in enumerate(self._segments)
        ]
        return _Table(texts, self._segments), edits

    def _take(
        self,
        look: "_Look",
        findings: "Sequence[Finding] | _Failed",
        seconds: float,
        edits: Mapping[int, Sequence[Edit]] = {},
    ) -> None:
        """`edits` made the texts it looked at out of those that came."""
        name = look.call.detector.name
        self.tally.seconds[name] = self.tally.seconds.get(name, 0.0) + seconds
        findings = _sensible(findings, look.texts)
        if isinstance(findings, _Failed):
            for rule in (self._rules[number] for number in look.call.rules):
                self.tally.failed.append((rule.name, findings.reason))
                if rule.fail == "closed" and not rule.dry_run:
                    self._unavailable.append(rule)
                elif rule.gates:
                    self.keepable = False
            return
        for finding in findings:
            places = self._places(finding, look, edits)
            for number in look.call.rules:
                self._note(number, finding, places)

    def _places(
        self, finding: Finding, look: "_Look", edits: Mapping[int, Sequence[Edit]]
    ) -> list[tuple[int, int, int]]:
        """Wherever the text it is in is: place, start and end."""
        places = [
            (at, *(origin(finding.start, finding.end, edits[at]) if at in edits else (finding.start, finding.end)))
            for at in look.table.places[look.entries[finding.segment]]
        ]
        for joint in look.joints.get(look.entries[finding.segment], ()):
            places += joint.split(finding.start, finding.end)
        return places

    def _note(self, number: int, finding: Finding, places: Sequence[tuple[int, int, int]]) -> None:
        rule = self._rules[number]
        if (rule.kinds is not None and finding.kind not in rule.kinds) or finding.confidence < rule.confidence:
            return
        seen = [place for place in places if rule.looks_at(self._segments[place[0]].role, self._phase)]
        if not seen:
            return
        acts: Action = rule.acts
        self._kinds.setdefault(number, set()).add(label(finding.kind).lower())
        counted = (rule.name, rule.detector.name, "dry_run" if rule.dry_run else acts, self._phase)
        self.tally.counts[counted] = self.tally.counts.get(counted, 0) + 1
        if rule.dry_run and rule.gates:
            self.keepable = False
        for at, start, end in seen:
            self.found.append(Found(self._segments[at].index, start, end, finding.kind, rule))
            if rule.gates and not rule.dry_run:
                self._spans.setdefault(at, []).append(Span(start, end, finding.kind, acts, number))

    def _edit(self, text: str, span: Span, placeholders: Placeholders | None, issued: dict[str, str]) -> Edit:
        if span.action == "mask" and placeholders is not None:
            return Edit(span.start, span.end, placeholders.issue(span.kind, text[span.start : span.end], issued))
        return Edit(span.start, span.end, redaction(span.kind))


def _is_large(segments: Sequence[Segment]) -> bool:
    return len(segments) > _MANY or sum(len(segment.text) for segment in segments) > _LARGE


def _numbered(segments: Iterable[Segment]) -> list[Segment]:
    return [Segment(index, segment.text, segment.role, segment.path) for index, segment in enumerate(segments)]


def _sensible(findings: Any, texts: Sequence[Segment]) -> "Sequence[Finding] | _Failed":
    """`findings`, if they are some. Whoever misplaces one may have misplaced them all."""
    if isinstance(findings, _Failed):
        return findings
    try:
        if isinstance(findings, Sequence) and all(_makes_sense(finding, texts) for finding in findings):
            return findings
    except (TypeError, ValueError):
        pass  # a place that is no number
    return _Failed("it found what is not there")


def _makes_sense(finding: Any, texts: Sequence[Segment]) -> bool:
    return (
        isinstance(finding, Finding)
        and isinstance(finding.kind, str)
        and finding.confidence >= 0
        and 0 <= index(finding.segment) < len(texts)
        and 0 <= index(finding.start) < index(finding.end) <= len(texts[finding.segment].text)
    )


async def _elsewhere(look: _Look) -> tuple[Sequence[Finding] | _Failed, float]:
    began = perf_counter()
    looking = asyncio.ensure_future(_detected(look.call.detector, look.texts))
    return await _in_time(looking, look.call.timeout), perf_counter() - began


async def _detected(detector: Detector, texts: Sequence[Segment]) -> Sequence[Finding]:
    return await detector.detect(texts)


def _driven(detector: Detector, texts: Sequence[Segment]) -> "Sequence[Finding] | _Failed":
    """At once, for what never waits."""
    with _Broken() as broken:
        looking: Any = detector.detect(texts)
        try:
            looking.send(None)
        except StopIteration as done:
            findings: Sequence[Finding] = done.value
            return findings
        looking.close()
        return _Failed("it waits, and says that it never does")
    return broken.why


class _Broken:
    """Whatever a detector raises is its failure: the code may be anybody's, and the rule's `fail` decides."""

    why = _Failed("")

    def __enter__(self) -> "_Broken":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self.why = _why(error)
        return True


def _aside(detector: Detector, texts: Sequence[Segment], seconds: float) -> Sequence[Finding]:
    """In a thread, with an event loop of its own: detectors may put a large text aside themselves."""
    return asyncio.run(asyncio.wait_for(_detected(detector, texts), seconds))


async def _in_time(looking: "asyncio.Future[Sequence[Finding]]", seconds: float) -> Sequence[Finding] | _Failed:
    """Whatever a detector raises is its failure. One that does not heed its cancellation is left behind."""
    try:
        done, _ = await asyncio.wait({looking}, timeout=seconds)
    finally:
        if not looking.done():
            looking.cancel()
            _ABANDONED.add(looking)
            looking.add_done_callback(_forget)
    if not done:
        return _Failed(f"no answer in {seconds:g} s")
    if looking.cancelled():
        return _Failed("it was cancelled")
    error = looking.exception()
    if error is None:
        return looking.result()
    if isinstance(error, Exception):
        return _why(error)
    raise error


def _forget(looking: "asyncio.Future[Any]") -> None:
    _ABANDONED.discard(looking)
    if not looking.cancelled():
        looking.exception()  # seen: it came too late


def _why(error: Exception) -> _Failed:
    """What others than `DetectorError` say may hold the text."""
    return _Failed(str(error) if isinstance(error, DetectorError) else type(error).__name__)
