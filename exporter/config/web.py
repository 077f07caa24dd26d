"""The web config in the exporter-toolkit's format: TLS, basic auth, response headers."""

import ssl
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path as FilePath
from typing import Annotated, Final

import msgspec

from exporter.config import units
from exporter.config.nodes import ConfigError, parse_as, read_file
from exporter.config.section import Flag, Name, Path, Section


class ClientAuth(StrEnum):
    """Whether a client must show a certificate; names as in Go's crypto/tls."""

    NONE = "NoClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE = "RequireAndVerifyClientCert"


class TlsVersion(StrEnum):
    """A version of TLS."""

    TLS12 = "TLS12"
    TLS13 = "TLS13"


def _hash(text: str) -> str:
    if not text.startswith(("$2a$", "$2b$", "$2y$")) or len(text) != _BCRYPT_LENGTH:
        raise ValueError(text)
    return text


_BCRYPT_LENGTH: Final = 60
_HEADERS: Final = (
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
)
BcryptHash = Annotated[str, units.Scalar("a bcrypt hash like $2y$10$…", _hash, secret=True)]
HeaderValue = Annotated[str, units.TEXT]


class TlsServerConfig(Section, frozen=True, kw_only=True):
    """The server's certificate, and what it asks of clients."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    client_auth_type: ClientAuth = ClientAuth.NONE
    min_version: TlsVersion = TlsVersion.TLS12
    max_version: TlsVersion | None = None


class HttpServerConfig(Section, frozen=True, kw_only=True):
    """Headers for every response; HTTP/2 is accepted and not spoken."""

    http2: Flag = True
    headers: dict[Name, HeaderValue] = msgspec.field(default_factory=dict)


class WebConfig(Section, frozen=True, kw_only=True):
    """How the exporter's own port is guarded."""

    tls_server_config: TlsServerConfig | None = None
    http_server_config: HttpServerConfig = HttpServerConfig()
    basic_auth_users: dict[Name, BcryptHash] = msgspec.field(default_factory=dict)

    def files(self) -> tuple[str, ...]:
        """Name the files that it rests on."""
        tls = self.tls_server_config
        return (
            () if tls is None else (tls.cert_file, tls.key_file, *([tls.client_ca_file] if tls.client_ca_file else []))
        )


def load_web(path: FilePath) -> WebConfig:
    """Read a web config; the names of its files are relative to its folder.

    Raises:
        ConfigError: with every problem that the file has.
    """
    return parse_as(WebConfig, read_file(path), str(path), _disagreements)


def check_tls(path: FilePath, tls: TlsServerConfig) -> bytes:
    """See whether certificates can be used, and return those of the clients' CA, empty where none is asked for.

    Raises:
        ConfigError: they cannot.
    """
    client_ca = read_file(path.parent / tls.client_ca_file) if tls.client_ca_file else b""
    for name in (tls.cert_file, tls.key_file):
        read_file(path.parent / name)  # names the file that cannot be read; ssl does not
    load_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), path, tls)
    return client_ca


def _disagreements(config: WebConfig) -> Iterator[tuple[str, str]]:
    tls = config.tls_server_config
    if tls and tls.client_auth_type is not ClientAuth.NONE and not tls.client_ca_file:
        yield (
            "tls_server_config.client_ca_file",
            f"expected a file, since client_auth_type is {tls.client_auth_type}, found nothing",
        )
    if tls and tls.max_version and tls.max_version < tls.min_version:
        yield "tls_server_config.max_version", f"expected {tls.min_version} or later, found {tls.max_version}"
    for header in config.http_server_config.headers:
        if header not in _HEADERS:
            yield f"http_server_config.headers.{header}", f"expected one of {', '.join(_HEADERS)}, found another header"


def load_tls(context: ssl.SSLContext, path: FilePath, tls: TlsServerConfig) -> None:
    """Load certificates into a context; doing it again renews them for the connections to come.

    Raises:
        ConfigError: the certificates cannot be used.
    """
    versions = {TlsVersion.TLS12: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS13: ssl.TLSVersion.TLSv1_3}
    context.minimum_version = versions[tls.min_version]
    context.maximum_version = versions[tls.max_version] if tls.max_version else ssl.TLSVersion.MAXIMUM_SUPPORTED
    try:
        # A password is never asked for: the prompt would wait at the terminal.
        context.load_cert_chain(path.parent / tls.cert_file, path.parent / tls.key_file, password=lambda: "")
    except OSError as error:
        text = "expected a certificate and its key in PEM, without a password"
        raise ConfigError([f"{path}: tls_server_config: {text}, found: {_reason(error)}"]) from error
    try:
        if tls.client_ca_file:
            context.load_verify_locations(path.parent / tls.client_ca_file)
    except OSError as error:
        text = "expected certificates in PEM"
        raise ConfigError([f"{path}: tls_server_config.client_ca_file: {text}, found: {_reason(error)}"]) from error
    modes = {
        ClientAuth.NONE: ssl.CERT_NONE,
        ClientAuth.VERIFY_IF_GIVEN: ssl.CERT_OPTIONAL,
        ClientAuth.REQUIRE: ssl.CERT_REQUIRED,
    }
    context.verify_mode = modes[tls.client_auth_type]


def _reason(error: OSError) -> str:
    reason = error.reason.replace("_", " ").lower() if isinstance(error, ssl.SSLError) and error.reason else None
    return reason or (error.strerror if not isinstance(error, ssl.SSLError) else None) or "something else"
