"""Where the model lies in a form, and forms that two readers would read in two ways."""

import time

import pytest

from models.errors import RequestError
from service.api.form import model_span, rewritten, texts

TYPE = b"multipart/form-data; boundary=X"
FILE = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n'
MODEL = b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
END = b"--X--\r\n"


def model_of(body: bytes, content_type: bytes = TYPE) -> bytes | None:
    span = model_span(body, content_type)
    return None if span is None else body[slice(*span)]


def test_the_value_of_the_field_is_found() -> None:
    assert model_of(FILE % b"RIFF" + MODEL % b"whisper-1" + END) == b"whisper-1"


def test_a_quoted_boundary_and_other_spellings_are_read() -> None:
    body = b"--X\r\ncontent-disposition: form-data; name=model\r\n\r\nm\r\n" + END

    assert model_of(body, b'Multipart/Form-Data; charset=utf-8; boundary="X"') == b"m"


def test_a_form_without_the_field_has_none() -> None:
    assert model_of(FILE % b"RIFF" + END) is None


def test_what_a_file_says_is_no_field() -> None:
    said = b'Content-Disposition: form-data; name="model"\r\n\r\nallowed\r\n'

    assert model_of(FILE % said + MODEL % b"real" + END) == b"real"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (MODEL % b"one" + MODEL % b"two" + END, TYPE),
        (MODEL % b"one", TYPE),
        (b"no form", TYPE),
        (b"", TYPE),
        (MODEL % b"one" + END, b"multipart/form-data"),
        (MODEL % b"one" + END, b"multipart/mixed; boundary=X"),
        (FILE % b"" * 1001 + END, TYPE),
    ],
)
def test_a_form_that_cannot_be_read_in_one_way_is_refused(body: bytes, content_type: bytes) -> None:
    with pytest.raises(RequestError):
        model_of(body, content_type)


def test_a_large_form_is_read_in_no_time() -> None:
    header = b"content-disposition:form-data;name=model\r\n" * 100_000

    began = time.perf_counter()
    with pytest.raises(RequestError):
        model_of(b"--X\r\n" + header + END)

    assert model_of(FILE % header + END) is None
    assert time.perf_counter() - began < 1.0


FIELD = b'--X\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n%b\r\n'


def test_fields_are_read_but_for_the_model_and_files() -> None:
    body = FIELD % b"one\r\n\r\ntwo" + MODEL % b"m" + FILE % b"RIFF" + FIELD % b"" + FIELD % b"three" + END

    assert texts(body, TYPE) == [b"one\r\n\r\ntwo", b"three"]


def test_fields_get_other_values_and_the_rest_stays() -> None:
    body = FIELD % b"one\r\ntwo" + FILE % b"a one\r\ntwo" + FIELD % b"three" + FIELD % b"one\r\ntwo" + END

    changed = rewritten(body, TYPE, {b"one\r\ntwo": b"1"})

    assert changed == FIELD % b"1" + FILE % b"a one\r\ntwo" + FIELD % b"three" + FIELD % b"1" + END


def test_a_value_that_would_end_the_form_is_refused() -> None:
    with pytest.raises(RequestError):
        rewritten(FIELD % b"one" + END, TYPE, {b"one": b"1\r\n--X--\r\n"})
