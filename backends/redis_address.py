"""Where Redis is, as settings say it: apart from the client, which is imported where Redis is used."""

from urllib.parse import urlsplit

import msgspec


class RedisAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where Redis is and how to be let in.

    `url` is `redis://`, `rediss://` (TLS) or `unix://`, with user, password and
    database. Behind sentinels, its host is not used: they name the one that is
    `sentinel_master` now. In a cluster it is a node that tells of the others.
    """

    url: str = "redis://127.0.0.1:6379/0"
    sentinel_hosts: tuple[str, ...] = ()  # host:port
    sentinel_master: str = ""
    sentinel_user: str = ""
    sentinel_password: str = ""
    cluster: bool = False
    ca_file: str = ""  # who signed the server's certificate, where the system does not know them
    cert_file: str = ""  # what the server knows us by
    key_file: str = ""
    connections: int = 32  # at most, a process and a server
    prefix: str = "keepgate"

    def __repr__(self) -> str:
        return f"RedisAddress({place(self)!r}, prefix={self.prefix!r})"  # without passwords


def place(address: RedisAddress) -> str:
    """Where it is, in words that hold no password."""
    if address.sentinel_hosts:
        return f"{address.sentinel_master} behind {', '.join(address.sentinel_hosts)}"
    url = urlsplit(address.url)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
