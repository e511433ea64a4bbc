"""Coordinator URLs that name an etcd cluster: text in, options out. Reads no file and opens nothing.

`etcd://host:port,host:port[/prefix][?cacert=FILE&cert=FILE&key=FILE&user=NAME&password=SECRET&password-file=FILE]`
"""

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from kvshard.errors import ErrorDetails, InvalidArgument

SCHEME = "etcd"
SYNTAX = "etcd://host:port,host:port[/prefix][?cacert=FILE&cert=FILE&key=FILE&user=NAME&password-file=FILE]"
DEFAULT_PREFIX = "kvshard/"

ENDPOINTS_MAX = 16
"""etcd clusters have 3 to 7 members; a longer list is a mistake, and a call may have to try all of them in its few seconds."""

_OPTIONS = ("cacert", "cert", "key", "user", "password", "password-file")


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """How to reach an etcd cluster. prefix: stands before every key, so that clusters can share an etcd.

    cacert, cert, key: files in PEM form; with cacert (or cert) the connection is encrypted. The password stays out of repr.
    """

    endpoints: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    cacert: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""

    @property
    def is_encrypted(self) -> bool:
        """The connection uses TLS."""
        return bool(self.cacert or self.cert)


def parse_etcd_url(url: str) -> EtcdOptions:
    """The options in a URL. Raises InvalidArgument, which says what is wrong; it never quotes a password."""
    parts = urlsplit(url)
    if parts.scheme != SCHEME:
        raise _wrong("not an etcd URL")
    endpoints = tuple(parts.netloc.split(","))
    if len(endpoints) > ENDPOINTS_MAX:
        raise _wrong(f"{len(endpoints)} endpoints, at most {ENDPOINTS_MAX} are possible")
    for endpoint in endpoints:
        _check_endpoint(endpoint)
    options = _read_options(parts.query)
    if bool(options.get("cert")) != bool(options.get("key")):
        raise _wrong("cert and key go together")
    if ("password" in options or "password-file" in options) != ("user" in options):
        raise _wrong("user goes together with password or password-file")
    if "password" in options and "password-file" in options:
        raise _wrong("either password or password-file")
    prefix = unquote(parts.path).strip("/")
    return EtcdOptions(
        endpoints=endpoints,
        prefix=f"{prefix}/" if prefix else DEFAULT_PREFIX,
        cacert=options.get("cacert", ""),
        cert=options.get("cert", ""),
        key=options.get("key", ""),
        user=options.get("user", ""),
        password=options.get("password", ""),
        password_file=options.get("password-file", ""),
    )


def _read_options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise _wrong(f"unknown option {name!r}")
        if name in options or not value:
            raise _wrong(f"option {name} must be given once and not be empty")
        options[name] = value
    return options


def _check_endpoint(endpoint: str) -> None:
    host, separator, port = endpoint.rpartition(":")
    if "@" in endpoint:
        raise _wrong("a user goes into ?user=, not before an @")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise _wrong(f"endpoint {endpoint!r} is not host:port")


def _wrong(why: str) -> InvalidArgument:
    return InvalidArgument(f"coordinator: {why}; the form is {SYNTAX}", ErrorDetails(field="coordinator"))
