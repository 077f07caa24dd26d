"""The web config: what guards the exporter's own port, and TLS contexts from real certificates."""

import datetime
import ssl
from pathlib import Path

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exporter.config.nodes import ConfigError
from exporter.config.web import ClientAuth, HttpServerConfig, TlsVersion, WebConfig, check_tls, load_tls, load_web

HASH = bcrypt.hashpw(b"hunter2", bcrypt.gensalt(4)).decode()
TLS = "tls_server_config: {cert_file: tls.crt, key_file: tls.key"
TLS_KEYS = "cert_file, key_file, client_ca_file, client_auth_type, min_version, max_version"
PAIR = "tls_server_config: expected a certificate and its key in PEM, without a password, found"


def certificate(folder: Path, name: str, *, issuer: str | None = None, password: bytes | None = None) -> None:
    """Write NAME.crt and NAME.key; signed by the files of `issuer`, else by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signing_key = subject, key
    if issuer:
        signer = x509.load_pem_x509_certificate((folder / f"{issuer}.crt").read_bytes()).subject
        loaded = serialization.load_pem_private_key((folder / f"{issuer}.key").read_bytes(), password=None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signing_key = loaded
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(signing_key, hashes.SHA256())
    )
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    )


def web(folder: Path, content: str) -> tuple[WebConfig, ssl.SSLContext | None]:
    file = folder / "web.yml"
    file.write_text(content, encoding="utf-8")
    config = load_web(file)
    if config.tls_server_config is None:
        return config, None
    check_tls(file, config.tls_server_config)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_tls(context, file, config.tls_server_config)
    return config, context


def problems(folder: Path, content: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        web(folder, content)
    return [line.replace(f"{folder}/", "") for line in caught.value.lines]


def tls_of(folder: Path, content: str) -> ssl.SSLContext:
    _, context = web(folder, content)
    assert context is not None
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """Let a client meet the server in memory; return the version they agree on."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
    )
    for _ in range(10):
        waiting = 0
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            break
    return ends[0].version()


def client_of(folder: Path, ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / f"{ca}.crt"))


def test_an_empty_web_config_guards_nothing_as_in_the_exporter_toolkit(tmp_path: Path) -> None:
    assert web(tmp_path, "# nothing yet\n") == (WebConfig(), None)


def test_users_have_their_hashes(tmp_path: Path) -> None:
    config, context = web(tmp_path, f"basic_auth_users:\n  prometheus: {HASH}\n  ops: '{HASH}'\n")
    assert config.basic_auth_users == {"prometheus": HASH, "ops": HASH}
    assert (context, config.files()) == (None, ())


@pytest.mark.parametrize("content", ["{}", "basic_auth_users:\n", "http_server_config: {http2: true}\n"])
def test_a_web_config_may_guard_nothing(tmp_path: Path, content: str) -> None:
    assert web(tmp_path, content) == (WebConfig(), None)


def test_headers_are_taken_as_they_are(tmp_path: Path) -> None:
    config, _ = web(tmp_path, "http_server_config:\n  http2: false\n  headers: {X-Frame-Options: deny}\n")
    assert config.http_server_config == HttpServerConfig(http2=False, headers={"X-Frame-Options": "deny"})


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param(
            "basic_auth_user: {}\n",
            ["web.yml:1: basic_auth_user: expected a known key (did you mean basic_auth_users?), found an unknown one"],
            id="an unknown key",
        ),
        pytest.param(
            f"{TLS}, cipher_suites: [a]}}\n",
            [
                "web.yml:1: tls_server_config.cipher_suites: expected a known key (known keys: "
                f"{TLS_KEYS}), found an unknown one"
            ],
            id="a key of the toolkit that is not supported",
        ),
        pytest.param(
            "basic_auth_users: {me: hunter2}\n",
            ["web.yml:1: basic_auth_users.me: expected a bcrypt hash like $2y$10$…, found something else"],
            id="a password instead of its hash",
        ),
        pytest.param(
            f"basic_auth_users: {{me: {HASH[:-1]}}}\n",
            ["web.yml:1: basic_auth_users.me: expected a bcrypt hash like $2y$10$…, found something else"],
            id="a hash that was cut",
        ),
        pytest.param(
            f"basic_auth_users: {HASH}\n",
            [
                "web.yml:1: basic_auth_users: expected a mapping of names, each to a bcrypt hash like $2y$10$…, "
                "found a single value"
            ],
            id="a hash without a user",
        ),
        pytest.param(
            f"basic_auth_users: [{HASH}]\n",
            [
                "web.yml:1: basic_auth_users: expected a mapping of names, each to a bcrypt hash like $2y$10$…, "
                "found a list"
            ],
            id="a list of hashes",
        ),
        pytest.param(
            f"basic_auth_users:\n  me: {HASH}\n  me: {HASH}\n",
            ["web.yml:3: basic_auth_users.me: expected each key once, found it again"],
            id="a user who stands twice",
        ),
        pytest.param(
            "tls_server_config: {cert_file: tls.crt}\n",
            ["web.yml:1: tls_server_config.key_file: expected the path of a file, found nothing"],
            id="a certificate without its key",
        ),
        pytest.param(
            f"{TLS}, min_version: TLS10}}\n",
            ["web.yml:1: tls_server_config.min_version: expected one of TLS12, TLS13, found 'TLS10'"],
            id="a version that is not safe",
        ),
        pytest.param(
            f"{TLS}, min_version: TLS13, max_version: TLS12}}\n",
            ["web.yml:1: tls_server_config.max_version: expected TLS13 or later, found TLS12"],
            id="no version between the least and the last",
        ),
        pytest.param(
            f"{TLS}, client_auth_type: RequireAndVerifyClientCert}}\n",
            [
                "web.yml:1: tls_server_config.client_ca_file: expected a file, since client_auth_type is "
                "RequireAndVerifyClientCert, found nothing"
            ],
            id="clients to be verified by nobody",
        ),
        pytest.param(
            f"{TLS}, client_auth_type: RequestClientCert}}\n",
            [
                "web.yml:1: tls_server_config.client_auth_type: expected one of NoClientCert, "
                "VerifyClientCertIfGiven, RequireAndVerifyClientCert, found 'RequestClientCert'"
            ],
            id="clients asked and not verified",
        ),
        pytest.param(
            "http_server_config: {headers: {Server: me}}\n",
            [
                "web.yml:1: http_server_config.headers.Server: expected one of Content-Security-Policy, "
                "Strict-Transport-Security, X-Content-Type-Options, X-Frame-Options, X-XSS-Protection, "
                "found another header"
            ],
            id="a header that is not the operator's",
        ),
        pytest.param(
            'http_server_config: {headers: {X-Frame-Options: "a\\r\\nb: c"}}\n',
            [
                "web.yml:1: http_server_config.headers.X-Frame-Options: expected one line of text, "
                r"found 'a\r\nb: c'"
            ],
            id="a header that smuggles another",
        ),
    ],
)
def test_a_bad_web_config_is_refused_with_its_problem(tmp_path: Path, content: str, lines: list[str]) -> None:
    found = problems(tmp_path, content)
    assert found == lines
    assert HASH[7:-1] not in "".join(found)
    assert "hunter2" not in "".join(found)


def test_files_are_found_beside_the_web_config(tmp_path: Path) -> None:
    certificate(tmp_path, "tls")
    config, context = web(tmp_path, f"{TLS}, client_ca_file: tls.crt}}\n")
    assert config.files() == ("tls.crt", "tls.key", "tls.crt")
    assert context is not None
    assert shake_hands(context, client_of(tmp_path, "tls")) == "TLSv1.3"


def test_files_may_be_named_by_a_whole_path(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    certificate(elsewhere, "tls")
    context = tls_of(
        tmp_path, f"tls_server_config: {{cert_file: {elsewhere}/tls.crt, key_file: {elsewhere}/tls.key}}\n"
    )
    assert shake_hands(context, client_of(elsewhere, "tls")) == "TLSv1.3"


@pytest.mark.parametrize(
    ("keys", "least", "last"),
    [
        ("", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.MAXIMUM_SUPPORTED),
        (", min_version: TLS13", ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.MAXIMUM_SUPPORTED),
        (", max_version: TLS12", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
    ],
)
def test_versions_of_tls_are_bounded(tmp_path: Path, keys: str, least: ssl.TLSVersion, last: ssl.TLSVersion) -> None:
    certificate(tmp_path, "tls")
    context = tls_of(tmp_path, f"{TLS}{keys}}}\n")
    assert (context.minimum_version, context.maximum_version) == (least, last)


def test_a_client_that_is_too_old_is_turned_away(tmp_path: Path) -> None:
    certificate(tmp_path, "tls")
    client = client_of(tmp_path, "tls")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake_hands(tls_of(tmp_path, f"{TLS}}}\n"), client) == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        shake_hands(tls_of(tmp_path, f"{TLS}, min_version: TLS13}}\n"), client)


def client_that_shows(folder: Path, name: str | None) -> ssl.SSLContext:
    client = client_of(folder, "tls")
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # where a refusal comes within the handshake
    if name:
        client.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return client


@pytest.mark.parametrize(
    ("auth", "shown", "welcome"),
    [
        (ClientAuth.NONE, None, True),
        (ClientAuth.NONE, "stranger", True),
        (ClientAuth.VERIFY_IF_GIVEN, None, True),
        (ClientAuth.VERIFY_IF_GIVEN, "friend", True),
        (ClientAuth.VERIFY_IF_GIVEN, "stranger", False),
        (ClientAuth.REQUIRE, None, False),
        (ClientAuth.REQUIRE, "friend", True),
        (ClientAuth.REQUIRE, "stranger", False),
    ],
)
def test_clients_show_what_they_are_asked_for(
    tmp_path: Path, auth: ClientAuth, shown: str | None, welcome: bool
) -> None:
    for name, issuer in (("tls", None), ("ca", None), ("friend", "ca"), ("stranger", None)):
        certificate(tmp_path, name, issuer=issuer)
    server = tls_of(tmp_path, f"{TLS}, client_ca_file: ca.crt, client_auth_type: {auth}}}\n")
    if welcome:
        assert shake_hands(server, client_that_shows(tmp_path, shown)) == "TLSv1.2"
    else:
        with pytest.raises(ssl.SSLError):
            shake_hands(server, client_that_shows(tmp_path, shown))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    certificate(tmp_path, "tls")
    (tmp_path / "tls.key").unlink()
    assert problems(tmp_path, f"{TLS}}}\n") == ["tls.key: expected a readable file, found: No such file or directory"]
    assert problems(tmp_path, "tls_server_config: {cert_file: tls.crt, key_file: tls.crt, client_ca_file: ca}\n") == [
        "ca: expected a readable file, found: No such file or directory"
    ]


def test_the_web_config_itself_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_web(tmp_path / "web.yml")
    assert caught.value.lines == [f"{tmp_path}/web.yml: expected a readable file, found: No such file or directory"]


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    certificate(tmp_path, "tls")
    certificate(tmp_path, "other")
    (tmp_path / "other.key").rename(tmp_path / "tls.key")
    assert problems(tmp_path, f"{TLS}}}\n") == [f"web.yml: {PAIR}: key values mismatch"]


def test_a_key_with_a_password_is_refused_and_never_asked_for(tmp_path: Path) -> None:
    certificate(tmp_path, "tls", password=b"hunter2")
    assert problems(tmp_path, f"{TLS}}}\n") == [f"web.yml: {PAIR}: something else"]


def test_a_certificate_that_is_no_pem_is_refused(tmp_path: Path) -> None:
    certificate(tmp_path, "tls")
    (tmp_path / "tls.crt").write_text("hello\n", encoding="utf-8")
    assert problems(tmp_path, f"{TLS}}}\n") == [f"web.yml: {PAIR}: something else"]


def test_client_certificates_that_are_no_pem_are_refused(tmp_path: Path) -> None:
    certificate(tmp_path, "tls")
    assert problems(tmp_path, f"{TLS}, client_ca_file: tls.key}}\n") == [
        "web.yml: tls_server_config.client_ca_file: expected certificates in PEM, found: no certificate or crl found"
    ]


def test_the_words_of_the_toolkit_are_kept() -> None:
    assert [str(choice) for choice in ClientAuth] == [
        "NoClientCert",
        "VerifyClientCertIfGiven",
        "RequireAndVerifyClientCert",
    ]
    assert [str(version) for version in TlsVersion] == ["TLS12", "TLS13"]
