"""detect-secrets' plugins as a second opinion: for audits, not for every request.

Its scanner is not used: that has no offsets, reads settings of the whole
process, and stops at `pragma: allowlist secret`. The plugins see one line at
a time; those that only measure entropy see lines that speak of a secret.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from detect_secrets.plugins.artifactory import ArtifactoryDetector
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import BasePlugin
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.cloudant import CloudantDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.high_entropy_strings import (
    Base64HighEntropyString,
    HexHighEntropyString,
    HighEntropyStringsPlugin,
)
from detect_secrets.plugins.ibm_cloud_iam import IbmCloudIamDetector
from detect_secrets.plugins.ibm_cos_hmac import IbmCosHmacDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.keyword import KeywordDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.private_key import PrivateKeyDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.softlayer import SoftlayerDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from models.finding import Finding, Segment

# The plugins' expressions backtrack, so they never see more at once; what lies across two windows is in their overlap.
_WINDOW = 2048
_OVERLAP = 512
_CONFIDENCE = 0.7
_VERSION = "1"
_LINE = re.compile(r"[^\r\n]+")
_SPEAKS = re.compile(r"(?i)key|token|secret|passw|pwd|credential|auth|private|signature")

_FORMATS: tuple[type[BasePlugin], ...] = (
    ArtifactoryDetector,
    AWSKeyDetector,
    AzureStorageKeyDetector,
    BasicAuthDetector,
    CloudantDetector,
    DiscordBotTokenDetector,
    GitHubTokenDetector,
    GitLabTokenDetector,
    IbmCloudIamDetector,
    IbmCosHmacDetector,
    JwtTokenDetector,
    KeywordDetector,
    MailchimpDetector,
    NpmDetector,
    OpenAIDetector,
    PrivateKeyDetector,
    PypiTokenDetector,
    SendGridDetector,
    SlackDetector,
    SoftlayerDetector,
    SquareOAuthDetector,
    StripeDetector,
    TelegramBotTokenDetector,
    TwilioKeyDetector,
)


class DetectSecretsDetector:
    """Works in a thread: 0.4 to 10 ms per KB."""

    name = "detect_secrets"
    inline = False
    reach: int | None = _WINDOW

    def __init__(self) -> None:
        formats = [plugin() for plugin in _FORMATS]
        self._formats = [(_kind(plugin), plugin) for plugin in formats]
        self._entropies: list[tuple[str, HighEntropyStringsPlugin]] = [
            (_kind(plugin), plugin) for plugin in (Base64HighEntropyString(), HexHighEntropyString())
        ]
        self.kinds = frozenset(kind for kind, _ in (*self._formats, *self._entropies))
        self.revision = hashlib.sha256(f"{_VERSION} {version('detect-secrets')}".encode()).hexdigest()[:16]

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        return await asyncio.to_thread(lambda: [finding for segment in segments for finding in self._look(segment)])

    def _look(self, segment: Segment) -> list[Finding]:
        found = {
            (kind, start, end)
            for at, line in _windows(segment.text)
            for kind, secret in self._secrets(line)
            for start, end in _places(line, secret, at)
        }
        return [
            Finding(segment.index, kind, start, end, _CONFIDENCE, kind)
            for kind, start, end in sorted(found, key=lambda one: (one[1], one[2], one[0]))
        ]

    def _secrets(self, line: str) -> Iterator[tuple[str, str]]:
        for kind, plugin in self._formats:
            for secret in set(plugin.analyze_string(line)):
                yield kind, secret
        if _SPEAKS.search(line):
            for kind, entropy in self._entropies:
                for secret in set(entropy.analyze_string(line)):
                    if entropy.calculate_shannon_entropy(secret) > entropy.entropy_limit:
                        yield kind, secret


def _kind(plugin: BasePlugin) -> str:
    return re.sub(r"\W+", "_", str(plugin.secret_type)).strip("_").lower()


def _windows(text: str) -> Iterator[tuple[int, str]]:
    for line in _LINE.finditer(text):
        start, end = line.span()
        yield start, text[start : min(end, start + _WINDOW)]
        while end - start > _WINDOW:
            start += _WINDOW - _OVERLAP
            yield start, text[start : min(end, start + _WINDOW)]


def _places(line: str, secret: str, at: int) -> Iterator[tuple[int, int]]:
    start = line.find(secret) if secret else -1
    while start >= 0:
        yield at + start, at + start + len(secret)
        start = line.find(secret, start + len(secret))
