from collections.abc import Callable

import pytest

from guardrails import checksums

# Numbers the issuers print as examples, or made to their rule for this test.
ISSUED: list[tuple[Callable[[str], bool], str]] = [
    (checksums.luhn, "79927398713"),
    (checksums.verhoeff, "2363"),
    (checksums.iso7064_mod11_10, "86095742719"),
    (checksums.ean13, "4006381333931"),
    (checksums.payment_card, "4111111111111111"),
    (checksums.payment_card, "378282246310005"),
    (checksums.iban, "GB82WEST12345698765432"),
    (checksums.iban, "NO9386011117947"),
    (checksums.base58check, "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
    (checksums.bech32, "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
    (checksums.us_itin, "912781234"),
    (checksums.uk_nhs, "9434765919"),
    (checksums.de_tax_id, "86095742719"),
    (checksums.fr_nir, "255081416802538"),
    (checksums.es_dni, "12345678Z"),
    (checksums.es_nie, "X1234567L"),
    (checksums.it_codice_fiscale, "RSSMRA85T10A562S"),
    (checksums.pl_pesel, "44051401359"),
    (checksums.nl_bsn, "111222333"),
    (checksums.se_personnummer, "8112189876"),
    (checksums.se_personnummer, "198112189876"),
    (checksums.br_cpf, "11144477735"),
    (checksums.br_cnpj, "11222333000181"),
    (checksums.au_tfn, "123456782"),
    (checksums.au_abn, "51824753556"),
    (checksums.au_medicare, "2123456701"),
    (checksums.ca_sin, "193456787"),
    (checksums.sg_nric, "S1234567D"),
    (checksums.jp_my_number, "123456789018"),
    (checksums.cn_resident_id, "11010519491231002X"),
    (checksums.za_id, "8001015009087"),
    (checksums.tr_id, "10000000146"),
    (checksums.mx_curp, "HEGG560427MVZRRL04"),
    (checksums.fi_hetu, "131052308T"),
    (checksums.ch_ahv, "7569217076985"),
    (checksums.no_fnr, "15021951940"),
    (checksums.be_nrn, "85073003328"),
    (checksums.cl_rut, "123456785"),
    (checksums.ar_cuit, "20267565393"),
    (checksums.ru_snils, "11223344595"),
    (checksums.th_id, "1234567890121"),
    (checksums.il_id, "123456782"),
    (checksums.pt_nif, "501964843"),
]


@pytest.mark.parametrize(("check", "number"), ISSUED)
def test_takes_a_number_that_was_issued(check: Callable[[str], bool], number: str) -> None:
    assert check(number)


@pytest.mark.parametrize(("check", "number"), ISSUED)
def test_refuses_any_other_last_sign(check: Callable[[str], bool], number: str) -> None:
    last = number[-1]
    others = "0123456789" if last.isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if last.isupper() else "acdefghjklmn"

    taken = [number[:-1] + other for other in others if other != last and check(number[:-1] + other)]

    free = check in (checksums.us_itin, checksums.au_medicare)  # their last digit is no check digit
    assert len(taken) == (9 if free else 0)


@pytest.mark.parametrize(
    ("check", "number"),
    [
        (checksums.us_ssn, "000121234"),
        (checksums.us_ssn, "666121234"),
        (checksums.us_ssn, "900121234"),
        (checksums.us_ssn, "123001234"),
        (checksums.us_ssn, "123450000"),
        (checksums.us_itin, "912661234"),
        (checksums.uk_nino, "BG123456A"),
        (checksums.br_cpf, "00000000000"),
        (checksums.kr_rrn_format, "9613011021413"),  # the month 13
        (checksums.dk_cpr, "3113991234"),
        (checksums.ca_sin, "046454286"),  # begins with 0
        (checksums.iban, "XX82WEST12345698765432"),
        (checksums.iban, "GB82WEST1234569876543"),  # one short
        (checksums.payment_card, "7992739871300005"),  # of no network
        (checksums.base58check, "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfN0"),  # 0 is no sign of base 58
        (checksums.base58check, "z" * 40),  # more than 25 bytes
        (checksums.bech32, "Bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),  # of two cases
    ],
)
def test_refuses_what_was_never_issued(check: Callable[[str], bool], number: str) -> None:
    assert not check(number)


def test_a_corsican_is_counted_as_from_19_or_18() -> None:
    body = "185052A006084"
    key = 97 - int(body.replace("2A", "19")) % 97

    assert checksums.fr_nir(f"{body}{key:02}")
