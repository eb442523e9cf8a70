"""Microsoft's presidio-analyzer: its pattern recognisers and, with a model of the user's, names and places.

It runs in one thread of its own, a few thousand characters at a time: a
regular expression of its holds the interpreter's lock only as long as that
takes, and the event loop has its turn in between.
"""

import asyncio
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from guardrails.base import DetectorError
from models.errors import ConfigError
from models.finding import Finding, Segment

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from spacy.language import Language

_SLICE = 4096
_OVERLAP = 512  # half of it is context on either side of what a slice answers for
_LEAST = 0.4
_MOST_WAITING = 64
_LOGGERS = ("presidio-analyzer", "presidio_analyzer", "decision_process")
# Where we have a word of our own; any other entity is its own name in lower case.
_KINDS = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "IBAN_CODE": "iban",
    "CRYPTO": "crypto_address",
    "ES_NIF": "es_dni",
    "IT_FISCAL_CODE": "it_codice_fiscale",
    "SG_NRIC_FIN": "sg_nric",
}
_ENTITIES = {kind: entity for entity, kind in _KINDS.items()}
_NOT_BY_DEFAULT = frozenset({"URL"})
_OF_A_MODEL = frozenset({"PERSON", "LOCATION", "NRP", "ORGANIZATION"})


class PresidioDetector:
    """`model` is a spaCy model (a package or a folder), or one for transformers (a folder or `owner/name`); nothing is
    downloaded for spaCy. Without one there are no names or places. `entities` are presidio's names or ours; all but
    URL by default."""

    name = "presidio"
    inline = False
    reach: int | None = None  # a name has no longest form

    def __init__(self, model: str | None = None, entities: Collection[str] | None = None, language: str = "en") -> None:
        """Takes seconds. Raises `ConfigError`."""
        try:
            import presidio_analyzer
        except ImportError as absent:
            raise ConfigError("presidio is not installed: pip install 'keepgate[presidio]'") from absent
        for name in _LOGGERS:  # at DEBUG it writes out the words of a text
            logger = logging.getLogger(name)
            logger.setLevel(logging.CRITICAL + 1)
            logger.propagate = False
        self._language = language
        self._analyzer = _analyzer(model, language)
        self._entities = _chosen(self._analyzer.get_supported_entities(language), entities, named=model is not None)
        self.kinds = frozenset(map(_kind, self._entities))
        version = getattr(presidio_analyzer, "__version__", "") or _version("presidio-analyzer")
        known = (version, _model_version(model), self._entities, language, _LEAST, _SLICE, _OVERLAP)
        self.revision = sha256(repr(known).encode()).hexdigest()[:16]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="presidio")
        self._waiting = 0

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        if self._waiting >= _MOST_WAITING:
            raise DetectorError(f"presidio has {self._waiting} requests waiting")
        given_up = threading.Event()
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._look, segments, given_up)
        finally:
            given_up.set()
            self._waiting -= 1

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _look(self, segments: Sequence[Segment], given_up: threading.Event) -> list[Finding]:
        found: list[Finding] = []
        for segment in segments:
            for start, first, end in _slices(len(segment.text)):
                if given_up.is_set():
                    return found
                found += self._look_at(segment, start, first, end)
        return found

    def _look_at(self, segment: Segment, start: int, first: int, end: int) -> Iterator[Finding]:
        """What begins from `first` to `end` of the slice at `start`."""
        text = segment.text[start : start + _SLICE]
        try:
            results = self._analyzer.analyze(
                text, language=self._language, entities=self._entities, score_threshold=_LEAST
            )
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as failed:
            # Its own message quotes the text.
            raise DetectorError(f"presidio failed: {type(failed).__name__}") from None
        for result in results:
            if first <= start + result.start < end:
                yield Finding(
                    segment.index, _kind(result.entity_type), start + result.start, start + result.end, result.score
                )


def _kind(entity: str) -> str:
    return _KINDS.get(entity, entity.lower())


def _slices(length: int) -> Iterator[tuple[int, int, int]]:
    """Where a slice starts, and from where to where what begins in it is its own."""
    start = first = 0
    while start + _SLICE < length:
        yield start, first, start + _SLICE - _OVERLAP // 2
        first = start + _SLICE - _OVERLAP // 2
        start += _SLICE - _OVERLAP
    if length:
        yield start, first, length


def _chosen(supported: Collection[str], entities: Collection[str] | None, *, named: bool) -> list[str]:
    known = set(supported) - (set() if named else _OF_A_MODEL)
    if entities is None:
        return sorted(known - _NOT_BY_DEFAULT)
    wanted = {_ENTITIES.get(entity.lower(), entity.upper()) for entity in entities}
    if wanted - known:
        needs = "" if named else " without a model"
        raise ConfigError(
            f"presidio{needs} does not know {', '.join(sorted(wanted - known))}; known: {', '.join(sorted(known))}"
        )
    return sorted(wanted)


def _analyzer(model: str | None, language: str) -> "AnalyzerEngine":
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    from_transformers = model is not None and _is_transformers(model)
    words = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model or language}])
    loaded = _spacy(None if from_transformers else model, language)
    words.nlp = {language: loaded}  # type: ignore[assignment]  # declared None: how presidio is given a loaded model
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=words)
    if from_transformers:
        _add_transformers(registry, str(model), language)
    _keep_offline(registry, language)
    return AnalyzerEngine(registry=registry, nlp_engine=words, supported_languages=[language])


def _spacy(model: str | None, language: str) -> "Language":
    import spacy
    from spacy.language import Language
    from spacy.tokens import Doc

    @Language.component("keepgate_words")
    def words(doc: Doc) -> Doc:
        for token in doc:
            token.lemma_ = token.lower_  # what presidio compares with its context words
        return doc

    try:
        if model:
            return spacy.load(model)
        blank = spacy.blank(language)
    except (ImportError, OSError) as absent:
        if model:
            raise ConfigError(f"spaCy has no model {model!r}: python -m spacy download {model}") from absent
        raise ConfigError(f"spaCy does not know the language {language!r}") from absent
    blank.add_pipe("keepgate_words")
    return blank


def _is_transformers(model: str) -> bool:
    folder = Path(model)
    return (folder / "config.json").is_file() if folder.is_dir() else "/" in model


def _add_transformers(registry: "RecognizerRegistry", model: str, language: str) -> None:
    from presidio_analyzer.predefined_recognizers.ner import HuggingFaceNerRecognizer

    try:
        registry.add_recognizer(HuggingFaceNerRecognizer(model_name=model, supported_language=language))
    except (ImportError, OSError, ValueError) as failed:
        raise ConfigError(f"transformers cannot load {model!r}: {type(failed).__name__}") from failed


def _keep_offline(registry: "RecognizerRegistry", language: str) -> None:
    """Its email recogniser fetches a list of domains from the network the first time it finds one."""
    import tldextract
    from presidio_analyzer.predefined_recognizers import EmailRecognizer

    domains = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class OfflineEmailRecognizer(EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return domains(pattern_text).fqdn != ""

    registry.remove_recognizer("EmailRecognizer")
    registry.add_recognizer(OfflineEmailRecognizer(supported_language=language))


def _model_version(model: str | None) -> str:
    if model is None:
        return ""
    return f"{model} {_version(model)}"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
