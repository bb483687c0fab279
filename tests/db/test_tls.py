"""Whether connections are encrypted: what is asked for where nobody says anything, and what a server sees of it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.bench.place import place
from crafely.cli.target import Target
from crafely.config import Settings
from crafely.db import embedded, migrate
from crafely.db.session import Database, DatabaseUnavailableError, connect
from crafely.db.tls import secured

# The wheel's programs are built without OpenSSL.
DEBIAN = Path("/usr/lib/postgresql/15/bin")
NAME = "db.example.com"


def mode(url: str) -> str | None:
    return conninfo_to_dict(secured(url)).get("sslmode")  # type: ignore[return-value]  # libpq gives texts


@pytest.fixture(autouse=True)
def said_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Where libpq looks for services and certificates of the user's.
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


LOCAL = [
    "",
    "postgresql:///crafely",
    "postgresql://u:p@localhost/crafely",
    "postgresql://u@LocalHost:5433/crafely",
    "postgresql://u@127.0.0.1/crafely",
    "postgresql://u@127.83.1.2/crafely",
    "postgresql://u@[::1]/crafely",
    "postgresql://u@%2Fvar%2Frun%2Fpostgresql/crafely",
    "host=@abstract",
    "host=/tmp,localhost,::1",
    "host=localhost hostaddr=127.0.0.1",
]
REMOTE = [
    "postgresql://u:p@db.example.com/crafely",
    "postgresql://u@10.0.0.7:5433/crafely",
    "postgresql://u@[2001:db8::1]/crafely",
    "postgresql://u@localhost.example.com/crafely",
    "postgresql://u@localhost,db.example.com/crafely",
    "host=/tmp,10.0.0.7",
    "hostaddr=10.0.0.7",
    # Whatever the name says, the address is where it goes; and whatever the address, the name is whom it means.
    "host=localhost hostaddr=10.0.0.7",
    "host=db.example.com hostaddr=127.0.0.1",
    "host=0.0.0.0",
    "postgresql://u@db.example.com/crafely?sslrootcert=/etc/ssl/ca.pem",
]


@pytest.mark.parametrize("url", LOCAL)
def test_on_this_machine_nothing_is_asked_for(url: str) -> None:
    assert secured(url) == url


@pytest.mark.parametrize("url", REMOTE)
def test_from_any_other_machine_encryption_is(url: str) -> None:
    assert mode(url) == "require"
    # Nothing else changes, and once is enough.
    assert {k: v for k, v in conninfo_to_dict(secured(url)).items() if k != "sslmode"} == {
        k: v for k, v in conninfo_to_dict(url).items() if k != "sslmode"
    }
    assert secured(secured(url)) == secured(url)


@pytest.mark.parametrize("said", ["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_what_somebody_says_stays(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mode(f"postgresql://db.example.com/crafely?sslmode={said}") == said
    if said:
        monkeypatch.setenv("PGSSLMODE", said)
        assert mode("postgresql://db.example.com/crafely") is None


def test_the_systems_certificates_mean_more_than_require() -> None:
    assert mode("postgresql://db.example.com/crafely?sslrootcert=system") is None


def test_the_environment_may_name_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.com")
    assert mode("dbname=crafely") == "require"
    assert mode("host=localhost") is None
    # The socket, as libpq reads it.
    assert mode("host=''") is None
    monkeypatch.setenv("PGHOSTADDR", "10.0.0.7")
    assert mode("host=localhost") == "require"


def test_so_may_the_file_of_a_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services = tmp_path / "services"
    services.write_text(
        "[far]\nhost=db.example.com\n[safe]\nhost=db.example.com\nsslmode=verify-full\n[near]\nport=1\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    modes = {name: mode(f"service={name}") for name in ("far", "safe", "near", "far")}
    assert modes == {"far": "require", "safe": None, "near": None}
    assert "PGSERVICE" not in os.environ
    monkeypatch.setenv("PGSERVICE", "safe")
    assert mode("dbname=crafely") is None
    assert mode("service=far") == "require"
    assert os.environ["PGSERVICE"] == "safe"


def test_what_libpq_does_not_understand_is_refused_as_ever() -> None:
    with pytest.raises(DatabaseUnavailableError, match="not one that libpq understands") as refused:
        Database("postgresql://u:hidden@[bad/x", size=1, pool_timeout=1, statement_timeout=1)
    assert "hidden" not in str(refused.value)


def test_the_line_to_paste_asks_for_it_too() -> None:
    assert "sslmode=require" in Target("postgresql://u:hidden@db.example.com/crafely", embedded=False).pasteable


class Certificates:
    """A certificate authority and what it has signed, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority")
        self._write("ca", self._key, self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0)))

    def make(self, name: str) -> None:
        """Makes name.pem and name.key, for this host or user."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.SubjectAlternativeName([x509.DNSName(name)])
        self._write(name, key, self._sign(_name(name), key, alternative))

    def _sign(self, who: x509.Name, key: ec.EllipticCurvePrivateKey, said: x509.ExtensionType) -> x509.Certificate:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(who if who == self._name else self._name, who, key.public_key())
        made = made.serial_number(x509.random_serial_number()).add_extension(said, critical=False)
        made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return made.sign(self._key, hashes.SHA256())

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
        file = self.folder / f"{name}.key"
        file.touch(mode=0o600)
        file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    for name in (NAME, "certified"):
        made.make(name)
    return made


class Remote:
    """A server that is reached by TCP, under a name: a test turns its TLS on and off."""

    def __init__(self, administrator: psycopg.Connection, address: str) -> None:
        self.administrator = administrator
        self._address = address

    def url(self, name: str = NAME, user: str = "remote", **parts: str) -> str:
        found = {"host": name, "hostaddr": self._address, "port": "5432", "user": user, "dbname": "crafely"}
        return make_conninfo(**{**found, **parts})

    @contextmanager
    def encrypting(self) -> Iterator[None]:
        self._turn("on")
        try:
            yield
        finally:
            self._turn("off")

    def _turn(self, ssl: str) -> None:
        self.administrator.execute(f"alter system set ssl = {ssl}".encode())
        self.administrator.execute("select pg_reload_conf()")
        end = time.monotonic() + 30
        while self._encrypts() != (ssl == "on"):
            assert time.monotonic() < end, "the server does not read its settings"
            time.sleep(0.02)

    def _encrypts(self) -> bool:
        try:
            psycopg.connect(self.url(sslmode="require")).close()
        except psycopg.OperationalError:
            return False
        return True

    def sessions(self) -> dict[str, bool]:
        """Whether each session that came by TCP is encrypted, by its application's name."""
        query = (
            "select application_name, bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid)"
            " where client_addr is not null group by 1"
        )
        return dict(self.administrator.execute(query.encode()).fetchall())


@pytest.fixture(scope="module")
def remote(certificates: Certificates) -> Iterator[Remote]:
    if not (DEBIAN / "postgres").is_file():
        pytest.skip("no PostgreSQL here that was built with OpenSSL")
    # The port is always the same one: an address of the loopback network that nobody else has is as good.
    address = f"127.83.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
    with ExitStack() as stack:
        # Not pytest's own, which is closed again to all but root whenever another run begins.
        folder = tempfile.TemporaryDirectory(prefix="crafely-test-", ignore_cleanup_errors=True)
        home = Path(stack.enter_context(folder))
        hba = home / "hba"
        hba.write_text("local all all trust\nhostssl all certified all cert\nhost all all all trust\n")
        hba.chmod(0o644)
        options = {"fsync": "off", "shared_buffers": "16MB", "listen_addresses": address, "hba_file": str(hba)}
        server = stack.enter_context(embedded.running(home, postgres_bin=DEBIAN, options=options))
        administrator = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        pgdata = Path(str(administrator.execute("show data_directory").fetchone()[0]))  # type: ignore[index]
        for name, source in {
            "server.crt": f"{NAME}.pem",
            "server.key": f"{NAME}.key",
            "root.crt": "ca.pem",
        }.items():
            (pgdata / name).touch(mode=0o600)
            (pgdata / name).write_bytes((certificates.folder / source).read_bytes())
            os.chown(pgdata / name, pgdata.stat().st_uid, pgdata.stat().st_gid)
        administrator.execute("alter system set ssl_ca_file = 'root.crt'")
        administrator.execute("create role remote superuser login; create role certified login")
        migrate.up(server.url)
        yield Remote(administrator, address)


async def test_every_connection_of_the_program_is_encrypted(remote: Remote) -> None:
    with remote.encrypting():
        database = Database(remote.url(), size=2, pool_timeout=5, statement_timeout=5)
        await database.open()
        channel = database.channel("crafely_auth")
        listener = await database.connect("crafely_monitor")
        try:
            with connect(remote.url(), application_name="tool"), migrate.reading(remote.url()):
                seen = {name: encrypted for name, encrypted in remote.sessions().items() if name}
            # Another one is for yoyo.
            assert migrate.up(remote.url()) == []
            with place(Settings(), remote.url()) as found:
                assert conninfo_to_dict(found.url)["sslmode"] == "require"
        finally:
            await listener.close()
            await channel.close()
            await database.close()
    names = {"crafely app", "crafely auth", "crafely meter", "crafely admin", "crafely monitor", "tool"}
    assert seen == dict.fromkeys({*names, "crafely migrate"}, True)


async def test_a_remote_server_without_tls_is_refused_before_anything_is_said(remote: Remote) -> None:
    reason = "server does not support SSL, but SSL was required"
    database = Database(remote.url(password="hidden"), size=1, pool_timeout=1, statement_timeout=1)
    with pytest.raises(DatabaseUnavailableError, match=reason) as refused:
        await database.open()
    assert "\n" not in str(refused.value)
    assert "hidden" not in str(refused.value)
    with pytest.raises(DatabaseUnavailableError, match=reason), connect(remote.url()):
        pass
    with pytest.raises(migrate.MigrationError, match=reason), migrate.reading(remote.url()):
        pass
    with pytest.raises(migrate.MigrationError, match=reason):
        migrate.up(remote.url())
    with pytest.raises(DatabaseUnavailableError, match=reason), place(Settings(), remote.url()):
        pass
    # Who knows his network says so.
    with connect(remote.url(sslmode="disable"), application_name="in the clear"):
        assert remote.sessions()["in the clear"] is False


def run(command: str, url: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "CRAFELY_DATABASE_URL": url, **environ}
    program = [sys.executable, "-m", "crafely", *command.split()]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=60, env=environ)


def test_the_servers_name_is_held_against_its_certificate(remote: Remote, certificates: Certificates) -> None:
    ca = str(certificates.folder / "ca.pem")
    with remote.encrypting():
        with connect(remote.url(sslmode="verify-full", sslrootcert=ca), application_name="verified"):
            assert remote.sessions()["verified"] is True
        wrong = remote.url("other.example.com", sslmode="verify-full", sslrootcert=ca, password="hidden")
        said = f'server certificate for "{NAME}" does not match host name "other.example.com"'
        with pytest.raises(DatabaseUnavailableError, match=said), connect(wrong):
            pass
        done = run("keys list --user x", wrong)
        # The same, of the environment, through the whole program.
        other = run("migrate status", remote.url("other.example.com"), PGSSLMODE="verify-full", PGSSLROOTCERT=ca)
        right = run("migrate status --history", remote.url(), PGSSLMODE="verify-full", PGSSLROOTCERT=ca)
    for refused in (done, other):
        assert refused.returncode == 1
        assert said in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
        assert "hidden" not in refused.stderr + refused.stdout
    assert right.returncode == 0, right.stderr


def test_a_stranger_to_the_authority_is_refused(remote: Remote, tmp_path: Path) -> None:
    Certificates(tmp_path)
    with remote.encrypting():
        url = remote.url(sslmode="verify-ca", sslrootcert=str(tmp_path / "ca.pem"))
        with pytest.raises(DatabaseUnavailableError, match="SSL error"), connect(url):
            pass


def test_the_client_may_have_a_certificate_of_its_own(remote: Remote, certificates: Certificates) -> None:
    mine: dict[str, Any] = {
        "sslcert": str(certificates.folder / "certified.pem"),
        "sslkey": str(certificates.folder / "certified.key"),
    }
    with remote.encrypting():
        with connect(remote.url(user="certified", **mine)) as connection:
            assert connection.info.user == "certified"
        with pytest.raises(DatabaseUnavailableError, match="requires a valid client certificate"):
            connect(remote.url(user="certified")).__enter__()
