"""A streamed answer through the rules: nothing is let out before it is known to be clean.

A text is let out up to its last white space, but not into an open run of
digits, an open private key, or what a detector is not sure of yet. What has
gone is looked at again as far as a detector needs it as context. Everything
else (tool calls, blocks, fields nobody knows) is looked at whole.
"""

from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from guardrails.engine import Found, Glance, Screened, Tally, screen
from guardrails.holdback import CAP, HeldText, Piece, Window, gate
from guardrails.policy import Rule
from guardrails.redact import Edit, label, redaction
from guardrails.spans import Span, merged
from guardrails.view import answer_segments
from models.completion import Chunk
from models.errors import ContentBlocked, GatewayError, GuardrailUnavailable
from models.finding import Role, Segment

Json = dict[str, Any]
_Blocking = list[tuple[Rule, str]]

_REASONING = ("reasoning_content", "reasoning")
_TEXTS = (*_REASONING, "content", "refusal")
_ROLES: tuple[Role, ...] = ("assistant", "tool_args")
_FRAME = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "usage"})
_BARE = frozenset({"index", "delta", "logprobs", "finish_reason"})
_CHOICE = frozenset({"finish_reason", "native_finish_reason"})


class StreamScreen:
    """One answer. `feed` and `end` give the chunks that may go on, in order, none of them with anything in it that a
    rule acts on. They raise `ContentBlocked` or `GuardrailUnavailable` after the last that is clean; if any has gone
    to the client, `closing` is what ends the answer.

    Rules that only log look at each text once, at the end. `keepable`, `tally`
    and `acted` are the engine's, and final after `end`.
    """

    def __init__(self, rules: Sequence[Rule], *, tally: Tally | None = None) -> None:
        self.keepable = True
        self.tally = tally if tally is not None else Tally()
        rules = [rule for rule in rules if any(rule.looks_at(role, "output") for role in _ROLES)]
        self._rules = tuple(rules)
        gating = [rule for rule in rules if rule.gates and not rule.dry_run]
        watching = [rule for rule in rules if not rule.gates or rule.dry_run]
        # The engine must go on where a rule would block in what is not decided yet.
        softened = [
            msgspec.structs.replace(rule, action="redact") if rule.action == "block" else rule for rule in gating
        ]
        self._number = {id(rule): number for number, rule in enumerate(self._rules)}
        self._number |= {id(soft): self._number[id(rule)] for soft, rule in zip(softened, gating, strict=True)}
        self._gates = bool(gating)
        self._whole_rules = [*softened, *watching]
        self._text_rules = [rule for rule in softened if rule.looks_at("assistant", "output")]
        self._watching = [rule for rule in watching if rule.looks_at("assistant", "output")]
        self._gate = gate(self._text_rules)
        self._glance = Glance(self._text_rules, "assistant", "output")
        self._choices: dict[int, _Choice] = {}
        self._frame: Json = {}
        self._frame_as_it_came: Json = {}
        self._usage: Json | None = None
        self._fresh = 0
        self._out: list[Json] = []
        self._acted: dict[int, str] = {}

    @property
    def acted(self) -> tuple[str, ...]:
        """In the order of the rules."""
        return tuple(self._acted[number] for number in sorted(self._acted))

    def feed(self, chunk: Chunk, *, more: bool = False) -> AsyncIterator[Chunk]:
        """`more`: the next chunk is there already, so that this one may wait for it."""
        if not self._take_quickly(chunk.fields):
            return self._fed(self._take(chunk.fields, more=more), chunk)
        if not (more and self._fresh < self._gate.batch) and not self._release_quickly():
            return self._fed(self._release(self._choices.values()), chunk)
        released = self._released(None)
        return _Ready(released if self._gates else [chunk])

    async def end(self) -> AsyncIterator[Chunk]:
        stopped = await _stopped_by(self._finish())
        for released in self._released(stopped) if self._gates else ():
            yield released
        if stopped is not None:
            raise stopped

    async def _fed(self, work: Awaitable[None], chunk: Chunk) -> AsyncIterator[Chunk]:
        stopped = await _stopped_by(work)
        released = self._released(stopped)
        for one in released if self._gates else [chunk]:
            yield one
        if stopped is not None:
            raise stopped

    def closing(self) -> list[Chunk]:
        """A finish reason for each choice that has none."""
        ends: Json = {"delta": {}, "logprobs": None, "finish_reason": "content_filter"}
        return [
            _chunk({**self._frame, "choices": [{"index": index, **ends}]})
            for index, choice in sorted(self._choices.items())
            if not choice.finished
        ]

    def _released(self, stopped: GatewayError | None) -> list[Chunk]:
        released, self._out = self._out, []
        if self._usage is not None and released and stopped is None:
            released[-1] = {**released[-1], "usage": self._usage}
            self._usage = None
        return [_chunk(fields) for fields in released]

    # --- what comes in

    async def _take(self, fields: Json, *, more: bool) -> None:
        await self._take_frame(fields)
        choices = fields.get("choices")
        if not choices:
            await self._take_bare(fields)
            return
        if isinstance(fields.get("usage"), dict):
            self._usage = fields["usage"]  # goes with the next that goes
        for part in choices:
            index: int = part.get("index", 0)
            choice = self._choices.setdefault(index, _Choice(index))
            await self._take_choice(choice, part)
        if not more or self._fresh >= self._gate.batch:
            await self._release(self._choices.values())

    def _take_quickly(self, fields: Json) -> bool:
        """Where it is like the one before, but for its text, as nearly every chunk is; False: it is not taken."""
        parts = fields.get("choices")
        frame = self._frame_as_it_came
        if not parts or len(parts) != 1 or len(fields) != len(frame) + 1:
            return False
        for name, value in fields.items():
            if name != "choices" and frame.get(name, fields) != value:
                return False
        choice = self._choices.get(parts[0].get("index", 0))
        return choice is not None and self._take_text_alone(choice, parts[0])

    def _take_text_alone(self, choice: "_Choice", part: Json) -> bool:
        held = choice.current
        if held is None or held.name != "content":
            return False
        text = _nothing_but_text(part)
        if text is None:
            return False
        held.add(text)
        self._fresh += len(text)
        return True

    async def _take_frame(self, fields: Json) -> None:
        """What chunks say beside their choices is mostly the same in each of them."""
        frame = {name: value for name, value in fields.items() if name not in ("choices", "usage", "provider_event")}
        if "usage" in fields:
            frame["usage"] = None  # where the client wants to know, every chunk has the field
        if frame != self._frame_as_it_came:
            self._frame_as_it_came = frame
            self._frame = frame if frame.keys() <= _FRAME else await self._item(frame)

    async def _take_bare(self, fields: Json) -> None:
        event = fields.get("provider_event")
        if event is not None and await self._item(event) is not event:
            return  # what is in it only its maker knows
        own: Json = {name: fields[name] for name in ("choices", "usage", "provider_event") if name in fields}
        bare = {**self._frame, **own}
        holding = next((held for choice in self._choices.values() if (held := choice.holding) is not None), None)
        if event is not None and holding is not None:
            holding.attach("chunk", bare)
        else:
            self._out.append(bare)

    async def _take_choice(self, choice: "_Choice", part: Json) -> None:
        if self._take_text_alone(choice, part):
            return
        if "text" in part and "delta" not in part:
            await self._take_text(choice, "text", part["text"] or "", part.get("logprobs"))
        else:
            await self._take_delta(choice, part.get("delta") or {}, part.get("logprobs"))
        own: Json = {
            name: value
            for name, value in part.items()
            if name not in ("index", "delta", "text", "logprobs") and (value is not None or name == "finish_reason")
        }
        if not own.keys() <= _CHOICE:
            own = await self._item(own)
        if own.get("finish_reason") is not None:
            await self._come_to_an_end(choice, calls=True)
            choice.finished = True
            self._say(choice, own=own)
        elif len(own) > 1:
            self._attach(choice, "choice", own)

    async def _take_delta(self, choice: "_Choice", delta: Json, logprobs: Any) -> None:
        rest: Json = {}
        texts = []
        for name, value in delta.items():
            if name in _TEXTS and isinstance(value, str) and value:
                texts.append((name, value))
            elif name == "role" or name in _TEXTS or value is None:
                choice.opening[name] = value
            elif name not in ("reasoning_details", "tool_calls", "function_call"):
                rest[name] = value
        texts.sort(key=lambda text: _TEXTS.index(text[0]))
        if logprobs is not None and not texts and choice.current is not None and choice.current.name == "content":
            choice.current.attach("logprobs", logprobs)  # of the text so far, which what comes now may end
            logprobs = None
        if isinstance(details := delta.get("reasoning_details"), list):
            await self._take_details(choice, details, texts)
        if isinstance(items := rest.pop("content_items", None), list):
            (await self._going_on(choice, "content")).attach("content_items", items)
        for name, text in texts:
            spoken = name in ("content", "refusal")
            await self._take_text(choice, name, text, logprobs if spoken else None)
            logprobs = None if spoken else logprobs
        if logprobs is not None:
            await self._take_text(choice, "content", "", logprobs)
        if rest:
            await self._take_rest(choice, rest)
        if isinstance(calls := delta.get("tool_calls"), list):
            await self._take_calls(choice, calls)
        if isinstance(delta.get("function_call"), dict):
            await self._take_calls(choice, [{"index": -1, "function": delta["function_call"]}])

    async def _take_text(self, choice: "_Choice", name: str, text: str, logprobs: Any = None) -> None:
        held = await self._going_on(choice, name)
        held.add(text)
        self._fresh += len(text)
        if logprobs is not None:
            held.attach("logprobs", logprobs, length=len(text))

    async def _take_details(self, choice: "_Choice", details: list[Any], texts: list[tuple[str, str]]) -> None:
        """Readable ones travel with the text that says the same; any other is a text of its own."""
        readable = [_readable(detail) for detail in details]
        words = "".join(said[1] for said in readable if said is not None)
        beside = next((text for text in texts if text[0] in _REASONING), None)
        mirrored = beside is not None and beside[1] == words
        for detail, said in zip(details, readable, strict=True):
            if not isinstance(detail, dict):
                continue
            rest = {key: value for key, value in detail.items() if said is None or key != said[0]}
            if await self._item(rest) is not rest:
                choice.signed = False
            elif said is None:
                held = await self._going_on(choice, choice.reasons_in)
                held.attach("detail", detail)
            elif mirrored and beside is not None:
                held = await self._going_on(choice, beside[0])
                held.add(said[1])
                held.attach(said[0], detail, length=len(said[1]))
            else:
                held = await self._going_on(choice, f"detail {said[0]} {detail.get('index')}")
                held.add(said[1])
                held.attach(said[0], detail, length=len(said[1]))
        self._fresh += len(words)
        if mirrored and beside is not None:
            texts.remove(beside)

    async def _take_rest(self, choice: "_Choice", rest: Json) -> None:
        """What comes whole. A block ends the text before it; what belongs to a text waits for it."""
        rest = await self._message(rest)
        if "provider_content" in rest:
            await self._come_to_an_end(choice)
        self._attach(choice, "delta", rest)

    async def _take_calls(self, choice: "_Choice", parts: list[Any]) -> None:
        if choice.current is not None:
            await self._come_to_an_end(choice)
        for part in parts:
            if not isinstance(part, dict):
                continue
            call = choice.call_of(part)
            if not call.gone:
                call.add(part)
                await self._send_calls(choice, [one for one in choice.calls.values() if one is not call])
            elif call.goes_on(part):
                raise GuardrailUnavailable("a tool call went on after it was complete, and could not be looked at")

    async def _going_on(self, choice: "_Choice", name: str) -> HeldText:
        """The text of that name. What was said before it has come to its end."""
        held = choice.texts.get(name)
        if held is None:
            held = choice.texts[name] = HeldText(name, self._gate, keep=bool(self._watching))
        if choice.current is None or _kin(choice.current.name) != _kin(name):
            await self._come_to_an_end(choice)
        choice.current = held
        return held

    async def _come_to_an_end(self, choice: "_Choice", *, calls: bool = False) -> None:
        """`calls`: those too that may not be whole."""
        await self._release([choice], whole=True)
        choice.current = None
        await self._send_calls(choice, list(choice.calls.values()), unfinished=calls)

    async def _finish(self) -> None:
        for choice in self._choices.values():
            await self._come_to_an_end(choice, calls=True)
            if choice.opening and not choice.finished:
                self._say(choice)
        if self._usage is not None and not self._out:
            self._out.append({**self._frame, "choices": []})
        await self._watch()

    # --- what is looked at

    async def _message(self, said: Json) -> Json:
        """A part of a message that is there whole, with what a rule acts on replaced."""
        tree = await self._item({"choices": [{"index": 0, "message": said}]})
        result: Json = tree["choices"][0]["message"]
        return result

    async def _item(self, tree: Json) -> Json:
        """`tree` itself where nothing is replaced."""
        view = answer_segments(tree)
        if not view.texts:
            return tree
        screened = await self._looked(view.texts, self._whole_rules, joints=view.joints)
        blocking: _Blocking = []
        for found in screened.found:
            rule = self._note(found)
            if rule.action == "block" and not rule.dry_run:
                blocking.append((rule, found.kind))
        if blocking:
            raise _blocked(blocking)
        return view.rewritten(screened.texts, edits=screened.edits) if screened.texts else tree

    async def _looked(
        self, segments: Sequence[Segment], rules: Sequence[Rule], *, joints: Sequence[Sequence[int]] = ()
    ) -> Screened:
        tally = Tally()  # it counts what is in the context again
        try:
            screened = await screen(segments, rules, phase="output", joints=joints, tally=tally)
        finally:
            self.tally.failed += tally.failed
            for name, seconds in tally.seconds.items():
                self.tally.seconds[name] = self.tally.seconds.get(name, 0.0) + seconds
        self.keepable = self.keepable and screened.keepable
        return screened

    def _note(self, found: Found) -> Rule:
        number = self._number[id(found.rule)]
        rule = self._rules[number]
        counted = (rule.name, rule.detector.name, "dry_run" if rule.dry_run else rule.acts, "output")
        self.tally.counts[counted] = self.tally.counts.get(counted, 0) + 1
        self._acted[number] = f"{rule.name}={rule.acts}{';dry-run' if rule.dry_run else ''}"
        self.tally.acted = self.acted
        return rule

    async def _watch(self) -> None:
        texts = [held.said() for choice in self._choices.values() for held in choice.texts.values()]
        segments = [Segment(at, text, "assistant") for at, text in enumerate(texts) if text]
        if segments and self._watching:
            for found in (await self._looked(segments, self._watching)).found:
                self._note(found)

    # --- what goes out

    async def _release(self, choices: "Iterable[_Choice]", *, whole: bool = False) -> None:
        """Of each text what is decided, and all of it where it is `whole`."""
        windows: list[_Looked] = []
        for choice in choices:
            for held in choice.texts.values():
                window = held.window(whole=whole)
                if window is None and held.overfull:
                    self._give_up()
                    window = held.all_there_is()
                if window is not None:
                    windows.append(_Looked(choice, held, window))
                elif held.beside and not held.holds:
                    self._let_out(choice, held, held.release(held.size, ()))
        self._fresh = 0
        if not self._let_out_clean(windows):
            await self._let_out_judged(windows)

    def _release_quickly(self) -> bool:
        """The same where nothing is found; False: it is still to be done."""
        windows: list[_Looked] = []
        for choice in self._choices.values():
            for held in choice.texts.values():
                if held.overfull or held.beside:
                    return False
                window = held.window(whole=False)
                if window is not None:
                    windows.append(_Looked(choice, held, window))
        if not self._let_out_clean(windows):
            return False
        self._fresh = 0
        return True

    def _let_out_clean(self, windows: "Sequence[_Looked]") -> bool:
        if windows and not self._glance.finds_nothing([one.window.text for one in windows], self.tally):
            return False
        for choice, held, window in windows:
            self._let_out(choice, held, held.release(window.cut, ()))
        return True

    async def _let_out_judged(self, windows: "Sequence[_Looked]") -> None:
        found: list[list[Found]] = [[] for _ in windows]
        # Numbered here, whatever the texts are: the same ones are looked at once.
        segments = [Segment(at, one.window.text, "assistant") for at, one in enumerate(windows)]
        for one in (await self._looked(segments, self._text_rules)).found:
            found[one.segment].append(one)
        blocking: _Blocking = []
        for (choice, held, window), mine in zip(windows, found, strict=True):
            verdict = self._judged(held, window, mine)
            self._let_out(choice, held, held.release(verdict.cut, verdict.edits))
            blocking += verdict.blocking
        if blocking:
            raise _blocked(blocking)

    def _give_up(self) -> None:
        """A text is too long to be held: it goes as it is, unless a rule fails closed."""
        closed = next((rule for rule in self._text_rules if rule.fail == "closed"), None)
        if closed is not None:
            raise GuardrailUnavailable(
                f"the guardrail {closed.name} could not look at all of it: over {CAP} characters in one piece"
            )
        self.keepable = False

    def _judged(self, held: HeldText, window: Window, found: Iterable[Found]) -> "_Verdict":
        spans: list[Span] = []
        mine: list[tuple[int, Found, Rule]] = []
        goes_on = False  # the first edit is the rest of what was replaced before
        for one in found:
            start, end = one.start + window.start, one.end + window.start
            number = self._number[id(one.rule)]
            rule = self._rules[number]
            if start < held.released:
                if start < held.trusted or (rule.action != "block" and end <= held.released):
                    continue
                # Its beginning has gone: a text that was over went on, or the detector reaches further than it says.
                replaced = held.was_replaced(start)
                goes_on = goes_on or replaced
                if rule.action != "block" and rule.fail == "closed" and not replaced:
                    raise GuardrailUnavailable(f"the guardrail {rule.name} found what had begun to be sent")
                start, end = held.released, max(end, held.released + 1)
            if start < window.cut:
                spans.append(Span(start, end, one.kind, rule.acts, number))
                mine.append((start, one, rule))
        groups = merged(spans)
        cut = window.cut
        # All that begins before the cut is known: one that goes beyond it waits until it is all there.
        while groups and groups[-1].end > cut:
            held.waits = max(held.waits, groups[-1].end)
            cut = held.break_before(groups.pop().start)
        block = next((group for group in groups if group.action == "block"), None)
        blocking: _Blocking = []
        if block is not None:
            cut = block.start
            groups = [group for group in groups if group.end <= cut]
        for start, one, rule in mine:
            if block is not None and rule.action == "block" and block.start <= start < block.end:
                blocking.append((rule, one.kind))
            elif start >= cut:
                continue
            self._note(one)
        edits = [Edit(group.start, group.end, redaction(group.kind)) for group in groups]
        if goes_on and edits and edits[0].start == held.released:
            edits[0] = edits[0]._replace(text="")
        return _Verdict(cut, edits, blocking)

    async def _send_calls(self, choice: "_Choice", calls: "Sequence[_Call]", *, unfinished: bool = False) -> None:
        for call in calls:
            if call.gone or not (unfinished or call.complete()):
                continue
            call.gone = True
            said = call.whole()
            whole = {"function_call": said["function"]} if call.index < 0 else {"tool_calls": [said]}
            self._say(choice, await self._message(whole))

    def _let_out(self, choice: "_Choice", held: HeldText, pieces: Sequence[Piece]) -> None:
        choice.signed = choice.signed and not held.rewritten
        for piece in pieces:
            if piece.chunk is not None:
                self._out.append(piece.chunk)
                continue
            said = dict(piece.said)
            if piece.text and not held.name.startswith("detail "):
                said[held.name] = piece.text
            if piece.details and choice.signed:
                said["reasoning_details"] = piece.details
            if said or piece.logprobs is not None or piece.choice:
                self._say(choice, said, piece.logprobs, piece.choice)

    def _attach(self, choice: "_Choice", kind: str, fields: Json) -> None:
        """After what is held of the text that is being said."""
        held = choice.holding
        if held is not None:
            held.attach(kind, fields)
        elif kind == "choice":
            self._say(choice, own=fields)
        else:
            self._say(choice, fields)

    def _say(self, choice: "_Choice", delta: Json | None = None, logprobs: Any = None, own: Json | None = None) -> None:
        said: Json = (
            {"text": "", **(delta or {})} if "text" in choice.texts else {"delta": {**choice.opening, **(delta or {})}}
        )
        choice.opening = {}
        part = {"index": choice.index, **said, "logprobs": logprobs, "finish_reason": None, **(own or {})}
        self._out.append({**self._frame, "choices": [part]})


class _Looked(NamedTuple):
    choice: "_Choice"
    held: HeldText
    window: Window


class _Verdict(NamedTuple):
    cut: int
    edits: list[Edit]
    blocking: _Blocking


class _Choice:
    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: dict[str, HeldText] = {}
        self.current: HeldText | None = None  # the one that is being said
        self.calls: dict[int, _Call] = {}
        self.opening: Json = {}  # waits for something to be said, so that a block may still be all there is
        self.signed = True  # nothing was replaced in the reasoning, so its details may go on
        self.finished = False

    @property
    def holding(self) -> HeldText | None:
        return self.current if self.current is not None and self.current.holds else None

    @property
    def reasons_in(self) -> str:
        if self.current is not None and _kin(self.current.name) == "reasoning":
            return self.current.name
        return _REASONING[0]

    def call_of(self, part: Json) -> "_Call":
        """Servers that give no index begin each call with an id."""
        index = part.get("index")
        if not isinstance(index, int):
            index = max(self.calls, default=0)
            if part.get("id") and index in self.calls and self.calls[index].fields.get("id"):
                index += 1
        return self.calls.setdefault(index, _Call(index))


class _Call:
    """A tool call as it comes; it is looked at, and sent, when it is whole."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.fields: Json = {}
        self.gone = False
        self._kind = "function"
        self._function: Json = {}
        self._written: dict[str, list[str]] = {}
        self._tried = False

    def add(self, part: Json) -> None:
        for name, value in part.items():
            if name in ("function", "custom") and isinstance(value, dict):
                self._kind = name
                for field, text in value.items():
                    if field in ("arguments", "input") and isinstance(text, str):
                        self._written.setdefault(field, []).append(text)
                        self._tried = False
                    elif text is not None:
                        self._function[field] = text
            elif name != "index" and value is not None:
                self.fields[name] = value

    def goes_on(self, part: Json) -> bool:
        said = part.get("function") or part.get("custom")
        return isinstance(said, dict) and any(str(said.get(field) or "").strip() for field in ("arguments", "input"))

    def complete(self) -> bool:
        """Whether nothing can follow. Of text that is no JSON nobody can tell."""
        written = self._written.get("arguments", [])
        if self._tried or not written or not written[-1].rstrip().endswith("}"):
            return False
        self._tried = True
        try:
            msgspec.json.decode("".join(written), type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, RecursionError, ValueError):
            return False
        return True

    def whole(self) -> Json:
        written = {field: "".join(pieces) for field, pieces in self._written.items()}
        return {"index": self.index, **self.fields, self._kind: {**self._function, **written}}


class _Ready:
    """What there is at once."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> "_Ready":
        return self

    async def __anext__(self) -> Chunk:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


async def _stopped_by(work: Awaitable[None]) -> GatewayError | None:
    try:
        await work
    except (ContentBlocked, GuardrailUnavailable) as error:
        return error
    return None


def _nothing_but_text(part: Json) -> str | None:
    """What nearly every chunk is."""
    delta = part.get("delta")
    if delta and len(delta) == 1 and not (part.keys() - _BARE) and part.get("logprobs") is None:
        text = delta.get("content")
        return text if isinstance(text, str) and part.get("finish_reason") is None else None
    return None


def _readable(detail: Any) -> tuple[str, str] | None:
    """The field that can be read, and what it says."""
    if isinstance(detail, dict):
        for field in ("text", "summary"):
            if isinstance(detail.get(field), str) and detail[field]:
                return field, detail[field]
    return None


def _kin(name: str) -> str:
    """Texts that are said at the same time."""
    return "reasoning" if name in _REASONING or name.startswith("detail ") else name


def _blocked(blocking: _Blocking) -> ContentBlocked:
    kinds: dict[str, set[str]] = {}
    for rule, kind in blocking:
        kinds.setdefault(rule.name, set()).add(label(kind).lower())
    named = "; ".join(f"{name} ({', '.join(sorted(found)[:10])})" for name, found in list(kinds.items())[:5])
    return ContentBlocked(f"blocked by the guardrail {named}")


def _chunk(fields: Json) -> Chunk:
    return Chunk(msgspec.json.encode(fields), fields)
