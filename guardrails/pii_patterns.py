"""What personal data looks like: shapes, check digits, and the words that stand beside it.

A shape is written with the length of each group of digits and the sign between
groups: `3-2-4` is 078-05-1120, `4 4 4` is 1234 5678 9012, `9` is nine digits in
a row. Formats, lengths and prefixes are those the issuers publish.

Words are compared with a text in lower case without accents, signs taken for
spaces: one that begins and ends with a space is a word of its own there, any
other (scripts without spaces) may stand anywhere.
"""

from collections.abc import Callable
from typing import NamedTuple

from guardrails import checksums


class Number(NamedTuple):
    """Digits in groups. `alone`: shapes that say enough without a word beside them; `nearby`: those that do not."""

    kind: str
    alone: str
    nearby: str
    check: Callable[[str], bool]
    checked: bool = True  # by a digit: else the shape and the date are all there is
    bare: bool = True  # a text that is nothing but digits in one of these shapes is one


class Token(NamedTuple):
    """Letters and digits. `expression` is re2 with the token as its group 1."""

    kind: str
    expression: str
    check: Callable[[str], bool]
    alone: bool


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _issued(_: str) -> bool:
    return True


NUMBERS = (
    Number(
        "credit_card",
        "16|4 4 4 4|4-4-4-4|4.4.4.4|15|4 6 5|4-6-5|14|4 6 4|4-6-4|4 4 4 4 3|4-4-4-4-3",
        "12|13|17|18|19|4 4 4|4-4-4|4 3 3 3|4-3-3-3|6 13|4 4 4 1|4 5 6|4-5-6",
        checksums.payment_card,
    ),
    Number(  # of no network known here; the words have to say it
        "credit_card",
        "",
        "12|13|14|15|16|17|18|19|4 4 4 4|4-4-4-4|4.4.4.4|4 6 5|4-6-5|4 6 4|4-6-4|4 4 4|4-4-4",
        checksums.luhn,
        bare=False,
    ),
    Number("us_ssn", "3-2-4|3 2 4|3.2.4", "9|3-6|5-4|3 6", checksums.us_ssn, checked=False),
    Number("us_itin", "3-2-4|3 2 4", "9|3-6|5-4", checksums.us_itin, checked=False),
    Number("uk_nhs", "", "10|3 3 4|3-3-4", checksums.uk_nhs),
    Number("de_tax_id", "2 3 3 3", "11|2/3/3/3|3 4 4", checksums.de_tax_id),
    Number("fr_nir", "1 2 2 2 3 3 2|1 2 2 2 3 3-2|13 2|15|1-2-2-2-3-3-2|1.2.2.2.3.3.2", "", checksums.fr_nir),
    Number("pl_pesel", "", "11", checksums.pl_pesel),
    Number("nl_bsn", "", "9|3 3 3|4 2 3|4.2.3|3.3.3|4 5|3-3-3", checksums.nl_bsn),
    Number("se_personnummer", "6-4|8-4", "10|12|6 4|8 4", checksums.se_personnummer),
    Number("br_cpf", "3.3.3-2", "11|3 3 3 2|3 3 3-2|3-3-3-2|9-2", checksums.br_cpf),
    Number("br_cnpj", "2.3.3/4-2", "14|2 3 3 4 2|8/4-2", checksums.br_cnpj),
    Number("in_aadhaar", "4 4 4|4-4-4", "12", checksums.in_aadhaar),
    Number("au_tfn", "", "9|3 3 3|3-3-3|2 3 3", checksums.au_tfn),
    Number("au_abn", "2 3 3 3", "11|2-3-3-3", checksums.au_abn),
    Number("au_medicare", "4 5 1|4-5-1", "10|4-5-1|10/1", checksums.au_medicare),
    Number("ca_sin", "", "9|3 3 3|3-3-3", checksums.ca_sin),
    Number("kr_rrn", "", "6-7|13|6 7", checksums.kr_rrn),
    Number("kr_rrn", "6-7", "13|6 7", checksums.kr_rrn_format, checked=False, bare=False),
    Number("jp_my_number", "", "12|4 4 4|4-4-4", checksums.jp_my_number),
    Number("cn_resident_id", "18", "6 8 4", checksums.cn_resident_id),
    Number("za_id", "", "13|6 4 3|6 4 2 1|6 4 1 2", checksums.za_id),
    Number("tr_id", "", "11|3 3 3 2", checksums.tr_id),
    Number("ch_ahv", "3.4.4.2|3 4 4 2", "13", checksums.ch_ahv),
    Number("no_fnr", "6 5", "11|6-5", checksums.no_fnr),
    Number("dk_cpr", "", "6-4|6 4|10", checksums.dk_cpr, checked=False, bare=False),
    Number("be_nrn", "2.2.2-3.2", "11|2.2.2.3.2|6-3-2|6 3 2", checksums.be_nrn),
    Number("cl_rut", "1.3.3-1|2.3.3-1", "7-1|8-1", checksums.cl_rut),
    Number("ar_cuit", "2-8-1", "11|2.8.1", checksums.ar_cuit),
    Number("ru_snils", "3-3-3 2|3-3-3-2", "11|3 3 3 2", checksums.ru_snils),
    Number("th_id", "1-4-5-2-1|1 4 5 2 1", "13", checksums.th_id),
    Number("il_id", "", "9|1-7-1|8-1", checksums.il_id),
    Number("pt_nif", "", "9|3 3 3", checksums.pt_nif),
    Number("passport", "", "8|9", _issued, checked=False, bare=False),
)

# Group 1 is the token; a word character or a dash beside it is looked for afterwards.
TOKENS = (
    Token(
        "uk_nino",
        r"(?i)\b([abceghj-prstw-z][abceghj-nprstw-z] ?-?\d{2}[ -]?\d{2}[ -]?\d{2}[ -]?[abcd])\b",
        checksums.uk_nino,
        alone=True,
    ),
    Token("es_dni", r"(?i)\b(\d{7,8}-?[a-hj-np-tv-z])\b", checksums.es_dni, alone=True),
    Token("es_dni", r"(?i)\b(\d{1,2}\.\d{3}\.\d{3}-?[a-hj-np-tv-z])\b", checksums.es_dni, alone=True),
    Token("es_nie", r"(?i)\b([xyz]-?\d{7}-?[a-hj-np-tv-z])\b", checksums.es_nie, alone=True),
    Token(
        "it_codice_fiscale",
        r"(?i)\b([a-z]{6}[0-9l-np-v]{2}[a-ehlmprst][0-9l-np-v]{2}[a-z][0-9l-np-v]{3}[a-z])\b",
        checksums.it_codice_fiscale,
        alone=True,
    ),
    Token("fr_nir", r"\b([12] ?\d{2} ?\d{2} ?2[AB] ?\d{3} ?\d{3} ?\d{2})\b", checksums.fr_nir, alone=True),
    Token("in_pan", r"\b([A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z])\b", _issued, alone=True),
    Token("in_pan", r"(?i)\b([a-z]{3}[abcfghjlpt][a-z]\d{4}[a-z])\b", _issued, alone=False),
    Token("sg_nric", r"(?i)\b([stfgm]\d{7}[a-z])\b", checksums.sg_nric, alone=True),
    Token("fi_hetu", r"(?i)\b(\d{6}[-+a-fu-y]\d{3}[0-9a-fhj-npr-y])\b", checksums.fi_hetu, alone=True),
    Token("cn_resident_id", r"(?i)\b(\d{17}x)\b", checksums.cn_resident_id, alone=True),
    Token("mx_curp", r"(?i)\b([a-z]{4}\d{6}[hmx][a-z]{5}[0-9a-z]\d)\b", checksums.mx_curp, alone=True),
    Token("cl_rut", r"(?i)\b(\d{1,2}\.\d{3}\.\d{3}-k|\d{7,8}-k)\b", checksums.cl_rut, alone=True),
    Token(
        "passport",
        r"(?i)\b([a-z]\d{7,8}|[a-z]{2}\d{6,7}|[a-z]{3}\d{6}|[a-z]\d{3}[a-z]\d{4}|\d{2}[a-z]{2}\d{5})\b",
        _issued,
        alone=False,
    ),
    Token("passport", r"(?i)\b([cfghjkl][0-9cfghjklmnprtvwxyz]{7}\d)\b", checksums.de_passport, alone=False),
)

WORDS = {
    kind: tuple(f" {word} " if word.isascii() else word for word in words.split("|"))
    for kind, words in {
        "credit_card": "card|cards|credit|debit|visa|mastercard|amex|maestro|discover|cc|cvv|cvc|expiry|pan|"
        "kreditkarte|kartennummer|carte|tarjeta|carta|cartao|kaart|karta|kort|kredi karti|"
        "信用卡|银行卡|カード|카드|карта|карты|بطاقة",
        "us_ssn": "ssn|ssns|ss|social|social security|socials|last four|tin|taxpayer",
        "us_itin": "itin|itins|tax id|taxpayer|tin|tax",
        "uk_nhs": "nhs|health service|patient",
        "uk_nino": "nino|nin|national insurance|ni number|insurance number|ni no",
        "de_tax_id": "steuer id|steueridentifikationsnummer|steueridnr|steuer idnr|idnr|id nr|identifikationsnummer|"
        "tin|tax id|steuernummer|steuerid|steuerliche|tax",
        "fr_nir": "nir|securite sociale|numero de secu|secu|social security|insee|carte vitale",
        "es_dni": "dni|nif|documento|identidad",
        "es_nie": "nie|extranjero|documento|identidad",
        "it_codice_fiscale": "codice fiscale|fiscale|cf|fiscal code|tax code",
        "pl_pesel": "pesel",
        "nl_bsn": "bsn|burgerservicenummer|sofi|sofinummer|citizen service",
        "se_personnummer": "personnummer|pnr|personal number|samordningsnummer|personal identity|swedish|"
        "personal id|person number",
        "br_cpf": "cpf|cadastro|contribuinte|pessoa fisica",
        "br_cnpj": "cnpj|pessoa juridica",
        "in_aadhaar": "aadhaar|aadhar|adhaar|uidai|uid|आधार",
        "in_pan": "pan|permanent account|income tax",
        "au_tfn": "tfn|tax file|tax file number",
        "au_abn": "abn|business number|australian business",
        "au_medicare": "medicare",
        "ca_sin": "sin|nas|social insurance|assurance sociale|insurance number",
        "sg_nric": "nric|fin|singapore|identity card",
        "kr_rrn": "rrn|resident registration|korean|주민등록번호|주민번호|주민|외국인등록번호",
        "jp_my_number": "my number|mynumber|individual number|kojin bango|マイナンバー|個人番号",
        "cn_resident_id": "resident id|chinese id|身份证|身份證|公民身份号码",
        "za_id": "south african|rsa id|sa id|id number|identity number|south africa|id",
        "tr_id": "tckn|kimlik|tc|turkish|vatandaslik|t c",
        "ch_ahv": "ahv|avs|oasi|versichertennummer|sozialversicherungsnummer",
        "no_fnr": "fnr|fodselsnummer|personnummer|norwegian|dnr|d nummer",
        "dk_cpr": "cpr|cpr nr|cpr nummer|personnummer|danish",
        "be_nrn": "rijksregisternummer|rijksregister|registre national|nrn|national register|niss|insz|belgian",
        "cl_rut": "rut|run|chile",
        "ar_cuit": "cuit|cuil|argentina",
        "ru_snils": "snils|снилс|страховое",
        "th_id": "thai|thailand|tnin|บัตรประชาชน|เลขประจำตัว",
        "il_id": "teudat zehut|israeli|tz|תעודת זהות|ת.ז",
        "pt_nif": "nif|contribuinte|portugal|portuguese",
        "mx_curp": "curp",
        "fi_hetu": "hetu|henkilotunnus|henkilotunnukseni|finnish",
        "passport": "passport|passports|passport no|reisepass|reisepassnummer|pass|passnummer|passeport|pasaporte|"
        "passaporto|passaporte|paspoort|paszport|paszportu|pasaport|travel document|travel documents|reisedokument|"
        "护照|護照|旅券|パスポート|여권|паспорт|загранпаспорт|جواز|पासपोर्ट|דרכון|διαβατήριο",
        "ip_address": "ip|ips|ipv|address|addr|host|src|dst|source|destination|unspecified|listen|bind|gateway|subnet",
        "mac_address": "mac|macs|hardware|physical|ethernet|bluetooth|bssid|hwaddr|hardware address|wifi|lan",
    }.items()
}

PHONE_WORDS = _set(
    "phone phones telephone telephones tel telefon telefonnummer telefono telefone telefoon telefoonnummer "
    "telephonique mobile mobil mobilnummer mobiltelefon movil celular cellulare cell cellphone handy handynummer "
    "portable gsm fax telefax faks whatsapp signal viber telegram wechat sms call calls called calling caller "
    "callback dial dialed dialled ring reach hotline landline switchboard pager extension ext contact contacts "
    "contacto contatto kontakt appeler appelez joindre anrufen anruf rufnummer rufen erreichbar erreichen llamar "
    "llame llamenos chiamare chiama chiami ligar ligue bellen bel nummer numer numero zadzwon dzwonic ringa puhelin "
    "puhelinnumero telefonszam telefonu tlf tlfn msisdn answering texted texting messages messaged ph telepono cep "
    "tfno cel fono telno telephoned"
)
PHONE_WORDS_AFTER = _set(
    "phone mobile cell fax office home work desk tel telephone ext extension landline handy privat dienstlich"
)
# What may stand between a number and one of these: 98765 43210 is my mobile.
BETWEEN_WORDS = _set("is my the a his her our their your ist meine mein es mi est mon")
PHONE_PHRASES = _set(
    "电话 電話 手机 手機 携帯 联系 聯繫 致电 传真 ファックス 전화 휴대폰 연락처 핸드폰 тел звони моб "
    "هاتف جوال موبايل اتصل फोन मोबाइल טלפון נייד τηλ κινητό โทร"
)
# A number with one of these nearer to it than a word above is something else.
NOT_PHONE_WORDS = _set(
    "order orders invoice invoices tracking parcel shipment ticket case serial model part sku item product products "
    "version versions release build revision commit patent isbn issn ean upc gtin doi vin account accounts iban bic "
    "swift routing reference ref id ids uuid customer member membership policy claim booking reservation transaction "
    "txn receipt bestellnummer bestellung rechnung rechnungsnummer auftrag kundennummer konto kontonummer sendung "
    "commande facture pedido factura ordine fattura bestelling factuur population total sum amount price cost revenue "
    "usd eur gbp timestamp epoch unix date dated year years equals plus minus times divided multiply square port pid "
    "hash checksum md5 seed code zip zipcode postcode postal plz license licence driver drivers plate registration "
    "ssn passport card visa mastercard credit debit nhs aadhaar abn tfn bsn cpf pesel tax steuer pan sin imei imsi "
    "iccid coordinates latitude longitude lat lon pi digits distance score zipcode ip mac size bytes length width "
    "height weight"
)
# Said of many numbers: counts where no word above says otherwise.
WEAK_PHONE_WORDS = _set("number no nr num nummer numero")

# ITU-T E.164: every country calling code begins no other one.
CALLING_CODES = _set(
    "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 "
    "86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 "
    "237 238 239 240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 "
    "266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 "
    "379 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 "
    "596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850 "
    "852 853 855 856 870 878 880 881 882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 "
    "977 979 992 993 994 995 996 998"
)

BIRTH_WORDS = (
    r"born on|born|dob|d\.o\.b|date of birth|date-of-birth|date_of_birth|dateofbirth|birth date|birthdate|"
    r"birth_date|birthday|geboren am|geboren|geb\.|geburtsdatum|geburtstag|ne le|nee le|date de naissance|"
    r"naissance|nacido el|nacida el|nacido|nacida|fecha de nacimiento|nacimiento|nato il|nata il|data di nascita|"
    r"nascido em|nascida em|data de nascimento|nascimento|geboortedatum|geboren op|fodelsedatum|fodt|fodselsdato|"
    r"syntymaaika|urodzony|urodzona|data urodzenia|dogum tarihi|dogum"
)

# What ends in one of these is a file, not a mailbox: icon@2x.png.
FILE_SUFFIXES = _set(
    "png jpg jpeg gif svg webp avif ico bmp css scss less js mjs cjs jsx ts tsx json json5 html htm xml yaml yml toml "
    "ini txt csv tsv log pdf docx xlsx gz tgz tar rar lock map woff woff2 ttf mp3 mp4 wav exe dll jar whl deb rpm "
    "tflite"
)
