"""Checksums that issuers put into their tokens: a token that fails one is a sample, a typing error or made up."""

import base64
import binascii
import json
import zlib

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def passes(checksum: str, token: str) -> bool | None:
    """None for a checksum nobody here can read."""
    check = _CHECKS.get(checksum)
    return None if check is None else check(token)


def crc32_base62(token: str) -> bool:
    """GitHub and npm: prefix, underscore, and random characters whose CRC32 follows in six characters of base62."""
    body = token.partition("_")[2]
    if len(body) <= 6:
        return False
    value, digits = zlib.crc32(body[:-6].encode()), ""
    while value:
        value, digit = divmod(value, 62)
        digits = _BASE62[digit] + digits
    return body[-6:] == digits.rjust(6, "0")


def jwt_header(token: str) -> bool:
    """A JSON Web Token begins with a JSON object that names an algorithm or a type."""
    part = token.replace("%2E", ".").partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and bool(header.keys() & {"alg", "typ", "enc", "kid"})


def basic_credentials(token: str) -> bool:
    """Base64 of `user:password` (RFC 7617)."""
    try:
        return b":" in base64.b64decode(token + "=" * (-len(token) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


_CHECKS = {"github": crc32_base62, "npm": crc32_base62, "jwt": jwt_header, "basic": basic_credentials}
