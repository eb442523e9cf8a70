"""The question inside a prompt, and the passages and instructions around it.

Of a RAG prompt only the question may be compared: two prompts with one
template and other passages are near each other in any embedding, whatever is
asked. So what surrounds the question is identity. An endpoint says where the
question is (`Template`), or it is found where common templates have it: behind
a label ("Question:"), or beside passages that are labelled, in tags, fenced or
announced. Whatever is taken for the question, everything else has to be equal:
a wrong cut costs hits, and never makes two passages one.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import re2

Layout = Literal["whole", "template", "label", "tags", "fence", "announced", "parts"]

# In characters: a prompt beyond this is not looked into.
LONGEST = 65_536
# In characters: no question is longer where nobody labelled it.
_LONGEST_QUESTION = 600
# Names of tags in one text.
_MOST_TAGS = 40


class Cut(NamedTuple):
    """`around` is what must be equal: the text with the question cut out, white space as single spaces outside of
    fences. Empty with the layout `whole`: the text is a question and nothing else."""

    question: str
    around: str
    layout: Layout


class TemplateError(ValueError):
    """A `question_pattern` that cannot be used, and why."""


class Template:
    """An endpoint's `question_pattern`: an RE2 expression with a group named `question`. Takes time in the length of
    the text. Raises `TemplateError`."""

    def __init__(self, expression: str) -> None:
        options = re2.Options()
        options.log_errors = False
        options.max_mem = 8 * 1024 * 1024
        try:
            self._pattern = re2.compile(expression.encode(), options)
        except UnicodeEncodeError as error:
            raise TemplateError(f"is not an RE2 expression: {error}") from error
        except re2.error as error:
            # It speaks in bytes, of an expression that was given in bytes.
            why = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
            raise TemplateError(f"is not an RE2 expression: {why}") from error
        group = self._pattern.groupindex.get(b"question")
        if group is None:
            raise TemplateError("has no group (?P<question>...)")
        self._group: int = group

    def cut(self, text: str) -> Cut | None:
        """None where the expression does not match, or its question is empty."""
        encoded = text.encode("utf-8", "surrogatepass")
        found = self._pattern.search(encoded)
        if found is None or found.group(self._group) is None:
            return None
        start, end = found.span(self._group)
        before, question, after = (
            part.decode("utf-8", "surrogatepass") for part in (encoded[:start], encoded[start:end], encoded[end:])
        )
        return _made(before + question + after, (len(before), len(before) + len(question)), "template")


@lru_cache(maxsize=1_000)
def template(expression: str) -> Template:
    """Raises `TemplateError`."""
    return Template(expression)


def cut(text: str, template: Template | None = None) -> Cut | None:
    """The question in `text`; None where there are passages and it is not clear what the question is.

    A text that the template does not match is looked at as if there were none.
    """
    if template is not None and (found := template.cut(text)) is not None:
        return found
    for layout, find in _LAYOUTS:
        span = find(text)
        if span is not None:
            return _made(text, span, layout) if span != _UNCLEAR else None
    return Cut(text, "", "whole")


def cut_parts(texts: list[str]) -> int | None:
    """Which of the text parts of one message is its question: the last or else the first; None if that is not clear."""
    asking = [at for at in (len(texts) - 1, 0) if _is_question(texts[at].strip())]
    return asking[0] if len(asking) == 1 or (asking and not _is_question(texts[0].strip())) else None


Span = tuple[int, int]
_UNCLEAR: Span = (-1, -1)


def _made(text: str, span: Span, layout: Layout) -> Cut | None:
    start, end = _stripped(text, span)
    if start == end:
        return None
    before, after = text[:start], text[end:]
    if not _FENCE.search(text):
        before, after = " ".join(before.split()), " ".join(after.split())
    return Cut(text[start:end], f"{before}\0{after}", layout)


def _stripped(text: str, span: Span) -> Span:
    inner = text[span[0] : span[1]]
    start = span[0] + len(inner) - len(inner.lstrip())
    return start, max(start, span[0] + len(inner.rstrip()))


# --- layouts: each gives the span of the question, `_UNCLEAR`, or None where a text is not of it


def _labelled(text: str) -> Span | None:
    """Behind the last "Question:", up to the next label or blank line. Those before it are examples, or passages."""
    labels = list(_QUESTION_LABEL.finditer(text))
    if not labels:
        return None
    start = labels[-1].end()
    ends = _LABELLED_END.search(text, start)
    if not text[start : ends.start() if ends else len(text)].strip():
        # The question stands below its label.
        below = start + len(text[start:]) - len(text[start:].lstrip())
        ends = _LABELLED_END.search(text, below)
        start = below
    span = (start, ends.start() if ends else len(text))
    return span if text[span[0] : span[1]].strip() else _UNCLEAR


def _tagged(text: str) -> Span | None:
    """<question>, or what stands beside the tags of passages."""
    questions = list(_QUESTION_TAG.finditer(text))
    if len(questions) == 1:
        return questions[0].span(2)
    opened = {tag[1]: tag.start() for tag in reversed(list(_PASSAGE_TAG.finditer(text)))}
    if not opened:
        return None
    if questions or len(opened) > _MOST_TAGS:
        return _UNCLEAR
    closed = max(text.rfind(f"</{name}>") for name in opened)
    first = min(opened.values())
    if closed < first:
        return _UNCLEAR
    return _beside(text, first, text.index(">", closed) + 1)


def _fenced(text: str) -> Span | None:
    fences = list(_FENCE.finditer(text))
    if not fences:
        return None
    if len(fences) % 2:
        return _UNCLEAR
    return _beside(text, fences[0].start(), fences[-1].end())


def _announced(text: str) -> Span | None:
    """Passages without marks of their own, told by "based on the following", or by "Context:" at the start of a line;
    and what "the given word" is, below."""
    announced = _ANNOUNCED.search(text) or _PASSAGE_LABEL.search(text)
    paragraphs = list(_PARAGRAPH.finditer(text)) if announced or "\n\n" in text else []
    if not announced and (len(paragraphs) < 2 or not _GIVEN.search(paragraphs[0][0])):
        return None
    if len(paragraphs) < 2:
        return _UNCLEAR
    first, last = paragraphs[0], paragraphs[-1]
    asks_last, asks_first = _is_question(last[0].strip()), _is_question(first[0].strip())
    if asks_last == asks_first:
        return _UNCLEAR
    asking = last if asks_last else first
    if _PASSAGE_LABEL.match(asking[0]) or _HOLDS.search(asking[0]):
        return _UNCLEAR
    return asking.span()


# In this order: the surest first.
_LAYOUTS: tuple[tuple[Layout, Callable[[str], Span | None]], ...] = (
    ("label", _labelled),
    ("tags", _tagged),
    ("fence", _fenced),
    ("announced", _announced),
)


def _beside(text: str, start: int, end: int) -> Span:
    """The question after or before what lies between `start` and `end`."""
    after, before = text[end:].strip(), text[:start].strip()
    for span, there, other in (((end, len(text)), after, before), ((0, start), before, after)):
        if there and (_is_question(there) or (not other and _is_short(there))):
            return span
        paragraphs = list(_PARAGRAPH.finditer(text, *span))
        last = paragraphs[-1] if paragraphs else None
        if last is not None and len(paragraphs) > 1 and _is_question(last[0].strip()):
            return last.span()
        if there:
            break  # the question is not before what stands there unexplained
    return _UNCLEAR


def _is_short(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_QUESTION and "\n\n" not in text and not _PASSAGE_LABEL.match(text)


def _is_question(text: str) -> bool:
    return _is_short(text) and (text.endswith(("?", "？", "؟")) or _ASKS.match(text) is not None)


_QUESTION_LABEL = re.compile(
    r"^[ \t]*(?:\*\*|#+ *)?(?:user(?:'s)? |my |the |final |new )?(?:question|query|frage|pregunta|pergunta|问题|問題)"
    r"(?: is)?(?:\*\*)?[ \t]*[:：](?:\*\*)?",
    re.IGNORECASE | re.MULTILINE,
)
_PASSAGE = (
    r"(?:context|contexts|passage|document|source|excerpt|article|reference|snippet|search result|retrieved|background"
    r"|knowledge|information|text|paragraph|evidence|chunk)"
)
_PASSAGE_LABEL = re.compile(
    rf"^[ \t]*(?:\*\*|#+ *)?(?:{_PASSAGE}s?(?: information| base| documents?| passages?)?(?: is below)?(?: ?#?\d+)?"
    r"(?:\*\*)?[ \t]*[:：.]|\[(?:doc(?:ument)? ?)?\d{1,3}\][ \t]*\S)",
    re.IGNORECASE | re.MULTILINE,
)
_LABELLED_END = re.compile(
    rf"\n[ \t]*\n|^[ \t]*(?:\*\*|#+ *)?(?:(?:helpful |final |your |the )?(?:answer|response|reply|assistant|output)"
    rf"|options|choices|instructions|note|antwort|respuesta|réponse|resposta|回答|答案|{_PASSAGE}s?)"
    r"(?:\*\*)?[ \t]*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_QUESTION_TAG = re.compile(
    r"<(question|query|user_query|user_question)>([^<]{1,4000})</\1>",
    re.IGNORECASE,
)
_PASSAGE_TAG = re.compile(
    r"<(contexts?|documents?|docs?|passages?|sources?|search_results?|results?|excerpts?|article|text|data|content"
    r"|references?|knowledge|file|quotes?|transcript|email|code|info|information|background|snippets?|chunks?)"
    r"(?:\s[^<>]{0,200})?>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```|\"\"\"|~~~")
_ANNOUNCED = re.compile(
    rf"\b(?:based|relying|according|using|use|given|from|read|consider|with|of|in|summari[sz]e|translate|about) "
    rf"(?:\w+ ){{0,4}}?(?:following|provided|below|above|given|attached|supplied|retrieved) (?:\w+ ){{0,3}}?{_PASSAGE}"
    rf"|\b(?:based|according|answer|using) (?:\w+ ){{0,5}}?(?:on|from|to|using|with|in) the (?:\w+ )?{_PASSAGE}"
    rf"|\b(?:following|below) (?:is|are) (?:\w+ ){{0,4}}?{_PASSAGE}"
    r"|\b(?:the|this|these|each) (?:following|given|below) (?:\w+ ){0,3}?(?:sentences?|paragraphs?|text|code|email|list"
    r"|table|data|review|reviews|article|story|document|function|poem|query|essay|conversation|statement|input|json"
    r"|transcript|message|problem|words?|items?)\b(?:[^\n]{0,80}):",
    re.IGNORECASE,
)
_GIVEN = re.compile(r"\b(?:given|provided|following|below|underlined|attached)\b", re.IGNORECASE)
# A paragraph that announces something and holds it as well.
_HOLDS = re.compile(r"\b(?:following|given|below|this)\b[^\n:]{0,80}:\s*\S", re.IGNORECASE)
_PARAGRAPH = re.compile(r"\S[^\n]*(?:\n[ \t]*\S[^\n]*)*")
_ASKS = re.compile(
    r"(?:please |can you |could you )?(?:what|who|whom|whose|when|where|which|why|how|is|are|was|were|do|does|did|can"
    r"|could|should|would|will|has|have|tell me|explain|describe|list|give me|name|find|define|compare)\b",
    re.IGNORECASE,
)
