"""Who pays for a call, settled before it is made."""

import msgspec

from service.context import Context


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """The leader's account: followers of its flight and later hits cost nobody anything."""

    account: str


def reserve(context: Context) -> Reservation:
    """Names the account. No budget can be configured yet, so nothing is set aside and nobody is refused."""
    return Reservation(account=context.caller.partition)
