"""Check digits: of payment cards, bank accounts, wallets and national numbers.

Every function takes the bare number (no separators, letters in upper case), of
the length and the alphabet such a number has, and says whether it can have been
issued: its check digits, and where it holds a date, that the date exists.
"""

from datetime import date
from hashlib import sha256

_LUHN_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    odd = sum(map(int, number[-1::-2]))
    return (odd + sum(_LUHN_DOUBLED[int(digit)] for digit in number[-2::-2])) % 10 == 0


def weighted(number: str, weights: tuple[int, ...]) -> int:
    """The sum of the leading digits, each times its weight."""
    return sum(int(digit) * weight for digit, weight in zip(number, weights, strict=False))


def iso7064_mod11_10(number: str) -> bool:
    product = 10
    for digit in number[:-1]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(number[-1])


_VERHOEFF_D = tuple(
    tuple(
        (i + j) % 5 + (5 if (i < 5) != (j < 5) else 0) if i < 5 else (i - j) % 5 + (5 if j < 5 else 0)
        for j in range(10)
    )
    for i in range(10)
)
_VERHOEFF_P = [tuple(range(10)), (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)]
for _ in range(6):
    _VERHOEFF_P.append(tuple(_VERHOEFF_P[1][x] for x in _VERHOEFF_P[-1]))


def verhoeff(number: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(number)):
        check = _VERHOEFF_D[check][_VERHOEFF_P[place % 8][int(digit)]]
    return check == 0


def ean13(number: str) -> bool:
    return len(number) == 13 and (weighted(number, (1, 3) * 6) + int(number[12])) % 10 == 0


# SWIFT, IBAN registry: how long an account number is in each country
IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO",
        "16": "BE BI",
        "18": "DK FI FK FO GL NL SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH CR HR LI LV",
        "22": "BG BH DE GB GE IE ME RS",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ DZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BF BJ CF CG CM DJ FR GR IT KM MC MR SM",
        "28": "AL AZ BY CI CY DO GT HN HU LB MA ML NE NI PL SN SV TD TG",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for country in countries.split()
} | {"AO": 25, "CV": 25, "GA": 27, "GQ": 27, "GW": 25, "IR": 26, "MG": 27, "MZ": 25, "YE": 30}


def iban(number: str) -> bool:
    if IBAN_LENGTHS.get(number[:2]) != len(number):
        return False
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


# ISO/IEC 7812 ranges as the card networks publish them: first digits, and how long such a card number is
_CARDS: tuple[tuple[range, frozenset[int]], ...] = (
    (range(400000, 500000), frozenset({13, 16, 19})),  # Visa
    (range(510000, 560000), frozenset({16})),  # Mastercard
    (range(222100, 272100), frozenset({16})),
    (range(340000, 350000), frozenset({15})),  # American Express
    (range(370000, 380000), frozenset({15})),
    (range(300000, 306000), frozenset({14, 16, 19})),  # Diners Club
    (range(309000, 310000), frozenset({14, 16, 19})),
    (range(360000, 370000), frozenset({14, 16, 19})),
    (range(380000, 400000), frozenset({14, 16, 19})),
    (range(352800, 359000), frozenset({16, 17, 18, 19})),  # JCB
    (range(180000, 180100), frozenset({15})),
    (range(213100, 213200), frozenset({15})),
    (range(220000, 220500), frozenset({16, 17, 18, 19})),  # Mir
    (range(500000, 510000), frozenset({12, 13, 14, 15, 16, 17, 18, 19})),  # Maestro, Dankort, Verve, Elo
    (range(560000, 590000), frozenset({12, 13, 14, 15, 16, 17, 18, 19})),
    (range(600000, 700000), frozenset({12, 13, 14, 15, 16, 17, 18, 19})),  # Discover, UnionPay, RuPay, Maestro
    (range(810000, 830000), frozenset({16, 17, 18, 19})),  # UnionPay, RuPay
    (range(979200, 979300), frozenset({16})),  # Troy
    (range(100000, 200000), frozenset({15})),  # UATP
)


def payment_card(number: str) -> bool:
    first = int(number[:6])
    return any(first in prefix and len(number) in lengths for prefix, lengths in _CARDS) and luhn(number)


_BASE58 = {c: i for i, c in enumerate("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")}
_BASE58_VERSIONS = frozenset(
    {0x00, 0x05, 0x1E, 0x16, 0x30, 0x32, 0x4C, 0x41}
)  # Bitcoin, Dogecoin, Litecoin, Dash, Tron


def base58check(address: str) -> bool:
    """A wallet of 25 bytes whose last four are the double SHA-256 of the rest."""
    value = 0
    for c in address:
        digit = _BASE58.get(c)
        if digit is None:
            return False
        value = value * 58 + digit
    if value >> 200:
        return False
    raw = value.to_bytes(25, "big")
    return raw[0] in _BASE58_VERSIONS and sha256(sha256(raw[:21]).digest()).digest()[:4] == raw[21:]


_BECH32 = {c: i for i, c in enumerate("qpzry9x8gf2tvdw0s3jn54khce6mua7l")}
_BECH32_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def bech32(address: str) -> bool:
    """BIP 173 and BIP 350; one case throughout."""
    if address not in (address.lower(), address.upper()):
        return False
    prefix, _, payload = address.lower().rpartition("1")
    values = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    for c in payload:
        value = _BECH32.get(c)
        if value is None:
            return False
        values.append(value)
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_BECH32_GENERATOR):
            if top >> bit & 1:
                check ^= generator
    return check in (1, 0x2BC830A3)


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _yymmdd(number: str) -> bool:
    """A day of this or the last century, two digits for the year."""
    return _is_date(2000 + int(number[:2]), int(number[2:4]), int(number[4:6]))  # 2000 had a 29 February too


def _ddmmyy(number: str) -> bool:
    return _yymmdd(number[4:6] + number[2:4] + number[:2])


def _varied(number: str) -> bool:
    return len(set(number)) > 1


# National numbers. The names are the kinds they are found as.


def us_ssn(number: str) -> bool:
    """No check digit: what the Social Security Administration never issued (and two numbers it printed in adverts)."""
    return (
        number[:3] not in ("000", "666")
        and number[0] != "9"
        and number[3:5] != "00"
        and number[5:] != "0000"
        and _varied(number)
        and number not in ("078051120", "219099999", "123456789")
    )


def us_itin(number: str) -> bool:
    group = int(number[3:5])
    return number[0] == "9" and (50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99)


def uk_nhs(number: str) -> bool:
    return _varied(number) and (weighted(number, (10, 9, 8, 7, 6, 5, 4, 3, 2)) + int(number[9])) % 11 == 0


def uk_nino(number: str) -> bool:
    return number[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ") and number[2:8] != "000000"


def de_tax_id(number: str) -> bool:
    return number[0] != "0" and max(map(number[:10].count, set(number))) <= 3 and iso7064_mod11_10(number)


def de_passport(number: str) -> bool:
    """Nine characters, the last a check digit (ICAO 9303)."""
    return sum(int(c, 36) * (7, 3, 1)[i % 3] for i, c in enumerate(number[:8])) % 10 == int(number[8])


def fr_nir(number: str) -> bool:
    month = int(number[3:5])
    body = number[:13].replace("2A", "19").replace("2B", "18") if not number.isdigit() else number[:13]
    if number[0] not in "123478" or not (1 <= month <= 12 or 20 <= month <= 42 or month >= 50):
        return False
    return 97 - int(body) % 97 == int(number[13:])


_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"


def es_dni(number: str) -> bool:
    return _DNI_LETTERS[int(number[:-1]) % 23] == number[-1] and int(number[:-1]) > 0


def es_nie(number: str) -> bool:
    return _DNI_LETTERS[int(str("XYZ".index(number[0])) + number[1:-1]) % 23] == number[-1]


_CODICE_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def it_codice_fiscale(number: str) -> bool:
    values = [int(c) if c.isdigit() else ord(c) - 65 for c in number[:15]]
    odd, even = sum(_CODICE_ODD[value] for value in values[::2]), sum(values[1::2])
    return chr(65 + (odd + even) % 26) == number[15]


def pl_pesel(number: str) -> bool:
    month = int(number[2:4])
    year = (1900, 2000, 2100, 2200, 1800)[month // 20] + int(number[:2])
    check = (weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) + int(number[10])) % 10
    return check == 0 and _is_date(year, month % 20, int(number[4:6]))


def nl_bsn(number: str) -> bool:
    return _varied(number) and (weighted(number, (9, 8, 7, 6, 5, 4, 3, 2)) - int(number[8])) % 11 == 0


def se_personnummer(number: str) -> bool:
    short = number[-10:]
    day = int(short[4:6])
    if len(number) == 12 and number[:2] not in ("18", "19", "20"):
        return False
    return _yymmdd(f"{short[:4]}{day - 60 if day > 60 else day:02}") and luhn(short)


def br_cpf(number: str) -> bool:
    if not _varied(number):
        return False
    first = weighted(number, (10, 9, 8, 7, 6, 5, 4, 3, 2)) * 10 % 11 % 10
    second = weighted(number, (11, 10, 9, 8, 7, 6, 5, 4, 3, 2)) * 10 % 11 % 10
    return number[9:] == f"{first}{second}"


def br_cnpj(number: str) -> bool:
    weights = (6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2)
    first = weighted(number, weights[1:]) * 10 % 11 % 10
    second = weighted(number, weights) * 10 % 11 % 10
    return _varied(number) and number[12:] == f"{first}{second}"


def in_aadhaar(number: str) -> bool:
    return number[0] not in "01" and number != number[::-1] and verhoeff(number)


def au_tfn(number: str) -> bool:
    return _varied(number) and weighted(number, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def au_abn(number: str) -> bool:
    return (weighted(number, (10, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19)) - 10) % 89 == 0 and number[0] != "0"


def au_medicare(number: str) -> bool:
    return number[0] in "23456" and weighted(number, (1, 3, 7, 9, 1, 3, 7, 9)) % 10 == int(number[8])


def ca_sin(number: str) -> bool:
    return number[0] not in "08" and _varied(number) and luhn(number)


def sg_nric(number: str) -> bool:
    total = weighted(number[1:8], (2, 7, 6, 5, 4, 3, 2)) + {"T": 4, "G": 4, "M": 3}.get(number[0], 0)
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "M": "XWUTRQPNJLK"}.get(number[0], "XWUTRQPNMLK")
    return letters[total % 11] == number[8]


def kr_rrn_format(number: str) -> bool:
    """A date and a digit for sex and century: numbers given since October 2020 have no check digit."""
    return number[6] in "12345678" and _yymmdd(number)


def kr_rrn(number: str) -> bool:
    total = weighted(number, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5))
    shift = 13 if number[6] in "5678" else 11  # foreigners
    return kr_rrn_format(number) and (shift - total % 11) % 10 == int(number[12])


def jp_my_number(number: str) -> bool:
    rest = weighted(number, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return _varied(number) and (0 if rest <= 1 else 11 - rest) == int(number[11])


def cn_resident_id(number: str) -> bool:
    if not _is_date(int(number[6:10]), int(number[10:12]), int(number[12:14])) or number[6:8] not in ("18", "19", "20"):
        return False
    return (
        "10X98765432"[weighted(number[:17], (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)) % 11] == number[17]
    )


def za_id(number: str) -> bool:
    return _yymmdd(number) and number[10] in "012" and luhn(number)


def tr_id(number: str) -> bool:
    if number[0] == "0":
        return False
    tenth = (sum(map(int, number[0:9:2])) * 7 - sum(map(int, number[1:8:2]))) % 10
    return tenth == int(number[9]) and sum(map(int, number[:10])) % 10 == int(number[10])


_CURP_VALUES = {c: i for i, c in enumerate("0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ")}


def mx_curp(number: str) -> bool:
    total = sum(_CURP_VALUES[c] * (18 - i) for i, c in enumerate(number[:17]))
    return _yymmdd(number[4:10]) and (10 - total % 10) % 10 == int(number[17])


def fi_hetu(number: str) -> bool:
    """Without the sign between date and serial number."""
    return _ddmmyy(number) and "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(number[:9]) % 31] == number[9]


def ch_ahv(number: str) -> bool:
    return number.startswith("756") and ean13(number)


def no_fnr(number: str) -> bool:
    day = int(number[:2])
    first = (weighted(number, (3, 7, 6, 1, 8, 9, 4, 5, 2)) + int(number[9])) % 11
    second = (weighted(number, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) + int(number[10])) % 11
    return first == second == 0 and _ddmmyy(f"{day - 40 if day > 40 else day:02}{number[2:6]}")


def dk_cpr(number: str) -> bool:
    """A date: numbers since 2007 have no check digit."""
    return _ddmmyy(number)


def be_nrn(number: str) -> bool:
    body, check = number[:9], int(number[9:])
    return number[2:4] <= "12" and check in (97 - int(body) % 97, 97 - int("2" + body) % 97)


def cl_rut(number: str) -> bool:
    total = sum(int(digit) * (2 + i % 6) for i, digit in enumerate(reversed(number[:-1])))
    return "0123456789K0"[(11 - total % 11)] == number[-1]


def ar_cuit(number: str) -> bool:
    if number[:2] not in ("20", "23", "24", "25", "26", "27", "30", "33", "34"):
        return False
    return (weighted(number, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) + int(number[10])) % 11 == 0


def ru_snils(number: str) -> bool:
    return _varied(number[:9]) and weighted(number, (9, 8, 7, 6, 5, 4, 3, 2, 1)) % 101 % 100 == int(number[9:])


def th_id(number: str) -> bool:
    total = weighted(number, (13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2))
    return number[0] != "0" and _varied(number) and (11 - total % 11) % 10 == int(number[12])


def il_id(number: str) -> bool:
    return _varied(number) and luhn(number)


def pt_nif(number: str) -> bool:
    rest = weighted(number, (9, 8, 7, 6, 5, 4, 3, 2)) % 11
    return number[0] in "1235689" and (0 if rest < 2 else 11 - rest) == int(number[8])
