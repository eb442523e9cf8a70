"""What is known of words wherever they stand: their stems, weights, kinds, synonyms and opposites. English ones; of
other scripts, the words themselves."""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

UNKNOWN_WEIGHT = 10.0

_TOKEN = re.compile(
    r"<[A-Z][A-Z_]*_[0-9a-f]{4,}>"  # a placeholder of a guardrail
    r"|[぀-ヿ㐀-䶿一-鿿가-힯฀-๿]"  # scripts without spaces
    r"|\.?[^\W_]*\d(?:[\w.,:/-]*\w)?"  # digits with what is written onto them
    r"|[^\W\d_]+(?:['’][^\W\d_]+)*[+#]{0,2}"
    r"|[\U0001f000-\U0001faff☀-➿]"  # one picture says one thing
    r"|[$€£¥₹%+*/=<>^&|~!?.]"
)


class Word(NamedTuple):
    """What is known of a word whatever stands around it."""

    """`says` is how a word that only one question has speaks: above 0 for the same answer, below for another."""

    stem: str
    weight: float
    kinds: frozenset[str]
    known: bool
    says: float = 0.0


# Function words by what they say. A word of several kinds stands in several.
_KINDS: dict[str, str] = {
    "negation": "not no never nor neither none nothing nobody without cannot",
    "before": "before until till prior",
    "after": "after since afterwards once",
    "more": "more most greater higher larger bigger",
    "less": "less least fewer lower smaller fewest lesser",
    "past": "was were did had been",
    "present": "is are am do does has have",
    "can": "can could able",
    "may": "may might",
    "should": "should ought supposed",
    "must": "must need needs required shall",
    "will": "will would going",
    "and": "and both simultaneously",
    "or": "or either",
    "all": "all every each always everyone everything any",
    "some": "some few sometimes several someone",
    "only": "only sole solely exclusively",
    "first": "first earliest oldest original",
    "last": "last latest newest final",
    "best": "best top",
    "worst": "worst",
    "I": "i me my mine myself",
    "we": "we our ours",
    "you": "you your yours yourself",
    "he": "he him his himself",
    "she": "she her hers herself",
    "they": "they them their theirs",
    "it": "it its",
    "becoming": "become becomes becoming became start starts starting stop stops stopping begin begins beginning quit",
    "what": "what whats",
    "how": "how",
    "why": "why",
    "when": "when",
    "where": "where",
    "who": "who whom whose",
    "which": "which",
    "by": "by", "from": "from", "to": "to into onto", "with": "with", "for": "for", "in": "in inside within",
    "on": "on", "at": "at", "of": "of", "against": "against", "over": "over above", "under": "under below",
    "than": "than", "through": "through via", "about": "about", "between": "between", "as": "as", "off": "off",
    "out": "out", "up": "up", "down": "down",
    "article": "a an the",
    "other": "this that these those there be being if so then while but just here s re ve ll d m t am",
    "filler": "actually really truly even somehow please just basically literally simply currently honestly kindly "
              "indeed exactly possibly perhaps maybe ever hi hello hey thanks thank anyone somebody know tell like um "
              "uh well ok okay quickly definitely certainly absolutely",
    "correction": "wait sorry rather mean oops scratch correction er erm instead",
    "symmetric": "and or between vs versus both together same equal similar related married sibling siblings cousin "
                 "cousins different difference compare compared dating friends twins neighbor neighbors identical "
                 "engaged partners plus either",
    "day": "monday tuesday wednesday thursday friday saturday sunday january february march april june july august "
           "september october november december mon tue wed thu fri jan feb apr jun jul aug sep sept oct "
           "nov dec today tomorrow yesterday tonight morning afternoon evening noon midnight weekend weekday "
           "spring summer autumn winter christmas easter",
    "unit": "kg kilogram kilograms kilo g gram grams mg lb lbs pound pounds oz ounce ounces ton tons tonne km "
            "kilometer kilometers kilometre kilometres mile miles meter meters metre metres cm mm centimeter inch "
            "inches foot feet yard yards liter liters litre litres ml gallon gallons celsius fahrenheit kelvin second "
            "seconds minute minutes hour hours day days week weeks month months year years dollar dollars usd euro "
            "euros eur rupee rupees rs inr gbp yen percent mb gb tb kb megabyte megabytes gigabyte gigabytes byte "
            "bytes bit bits watt watts volt volts mph kph hz ghz mhz lakh crore million billion thousand",
}  # fmt: skip
_CONTRACTED = {
    "can't": "can not", "won't": "will not", "shan't": "shall not", "ain't": "is not", "let's": "let us",
    "what's": "what is", "who's": "who is", "how's": "how is", "where's": "where is", "when's": "when is",
    "why's": "why is", "it's": "it is", "that's": "that is", "there's": "there is", "here's": "here is",
    "he's": "he is", "she's": "she is", "i'm": "i am", "dont": "do not", "doesnt": "does not", "didnt": "did not",
    "isnt": "is not", "cant": "can not", "wont": "will not", "whats": "what is", "im": "i am", "wasnt": "was not",
    "shouldnt": "should not", "couldnt": "could not", "arent": "are not", "cannot": "can not", "wanna": "want to",
    "gonna": "going to", "gotta": "have to", "hows": "how is", "wheres": "where is", "whos": "who is",
}  # fmt: skip
_ENDINGS = {"'re": "are", "'ve": "have", "'ll": "will", "'d": "would", "'m": "am", "'s": ""}
_COUNTED = (
    "zero _ two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNTED.split())} | {
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "ninety": "90",
    "hundred": "100",
}
UNITS = {
    "kilogram": "kg", "kilo": "kg", "gram": "g", "pound": "lb", "ounce": "oz", "tonne": "ton", "kilometer": "km",
    "kilometre": "km", "metre": "meter", "centimeter": "cm", "inche": "inch", "feet": "foot", "litre": "liter",
    "dollar": "$", "usd": "$", "euro": "€", "eur": "€", "rupee": "₹", "inr": "₹", "rs": "₹", "gbp": "£", "percent": "%",
    "megabyte": "mb", "gigabyte": "gb", "yen": "¥",
}  # fmt: skip
_IRREGULAR = {
    form: base
    for base, forms in {
        "be": "is are am was were been being",
        "do": "does did done doing",
        "have": "has had having",
        "go": "goes went gone going",
        "buy": "bought", "make": "made", "get": "got gotten getting", "take": "took taken", "give": "gave given",
        "see": "saw seen", "eat": "ate eaten", "write": "wrote written", "speak": "spoke spoken", "leave": "left",
        "become": "became becoming", "win": "won winning", "lose": "lost", "find": "found", "think": "thought",
        "teach": "taught", "catch": "caught", "sell": "sold", "tell": "told", "say": "said", "hold": "held",
        "feel": "felt", "keep": "kept", "send": "sent", "spend": "spent", "build": "built", "pay": "paid",
        "meet": "met", "run": "ran running", "begin": "began begun", "drive": "drove driven", "choose": "chose chosen",
        "steal": "stole stolen", "know": "knew known", "grow": "grew grown", "drink": "drank drunk", "beat": "beaten",
        "man": "men", "woman": "women", "child": "children kid kids", "person": "people persons", "life": "lives",
        "phone": "cellphone smartphone cellphones smartphones mobile phones", "color": "colour colours colors",
        "movie": "film films movies", "usa": "us america", "uk": "britain", "country": "countries nation nations",
    }.items()
    for form in forms.split()
}  # fmt: skip

# Opposites. Their derivations (in-, un-, dis-, -less and -ful) are found by rule.
_OPPOSITES = """
more less|increase decrease|increase reduce|increase lower|raise lower|gain lose|win lose|buy sell
import export|open close|open shut|start stop|start end|begin end|begin finish|begin stop|first last
early late|earliest latest|before after|up down|high low|higher lower|highest lowest|high short|tall short
long short|longer shorter|big small|large small|bigger smaller|larger smaller|biggest smallest
largest smallest|best worst|better worse|good bad|good evil|fast slow|faster slower|quick slow|hot cold
warm cool|hotter colder|hard easy|hard soft|easy difficult|rich poor|strong weak|heavy light|dark light
dark bright|old new|old young|older younger|older newer|oldest youngest|oldest newest|love hate|like hate
like dislike|true false|right wrong|right left|north south|east west|northern southern|eastern western
inside outside|in out|on off|push pull|enable disable|activate deactivate|install uninstall|add remove
add delete|create delete|create destroy|connect disconnect|attach detach|lock unlock|block unblock|mute unmute
subscribe unsubscribe|follow unfollow|encrypt decrypt|compress decompress|upload download|send receive
give take|give receive|lend borrow|borrow lend|deposit withdraw|accept reject|accept refuse|approve reject
approve deny|allow forbid|allow prevent|allow block|allow deny|grant revoke|grant deny|minimum maximum|min max
minimize maximize|least most|few many|fewer more|male female|man woman|boy girl|father mother|son daughter
brother sister|husband wife|king queen|uncle aunt|debit credit|debt credit|income expense|profit loss
asset liability|export import|employer employee|teacher student|doctor patient|parent child|landlord tenant
buyer seller|lender borrower|client server|sender recipient|sender receiver|input output|front back|top bottom
upper lower|above below|over under|day night|morning evening|summer winter|sunrise sunset|arrive depart
arrival departure|enter exit|enter leave|come go|remember forget|succeed fail|success failure|pass fail
alive dead|live die|birth death|born died|marry divorce|friend enemy|war peace|attack defend|cause prevent
cause cure|help harm|help hurt|safe dangerous|safe unsafe|healthy sick|clean dirty|wet dry|full empty
public private|internal external|domestic foreign|local remote|local global|ancient modern|permanent temporary
synchronous asynchronous|active passive|active inactive|positive negative|optimist pessimist
optimistic pessimistic|introvert extrovert|advantage disadvantage|pro con|pros cons|benefit drawback
benefit risk|strength weakness|always never|with without|include exclude|including excluding|cheap expensive
cheaper expensive|cheapest expensive|simple complex|simple complicated|smart stupid|smart dumb|wise foolish
brave cowardly|humble proud|humble arrogant|happy sad|happy unhappy|calm angry|polite rude|shy confident
lazy hardworking|secular religious|liberal conservative|left right|democrat republican|single married|thin fat
thin thick|wide narrow|deep shallow|smooth rough|sharp blunt|tight loose|raw cooked|fresh stale|sweet sour
sweet bitter|loud quiet|near far|closest farthest|nearest farthest|vertical horizontal|odd even
ascending descending|encode decode|serialize deserialize|serial parallel|lossy lossless|static dynamic
stateful stateless|manual automatic|online offline|asc desc|expand collapse|zoom shrink|hide show|hire fire
promote demote|innocent guilty|legal illegal|literate illiterate|moral immoral|mortal immortal|inflate deflate
inflation deflation|appreciate depreciate|bull bear|bullish bearish|supply demand|gross net|strengthen weaken
tighten loosen|lengthen shorten|widen narrow|accelerate decelerate|speed slow|freeze melt|freeze thaw
boil freeze|ignore notice|praise criticize|agree disagree|admit deny|expected unexpected|major minor
majority minority|majors minors|inner outer|interior exterior|entrance exit|acid base|acidic alkaline
solid liquid|convex concave
"""
_SYNONYMS = """
buy purchase|start begin|way method|ways methods|increase improve|increase boost|improve enhance|earn make
error bug|fix repair|fix solve|quick fast|big large|learn study|job work|get obtain|delete remove|erase delete
create make|choose pick|choose select|select pick|show display|end finish|close shut|reply respond
answer reply|ill sick|smart intelligent|need want|want wish|suggest recommend|best good|great good|best great
top good|happen occur|meaning mean|define mean|definition mean|tip advice|tip suggestion|benefit advantage
drawback disadvantage|price cost|cost charge|salary pay|income salary|college university|school college
exam test|laptop computer|pc computer|website site|app application|photo picture|image picture|internet web
car vehicle|doctor physician|house home|kid child|dad father|mom mother|spouse partner|purpose use|use utilize
utilise use|apply use|function work|operate work|explain describe|describe tell|list name|reset change
restore recover|cancel stop|cancel terminate|enable activate|enable on|disable off|update upgrade
modify change|edit change|alter change|switch change|reduce decrease|reduce lower|cut reduce|lose reduce
lessen reduce|prevent avoid|stop prevent|quit stop|stop cease|attend go|visit go|travel go|possible can
difference differ|different difference|example instance|hotel motel|store shop|trip travel|flight plane
cheap inexpensive|cheap affordable|costly expensive|rich wealthy|fat weight|hard difficult|tough hard
easy simple|scared afraid|afraid fear|speak talk|say tell|think believe|think feel|think opinion|opinion view
thought opinion|reason cause|why reason|lyric word|author writer|lawyer attorney|company firm|firm business
employee worker|staff employee|boss manager|movie cinema|song music|book novel|language tongue|email mail
mail post|phone telephone|number no|password passcode|login signin|register signup|account profile|card cards
currency money|cash money|transfer send|wire transfer|deliver ship|delivery shipping|arrive come|receive get
return refund|wage salary|hurt injure|hurt harm|kill murder|die death|marry wedding|strategy plan|rule law
skill ability|famous popular|important significant
"""
_KEPT = frozenset({"series", "species", "news", "this", "does", "plus", "less", "bias", "physics", "always"})
OPEN_KINDS = frozenset(
    {"filler", "correction", "symmetric", "day", "unit", "becoming", "best", "worst", "first", "last"}
)


def _kinds() -> dict[str, frozenset[str]]:
    kinds: dict[str, set[str]] = {}
    for kind, words in _KINDS.items():
        for word in words.split():
            kinds.setdefault(word, set()).add(kind)
    return {word: frozenset(of) for word, of in kinds.items()}


_KINDS_OF = _kinds()
NO_KINDS: frozenset[str] = frozenset()


@cache
def _weights() -> dict[str, tuple[float, float]]:
    """How much a word's stem tells, from 0 (in every question) to `UNKNOWN_WEIGHT`: how rare it is in public text; and
    what it says where only one of two questions has it."""
    lines = files("service.caching").joinpath("verifier/words.txt").read_text(encoding="utf-8").splitlines()
    return {
        stem: (float(weight), float(says))
        for weight, says, *stems in (line.split() for line in lines)
        for stem in stems
    }


def stems() -> frozenset[str]:
    """Those whose weight is known."""
    return frozenset(_weights())


def forget() -> None:
    """Reads the words' weights anew at the next text; for training."""
    _weights.cache_clear()
    known_word.cache_clear()


@lru_cache(maxsize=32_768)
def known_word(written: str) -> Word:
    """`written` in lower case, at most 40 characters are looked at."""
    written = written[:40]
    kinds = _KINDS_OF.get(written, NO_KINDS)
    base = stem(written)
    known = _weights().get(base)
    if kinds and not kinds <= OPEN_KINDS:
        weight, says = known or (1.0, 0.0)
        return Word(base, min(weight, 2.0), kinds, True, says)
    if known is None:
        # One sign of a script without spaces says less than a word.
        weight = 4.0 if len(base) == 1 else UNKNOWN_WEIGHT
        return Word(base, weight, kinds, len(base) == 1)
    return Word(base, known[0], kinds, True, known[1])


def stem(written: str) -> str:
    """One form for the forms of an English word; other scripts stay as they are."""
    written = _IRREGULAR.get(written, written)
    if len(written) < 4 or written in _KEPT or not written.isascii():
        return written
    if written.endswith("ies"):
        written = written[:-3] + "y"
    elif written.endswith(("sses", "ches", "shes", "xes", "zes")):
        written = written[:-2]
    elif written.endswith("s") and not written.endswith(("ss", "us", "is")):
        written = written[:-1]
    for ending in ("ing", "ed"):
        base = written.removesuffix(ending)
        if base != written and len(base) >= 3 and any(vowel in base for vowel in "aeiouy"):
            written = base[:-1] if base[-1] == base[-2] and base[-1] not in "lsz" else base
            break
    return written[:-1] if len(written) > 3 and written.endswith("e") else written


def _pairs(text: str) -> frozenset[tuple[str, str]]:
    pairs = [tuple(stem(part) for part in pair.split()) for pair in text.replace("\n", "|").split("|") if pair.strip()]
    return frozenset(pair for one, other in pairs for pair in ((one, other), (other, one)) if one != other)


_OPPOSITE = _pairs(_OPPOSITES)
_SYNONYM = _pairs(_SYNONYMS)
_OPPOSING = ("un", "in", "im", "il", "ir", "dis", "non", "anti", "de", "mis")


@lru_cache(maxsize=16_384)
def opposites(one: str, other: str) -> bool:
    """Of two stems: named as opposites, or one is the other with a prefix that denies it."""
    if (one, other) in _OPPOSITE:
        return True
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    if len(shorter) >= 4 and longer.endswith(shorter):
        return longer[: -len(shorter)] in _OPPOSING
    return longer.endswith("less") and shorter.endswith("ful") and longer[:-4] == shorter[:-3]


def words_of(text: str) -> Iterator[tuple[str, str]]:
    """Each word as it was written, and in lower case with contractions spelt out."""
    for match in _TOKEN.finditer(text):
        written = match[0]
        lower = written.lower()
        if "'" not in lower and "’" not in lower:
            spelt = _CONTRACTED.get(lower)
            if spelt is None:
                yield written, lower
            else:
                for part in spelt.split():
                    yield part, part
            continue
        lower = lower.replace("’", "'")
        spelt = _CONTRACTED.get(lower)
        if spelt is None:
            if lower.endswith("n't"):
                spelt = f"{lower[:-3]} not"
            else:
                base, _, ending = lower.rpartition("'")
                spelt = f"{base.replace(chr(39), '')} {_ENDINGS.get(f'{chr(39)}{ending}', ending)}"
        first = True
        for part in spelt.split():
            yield (part.capitalize() if first and written[0].isupper() else part), part
            first = False


def canonical_number(written: str) -> str:
    """`1,000` and `1000`, `2.50` and `2.5`, `10k` and `10000` are the same."""
    plain = written.lower().replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", written) else written.lower()
    if re.fullmatch(r"\d+(\.\d+)?k", plain) and len(plain) < 12:
        return f"{float(plain[:-1]) * 1000:.0f}"
    ordinal = re.fullmatch(r"(\d+)(st|nd|rd|th)", plain)
    if ordinal:
        plain = ordinal[1]
    if "." in plain and plain.count(".") == 1 and plain.replace(".", "").isdigit() and plain.endswith("0"):
        # 3.10 is a version as well as a number: only zeros after the dot go.
        whole, _, rest = plain.partition(".")
        if not rest.strip("0"):
            return whole
    return plain


@lru_cache(maxsize=65_536)
def relation(one: str, other: str) -> int:
    """1 for another spelling or ending, 2 for a synonym, 3 for an opposite, else 0."""
    if opposites(one, other):
        return 3
    if (one, other) in _SYNONYM:
        return 2
    if min(len(one), len(other)) < 4:
        return 0
    same = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        same += 1
    if same >= 4 and same >= min(len(one), len(other)) - 2 and abs(len(one) - len(other)) <= 4:
        return 1
    return 1 if _one_typo(one, other, same) else 0


def _one_typo(one: str, other: str, same: int) -> bool:
    """Whether one letter was left out, added, changed or exchanged with the next, `same` letters from the start."""
    left, right = one[same:], other[same:]
    if len(one) == len(other):
        return left[1:] == right[1:] or (left[:2] == right[1::-1] and left[2:] == right[2:])
    return left[1:] == right if len(one) == len(other) + 1 else len(other) == len(one) + 1 and left == right[1:]
