"""Hidden text: what a model reads and a person does not see, or sees in another order, or takes for plain text."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from models.finding import Finding, Segment

_LINE = 256  # an embedding or isolate that is not closed within so many characters of its line is not closed

# Special tokens of chat templates, from the tokenizer configurations that the makers publish.
_BARRED = frozenset(
    {
        # ChatML: OpenAI, Qwen, Yi, Hermes; OpenAI's Harmony
        *("im_start", "im_end", "im_sep", "im_middle", "im_system", "im_user", "im_assistant"),
        *("endoftext", "endofprompt", "startoftext", "fim_prefix", "fim_middle", "fim_suffix", "fim_pad"),
        *("start", "message", "channel", "constrain", "call", "return"),
        # Llama 3 and 4
        *("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "eom_id", "python_tag"),
        *("header_start", "header_end", "eot", "eom", "step_id"),
        # Phi, GLM, InternLM, Granite, Grok
        *("system", "user", "assistant", "end", "tool", "tool_call", "tool_response", "observation"),
        *("action_start", "action_end", "interpreter", "plugin", "start_of_role", "end_of_role", "separator", "eos"),
        # Command R
        *("START_OF_TURN_TOKEN", "END_OF_TURN_TOKEN", "SYSTEM_TOKEN", "USER_TOKEN", "CHATBOT_TOKEN"),
        *("START_RESPONSE", "END_RESPONSE", "START_THINKING", "END_THINKING", "START_ACTION", "END_ACTION"),
        *("START_TOOL_RESULT", "END_TOOL_RESULT"),
    }
)
# `<|x|>` and DeepSeek's `<｜x｜>` whatever x is; Llama 2, Gemma, GLM, T5 and Mistral by their names. Not `<s>` or
# `<think>`: the one is strikethrough in HTML, the other is in every answer of a reasoning model.
_ANGLE = re.compile(
    r"<(?:\|([A-Za-z0-9_]{1,40})\|>"
    r"|｜[^\s｜<>]{1,40}｜>"
    r"|</?SYS>>"
    r"|(?:start|end)_of_(?:turn|image)>"
    r"|/?s>(?=\s?\[/?INST\])"
    r"|(?:bos|eos|sop|eop|extra_id_[0-9]{1,3})>)"
)
_BRACKET = re.compile(
    r"\[(?:/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|MODEL_SETTINGS|TOOL_CONTENT)|TOOL_CALLS|ARGS|gMASK|sMASK"
    r"|\|(?:system|user|assistant|endofturn|tool)\|)\]"
)
# One that is not whole, as far as it may have white space or a letter of a script without spaces in it.
_OPEN_TOKEN = re.compile(r"(?:<｜[^\s｜<>]{0,40}｜?|</?s>\s?(?:\[/?[INST]{0,4})?)\Z")
_LONGEST_TOKEN = 48
_UNKNOWN_TOKEN = 0.6

# Drawn by nothing: joiners and spaces of no width, marks of direction, invisible operators, blank letters, selectors.
_BLANK = (
    "\u00ad\u034f\u061c\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u2065\u206a-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufff8\U0001d173-\U0001d17a\U000e0080-\U000e0fff"
)
_TAGS = "\U000e0000-\U000e007f"
_BIDI = "\u202a-\u202e\u2066-\u2069"
_ANY = re.compile(f"[{_BLANK}{_TAGS}{_BIDI}]")
_BLANKS = re.compile(f"[{_BLANK}]+")
_TAG_RUN = re.compile(f"[{_TAGS}]+")

# The flags that Unicode recommends for interchange (England, Scotland, Wales), Northern Ireland's, and those of the
# states of the USA that some systems draw. Any other code could be five hidden letters behind every flag.
_FLAG = re.compile("\U0001f3f4" + "[\U000e0061-\U000e007a]{4,5}" + "\U000e007f")
_FLAG_CODES = re.compile("gb(?:eng|sct|wls|nir)|us[a-z]{2}")

# Scripts in which joiners say how letters are drawn: Arabic, Persian and their neighbours, India's, South-East Asia's.
_JOINING = re.compile(
    "[\u0600-\u08ff\u0900-\u109f\u1780-\u18af\u1900-\u1cff\ua840-\uabff\ufb50-\ufdff\ufe70-\ufefc"
    "\U00010a00-\U00011fff\U0001e900-\U0001e95f]"
)
# What an emoji sequence is joined from. The last one ends the flag of England.
_PICTURE = re.compile(
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u2460-\u2bff\u3030\u303d\u3297\u3299"
    "\U0001f000-\U0001faff\U000e007f]"
)
# Words of these have spaces around them: a break inside one serves nobody who reads it.
_SPACED = re.compile("[0-9A-Za-z\u00c0-\u024f\u0370-\u058f\u1e00-\u1fff]")
_JOINER_OF_PICTURES = re.compile("[\ufe00-\ufe0f]?\u200d")
_JOINERS = frozenset("\u200c\u200d")
_HARMLESS_ALONE = re.compile(
    "[\u00ad\u061c\u17b4\u17b5\u180b-\u180f\u200e\u200f\u2061-\u2064\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
# What may be the beginning of that, or of characters without width, read from the end.
_OPEN_SHREDS = re.compile(rf"[{_BLANK}]*\w?(?:\u00ad\w)*")
_SHREDDED = re.compile(r"\w(?:\u00ad\w){3,}")  # a word may break after a syllable, hardly after each letter
_TYPOGRAPHY = 3  # so many alike may be an accident; more, or different ones, can carry a message
_SPLIT_WORD = 0.6

_EMBEDDINGS = frozenset("\u202a\u202b\u202d\u202e")
_ISOLATES = frozenset("\u2066\u2067\u2068")
_OVERRIDES = frozenset("\u202d\u202e")
_TO_THE_LEFT = frozenset("\u202b\u2067")
_POP_EMBEDDING, _POP_ISOLATE = "\u202c", "\u2069"
_BIDI_STEPS = re.compile(
    f"[{_BIDI}\n\r\x1c-\x1e\x85\u2029]|"
    "[\u0590-\u05ff\u0600-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]+"
)


class HiddenTextDetector:
    """Four kinds; what has a use in some script or emoji is none of them.

    - `unicode_tags`: the invisible copy of ASCII at U+E0000, but for flags.
    - `zero_width`: characters of no width in a row, inside a word, or where
      they join nothing. Alone they may be typography, and lower confidence.
    - `bidi_control`: overrides; embeddings and isolates that are not closed
      (in their line, within 256 characters), closed without being open, or
      turned right to left around no letter that is written so.
    - `chat_template`: special tokens of the common models, such as
      `<|im_start|>` and `[INST]`. Others of the form `<|…|>` have 0.6.

    In an unfinished text, a bidirectional control of its last 256 characters
    may yet turn out well: it may still be closed.
    """

    name = "hidden_text"
    kinds = frozenset({"unicode_tags", "zero_width", "bidi_control", "chat_template"})
    revision = "1"
    reach: int | None = _LINE
    context = 2 * _LINE
    inline = True

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        findings: list[Finding] = []
        for segment in segments:
            text = segment.text
            if "<" in text or "[" in text:
                findings.extend(_chat_templates(segment))
            if not text.isascii() and _ANY.search(text):
                findings.extend(_tags(segment))
                findings.extend(_zero_widths(segment))
                findings.extend(_bidi_controls(segment))
        return findings

    def open_from(self, text: str) -> int:
        """From where on `text` may be part of what is found, or turn out well; its length where nothing is open."""
        token = _OPEN_TOKEN.search(text, max(0, len(text) - _LONGEST_TOKEN))
        opened = len(text) if token is None else token.start()
        if text.isascii():
            return opened
        shreds = _OPEN_SHREDS.match(text[-_LINE:][::-1])
        _, unclosed = _paired(text)
        recent = [control.at for control in unclosed if control.at >= len(text) - _LINE]
        return min([opened, *recent, len(text) - (shreds.end() if shreds else 0)])


class _Opened(NamedTuple):
    at: int
    control: str
    letters: int  # how many runs of letters written from the right came before


def _chat_templates(segment: Segment) -> Iterator[Finding]:
    for pattern in (_ANGLE, _BRACKET):
        for token in pattern.finditer(segment.text):
            barred = token[1] if pattern is _ANGLE else None
            confidence = 1.0 if barred is None or barred in _BARRED else _UNKNOWN_TOKEN
            yield Finding(segment.index, "chat_template", token.start(), token.end(), confidence)


def _tags(segment: Segment) -> Iterator[Finding]:
    text = segment.text
    for run in _TAG_RUN.finditer(text):
        start = run.start()
        flag = _FLAG.match(text, start - 1) if start else None
        if flag and _FLAG_CODES.fullmatch("".join(chr(ord(tag) - 0xE0000) for tag in flag[0][1:-1])):
            start = flag.end()
        if start < run.end():
            yield Finding(segment.index, "unicode_tags", start, run.end())


def _zero_widths(segment: Segment) -> Iterator[Finding]:
    text = segment.text
    for word in _SHREDDED.finditer(text):
        yield Finding(segment.index, "zero_width", word.start(), word.end())
    for run in _BLANKS.finditer(text):
        start, end = run.span()
        confidence = _suspicion(run[0], text[start - 1 : start], text[end : end + 1])
        if confidence:
            yield Finding(segment.index, "zero_width", start, end, confidence)


def _suspicion(run: str, before: str, after: str) -> float:
    """How surely a run of characters without width, between these two, hides something."""
    if _PICTURE.match(before) and _JOINER_OF_PICTURES.fullmatch(run):
        return 0.0 if _PICTURE.match(after) else _SPLIT_WORD
    if len(run) > _TYPOGRAPHY or run.strip(run[0]):
        return 1.0
    if run[0] in _JOINERS:
        return 0.0 if _JOINING.match(before) or _JOINING.match(after) else _SPLIT_WORD
    if len(run) == 1 and _HARMLESS_ALONE.match(run):
        return 0.0
    return _SPLIT_WORD if _SPACED.match(before) and _SPACED.match(after) else 0.0


def _bidi_controls(segment: Segment) -> Iterator[Finding]:
    wrong, unclosed = _paired(segment.text)
    wrong.update(left.at for left in unclosed)
    return (Finding(segment.index, "bidi_control", at, at + 1) for at in sorted(wrong))


def _paired(text: str) -> tuple[set[int], list[_Opened]]:
    """Those that are wrong, and those still open at the end of the text.

    The bidirectional algorithm's own pairing: the end of an isolate ends the
    embeddings inside it, the end of an embedding nothing outside its isolate,
    the end of a line everything.
    """
    wrong: set[int] = set()
    opened: list[_Opened] = []
    isolates: list[int] = []  # the places in `opened` that hold one
    letters = 0
    for step in _BIDI_STEPS.finditer(text):
        control, at = step[0][0], step.start()
        if control in _EMBEDDINGS or control in _ISOLATES:
            if control in _ISOLATES:
                isolates.append(len(opened))
            if control in _OVERRIDES:
                wrong.add(at)
            opened.append(_Opened(at, control, letters))
        elif control in (_POP_EMBEDDING, _POP_ISOLATE):
            innermost = isolates[-1] if isolates else -1
            place = innermost if control == _POP_ISOLATE else len(opened) - 1
            if place < 0 or (control == _POP_EMBEDDING and place == innermost) or opened[place].at < at - _LINE:
                wrong.add(at)
                continue
            if control == _POP_ISOLATE:
                isolates.pop()
                wrong.update(inside.at for inside in opened[place + 1 :])
            if opened[place].control in _TO_THE_LEFT and opened[place].letters == letters:
                wrong.update((opened[place].at, at))
            del opened[place:]
        elif control.isspace():
            wrong.update(left.at for left in opened)
            opened.clear()
            isolates.clear()
        else:
            letters += 1
    return wrong, opened
