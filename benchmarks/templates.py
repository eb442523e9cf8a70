"""Pairs of questions made from sentences of this project: traps a cosine falls for, and rewordings it should serve.

`verifier_templates.txt` names families in brackets; each line is `label|asked|stored`. `{slot1}` and `{slot2}` are
different words of one list, the same on both sides; `a(n)` becomes the right article. `SWAPS` change a question given
to them.
"""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """`label` 1 where the answer to one serves the other. `family` is what an ablation leaves out."""

    a: str
    b: str
    label: int
    family: str


# Words by slot. `a/b` gives further forms: past and -ing or -s form of verbs, the opposite of others.
_LISTS = """
he: Oliver, Marcus, Peter, Hugo, Felix, Omar, Ivan, Diego, Kofi, Arjun, Wei, Liam, Noah, Ethan, Lucas, Mason,
  Henry, Victor, Simon, Paul, Bruno, Carl, Dennis, Edgar, Frank, George, Harold, Isaac, Jack, Kevin, Leon,
  Martin, Nils, Oscar, Quentin, Ralph, Stefan, Tom, Ulrich, Walter, Yusuf, Zane, Andre, Boris, Caleb, Derek,
  Elias, Finn
she: Anna, Clara, Maria, Elena, Fatima, Greta, Hannah, Ingrid, Julia, Keiko, Laura, Mona, Nadia, Olga, Priya,
  Rosa, Sara, Tina, Uma, Vera, Wanda, Xenia, Yara, Zoe, Alice, Beth, Carol, Diana, Emma, Fiona, Grace, Helen,
  Iris, Jane, Karen, Lily, Megan, Nora, Paula, Rachel, Sophie, Teresa, Ursula, Violet, Wendy, Amelia, Bianca,
  Chloe
last: Meyer, Okafor, Tanaka, Novak, Rossi, Silva, Kowalski, Jensen, Dubois, Larsen, Petrov, Haddad, Nguyen,
  Kim, Singh, Moreau, Fischer, Weber, Becker, Schmidt, Baker, Carter, Cooper, Fletcher, Harris, Hughes, Mason,
  Parker, Porter, Turner, Walker, Wright, Adams, Brooks, Clarke, Dixon, Evans, Foster, Gibson, Hayes, Irving,
  Johnson, Lambert, Marsh, Norton, Palmer, Quinn, Reed, Shaw, Thorne, Vance, West, Young, Zimmer, Garcia,
  Lopez, Ortega
city: London, Paris, Berlin, Madrid, Rome, Vienna, Oslo, Dublin, Lisbon, Prague, Warsaw, Athens, Zurich,
  Munich, Hamburg, Boston, Chicago, Denver, Seattle, Miami, Dallas, Toronto, Montreal, Tokyo, Osaka, Seoul,
  Beijing, Shanghai, Delhi, Mumbai, Chennai, Bangalore, Cairo, Nairobi, Lagos, Sydney, Melbourne, New York,
  Los Angeles, San Francisco, Las Vegas, Hong Kong, Singapore, Dubai, Istanbul, Lima, Bogota, Santiago, Kyoto,
  Geneva
country: France, Germany, Spain, Italy, Austria, Norway, Ireland, Portugal, Poland, Greece, Sweden, Finland,
  Denmark, Belgium, Canada, Mexico, Brazil, Argentina, Chile, Peru, Colombia, Japan, China, India, Pakistan,
  Nepal, Thailand, Vietnam, Indonesia, Malaysia, Egypt, Kenya, Nigeria, Ghana, Morocco, Turkey, Iran, Iraq,
  Israel, Russia, Ukraine, Australia, New Zealand, South Africa, South Korea, Iceland, Hungary, Romania, Cuba,
  Jamaica
nation: French, German, Spanish, Italian, Austrian, Norwegian, Irish, Polish, Greek, Swedish, Finnish, Danish,
  Canadian, Mexican, Brazilian, Chilean, Japanese, Chinese, Indian, Egyptian, Kenyan, Turkish, Russian,
  Korean, Dutch, Swiss, Cuban, Thai, Iranian, Welsh, Hungarian, Portuguese, Argentinian, Nigerian, Moroccan,
  Icelandic
job: teacher, nurse, lawyer, plumber, baker, pilot, engineer, carpenter, dentist, chemist, architect,
  librarian, painter, farmer, electrician, translator, journalist, accountant, surgeon, photographer, singer,
  dancer, cook, waiter, judge, mechanic, designer, programmer, banker, economist, historian, poet, actor,
  coach, manager, secretary, soldier, sailor, tailor, veterinarian, biologist, geologist, analyst, consultant,
  editor, entrepreneur, investor, scientist, author, artist, detective, magician, model, musician, athlete,
  politician
adj: good, famous, young, old, professional, licensed, retired, part-time, certified, successful, honest,
  experienced, junior, senior, self-taught, talented, wealthy, poor, former, future, local, foreign,
  freelance, popular, bad, great, strict, lazy, brilliant, independent, unemployed, mediocre, real, amateur,
  decent, respected, corrupt, aspiring, skilled, full-time, cheap, ordinary, typical, influential, legendary,
  modest, impressive, terrible, qualified, registered, trained, underpaid, ambitious, private, military,
  digital
quality: kind, tall, rich, married, shy, religious, vegan, bald, deaf, tired, sick, angry, patient, generous,
  jealous, loyal, nervous, polite, rude, selfish, sober, stubborn, stupid, clever, cheerful, gloomy, humble,
  lonely, reliable, careful, clumsy, creative, curious, greedy, healthy, lucky, messy, neat, quiet, serious,
  strict, strong, thin, weak, wise, conservative, liberal, atheist, Buddhist, Jewish, Muslim, Catholic, Hindu,
  bisexual, pregnant
ask: dog, cat, rabbit, hamster, parrot, goldfish, horse, goat, turtle, ferret, canary, pony, sheep, donkey,
  guinea pig, iguana, duck, hen, mouse, frog, spider, gecko, llama, piglet, puppy, kitten, chinchilla,
  hedgehog
food: rice, bread, carrots, bananas, cheese, chocolate, grapes, honey, onions, peanuts, tomatoes, tuna, eggs,
  spinach, oats, apples, raisins, avocado, garlic, butter, ham, corn, lettuce, popcorn, potatoes, pasta, mango
body: knee, shoulder, elbow, wrist, ankle, hip, neck, back, thumb, toe, heel, jaw, rib, foot, finger, calf,
  chest
sport: tennis, squash, hockey, rugby, cricket, volleyball, handball, basketball, baseball, badminton, soccer
thing: bridge, letter, house, garden, painting, window, boat, cake, fence, statue, bicycle, piano, tower,
  castle, truck, camera, watch, chair, table, lamp, ring, church, factory, ship, wall, document, contract,
  report, museum
act: paint/painted/painting, build/built/building, break/broken/breaking, clean/cleaned/cleaning,
  repair/repaired/repairing, sell/sold/selling, buy/bought/buying, destroy/destroyed/destroying,
  design/designed/designing, steal/stolen/stealing, find/found/finding, move/moved/moving, own/owned/owning,
  lose/lost/losing, inspect/inspected/inspecting, rent/rented/renting, photograph/photographed/photographing,
  admire/admired/admiring, restore/restored/restoring, burn/burned/burning, see/seen/seeing,
  take/taken/taking, remember/remembered/remembering, discover/discovered/discovering, carry/carried/carrying,
  mention/mentioned/mentioning
affect: love/loved/loves, hate/hated/hates, hire/hired/hires, marry/married/marries, teach/taught/teaches,
  sue/sued/sues, follow/followed/follows, help/helped/helps, blame/blamed/blames, trust/trusted/trusts,
  call/called/calls, visit/visited/visits, thank/thanked/thanks, beat/beaten/beats, hug/hugged/hugs,
  betray/betrayed/betrays, invite/invited/invites, support/supported/supports, attack/attacked/attacks,
  defend/defended/defends, replace/replaced/replaces, kick/kicked/kicks, miss/missed/misses, know/known/knows,
  admire/admired/admires, avoid/avoided/avoids, ignore/ignored/ignores, warn/warned/warns, pay/paid/pays
bond: loyal to, indebted to, afraid of, jealous of, older than, taller than, richer than, in love with, angry
  at, proud of, stronger than, responsible for, the boss of, the father of, the mother of, faster than,
  attracted to, rude to, devoted to, dependent on, interested in, inferior to, superior to, the owner of, mean
  to
mutual: married to, related to, engaged to, friends with, the same age as, dating, a cousin of, a sibling of,
  in the same class as, a neighbor of, a colleague of, a roommate of, similar to, as tall as
do: smoke/smoking, swim/swimming, drink coffee/drinking coffee, drive/driving, sleep/sleeping, run/running,
  shower/showering, exercise/exercising, nap/napping, call customers/calling customers, eat sugar/eating
  sugar, fast/fasting, vote/voting, tip/tipping, pray/praying, fish/fishing, drink alcohol/drinking alcohol,
  work/working, camp/camping, study/studying, dance/dancing, shout/shouting, park/parking, gamble/gambling
fit: ok, safe, wrong, legal, dangerous, rude, normal, healthy, acceptable, useful, common, allowed, harmful,
  polite, necessary, smart, unhealthy, illegal, appropriate, risky, important, wise, socially acceptable
care: wash, feed, brush, walk, bathe, train, vaccinate, weigh, register, name, groom, insure, leash, wake
more: feed, vaccinate, adopt, board, buy, breed, sell, transport, sedate, exercise, photograph, clip, examine
trait: confident, organized, patient, creative, disciplined, popular, independent, assertive, sociable,
  ambitious, grateful, flexible, focused, honest, productive, attractive, active, mature, resilient, relaxed
person: patient, shy, strong, happy, angry, lazy, organized, confident, brave, generous, jealous, honest,
  weak, nervous, humble, funny, serious, positive, negative, bitter, greedy, calm, stubborn, creative, lonely,
  tidy
tool: Python, Java, Rust, Go, Ruby, Swift, Kotlin, Scala, Perl, PHP, TypeScript, JavaScript, Postgres, MySQL,
  Redis, MongoDB, Docker, Kubernetes, Terraform, Ansible, React, Angular, Vue, Django, Flask, Spring, Rails,
  Linux, Windows, Ubuntu, Debian, Android, Excel, Word, Photoshop, Figma, Slack, Zoom, Git, Jenkins, C++, C#,
  C
task: sort a list, read a file, parse JSON, send an email, create a user, delete a row, connect to a database,
  write a log, reverse a string, copy a folder, install a package, run the tests, open a socket, merge two
  tables, download an image, schedule a job, hash a password, count words, print a table, resize an image,
  start a thread
plan: gold, silver, basic, premium, free, student, family, business, enterprise, starter, trial, annual,
  monthly
account: savings account, checking account, credit card, debit card, mortgage, car loan, student loan, gift
  card, travel card, business account, joint account, prepaid card, personal loan, brokerage account, pension
desk: activate, block, close, freeze, open, cancel, replace, verify, upgrade, renew, track, top up, link,
  share
issue: refund, invoice, delivery, password, username, PIN, email address, phone number, subscription, receipt,
  warranty, order, payment, shipping address, tax form, statement, discount code, appointment, booking, ticket
get: change, cancel, find, download, update, print, request, check, send, delete, confirm, dispute, export
device: iPhone, Pixel, Galaxy, iPad, MacBook, Kindle, Xbox, PlayStation, Surface, ThinkPad, Echo, Roku
topic: inflation, photosynthesis, gravity, democracy, evolution, recursion, blockchain, entropy, osmosis,
  feudalism, machine learning, quantum computing, yoga, meditation, astrology, cholesterol, migraine, asthma,
  diabetes, anemia, dividends, mortgages, tariffs, welding, pottery, chess, poker, opera, jazz, cubism,
  stoicism
film: Casablanca, Alien, Titanic, Gladiator, Inception, Jaws, Psycho, Rocky, Vertigo, Avatar, Frozen, Amadeus,
  Chinatown, Fargo, Goodfellas, Memento, Ratatouille, Shrek, Skyfall, Up
firm: Google, Apple, Microsoft, Amazon, Netflix, Tesla, Toyota, Siemens, Nokia, Sony, Samsung, Intel, IBM,
  Oracle, Adobe, Boeing, Airbus, Pfizer, Bayer, Nestle, Spotify, Uber, Airbnb, Visa, PayPal, Starbucks, Nike
dose: aspirin, ibuprofen, paracetamol, insulin, melatonin, zinc, magnesium, iron, caffeine, antibiotics
groupx: critics, scientists, voters, parents, students, doctors, experts, economists, readers, players,
  engineers
sup: best, worst, greatest, smartest, richest, funniest, most talented, most overrated, strongest, fastest
comp: cheaper/more expensive, faster/slower, better/worse, bigger/smaller, healthier/less healthy,
  older/newer, safer/more dangerous, easier/harder, lighter/heavier, stronger/weaker, louder/quieter,
  longer/shorter
goods: trains, buses, apples, pears, laptops, tablets, cats, dogs, oils, waxes, bricks, stones, boots,
  sandals, novels, poems, beans, lentils, solar panels, wind turbines, glass bottles, plastic bottles, gas
  stoves
filler: actually, really, truly, even, somehow, just, basically, honestly, currently, simply, literally,
  indeed
prep: on the sofa, under the table, in the garden, next to the door, behind the shed, on the roof, in the box
unit: kilograms, pounds, grams, ounces, tons, stones
length: miles, kilometers, meters, feet, inches, yards, centimeters
money: dollars, euros, rupees, pounds, yen, pesos, francs, yuan, krona, dirhams, dinars, bitcoin
span: days, weeks, months, years, hours, minutes, seconds
day: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
month: January, February, March, April, May, June, July, August, September, October, November, December
team: Arsenal, Chelsea, Barcelona, Juventus, Ajax, Benfica, the Lakers, the Bulls, the Yankees, the Giants
opp: increase/decrease, raise/lower, enable/disable, install/uninstall, buy/sell, open/close, gain/lose,
  add/remove, start/stop, lock/unlock, encrypt/decrypt, compress/decompress, upload/download, import/export,
  subscribe to/unsubscribe from, mute/unmute, block/unblock, connect/disconnect, activate/deactivate,
  deposit/withdraw, accept/reject, attach/detach, hide/show, follow/unfollow, strengthen/weaken,
  tighten/loosen, borrow/lend, approve/deny, include/exclude, grant/revoke
object: my savings, notifications, weight, a contact, a VPN, muscle, shares, a module, a claim, an attachment,
  a file, the alarm, comments, a permission, screen brightness, blood pressure, a friend, a repository, a
  policy, a channel
poles: legal/illegal, possible/impossible, safe/unsafe, reversible/irreversible, edible/inedible,
  public/private, paid/unpaid, mandatory/optional, refundable/non-refundable, healthy/unhealthy,
  taxable/tax-free, renewable/non-renewable, hot/cold, cheap/expensive, good/bad, dark/light, old/new,
  early/late, dry/wet, strict/lenient, hard/easy, loud/quiet
ways: advantages/disadvantages, pros/cons, benefits/risks, strengths/weaknesses, causes/effects,
  symptoms/causes, symptoms/treatments, minimum/maximum, average/maximum, income/expenses, imports/exports,
  assets/liabilities, winners/losers, similarities/differences, goals/results, history/future, uses/side
  effects, highest/lowest, first/last
same: good/great, fix/repair, buy/purchase, begin/start, big/large, quick/fast, movie/film, choose/pick,
  error/bug
"""


def _slots() -> dict[str, list[str]]:
    slots: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?! )", _LISTS.strip()):
        slot, _, words = entry.partition(": ")
        slots[slot] = [" ".join(word.split()) for word in words.split(",")]
    return slots


_SLOTS = _slots()


def _hour(draw: random.Random) -> str:
    return draw.choice(
        [
            f"{draw.randint(1, 12)}{draw.choice(['am', 'pm'])}",
            f"{draw.randint(0, 23)}:{draw.choice(['00', '15', '30', '45'])}",
        ]
    )


# Numbers of their own kinds, so that a difference of each is seen.
_MADE: dict[str, Callable[[random.Random], str]] = {
    "num": lambda draw: str(draw.choice([draw.randint(2, 20), draw.randint(2, 99), draw.randint(100, 9_999)])),
    "big": lambda draw: f"{draw.randint(1, 99)},{draw.randint(0, 999):03d}",
    "year": lambda draw: str(draw.randint(1750, 2035)),
    "hour": lambda draw: _hour(draw),
    "version": lambda draw: f"{draw.randint(1, 18)}.{draw.randint(0, 14)}{draw.choice(['', f'.{draw.randint(0, 9)}'])}",
    "id": lambda draw: draw.choice(["", "#", "A-", "INV-", "ORD"]) + str(draw.randint(1_000, 99_999)),
    "code": lambda draw: draw.choice(["E", "0x", "ERR_", "HTTP "]) + str(draw.randint(100, 599)),
    "small": lambda draw: str(draw.randint(2, 12)),
    "percent": lambda draw: f"{draw.randint(1, 99)}%",
    "email": lambda draw: f"<EMAIL_{draw.randrange(16**6):06x}>",
    "price": lambda draw: f"${draw.randint(1, 999)}",
    "word": lambda draw: draw.choice(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"])
}  # fmt: skip


def _templates() -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("verifier_templates.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            family = families.setdefault(line.strip("[]"), [])
        elif line:
            family.append(line)
    return families


TEMPLATES = _templates()

_SLOT = re.compile(r"\{([a-z]+?)(\d)(ed|ing|s|b)?\}")
_ARTICLE = re.compile(r"\ba\(n\) (\w)")


def templates(each: int, draw: random.Random, *, without: frozenset[str] = frozenset()) -> Iterator[Pair]:
    """`each` pairs of every line, in random order of the two sides and sometimes of careless spelling."""
    seed = draw.random()
    for family, lines in TEMPLATES.items():
        if family in without:
            continue
        draw = random.Random(f"{seed} {family}")  # noqa: S311 - nothing secret, the same again is the point
        for line in lines:
            label, asked, stored = line.split("|")
            for _ in range(each):
                chosen: dict[str, list[str]] = {}
                a, b = _filled(asked, chosen, draw), _filled(stored, chosen, draw)
                if draw.random() < 0.5:
                    a, b = b, a
                if draw.random() < 0.15:
                    a, b = a.lower().rstrip("?."), b.lower().rstrip("?.") if draw.random() < 0.5 else b
                yield Pair(a, b, int(label), family)


def _filled(template: str, chosen: dict[str, list[str]], draw: random.Random) -> str:
    def fill(match: re.Match[str]) -> str:
        slot, place, form = match[1], int(match[2]) - 1, match[3] or ""
        if slot not in chosen:
            made = _MADE.get(slot)
            chosen[slot] = _different(made, draw) if made else draw.sample(_SLOTS[slot], 4)
        forms = chosen[slot][place].split("/")
        if slot in ("care", "more"):
            return _ing(forms[0]) if form == "ing" else forms[0] + (form if form != "b" else "")
        if form == "b":
            return forms[1]
        if form and len(forms) > 1:
            return forms[{"ed": 1, "ing": 2 if len(forms) == 3 else 1, "s": 2}[form]]
        return forms[0] + (form if form == "s" and not forms[0].endswith("s") else "")

    return _ARTICLE.sub(
        lambda match: ("an " if match[1].lower() in "aeiou" else "a ") + match[1], _SLOT.sub(fill, template)
    )


def _ing(verb: str) -> str:
    return (verb[:-1] if verb.endswith("e") else verb + "p" if verb == "clip" else verb) + "ing"


def _different(made: Callable[[random.Random], str], draw: random.Random) -> list[str]:
    values: dict[str, None] = {}
    for _ in range(200):
        values[made(draw)] = None
        if len(values) == 4:
            break
    return list(values)


# Changes of a question given, by family: None where the question has nothing to change.
Swap = Callable[[str, random.Random], str | None]


def _one_of(pattern: str, change: Callable[[str, random.Random], str]) -> Swap:
    compiled = re.compile(pattern)

    def swap(text: str, draw: random.Random) -> str | None:
        found = list(compiled.finditer(text))
        if not found:
            return None
        one = draw.choice(found)
        changed = text[: one.start()] + change(one[0], draw) + text[one.end() :]
        return changed if changed != text else None

    return swap


def _another_number(number: str, draw: random.Random) -> str:
    value = int(number)
    nearby = value + draw.choice([-10, -2, -1, 1, 2, 3, 5, 10, 100])
    if draw.random() < 0.5 or nearby < 0:
        nearby = draw.randint(10 ** (len(number) - 1), 10 ** len(number) - 1) if len(number) < 9 else value + 1
    return str(nearby if nearby != value else value + 1)


_PLACES = [*_SLOTS["city"], *_SLOTS["country"]]
_FIRST = [*_SLOTS["he"], *_SLOTS["she"]]
_NAMES = frozenset([*_FIRST, *_SLOTS["last"], *_PLACES])
_PLACE_PATTERN = (
    r"\b(?:"
    + "|".join(sorted((re.escape(place) for place in _PLACES), key=len, reverse=True))
    + r"|America|USA|UK|US)\b"
)
_CAPITALISED = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}")
_STOP_WORDS = (
    "the a an of to in on for and or is are was were do does did i you my me it be can what how why when "
    "where who which with from at by as that this there your we they he she his her if not no"
)
_STOP = frozenset(_STOP_WORDS.split())


def _two_words(text: str, draw: random.Random) -> str | None:
    """Two words of weight change places."""
    found = [match for match in re.finditer(r"[A-Za-z][\w'-]*", text) if match[0].lower() not in _STOP]
    if len(found) < 3:
        return None
    one, other = (
        sorted(draw.sample(found[1:], 2), key=lambda match: match.start()) if len(found) > 2 else (found[0], found[1])
    )
    if one[0].lower() == other[0].lower():
        return None
    between = text[one.end() : other.start()].strip().lower()
    if between in ("", "and", "or", ",", "vs", "vs.", "and the", "or the", "&", "/", "-"):
        return None
    return text[: one.start()] + other[0] + text[one.end() : other.start()] + one[0] + text[other.end() :]


def _two_names(text: str, _: random.Random) -> str | None:
    found = list(_CAPITALISED.finditer(text))
    if len(found) < 2:
        return None
    one, other = found[0], found[-1]
    between = text[one.end() : other.start()].strip().lower()
    if one[0] == other[0] or between in ("", "and", "or", ",", "vs", "vs.", "&", "/"):
        return None
    if re.search(r"\b(between|compare|vs|or|and|difference)\b", text.lower()):
        return None
    return text[: one.start()] + other[0] + text[one.end() : other.start()] + one[0] + text[other.end() :]


def _another_name(text: str, draw: random.Random) -> str | None:
    found = list(_CAPITALISED.finditer(text))
    if not found:
        return None
    one = draw.choice(found)
    return text[: one.start()] + draw.choice([*_FIRST, *_SLOTS["last"], *_SLOTS["firm"]]) + text[one.end() :]


def _negated(text: str, draw: random.Random) -> str | None:
    if re.search(r"\b(not|n't|never|no|without)\b", text.lower()):
        return re.sub(r"\bnot |n't\b|\bnever ", "", text, count=1)
    changed = re.sub(
        r"\b(is|are|was|were|can|should|does|do|did|will|would|has|have|could)\b (\w+)",
        r"\1 \2 not",
        text,
        count=1,
        flags=re.I,
    )
    if changed != text and draw.random() < 0.6:
        return changed
    changed = re.sub(r"\bto ([a-z]{3,})\b", r"not to \1", text, count=1)
    return changed if changed != text else None


def _opposite(text: str, draw: random.Random) -> str | None:
    pairs = [pair.split("/") for slot in ("opp", "poles", "ways") for pair in _SLOTS[slot]]
    pairs += [["before", "after"], ["more", "less"], ["best", "worst"], ["first", "last"], ["with", "without"],
              ["high", "low"], ["men", "women"], ["boys", "girls"], ["above", "below"], ["old", "young"],
              ["advantages", "disadvantages"], ["love", "hate"], ["before", "during"], ["always", "never"]]  # fmt: skip
    lower = text.lower()
    options = [
        (one, other)
        for pair in pairs
        for one, other in (pair, pair[::-1])
        if re.search(rf"\b{re.escape(one)}\b", lower)
    ]
    if not options:
        return None
    one, other = draw.choice(options)
    return re.sub(rf"\b{re.escape(one)}\b", other, text, count=1, flags=re.I)


_RESTRICTIONS = [
    "for a(n) {job1}", "in {city1}", "in {country1}", "without {tool1}", "with {tool1}", "for {goods1}", "at {hour1}",
    "before {hour1}", "under {price1}", "for beginners", "for children", "in {month1}", "on a {device1}",
]  # fmt: skip


def _added(text: str, draw: random.Random) -> str | None:
    """An adjective after an article, or a restriction at the end."""
    found = list(re.finditer(r"\b(a|an|the|my|your) (?=[a-z]{3,})", text))
    if found and draw.random() < 0.6:
        one = draw.choice(found)
        return text[: one.end()] + draw.choice(_SLOTS["adj"]) + " " + text[one.end() :]
    body = text.rstrip("?. ")
    return f"{body} {_filled(draw.choice(_RESTRICTIONS), {}, draw)}{text[len(body) :]}"


def _dropped(text: str, _: random.Random) -> str | None:
    """Without the capitalised word or the restriction at the end."""
    shorter = re.sub(r" (?:in|for|with|without|on|from|under|after|before) (?:the )?[\w ]{3,25}(?=[?.]?$)", "", text)
    return shorter if shorter != text and len(shorter.split()) >= 4 else None


def _typo(text: str, draw: random.Random) -> str | None:
    at = [place for place in range(1, len(text) - 1) if text[place].isalpha() and text[place + 1].isalpha()]
    if not at:
        return None
    place = draw.choice(at)
    way = draw.random()
    if way < 0.4:
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    if way < 0.7:
        return text[:place] + text[place + 1 :]
    if way < 0.85:
        return text[:place] + text[place] + text[place:]
    spaces = [space.start() for space in re.finditer(" ", text) if space.start() > 1]
    if not spaces:
        return None
    space = draw.choice(spaces)
    return text[: space - 1] + " " + text[space - 1] + text[space + 1 :]


_SHORT = {
    "What is": "What's", "How is": "How's", "Who is": "Who's", "Where is": "Where's", "do not": "don't",
    "does not": "doesn't", "is not": "isn't", "cannot": "can't", "can not": "can't", "What are": "What're",
    "I am": "I'm", "did not": "didn't", "it is": "it's", "I have": "I've", "will not": "won't",
}  # fmt: skip


def _contracted(text: str, _: random.Random) -> str | None:
    for long, short in _SHORT.items():
        if long in text:
            return text.replace(long, short, 1)
        if short in text:
            return text.replace(short, long, 1)
    return None


def _polite(text: str, draw: random.Random) -> str | None:
    body = text[0].lower() + text[1:] if text[:1].isupper() and not text.startswith("I ") else text
    lead = ["Hi, {}", "Hello! {}", "Quick question: {}", "Please tell me: {}", "{} Thanks!", "{} please", "Hey, {}"]
    return draw.choice(lead).format(draw.choice([text, body]))


def _careless(text: str, draw: random.Random) -> str | None:
    changed = draw.choice([text.lower(), text.rstrip("?. "), text.lower().rstrip("?. "), text + "?", text.upper()])
    return changed if changed != text else None


def _filler(text: str, draw: random.Random) -> str | None:
    changed = re.sub(
        r"\b(is|are|was|can|should|does|do|did|will|would|could) (\w+)\b",
        rf"\1 \2 {draw.choice(_SLOTS['filler'])}",
        text,
        count=1,
        flags=re.IGNORECASE,
    )
    return changed if changed != text else None


_MOVABLE = re.compile(r"^(.{12,}?) ((?:in|on|at|after|before|during) (?:the |a |an )?[\w' -]{3,30})([.?!]?)$")


def _moved(text: str, _: random.Random) -> str | None:
    """What stands at the end goes to the front."""
    found = _MOVABLE.match(text)
    if not found or not found[1].split()[0].istitle():
        return None
    begin = (
        found[1] if found[1].startswith("I ") or found[1].split()[0] in _NAMES else found[1][0].lower() + found[1][1:]
    )
    return f"{found[2][0].upper()}{found[2][1:]}, {begin}{found[3]}"


def _and_turned(text: str, draw: random.Random) -> str | None:
    """The two sides of an "and" or "or" between single words change places."""
    found = [
        match
        for match in re.finditer(r"\b([A-Za-z]{3,}) (and|or) ([A-Za-z]{3,})\b", text)
        if not {match[1].lower(), match[3].lower()} & _STOP and match.start() > 0
    ]
    if not found or re.search(r"\bbetween .*\bto\b", text):
        return None
    one = draw.choice(found)
    after = text[one.end() :]
    # "big cats and dogs": what stands beside the two would go with the other.
    if not re.match(r"$|[?.!,]", after):
        return None
    before = text[: one.start()].split()
    if not before or before[-1].lower() not in _STOP:
        return None
    return f"{text[: one.start()]}{one[3]} {one[2]} {one[1]}{after}"


SWAPS: dict[str, tuple[int, Swap]] = {
    "swap number": (0, _one_of(r"(?<![\w.])\d+(?![\w.]*\d)", _another_number)),
    "swap place": (0, _one_of(_PLACE_PATTERN, lambda _, draw: draw.choice(_PLACES))),
    "swap name": (0, _another_name),
    "swap two names": (0, _two_names),
    "swap two words": (0, _two_words),
    "swap negation": (0, _negated),
    "swap opposite": (0, _opposite),
    "swap added": (0, _added),
    "swap dropped": (0, _dropped),
    "same typo": (1, _typo),
    "same contraction": (1, _contracted),
    "same polite": (1, _polite),
    "same careless": (1, _careless),
    "same filler": (1, _filler),
    "same moved": (1, _moved),
    "same and": (1, _and_turned),
}  # fmt: skip


def swaps(texts: list[str], each: int, draw: random.Random, *, without: frozenset[str] = frozenset()) -> Iterator[Pair]:
    """`each` pairs a family, of a question among `texts` and itself changed."""
    seed = draw.random()
    for family, (label, change) in SWAPS.items():
        if family in without:
            continue
        # Its own, so that what one family makes does not depend on the others.
        draw = random.Random(f"{seed} {family}")  # noqa: S311 - nothing secret, the same again is the point
        made = 0
        for text in draw.sample(texts, min(len(texts), 40 * each)):
            changed = change(text, draw)
            if changed is not None and changed.strip() and changed != text:
                a, b = (text, changed) if draw.random() < 0.5 else (changed, text)
                yield Pair(a, b, label, family)
                made += 1
                if made == each:
                    break
