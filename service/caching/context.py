"""Whether a turn can be understood without those before it.

"And for kids?" has as many meanings as there are conversations; "How tall is
Mount Everest?" has one. `RULES` are signs that a turn leans on what was said
(anaphora, ellipsis, a definite phrase that names nothing, cf. Elgohary et al.
2019, CANARD). They are strict: a turn wrongly called dependent costs a hit, a
turn wrongly called self-contained is answered with another conversation's
answer. Written for English; a turn in which no letter is Latin is dependent.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from service.context import Keeping

# In characters. A longer turn brings its own context; of a longer history the end is read.
LONGEST = 1_000
_LONGEST_HISTORY = 20_000


class Turn(NamedTuple):
    """`words` as written, `low` in lower case and ` between spaces `. `names` are what pins it to a topic by itself,
    `parts` names of which the history says more."""

    text: str
    words: tuple[str, ...]
    low: str
    content: tuple[str, ...]
    names: tuple[str, ...]
    parts: tuple[str, ...]


class Rule(NamedTuple):
    reason: str
    applies: Callable[[Turn], bool]


def leans_on(text: str, history: str = "") -> str | None:
    """Why `text` cannot be understood without `history`, the turns before it; None if it can.

    A name that the history has in full and `text` in part ("Julia" after
    "Julia Sweeney") pins nothing. Takes time in the length of both.
    """
    turn = _turn(text, history)
    return next((rule.reason for rule in RULES if rule.applies(turn)), None)


def keeps_history(messages: Sequence[Any], text: str, keeping: Keeping) -> bool:
    """Whether the turns before the last are part of the identity of a chat whose last turn asks `text`.

    With tools called, or images or files shown, they always are: the answer
    may rest on what came back. Nor may they go where a user has said something
    that holds from then on ("from now on answer in French", "I am a nurse").
    """
    turns = plain_turns(messages)
    if keeping == "full" or turns is None:
        return True
    if keeping == "last-turn":
        return False
    said = "\n".join(content for _, content in turns)
    if any(role == "user" and _SETS.search(_low(content[:_LONGEST_HISTORY])) for role, content in turns):
        return True
    return bool(turns) and leans_on(text, said) is not None


def plain_turns(messages: Sequence[Any]) -> list[tuple[str, str]] | None:
    """Role and text of the turns before the last one, without the system's messages at the start; None if one is more
    than text, or a message of the system stands between them."""
    turns = []
    for message in messages[systems_first(messages) : -1]:
        if not isinstance(message, dict) or message.keys() != _PLAIN or message["role"] not in ("user", "assistant"):
            return None
        if not isinstance(message["content"], str):
            return None
        turns.append((message["role"], message["content"]))
    return turns


def systems_first(messages: Sequence[Any]) -> int:
    """How many messages of the system come before all others."""
    count = 0
    for message in messages:
        if not isinstance(message, dict) or message.get("role") != "system":
            break
        count += 1
    return count


_PLAIN = frozenset({"role", "content"})
_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")


def _low(text: str) -> str:
    return f" {' '.join(word.replace('’', chr(39)).casefold() for word in _WORD.findall(text))} "


def _turn(text: str, history: str) -> Turn:
    words = tuple(_WORD.findall(text[: LONGEST + 1]))
    low = tuple(word.replace("’", "'").casefold() for word in words)
    content = tuple(word for word in low if word not in _FUNCTION and word.removesuffix("'s") not in _FUNCTION)
    names, parts = _names(words, history[-_LONGEST_HISTORY:])
    return Turn(text, words, f" {' '.join(low)} ", content, names, parts)


def _names(words: Sequence[str], history: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Runs of capitalised words (with "of" and the like between): those that are full names as far as `history`
    tells, and those that are not."""
    runs: list[list[str]] = []
    last = -9
    for at, word in enumerate(words):
        if not (word[0].isupper() or (word[0].isdigit() and last == at - 1)) or word.casefold() in _NO_NAME:
            continue
        if runs and (last == at - 1 or (last == at - 2 and words[at - 1] in _INSIDE_NAMES)):
            runs[-1].append(word)
        else:
            runs.append([word])
        last = at
    names: list[str] = []
    parts: list[str] = []
    for run in runs:
        name = " ".join(run).removesuffix("'s").removesuffix("’s")
        if len(run) == 1 and run[0] == words[0]:
            continue  # any word has a capital there
        (parts if len(run) == 1 and _is_part_of_a_name(name, history) else names).append(name)
    return tuple(names), tuple(parts)


def _is_part_of_a_name(name: str, history: str) -> bool:
    found = re.finditer(rf"(?<!\w)(?:(\w[\w.'-]*) )?{re.escape(name)}(?: (\w[\w.'-]*))?(?!\w)", history)
    beside = (word for match in found for word in match.groups() if word)
    return any(word[0].isupper() and word.casefold() not in _FUNCTION for word in beside)


# --- the rules


def _is_long(turn: Turn) -> bool:
    return len(turn.text) > LONGEST


def _is_not_english(turn: Turn) -> bool:
    words = set(turn.low.split())
    return words.isdisjoint(_ONLY_ENGLISH) and len(words & _ENGLISH) < 2


def _goes_on(turn: Turn) -> bool:
    return _OPENS.match(turn.low) is not None


def _points_back(turn: Turn) -> bool:
    """A pronoun of the third person that no name in the turn itself comes before."""
    found = _PRONOUN.search(_EXPLETIVE.sub(" ", turn.low))
    if found is None:
        return False
    before = turn.low[: turn.low.find(f" {found[1]} ") + 1]
    return not any(
        _low(name) in before and f" the{_low(name)}" not in before
        for name in turn.names
        if " " in name or found[1] in _POSSESSIVE
    )


def _points(turn: Turn) -> bool:
    return _DEMONSTRATIVE.search(turn.low) is not None


def _compares(turn: Turn) -> bool:
    """With something that is not there: "other", "cheaper" without "than"."""
    if _OTHER.search(turn.low) and not _BESIDE.search(turn.low):
        return True
    if not turn.names and _OF_SOME.search(turn.low):
        return True
    return _COMPARATIVE.search(turn.low) is not None and " than " not in turn.low


def _means_a_known_one(turn: Turn) -> bool:
    """ "The album", where nothing says which."""
    known = _KNOWN.search(_UNIQUE.sub(" ", turn.low))
    return known is not None and not turn.names


def _names_a_role(turn: Turn) -> bool:
    return _ROLE.search(turn.low) is not None and not any(" " in name for name in turn.names)


def _names_in_part(turn: Turn) -> bool:
    return bool(turn.parts)


def _is_thin(turn: Turn) -> bool:
    if any(" " in name for name in turn.names):
        return len(turn.content) < 2
    return len(turn.content) < (3 if turn.names else 4)


RULES: tuple[Rule, ...] = (
    Rule("long", _is_long),
    Rule("language", _is_not_english),
    Rule("opening", _goes_on),
    Rule("pronoun", _points_back),
    Rule("demonstrative", _points),
    Rule("comparison", _compares),
    Rule("role", _names_a_role),
    Rule("definite", _means_a_known_one),
    Rule("part-of-a-name", _names_in_part),
    Rule("thin", _is_thin),
)

# --- data (English)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ENGLISH = _set(
    "the is are was were what how who when where why which does did do of and to for with can could should would you"
    " tell me explain describe give list name from about by my i have has in on a an be this it between write make"
)
_ONLY_ENGLISH = _set(
    "the what how who when where why which did does are were of with would could should tell explain describe give"
    " had than about from"
)
_POSSESSIVE = _set("his her their its")
_FUNCTION = (_ENGLISH - _set("list write make")) | _set(
    "am been being had having doing will shall may might must whose whom this that these those he she it they them his"
    " her hers him their theirs its i'm me we us our your yours myself himself herself itself themselves at into onto"
    " over under after before during until since through against within without as than or but if then so not no nor"
    " too very just also only even ever never still yet already again once here there all any both each few more most"
    " other others another some such own same much many else out off up down one ones something anything nothing"
    " someone anyone what's who's where's when's how's it's that's there's i've i'd don't didn't doesn't isn't wasn't"
    " weren't aren't can't please thing things get got gets go goes went happen happens happened say said says know"
    " want like kind sort type way let's yes ok okay well because while like besides aside apart"
)
_NO_NAME = _FUNCTION | _set(
    "january february march april may june july august september october november december monday tuesday wednesday"
    " thursday friday saturday sunday act part chapter section question answer english"
)
_INSIDE_NAMES = _set("of the de la le von van der den du di da del y")

_OPENS = re.compile(
    r" (?:(?:and|but|or|so|then|also|plus|ok|okay|yes|yeah|no|sure|thanks|thank|right|hmm|oh|again|continue|instead"
    r"|next"
    r"|anything|anyone|any|same|more|still|else|besides that|if so|if not|because|except|only|really|explain further)"
    r"|what about|how about|why not|how come|how so|what else|who else|where else|when else|what if|what next|go on"
    r"|tell me more|give me more|elaborate|rewrite|rephrase|summarize|shorten|translate|for example|in what way) "
)
_PRONOUN = re.compile(
    r" (he|she|it|they|him|her|them|his|hers|its|their|theirs|himself|herself|itself|themselves|he's|she's|it's|they're"
    r"|he'd|she'd|they'd|it'd|he'll|she'll|they'll|it'll|they've)(?= )"
)
# "It" that stands for what comes after it.
_EXPLETIVE = re.compile(
    r" (?:is it (?:possible|true|safe|legal|illegal|ok|okay|necessary|good|bad|better|worth|normal|healthy|hard|easy"
    r"|important|correct|wrong|wise|difficult)|it (?:takes?|cost|costs|mean|means|feels?) (?:to|for|when)"
    r"|does it (?:take|cost|mean|feel) (?:like )?(?:to|for|when))(?= )"
)
_DEMONSTRATIVE = re.compile(
    r" (?:this|these|those|such|above|aforementioned|former|latter|previous|previously|preceding|earlier|following"
    r"|there(?! (?:is|are|was|were|any|a|been|be|many|some|other) )|(?<=^ )there|here|then|afterwards?|meanwhile"
    r"|that (?:is|was|were|are|did|does|do|had|has|time|year|album|one|way)"
    r"|(?:did|was|is|were|does|do|after|before|about|of|in|for|from|with|at|on|to|by|why|how|what|like|and|than|during"
    r"|all|call|called|besides|since|until|mean|get|got|that's|into|over|through|under) that"
    r"|that)(?= $)| (?:this|these|those|such|above|aforementioned|former|latter|previous|previously|preceding"
    r"|that's|afterwards?|then|here"
    r"|(?:did|was|is|were|does|do|after|before|about|of|for|from|with|at|on|by|why|how|what|during|besides|since|until"
    r"|into|over|through|under|all) that)(?= )"
)
_OTHER = re.compile(
    r" (?:other|others|else|another|also|too|again|instead|next|either|neither|ones|additional|further|remaining"
    r"|rest)(?= )"
)
# Of things that a name in the turn can be meant to belong to.
_OF_SOME = re.compile(
    r" (?:same|both|each|one|any|different|second|third|later|example|examples|still|anything|anyone|first|last|two"
    r"|three)(?= )"
)
_BESIDE = re.compile(r" (?:besides|aside from|apart from|other than|in addition to|along with|except|between) ")
_COMPARATIVE = re.compile(
    r" (?:more|less|fewer|better|worse|cheaper|faster|slower|bigger|larger|smaller|shorter|longer|older|newer|younger"
    r"|higher|lower|easier|harder|earlier|stronger|weaker|safer|closer|further)(?= )"
)
# What there is one of, or is said in full.
_UNIQUE = re.compile(
    r" the (?:world|internet|sun|moon|earth|sky|sea|ocean|universe|future|past|brain|heart|body|human|most|best|worst"
    r"|largest|biggest|smallest|tallest|longest|fastest|highest|oldest|greatest|difference|differences)(?= )"
    r"| the [\w'-]+(?: [\w'-]+)?(?: [\w'-]+)? (?:of|in|for|between|to|behind|on|from|at|that|which|who)(?= )"
)
_KNOWN = re.compile(r" the(?= )")
_ROLE = re.compile(
    r" the (?:article|section|text|passage|story|conversation|user|author|writer|answer|question|topic|subject|example"
    r"|band|group|team|album|song|single|show|film|movie|book|novel|series|game|tour|record|label|play|role|character"
    r"|company|war|battle|event|party|law|trial|case|murder|fight|match|election|concert|incident|death|accident|season"
    r"|tournament|contract|deal|project|program|production|performance|critics|fans|public|media|press|reception"
    r"|response"
    r"|reaction|reviews|result|results|outcome|parents|family|children|wife|husband|marriage|relationship|career|people"
    r"|members|player|coach|city|country|school|house|building|site|area|name|idea|theory|process|system|problem|issue"
    r"|reason|second|first|third|next|last|other|rest)(?= )"
)
# What a user says once for all turns that come.
_SETS = re.compile(
    r" (?:from now on|always|never|every (?:answer|reply|response|time)|each (?:answer|reply|response|time)|act as"
    r"|pretend"
    r"|you are (?:a|an|my|now|the)|you're (?:a|an|my|now|the)"
    r"|your (?:name|role|task|job) is|imagine|role ?play|call me"
    r"|my name is|i am (?:a|an|from|in|the)|i'm (?:a|an|from|in|the)|i live|i work|i have|i've|we are|we're|i use"
    r"|i prefer"
    r"|(?:answer|reply|respond|write|speak|talk|explain) (?:only |everything )?(?:in|as|like|with)|assume|suppose|let's"
    r"|lets|keep in mind|remember|ignore|instead of|don't|do not|for the rest|until i|whenever|be (?:brief|concise"
    r"|formal)"
    r"|only) "
)
