"""Where the model lies in a form, and forms that two readers would read in two ways."""

import time

import pytest

from models.errors import RequestError
from service.api.form import model_span

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
