"""Which requests the semantic tier may answer, and which answers may be kept at all.

The exact tier needs no rule here: the same request has the same answer. For
the semantic tier every rule is one line of `RULES`: a name by which an
endpoint switches it off, the word that `Cache-Status` and the log give as the
reason, and what it looks at. A rule only ever costs a hit. What the rules of
wording know lies in data below them: `LANGUAGES` for freshness, and the English
words for actions and for a caller's own state.
"""

import re
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import msgspec

from models.completion import Completion
from models.request import Request

# In characters: an embedder's window of some hundred tokens is shorter, and no rule reads more than this.
LONGEST = 8_000

_OF_A_CONTAINER = ("container", "container_id")
# How the dialects name a tool in `Request.beyond` that the provider runs itself.
_HOSTED_TOOL = re.compile(
    r"tools\[\d+\](?:\.(?:google|url|code|computer|mcp|file|enterprise|\w*[rR]etrieval|\w*[sS]earch)\w*)?"
)
_DECLARED = frozenset({"function", "custom"})

_CLAUSE = re.compile(r"[.!?;:,\n。！？；，、…]+")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class Asked(NamedTuple):
    """What a rule may look at. `clauses` are the words of each clause in lower case, as ` word word `; `folded` is
    the whole text so, for languages that write no spaces."""

    request: Request
    text: str
    folded: str
    clauses: tuple[str, ...]
    max_temperature: float


class Rule(NamedTuple):
    name: str
    reason: str
    applies: Callable[[Asked], bool]


class Language(NamedTuple):
    """Phrases in lower case, apostrophes straight, separated by commas. `fresh` make an answer a matter of the day
    wherever they stand, `days` unless the asker only tells what happened to them; `harmless` are phrases around such
    a word that do not. `spaced` False: the language writes no spaces, and a phrase is found inside longer words."""

    code: str
    fresh: str
    days: str = ""
    harmless: str = ""
    spaced: bool = True


def judge(request: Request, text: str, *, off: Set[str] = frozenset(), max_temperature: float = 0.3) -> str | None:
    """Why this request may not be answered from a similar one, as a word for `Cache-Status`; None if it may.

    `text` is what would be compared: the question without its passages. `off`
    holds names of `RULES`. The first rule that applies gives the reason. Takes
    time in the length of the text, and reads `LONGEST` characters at most.
    """
    folded = text[: LONGEST + 1].casefold().replace("’", "'")
    clauses = tuple(f" {' '.join(words)} " for part in _CLAUSE.split(folded) if (words := _WORD.findall(part)))
    asked = Asked(request, text, folded, clauses, max_temperature)
    for rule in RULES:
        if rule.name not in off and rule.applies(asked):
            return rule.reason
    return None


def not_semantic(request: Request, *, max_temperature: float) -> str | None:
    """`judge` on everything but the wording: what is known before a question is cut out of the request.

    An absent temperature is eligible; an explicit one above `max_temperature`
    asks for variety.
    """
    return judge(request, "a", off=_OF_WORDING, max_temperature=max_temperature)


def keepable(completion: Completion, keep: frozenset[str]) -> bool:
    """Whether every choice finished for a reason in `keep`. Embeddings have no choices and are always kept."""
    return all(reason in keep for reason in completion.finish_reasons)


def names_a_container(completion: Completion) -> bool:
    """Whether the answer holds the id of a container that its provider keeps: who has it can go on in there, files and
    all, which is for the caller who asked and for nobody after."""
    # Few answers have the word right after a quote, and what is looked for are names of fields.
    if b'"container' not in completion.body:
        return False
    left: list[Any] = [msgspec.json.decode(completion.body)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if any(value.get(name) for name in _OF_A_CONTAINER):
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


# --- the request


def _is_no_chat(asked: Asked) -> bool:
    return asked.request.operation != "chat"


def _wants_several(asked: Asked) -> bool:
    return asked.request.body.get("n") not in (None, 1)


def _wants_logprobs(asked: Asked) -> bool:
    return bool(asked.request.body.get("logprobs"))


def _is_warm(asked: Asked) -> bool:
    temperature = asked.request.body.get("temperature")
    return temperature is not None and temperature > asked.max_temperature


def _must_call(asked: Asked) -> bool:
    """The answer is a call, made for this text."""
    choice = asked.request.body.get("tool_choice")
    return choice is not None and choice not in ("auto", "none")


def _searches(asked: Asked) -> bool:
    """The provider looks something up while it answers."""
    body = asked.request.body
    if body.get("web_search_options") is not None:
        return True
    tools = body.get("tools")
    if isinstance(tools, list) and any(
        isinstance(t, dict) and t.get("type", "function") not in _DECLARED for t in tools
    ):
        return True
    return any(_HOSTED_TOOL.fullmatch(path) for path in asked.request.beyond)


def _shows_what_lies_elsewhere(asked: Asked) -> bool:
    """An image, recording or file that is not in the body, and so not in the identity: only its address is."""
    messages = asked.request.body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") != "text" and not _is_inline(part):
                return True
    return False


def _is_inline(part: dict[str, Any]) -> bool:
    shown = part.get(str(part.get("type")))
    if not isinstance(shown, dict):
        return False
    data = shown.get("url") or shown.get("data") or shown.get("file_data")
    return isinstance(data, str) and ("data" in shown or data.startswith("data:")) and not shown.get("file_id")


# --- the text


def _is_too_long(asked: Asked) -> bool:
    return len(asked.text) > LONGEST


def _says_nothing(asked: Asked) -> bool:
    """No letter or digit of any script: emoji, punctuation, white space."""
    return not asked.clauses


def _is_fresh(asked: Asked) -> bool:
    return any(words.says_fresh(asked) for words in _WORDS)


def _is_about_a_day(asked: Asked) -> bool:
    """A day named as seen from today, in what is asked rather than in what the asker tells."""
    return any(words.says_day(asked) for words in _WORDS)


def _is_own_state(asked: Asked) -> bool:
    return any(_asks_state(clause) for clause in asked.clauses) if not _asks_how(asked) else False


def _asks_how(asked: Asked) -> bool:
    return any(_HOW_TO.search(clause) for clause in asked.clauses)


def _asks_state(clause: str) -> bool:
    if _STATE.search(clause):
        return True
    clause = _without_manners(clause)
    own = _OWN.search(clause)
    if own is None:
        return False
    before, after = clause[: own.start() + 1], clause[own.end() - 1 :]
    if len(before) > _LONGEST_OPENING:
        return False
    return bool(_ASKS_FOR.fullmatch(before)) or bool(_ASKS_WHETHER.fullmatch(before) and _HAPPENED.search(after))


def _is_action(asked: Asked) -> bool:
    """Somebody is told to do something in the world, and the answer says that it was done."""
    if len(asked.clauses) > _LONG_WINDED or _asks_how(asked):
        return False
    for number, clause in enumerate(asked.clauses):
        told = _without_manners(clause)
        if _CHANGE.match(told) and _OWN.search(told):
            return True
        if not _ACT.match(told) or _NO_ACT.match(told):
            continue
        # "Can you buy a phone there" asks whether one can, and what follows a comma may be no sentence.
        if _FOR_ME.search(clause) or not (_CAN_ONE.match(clause) or (number and told is clause)):
            return True
    return False


def _is_wish(asked: Asked) -> bool:
    """As an action, said as a wish: "I want to cancel my order"."""
    if len(asked.clauses) > _LONG_WINDED or _asks_how(asked):
        return False
    for clause in asked.clauses:
        clause = _without_manners(clause)
        wish = _WISH.match(clause)
        if wish is None:
            continue
        told = clause[wish.end() - 1 :]
        if _OWN.search(told) and (_ACT.match(told) or _CHANGE.match(told)):
            return True
        if _ERRAND.match(told):
            return True
    return False


def _without_manners(clause: str) -> str:
    """Without "please", "could you" and the like at its start."""
    while (manners := _MANNERS.match(clause)) is not None:
        clause = clause[manners.end() - 1 :]
    return clause


# In this order: the first that applies names the reason.
RULES: tuple[Rule, ...] = (
    Rule("operation", "operation", _is_no_chat),
    Rule("several-choices", "several-choices", _wants_several),
    Rule("logprobs", "logprobs", _wants_logprobs),
    Rule("temperature", "temperature", _is_warm),
    Rule("forced-tool", "tools", _must_call),
    Rule("hosted-tool", "live-tools", _searches),
    Rule("media", "media", _shows_what_lies_elsewhere),
    Rule("empty", "not-text", _says_nothing),
    Rule("length", "too-long", _is_too_long),
    Rule("freshness", "fresh", _is_fresh),
    Rule("day", "fresh", _is_about_a_day),
    Rule("own-state", "own-state", _is_own_state),
    Rule("action", "action", _is_action),
    Rule("wish", "action", _is_wish),
)

# What an endpoint may switch off. The others decide whether there is something to compare at all.
SWITCHABLE = frozenset(rule.name for rule in RULES) - {"operation", "empty", "length"}

_OF_WORDING = frozenset({"empty", "length", "freshness", "day", "own-state", "action", "wish"})

# --- data: freshness

LANGUAGES: tuple[Language, ...] = (
    Language(
        "en",
        "latest, newest, current, upcoming, up to date, breaking news, live score, live scores, what time is it,"
        "what day is it, what is the date, what's the date, whats the date, what date is it, todays date,"
        "weather forecast, what is the weather, what's the weather, whats the weather, how is the weather,"
        "how's the weather, weather today, stock price, share price, what is the exchange rate,"
        "what's the exchange rate, exchange rate between",
        "today, todays, today's, tonight, tonight's, tomorrow, tomorrow's, yesterday, yesterday's, now, right now,"
        "currently, nowadays, recent, recently, at the moment, at present, as of now, these days, so far this,"
        "this week, this month, this year, this quarter, this season, this morning, this afternoon, this evening,"
        "this weekend, this summer, this winter, this spring, last night, last week, last weekend, last month,"
        "last year, next week, next weekend, next month, next year, this week's, this month's, this year's",
        "electric current, electrical current, alternating current, direct current, ac current, dc current,"
        "eddy current, ocean current, short circuit current, leakage current, induced current, inrush current,"
        "current account, current accounts, current transformer, current flow, current flows, current source,"
        "current through, current density, current rating, current divider, my current,"
        "from now on, until now, till now, up to now, by now, now that, now and then, even now, apocalypse now,"
        "edge of tomorrow, buy now pay later, what now, do now, and now, but now, now i, now i'm, now what, now how,"
        "now please, wonderful tonight",
    ),
    Language(
        "de",
        "heute, jetzt, derzeit, momentan, zurzeit, zur zeit, aktuell, aktuelle, aktuellen, aktueller, aktuelles,"
        "neueste, neuesten, neuester, neuestes, gestern, diese woche, dieser woche, diesen monat, diesem monat,"
        "dieses jahr, diesem jahr",
        harmless="bis heute, heute noch üblich",
    ),
    Language(
        "es",
        "hoy, ahora, actualmente, últimas noticias, más reciente, más recientes, ayer, esta semana, este mes,"
        "este año, en este momento, esta noche",
        harmless="hoy en día, ahora bien",
    ),
    Language(
        "fr",
        "aujourd'hui, maintenant, actuellement, actuel, actuelle, en ce moment, cette semaine, ce mois-ci, cette année,"
        "ce soir, dernières nouvelles, plus récent, plus récente",
    ),
    Language(
        "pt",
        "hoje, agora, atualmente, neste momento, ontem, amanhã, esta semana, essa semana, este mês, este ano,"
        "mais recente, mais recentes, últimas notícias",
        harmless="hoje em dia",
    ),
    Language(
        "zh",
        "今天, 今日, 今晚, 今年, 昨天, 昨日, 明天, 明日, 现在几点, 現在幾點, 最新, 目前, 当前, 當前,"
        "本周, 本週, 这周, 這週, 这个月, 這個月, 本月, 此刻, 实时, 實時",
        spaced=False,
    ),
)


def _any(phrases: str, *, spaced: bool = True) -> re.Pattern[str] | None:
    """Any of the phrases; `spaced`: as whole words of a clause written ` word word `."""
    each = [phrase.strip() for phrase in phrases.split(",") if phrase.strip()]
    if not each:
        return None
    # As a clause has them: "ce mois-ci" is three words there.
    written = [" ".join(_WORD.findall(phrase)) for phrase in each] if spaced else each
    either = "|".join(re.escape(phrase) for phrase in sorted(written, key=len, reverse=True))
    return re.compile(f" (?:{either})(?= )" if spaced else either)


class _Words:
    """A language's phrases, made to be looked for."""

    def __init__(self, language: Language) -> None:
        self._spaced = language.spaced
        self._fresh = _any(language.fresh, spaced=language.spaced)
        self._days = _any(language.days, spaced=language.spaced)
        self._harmless = _any(language.harmless, spaced=language.spaced)

    def says_fresh(self, asked: Asked) -> bool:
        return self._says(self._fresh, asked)

    def says_day(self, asked: Asked) -> bool:
        return self._says(self._days, asked, unless=_TELLS)

    def _says(self, phrases: re.Pattern[str] | None, asked: Asked, unless: re.Pattern[str] | None = None) -> bool:
        if phrases is None:
            return False
        for clause in asked.clauses if self._spaced else (asked.folded,):
            # Twice, as what is harmless is rare in a clause, and a phrase is rare in a text.
            if phrases.search(clause) is None or (unless is not None and unless.match(clause)):
                continue
            if self._harmless is None or phrases.search(self._harmless.sub(" ", clause)):
                return True
        return False


# Someone tells what happened to them: the day is that of the event, and the answer is another's as well.
_TELLS = re.compile(
    r" (?:(?:and|but|so|now|today|yesterday|when|after|because|since|as|while|if|that|although|hi|hello) )*"
    r"(?:(?:i|i'm|i've|im|ive|we|we've|my|our|he|she|they|it|it's|its|there|the|cash|money) "
    r"(?!.* (?:want|need|like|know|tell|wanna|wish|wondering|looking|see|check|get) )"
    r"|.*\bwhy (?:[\w']+ )*?(?:i|my|me|it) )"
)

_WORDS = tuple(_Words(language) for language in LANGUAGES)

# --- data: the caller's own state (English)


def _or(words: str) -> str:
    """An alternative of words, or of phrases separated by commas, as a group."""
    each = [" ".join(word.split()) for word in (words.split(",") if "," in words else words.split())]
    return f"(?:{'|'.join(sorted(set(each), key=lambda word: (-len(word), word)))})"


_RECORD = _or(
    "account accounts balance order orders card cards bill bills payment payments paycheck payday salary income"
    " transfer transfers subscription refund refunds appointment appointments reservation reservations booking bookings"
    " flight flights package packages parcel delivery shipment invoice invoices ticket tickets application"
    " claim claims points"
    " rewards limit calendar schedule meeting meetings agenda pto leave vacation pin password transaction transactions"
    " deposit deposits withdrawal purchase purchases statement insurance policy reminder reminders alarm alarms list"
    " playlist luggage baggage bag bags usage quota inbox email emails mail messages message contacts profile"
    " membership contract cheque check checks credit savings checking mortgage loan phone location address username"
    " cart basket wishlist portfolio wallet plan data apr w2 taxes topup top verification case name number"
    " language settings notifications"
)
# What is the caller's, and no record of theirs.
_GENERAL = _or(
    "option options right rights chance chances best ideal purpose potential choices next alternatives obligations"
    " advantages"
)
# "my", up to three words, and a record of the caller's.
_OWN = re.compile(rf" (?:my|our)(?! (?:[\w']+ )?{_GENERAL} )(?: [\w']+){{0,3}}? {_RECORD} ")
_HOW_TO = re.compile(
    rf" (?:how {_or('do can to could should would might does come else')}"
    rf"|{_or('can could may should must shall')} i|do i {_or('need, have to, get, go, do, set, use, make')}"
    rf"|where {_or('can do could should')} {_or('i we you')}|what {_or('should can could would if happens must to')}"
    rf"|what are {_or('the some')} {_or('ways steps reasons')}|{_or('way ways step steps')} to|possible|why|reason"
    rf"|is it|{_or('best procedure process')} {_or('to for of way')}|{_or('allowed able required')} to"
    rf"|how long {_or('does do will would')} {_or('it a an the')}|instructions|is there) "
)
_BETWEEN = (
    "(?:"
    + _or(
        "the a of on in for to from with at is was are were will does do did has have balance status limit amount total"
        " due date rate score location remaining available left minimum payment money much current update updates any"
        " expiration interest apr points days details name type many info information list latest last next recent"
        " spending credit number tracking and all both me"
    )
    + " )*"
)
_ASKS_FOR = re.compile(
    " (?:"
    + _or(
        "what, what's, whats, where, where's, wheres, when, when's, which, who, how much, how many, how far along,"
        "tell me, show me, show, give me, check, let me know, look up, lookup, find out, get me, read, read me,"
        "display, view, pull up, track, i want to know, i need to know, i would like to know, i'd like to know,"
        "do you know, i want to see, i need to see, what about"
    )
    + f" )+{_BETWEEN}"
)
_ASKS_WHETHER = re.compile(rf" (?:is|are|was|were|has|have|did|does|will) {_BETWEEN}")
_HAPPENED = re.compile(
    " "
    + _or(
        "arrived arrive arriving shipped ready here there active activated approved paid due blocked frozen expired"
        " expire coming delivered processed open late delayed gone go cleared posted pending confirmed cancelled"
        " canceled booked scheduled verified complete completed received sent refunded"
    )
    + " "
)
_STATE = re.compile(
    rf" (?:(?:what|where|when)(?: is|'s|s| are) my (?!(?:[\w']+ )?{_GENERAL} )[\w']+|where am i|who am i"
    r"|am i (?:registered|enrolled|subscribed|logged in|signed up|signed in)|do i owe"
    r"|how (?:much|many)(?: [\w']+){0,3} (?:do i (?:have|owe)|have i (?:used|taken|spent|got|saved|accumulated)"
    r"|did i (?:spend|use|take|make|earn)|i have left|i've got left|am i (?:spending|earning))"
    r"|do i have(?: any| an| a| enough)? (?:meetings?|appointments?|messages|emails|reminders?|bills|orders|vacation"
    r"|pto|events|plans|money|alarms|reservations?)"
    r"|what do i have (?:scheduled|planned|on my|going on)) "
)

# --- data: actions (English)

_MANNERS = re.compile(
    r" (?:please|pls|plz|kindly|hey|hi|hello|ok|okay|so|now|just|yes|no|actually|well|and|then|also|siri|alexa"
    r"|(?:can|could|would|will) (?:you|u)(?: please| kindly| just)?|i (?:want|need|would like) you to|i'd like you to"
    r"|you (?:can|should|must|need to|may|have to)|go ahead and|help me(?: to)?|let's|lets|let us|let me|try to"
    r"|(?:be|make) sure to|i (?:would|'d) appreciate it if you|would it be possible to|do me a favor and|quickly) "
)
_CAN_ONE = re.compile(r" (?:(?:so|and|then|but|hi|hello) )*(?:can|could|would|will) (?:you|u) (?!please|kindly|just)")
_FOR_ME = re.compile(r" (?:my|me|our|us|please|pls|plz) ")
_WISH = re.compile(
    r" (?:i|we|i'd|we'd)(?: would| really| just| also| do| desperately| urgently)* "
    r"(?:want to|need to|like to|wanna|wish to|have to|must|gotta|want|need|would like) "
)
_A = r"(?:a|an|my|our|the|this|that|another|some|me a|me an)"
# Any of the clause's next words, up to three.
_SOME = r"(?:[\w']+ ){0,3}?"
_ALARM = _or("alarm timer reminder thermostat volume meeting appointment")
_ACT = re.compile(
    " (?:"
    + _or(
        "cancel unsubscribe refund pay buy purchase book reserve reschedule send remind wire withdraw unfreeze freeze"
        " mute unmute deploy restart reboot activate deactivate upgrade downgrade submit schedule play pause unlock"
        " lock resend reorder dial transfer uninstall install snooze donate ship block unblock"
    )
    + rf" (?:{_or('my our the a an this that it me us him her them all some another every these those both any')}|\d+)"
    + rf"|{_or('call text email phone message ring')} {_or('my mom mum dad him her them back me everyone')}"
    + rf"|{_or('call get order book')} {_or('a an')} {_or('taxi cab uber lyft ambulance')}"
    + rf"|turn {_or('it on off up down the my')}|switch {_or('on off my')}"
    + rf"|{_or('sign check log')} me {_or('up in out')}|wake me|{_or('set create start')} {_A} {_SOME}{_ALARM}"
    + rf"|place {_A} {_SOME}order|order {_or('me my us some more another a an')}"
    + rf"|make {_A} {_SOME}{_or('reservation reservations payment transfer booking purchase donation appointment')}"
    + rf"|make {_A} {_SOME}(?:phone call|call to)"
    + rf"|get me {_A} {_SOME}{_or('flight table room rental ticket tickets refund')}"
    + rf"|file a {_or('claim complaint ticket')}|open a {_or('ticket case')}"
    + rf"|add (?:[\w']+ ){{1,8}}?to {_or('my the our')} {_SOME}"
    + _or("list calendar cart basket playlist schedule account")
    + r"|flip a coin|roll (?:a|the|some|two) (?:die|dice)|cancel) "
)
_NO_ACT = re.compile(
    rf" (?:play {_A} {_SOME}{_or('role part game')}|play devil's|block {_A} ads?|cancel (?:culture|out)"
    r"|(?:transfer|order) the following) "
)
# What these change is the text in front of them, unless it is a record of the caller's.
_CHANGE = re.compile(
    " "
    + _or(
        "change, update, delete, remove, add, close, open, lock, unlock, reset, increase, raise, lower, decrease, move,"
        "clear, empty, share, post, publish, forward, reply to, confirm, renew, extend, report, replace, redeem, stop,"
        "start, put, order, link, unlink, verify, edit, transfer, cancel, activate, block, freeze, switch, set,"
        "terminate, suspend, disable, enable, top up, rename, return, find, check on, look for, use, save"
    )
    + " "
)
# Wishes that need no "my" to be meant for whoever listens.
_ERRAND = re.compile(
    rf" (?:{_or('set create start')} {_A} {_SOME}{_ALARM}|{_A} {_SOME}{_ALARM} set"
    rf"|(?:cancel|book|reserve|schedule) {_A}|(?:call|text) (?:my|mom|mum|dad)"
    r"|(?:a|an) (?:[\w']+ )?(?:uber|taxi|cab|lyft)) "
)

# In characters, of what may stand before "my".
_LONGEST_OPENING = 200
# Beyond so many clauses a text is an assignment, and its imperatives are about writing.
_LONG_WINDED = 12
