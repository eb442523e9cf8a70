"""What is known of each endpoint beyond its settings: certificates, changes made at run time, and what audits say."""

import logging
import math
from collections.abc import Callable, Hashable
from typing import TypeVar

import msgspec

from backends.tuning.base import TuningStore
from models.errors import BackendError
from service.caching.online import Watch, audited, watch
from service.caching.tuned import OVERRIDE, TUNED, WATCH, Override, Tuned

log = logging.getLogger("keepgate.cache")

_T = TypeVar("_T")
_encoded = msgspec.json.encode

_MADE_ANEW = {
    TUNED: "certify again with `keepgate tune`",
    OVERRIDE: "what was changed at run time is lost, say it again",
    WATCH: "audits begin anew",
}


class Known(msgspec.Struct, frozen=True):
    """Of one endpoint."""

    override: Override = Override()
    tuned: Tuned | None = None
    watch: Watch | None = None


class Tuning:
    """Calls wait for a disk: make them in a thread."""

    def __init__(self, store: TuningStore) -> None:
        self._store = store

    def stamp(self) -> Hashable:
        """Another one when anything has changed. Raises `BackendError`."""
        return self._store.stamp()

    def known(self, endpoint: str) -> Known:
        """What cannot be read is warned of and taken for absent: a limit is then one without a certificate."""
        return Known(
            self._read(endpoint, OVERRIDE, Override) or Override(),
            self._read(endpoint, TUNED, Tuned),
            self._read(endpoint, WATCH, Watch),
        )

    def change_override(self, endpoint: str, change: Callable[[Override], Override]) -> Override:
        """What `change` makes of the override that is there, put in its place; two who change it at once lose nothing.
        Raises `BackendError`: then what was in effect stays so."""

        def changed(content: bytes | None) -> bytes | None:
            return _kept(change(Override() if content is None else _decoded(content, Override) or Override()))

        content = self._store.change(endpoint, OVERRIDE, changed)
        return Override() if content is None else _decoded(content, Override) or Override()

    def tuned(self, endpoint: str, tuned: Tuned | None) -> None:
        """Also begins a new watch. Raises `BackendError`."""
        self._store.write(endpoint, TUNED, None if tuned is None else _encoded(tuned))
        self._store.write(endpoint, WATCH, None)

    def audited(self, endpoint: str, *, cut: float, wrong: bool) -> Watch | None:
        """The watch after an audit of a hit at `cut`, which is infinite for one in shadow: for all who share the store.
        None where there is no certificate to watch. Raises `BackendError`."""
        tuned = self._read(endpoint, TUNED, Tuned)
        if tuned is None or tuned.certificate is None:
            return None
        fresh = watch(tuned.certificate, tuned.curve, misjudged=tuned.misjudged)

        def changed(content: bytes | None) -> bytes:
            now = fresh if content is None else _decoded(content, Watch) or fresh
            if now.certified != fresh.certified or now.limit != fresh.limit:
                now = fresh
            # One that was decided before the cut moved says nothing about where it is now.
            at = math.inf if now.cut is None else now.cut
            return _encoded(audited(now, wrong=wrong) if at == cut else now)

        content = self._store.change(endpoint, WATCH, changed)
        return None if content is None else _decoded(content, Watch)

    def _read(self, endpoint: str, name: str, form: type[_T]) -> _T | None:
        try:
            content = self._store.read(endpoint, name)
        except BackendError as error:
            log.warning("%s", error)
            return None
        if content is None:
            return None
        found = _decoded(content, form)
        if found is None:
            log.warning(
                "tuning/%s.%s.json in storage.path is damaged and passed over: %s", endpoint, name, _MADE_ANEW[name]
            )
        return found


def _kept(override: Override) -> bytes | None:
    """None for one that says nothing."""
    nothing = msgspec.structs.replace(override, changed_at=0.0) == Override()
    return None if nothing else _encoded(override)


def _decoded(content: bytes, form: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(content, type=form)
    except msgspec.DecodeError:
        return None
