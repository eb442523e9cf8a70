"""A virtual key, without its secret."""

import msgspec


class VirtualKey(msgspec.Struct, frozen=True, gc=False):
    """Who may ask what. Times are seconds since the epoch; None is without end.

    `endpoints` and `models` list what the key may use; None is everything.
    """

    key_id: str
    name: str
    created_at: float
    team: str | None = None
    endpoints: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
