"""The registry check against Debian's docker-registry with TLS on loopback, and against servers that are none."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import registry_server as servers
from conftest import apply, examine, findings
from fakes import FakeHost, debian
from registry_server import Authority, Pair, Talk, fingerprint, registry, says, serving

from hostprep.checks import registry as check
from hostprep.errors import HostError
from hostprep.host import remote
from hostprep.host.remote import Got, Trust
from hostprep.journal import Journal
from hostprep.perform import Performer
from hostprep.registry import load
from hostprep.revert import revert

NAMES = "DNS:localhost,IP:127.0.0.1"
JSON = "Content-Type: application/json\r\n"


class OnLoopback(FakeHost):
    """Files of a test, and this machine's network."""

    def http_get(self, url: str, trust: Trust | None, proxy: str, seconds: float, limit: int) -> Got:
        return remote.get(url, trust, proxy, min(seconds, self.patience), limit)

    patience = 8.0


@pytest.fixture
def host(tmp_path: Path) -> OnLoopback:
    return OnLoopback(tmp_path / "root", debian(), {"docker": HostError("docker: not installed")})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def port(site: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with registry(tmp_path_factory.mktemp("registry"), site.issue("registry", NAMES)) as port:
        yield port


def trusting(host: FakeHost, name: str, authority: Authority, engine: str = "docker") -> None:
    folder = {"docker": "/etc/docker/certs.d", "podman": "/etc/containers/certs.d"}[engine]
    host.put(f"{folder}/{name}/ca.crt", authority.pair.pem)


def statuses(host: FakeHost, *entries: Any) -> dict[str, str]:
    return {name.removeprefix("registry/"): f.status.value for name, f in findings(host, {"registry": entries}).items()}


def said(host: FakeHost, entry: Any, what: str) -> str:
    """The message of the finding whose key ends so."""
    found = findings(host, {"registry": [entry]})
    return next(f.message for name, f in found.items() if name.endswith(what))


# -- a real registry ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_j4_a_registry_with_the_sites_authority_where_the_engine_looks(
    host: OnLoopback, site: Authority, port: int, name: str, engine: str
) -> None:
    where = f"{name}:{port}"
    trusting(host, where, site, engine)
    found = statuses(host, {"host": where, "engine": engine, "expires": "14d"})
    assert found == {f"{engine}/{where}/{key}": "pass" for key in ("answers", "verified", "certificate", "days", "api")}


def test_j4_without_the_authority_it_is_not_trusted_and_says_whose_it_is(host: OnLoopback, port: int) -> None:
    where = f"localhost:{port}"
    found = statuses(host, where)
    assert found[f"docker/{where}/certificate"] == "fail"
    assert found[f"docker/{where}/api"] == "pass", "it is a registry all the same"
    assert said(host, where, "/certificate") == (
        f"{where}: its certificate is signed by an authority that is not trusted (issued by Site CA)."
    )


def test_an_authority_of_the_system_is_trusted_too(host: OnLoopback, site: Authority, port: int) -> None:
    host.put("/etc/ssl/certs/ca-certificates.crt", f"# comment\n{site.pair.pem}")
    assert set(statuses(host, f"localhost:{port}").values()) == {"pass"}


def test_another_authority_of_the_same_name_is_not_believed(host: OnLoopback, port: int, tmp_path: Path) -> None:
    trusting(host, f"localhost:{port}", Authority(tmp_path))
    assert statuses(host, f"localhost:{port}")[f"docker/localhost:{port}/certificate"] == "fail"


def test_an_authority_in_der_is_passed_over_as_go_does(host: OnLoopback, site: Authority, port: int) -> None:
    der = site.folder / "ca.der"
    servers.openssl("x509", "-in", site.pair.certificate, "-outform", "der", "-out", der, cwd=site.folder)
    folder = Path(f"{host.root}/etc/docker/certs.d/localhost:{port}")
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(der.read_bytes())
    assert statuses(host, f"localhost:{port}")[f"docker/localhost:{port}/certificate"] == "fail"


def test_401_with_a_login_to_be_made_is_a_good_answer(host: OnLoopback, site: Authority, tmp_path: Path) -> None:
    with registry(tmp_path, site.issue("registry", NAMES), login=True) as port:
        trusting(host, f"localhost:{port}", site)
        assert set(statuses(host, f"localhost:{port}").values()) == {"pass"}


def test_a_registry_that_wants_a_client_certificate(host: OnLoopback, site: Authority, tmp_path: Path) -> None:
    client = site.issue("node01", "")
    with registry(tmp_path, site.issue("registry", NAMES), clients=site.pair.certificate) as port:
        where = f"localhost:{port}"
        trusting(host, where, site)
        assert "asks for a client certificate" in said(host, where, "/api")
        host.put(f"/etc/docker/certs.d/{where}/client.cert", client.pem)
        assert "has no client.key" in said(host, where, "/certificate")
        host.put(f"/etc/docker/certs.d/{where}/client.key", client.key.read_text())
        assert set(statuses(host, where).values()) == {"pass"}
        host.put(f"/etc/docker/certs.d/{where}/client.cert", site.self_signed("node01", "").pem)
        assert "are no certificate and its key" in said(host, where, "/certificate")


def test_a_chain_with_an_authority_between(host: OnLoopback, site: Authority, tmp_path: Path) -> None:
    between = Authority(tmp_path, "Between CA", days=100, above=site)
    leaf = between.issue("registry", NAMES, days=300)
    both = Pair(tmp_path / "both.crt", leaf.key)
    both.certificate.write_text(leaf.pem + between.pair.pem)
    with registry(tmp_path, both) as port:
        where = f"localhost:{port}"
        trusting(host, where, site)
        assert set(statuses(host, {"host": where, "expires": "90d"}).values()) == {"pass"}
        message = said(host, {"host": where, "expires": "200d"}, "/days")
        assert "that of its authority on" in message
        assert "Between CA: 99 days are left" in message


# -- bad certificates -----------------------------------------------------------------------------

BAD: dict[str, tuple[str, float, float, str]] = {
    "expired": (NAMES, -0.5, -30, "its certificate has expired (valid "),
    "not yet valid": (NAMES, 30, 0.5, "its certificate is not valid yet (valid "),
    "another name": (
        "DNS:harbor.example.com",
        365,
        -1,
        "its certificate is not for localhost, but for: harbor.example",
    ),
    "an address alone": ("IP:127.0.0.1", 365, -1, "its certificate is not for localhost, but for: 127.0.0.1"),
    "a CN alone": ("", 365, -1, "its certificate is not for localhost, but for: none: a CN does not count"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_certificate_that_docker_refuses(host: OnLoopback, site: Authority, kind: str) -> None:
    names, days, begins, message = BAD[kind]
    with serving(says(f"200 OK\r\n{JSON}", b"{}"), site.issue("localhost", names, days, begins)) as port:
        where = f"localhost:{port}"
        trusting(host, where, site)
        assert f"{where}: {message}" in said(host, where, "/certificate")
        assert statuses(host, where)[f"docker/{where}/certificate"] == "fail"


def test_an_address_needs_a_certificate_for_the_address(host: OnLoopback, site: Authority) -> None:
    """Go refuses to take the address from a DNS name: x509: cannot validate certificate for 127.0.0.1."""
    with serving(says(f"200 OK\r\n{JSON}", b"{}"), site.issue("127.0.0.1", "DNS:127.0.0.1")) as port:
        trusting(host, f"127.0.0.1:{port}", site)
        assert "is not for 127.0.0.1" in said(host, f"127.0.0.1:{port}", "/certificate")
        found = findings(host, {"registry": [f"127.0.0.1:{port}"]})
        assert "subjectAltName IP:127.0.0.1" in found[f"registry/docker/127.0.0.1:{port}/certificate"].fix


def test_a_self_signed_certificate_is_trusted_only_where_it_is_itself_in_place(
    host: OnLoopback, site: Authority
) -> None:
    own = site.self_signed("localhost", NAMES)
    with serving(says(f"200 OK\r\n{JSON}", b"{}"), own) as port:
        where = f"localhost:{port}"
        assert "is self-signed, and not trusted" in said(host, where, "/certificate")
        host.put(f"/etc/docker/certs.d/{where}/ca.crt", own.pem)
        assert statuses(host, where)[f"docker/{where}/certificate"] == "pass"


def test_it_is_about_to_expire(host: OnLoopback, site: Authority) -> None:
    with serving(says(f"200 OK\r\n{JSON}", b"{}"), site.issue("localhost", NAMES, days=10)) as port:
        where = f"localhost:{port}"
        trusting(host, where, site)
        found = statuses(host, {"host": where, "expires": "14d"})
        assert (found[f"docker/{where}/certificate"], found[f"docker/{where}/days"]) == ("pass", "fail")
        assert "9 days are left, and 14d are wanted" in said(host, {"host": where, "expires": "14d"}, "/days")


# -- bad servers ----------------------------------------------------------------------------------

SERVERS: dict[str, tuple[Talk, bool, str, str]] = {  # how it talks, by TLS?, which finding fails, and says
    "plain HTTP": (says(f"200 OK\r\n{JSON}", b"{}"), False, "certificate", "speaks no TLS (plain HTTP?)"),
    "closes at once": (servers.closes, False, "certificate", "closes the connection in place of TLS"),
    "garbage for TLS": (servers.garbage, False, "certificate", "speaks no TLS"),
    "no handshake": (servers.silent, False, "certificate", "makes no TLS connection within 2 s"),
    "drips for TLS": (servers.drips(b""), False, "certificate", "TLS"),
    "closes after TLS": (servers.closes, True, "api", "it closes the connection without an answer"),
    "garbage in TLS": (servers.garbage, True, "api", "it answers no HTTP"),
    "no answer": (servers.silent, True, "api", "it does not finish an answer within 2 s"),
    "slow loris": (servers.drips(), True, "api", "it does not finish an answer within 2 s"),
    "slow body": (servers.drips(b"HTTP/1.1 200 OK\r\n\r\n"), True, "api", "it does not finish an answer within 2 s"),
    "an answer without end": (servers.floods, True, "api", "it answers 200 OK, but not as a registry does"),
    "a proxy's page": (says("200 OK\r\nContent-Type: text/html", b"<html>Log in"), True, "api", "(text/html)"),
    "a page to log in": (says("401 Unauthorized\r\nWWW-Authenticate: Basic"), True, "api", "answers 401 Unauthorized"),
    "elsewhere": (
        says("302 Found\r\nLocation: https://login.example/"),
        True,
        "api",
        "redirects to https://login.exam",
    ),
    "fails": (says("502 Bad Gateway"), True, "api", "it answers 502 Bad Gateway."),
    "not there": (says("404 Not Found"), True, "api", "it answers 404 Not Found."),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_what_is_no_registry_fails_in_time_and_says_why(host: OnLoopback, site: Authority, kind: str) -> None:
    host.patience = 2.0
    talk, tls, which, message = SERVERS[kind]
    with serving(talk, site.issue("localhost", NAMES) if tls else None) as port:
        where = f"localhost:{port}"
        trusting(host, where, site)
        started = time.monotonic()
        found = findings(host, {"registry": [where]})
        assert time.monotonic() - started < 7
        assert found[f"registry/docker/{where}/{which}"].status.value == "fail"
        assert message in found[f"registry/docker/{where}/{which}"].message
        assert "unknown" not in {f.status.value for f in found.values()}


def test_a_registry_that_is_down_fails_and_the_others_are_judged(host: OnLoopback, site: Authority, port: int) -> None:
    down = servers.free_port()
    trusting(host, f"localhost:{port}", site)
    found = statuses(host, f"127.0.0.1:{down}", f"localhost:{port}", "no-such-host.invalid")
    assert {key for key, status in found.items() if status == "fail"} == {
        f"docker/127.0.0.1:{down}/answers",
        "docker/no-such-host.invalid/answers",
    }
    assert said(host, f"127.0.0.1:{down}", "/answers") == (
        f"127.0.0.1:{down} is not reached: 127.0.0.1 port {down}: connection refused."
    )


# -- through a proxy ------------------------------------------------------------------------------


def test_k13_it_is_asked_through_the_proxy_that_docker_uses(host: OnLoopback, site: Authority, tmp_path: Path) -> None:
    """harbor.hostprep.test has no address here: only the proxy knows it."""
    seen: list[str] = []
    with (
        registry(tmp_path, site.issue("registry", "DNS:harbor.hostprep.test")) as port,
        serving(servers.tunnels(seen)) as proxy,
    ):
        where = f"harbor.hostprep.test:{port}"
        trusting(host, where, site)
        drop_in = f'[Service]\nEnvironment="HTTPS_PROXY=http://me:secret@127.0.0.1:{proxy}" "NO_PROXY=.example.com"\n'
        host.put("/etc/systemd/system/docker.service.d/http-proxy.conf", drop_in)
        assert set(statuses(host, where).values()) == {"pass"}
        assert set(seen) == {f"CONNECT {where} HTTP/1.1"}
        message = said(host, {"host": where, "proxy": "none"}, "/proxy")
        assert f"through http://127.0.0.1:{proxy}" in message
        assert "secret" not in str(examine(host, {"registry": [where]}))


def test_a_proxy_that_does_not_let_it_through_is_named(host: OnLoopback, site: Authority) -> None:
    with serving(says("403 Forbidden")) as proxy:
        host.put("/etc/docker/daemon.json", f'{{"proxies": {{"https-proxy": "http://127.0.0.1:{proxy}"}}}}')
        found = findings(host, {"registry": ["harbor.example.com"]})["registry/docker/harbor.example.com/answers"]
        assert found.message == (
            "harbor.example.com is not reached: the proxy 127.0.0.1 answers 403 Forbidden. "
            f"docker goes through the proxy http://127.0.0.1:{proxy}."
        )
        assert "NO_PROXY" in found.fix


# -- the authority's certificate ------------------------------------------------------------------


@contextlib.contextmanager
def offering(*pairs: Pair) -> Iterator[str]:
    with serving(says("200 OK", "".join(pair.pem for pair in pairs).encode())) as port:
        yield f"http://127.0.0.1:{port}/harbor/ca.crt"


def test_k13_the_authority_is_fetched_written_trusted_and_taken_back(
    host: OnLoopback, site: Authority, port: int, journal: Journal, tmp_path: Path
) -> None:
    where, other = f"localhost:{port}", Authority(tmp_path, "Other CA")
    before = host.snapshot()
    with offering(other.pair, site.pair) as url:
        section = [{"host": where, "ca": url, "sha256": fingerprint(site.pair).replace(":", "").lower()}]
        assert "fail" in statuses(host, *section).values()
        performer = apply(host, {"registry": section}, journal)
        assert performer.failures == []
        assert host.read(f"/etc/docker/certs.d/{where}/ca.crt") == site.pair.pem.strip(), "and nothing beside it"
        assert set(statuses(host, *section).values()) == {"pass"}
    revert(again := Performer(host, load(["registry"]), journal, lambda line: None))
    assert again.failures == []
    assert host.snapshot() == before
    assert journal.standing() == []


def test_never_trusted_on_first_use_the_fingerprint_is_shown_and_nothing_done(
    host: OnLoopback, site: Authority, port: int, journal: Journal
) -> None:
    before = host.snapshot()
    with offering(site.pair) as url:
        section = {"registry": [{"host": f"localhost:{port}", "ca": url}]}
        (goal,) = [f for name, f in findings(host, section).items() if "/ca/" in name]
        assert goal.status.value == "fail"
        assert f"the profile gives no fingerprint; what is there has {fingerprint(site.pair)}" in goal.message
        assert f"sha256: {fingerprint(site.pair)}" in goal.fix
        assert apply(host, section, journal).failures == []
    assert host.snapshot() == before


def test_another_certificate_than_the_profile_says_is_not_written(
    host: OnLoopback, site: Authority, port: int, journal: Journal, tmp_path: Path
) -> None:
    attacker, before = Authority(tmp_path).pair, host.snapshot()
    with offering(attacker) as url:
        section = {"registry": [{"host": f"localhost:{port}", "ca": url, "sha256": fingerprint(site.pair)}]}
        (goal,) = [f for name, f in findings(host, section).items() if "/ca/" in name]
        assert f"has another certificate: {fingerprint(attacker)}" in goal.message
        assert "attack" in goal.fix
        apply(host, section, journal)
    assert host.snapshot() == before


def test_a_renewed_authority_is_written_beside_the_old_one(
    host: OnLoopback, site: Authority, port: int, journal: Journal, tmp_path: Path
) -> None:
    where, old = f"localhost:{port}", Authority(tmp_path)
    trusting(host, where, old)
    with offering(site.pair) as url:
        section = {"registry": [{"host": where, "ca": url, "sha256": fingerprint(site.pair)}]}
        assert apply(host, section, journal).failures == []
        assert len(host.names(f"/etc/docker/certs.d/{where}")) == 2
        assert host.read(f"/etc/docker/certs.d/{where}/ca.crt") == old.pair.pem.strip()
        assert {f.status.value for f in findings(host, section).values()} == {"pass"}


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        (says("404 Not Found"), "the server answers 404 Not Found"),
        (
            says("308 Permanent Redirect\r\nLocation: https://h/ca.crt"),
            "redirects to https://h/ca.crt: name that in its",
        ),
        (says("200 OK", b"<html>Log in</html>"), "is no certificate"),
        (servers.floods, "is larger than a certificate is"),
    ],
)
def test_what_is_no_certificate_is_not_taken_for_one(
    host: OnLoopback, port: int, talk: Talk, message: str, journal: Journal
) -> None:
    host.patience = 3.0
    with serving(talk) as at:
        entry = {"host": f"localhost:{port}", "ca": f"http://127.0.0.1:{at}/ca.crt", "sha256": "ab" * 32}
        (goal,) = [f for name, f in findings(host, {"registry": [entry]}).items() if "/ca/" in name]
    assert message in goal.message
    assert check.NAME == "registry"


# -- what another tool of the same library says ---------------------------------------------------

LEAVES: dict[str, tuple[str, float, float]] = {
    "good": (NAMES, 365, -1),
    **{kind: (names, days, begins) for kind, (names, days, begins, _) in BAD.items()},
}


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize("trusted", [True, False])
def test_skopeo_which_is_written_in_go_judges_the_same(
    host: OnLoopback, site: Authority, tmp_path: Path, kind: str, trusted: bool
) -> None:
    """Where the certificate is believed, skopeo comes to ask for an image, which is not there."""
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed")
    with registry(tmp_path, site.issue("localhost", *LEAVES[kind])) as port:
        where = f"localhost:{port}"
        host.put(f"/etc/docker/certs.d/{where}/", "")
        if trusted:
            trusting(host, where, site)
        folder = f"{host.root}/etc/docker/certs.d/{where}"
        argv = [skopeo, "inspect", "--no-creds", "--cert-dir", folder, f"docker://{where}/nothing:1"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        believed = "manifest unknown" in done.stderr or "name unknown" in done.stderr
        assert believed or "x509" in done.stderr, done.stderr
        assert (statuses(host, where)[f"docker/{where}/certificate"] == "pass") is believed
        assert believed is (trusted and kind == "good")
