"""The registry check on fake hosts: what each engine is told, whom it believes, and what is asked of the profile."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import findings
from fakes import Answer, FakeHost, debian

from hostprep.checks import registry as check
from hostprep.engines import registries
from hostprep.engines.proxies import proxy_of, without_login
from hostprep.errors import CommandFailed, HostError
from hostprep.host.record import RecordedHost, Recorder, without_secrets
from hostprep.host.remote import Certificate, Got
from hostprep.model import Unknown

MakeHost = Callable[..., FakeHost]
NAME = "harbor.example.com"
URL = f"https://{NAME}/v2/"
API = (("docker-distribution-api-version", "registry/2.0"),)
LEAF = Certificate(NAME, "Site CA", (NAME,), 0, 4102444800, "ab" * 32)
GOOD = Got("", "", 401, "Unauthorized", API, chain=(LEAF,))
NOT_INSTALLED = HostError("docker: not installed")
UNTOLD = CommandFailed("docker: exit status 1: permission denied", status=1, output="permission denied")
PEM = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n"
CA = "http://192.168.10.100/harbor/ca.crt"


def site(make_host: MakeHost, files: Mapping[str, str], docker: Answer = NOT_INSTALLED, got: Got = GOOD) -> FakeHost:
    host = make_host({**debian(), **files}, {"docker": docker})
    host.servers[URL] = got
    return host


def statuses(host: FakeHost, entry: Any = NAME) -> dict[str, str]:
    found = findings(host, {"registry": [entry]})
    return {name.rpartition("/")[2]: f.status.value for name, f in found.items()}


def info(insecure: tuple[str, ...] = (), https: str = "", no: str = "") -> str:
    """As `docker info` says it."""
    indexes = {"docker.io": {"Secure": True}, **{name: {"Secure": False} for name in insecure if "/" not in name}}
    networks = ["127.0.0.0/8", *(name for name in insecure if "/" in name)]
    config = {"IndexConfigs": indexes, "InsecureRegistryCIDRs": networks}
    return json.dumps({"RegistryConfig": config, "HttpProxy": "", "HttpsProxy": https, "NoProxy": no})


# -- proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("", NAME, False),
        ("*", NAME, True),
        (NAME, NAME, True),
        ("example.com", NAME, True),
        (".example.com", NAME, True),
        ("*.example.com", NAME, True),
        (".harbor.example.com", NAME, False),
        ("ample.com", NAME, False),
        (f"{NAME}:443", NAME, True),
        (f"{NAME}:5000", NAME, False),
        ("other, HARBOR.example.com", NAME, True),
        ("192.168.10.100", "192.168.10.100", True),
        ("192.168.10.0/24", "192.168.10.100", True),
        ("192.168.0.0/24", "192.168.10.100", False),
        ("192.168.10.", "192.168.10.100", False),
        ("192.168.10.*", "192.168.10.100", False),
        ("10.0.0.0/8", NAME, False),
        ("fd00::/8", "fd00::5", True),
        ("[fd00::5]:443", "fd00::5", True),
        ("", "localhost", True),
        ("", "127.0.0.5", True),
    ],
)
def test_no_proxy_as_go_reads_it(no_proxy: str, host: str, direct: bool) -> None:
    """https://pkg.go.dev/golang.org/x/net/http/httpproxy: networks only for addresses, no globs in them."""
    environment = {"HTTPS_PROXY": "http://p:3128", "no_proxy": no_proxy}
    assert (proxy_of(environment, "https", host, 443) == "") is direct


def test_a_proxy_is_that_of_the_scheme_and_shown_without_its_login() -> None:
    assert proxy_of({"http_proxy": "p:3128"}, "https", NAME, 443) == ""
    assert proxy_of({"http_proxy": "p:3128"}, "http", NAME, 80) == "http://p:3128"
    assert without_login("http://me:secret@p:3128/") == "http://p:3128/"
    assert b"secret" not in without_secrets(b'Environment="HTTPS_PROXY=http://me:secret@p:3128"')


UNIT = "/usr/lib/systemd/system/docker.service"
DROP_IN = "/etc/systemd/system/docker.service.d"


@pytest.mark.parametrize(
    ("files", "proxy"),
    [
        ({f"{DROP_IN}/p.conf": "[Service]\nEnvironment=HTTPS_PROXY=http://p:1\n"}, "http://p:1"),
        ({f"{DROP_IN}/p.conf": "[Service]\nEnvironment='HTTPS_PROXY=http://p:1' \\\n  NO_PROXY=.com\n"}, None),
        ({f"{DROP_IN}/p.conf": "[Service]\n#Environment=HTTPS_PROXY=http://p:1\n"}, None),
        (
            {
                f"{DROP_IN}/a.conf": "[Service]\nEnvironment=HTTPS_PROXY=http://p:1\n",
                f"{DROP_IN}/b.conf": "[Service]\nEnvironment=\n",
            },
            None,
        ),
        (
            {
                UNIT: "[Service]\nEnvironmentFile=-/etc/default/docker\n",
                "/etc/default/docker": "# x\nexport https_proxy=http://p:2\n",
            },
            "http://p:2",
        ),
        ({"/etc/docker/daemon.json": '{"proxies": {"https-proxy": "http://p:3"}}'}, "http://p:3"),
        (
            {"/etc/docker/daemon.json": f'{{"proxies": {{"https-proxy": "http://p:3", "no-proxy": "{NAME}"}}}}'},
            None,
        ),
    ],
)
def test_the_proxy_that_docker_starts_with(make_host: MakeHost, files: dict[str, str], proxy: str | None) -> None:
    facts = check.inspect(site(make_host, files), [f"docker/{NAME}"])
    assert facts[f"docker/{NAME}/proxy"].next_boot == proxy


def test_the_proxy_of_the_running_docker_is_that_of_now(make_host: MakeHost) -> None:
    """A drop-in that was written after docker was started counts from its next start on."""
    files = {f"{DROP_IN}/p.conf": "[Service]\nEnvironment=HTTPS_PROXY=http://p:1\n"}
    assert statuses(site(make_host, files, info()), {"host": NAME, "proxy": "http://p:1"})["proxy"] == "pending-reboot"
    assert statuses(site(make_host, files, info()), {"host": NAME, "proxy": "none"})["proxy"] == "volatile"


# -- does the engine verify? ----------------------------------------------------------------------

TOML = '[[registry]]\nlocation = "harbor.example.com"\ninsecure = true\n'


@pytest.mark.parametrize(
    ("engine", "files", "verified"),
    [
        ("docker", {}, "pass"),
        ("docker", {"/etc/docker/daemon.json": f'{{"insecure-registries": ["{NAME}"]}}'}, "fail"),
        ("docker", {"/etc/docker/daemon.json": f'{{"insecure-registries": ["https://{NAME}"]}}'}, "fail"),
        ("docker", {"/etc/docker/daemon.json": f'{{"insecure-registries": ["{NAME}:5000"]}}'}, "pass"),
        ("docker", {"/etc/docker/daemon.json": '{"insecure-registries": ["192.168.0.0/16"]}'}, "fail"),
        ("docker", {"/etc/docker/daemon.json": '{"insecure-registries": ["10.0.0.0/8"]}'}, "pass"),
        ("docker", {"/etc/docker/daemon.json": '{"insecure-registries": "x"}'}, "unknown"),
        ("docker", {"/etc/docker/daemon.json": "{"}, "unknown"),
        ("docker", {UNIT: f"[Service]\nExecStart=/usr/bin/dockerd --insecure-registry={NAME}\n"}, "fail"),
        (
            "docker",
            {
                UNIT: "[Service]\nEnvironmentFile=/etc/default/docker\nExecStart=/usr/bin/dockerd $DOCKER_OPTS\n",
                "/etc/default/docker": f'DOCKER_OPTS="--insecure-registry {NAME}"\n',
            },
            "fail",
        ),
        ("podman", {}, "pass"),
        ("podman", {"/etc/containers/registries.conf": "# [[registry]]\n# insecure = true\n"}, "pass"),
        ("podman", {"/etc/containers/registries.conf": TOML}, "fail"),
        ("podman", {"/etc/containers/registries.conf": TOML.replace("true", "false")}, "pass"),
        ("podman", {"/etc/containers/registries.conf.d/x.conf": TOML}, "fail"),
        ("podman", {"/etc/containers/registries.conf": TOML, "/root/.config/containers/registries.conf": ""}, "pass"),
        ("podman", {"/etc/containers/registries.conf": "[[registry]\n"}, "unknown"),
    ],
)
def test_an_engine_that_is_told_not_to_verify(
    make_host: MakeHost, engine: str, files: dict[str, str], verified: str
) -> None:
    host = site(make_host, files)
    host.name_table[NAME] = ("192.168.10.100",)
    assert statuses(host, {"host": NAME, "engine": engine})["verified"] == verified


def test_what_docker_was_started_with_is_now_and_its_files_are_next_boot(make_host: MakeHost) -> None:
    files = {"/etc/docker/daemon.json": f'{{"insecure-registries": ["{NAME}"]}}'}
    assert statuses(site(make_host, {}, info((NAME,))))["verified"] == "pending-reboot"
    assert statuses(site(make_host, files, info()))["verified"] == "volatile"
    assert statuses(site(make_host, files, info((NAME,))))["verified"] == "fail"
    assert statuses(site(make_host, {}, UNTOLD))["verified"] == "unknown"


def test_an_insecure_registry_that_the_profile_allows(make_host: MakeHost) -> None:
    entry = {"host": NAME, "insecure": True}
    files = {"/etc/docker/daemon.json": f'{{"insecure-registries": ["{NAME}"]}}'}
    host = site(make_host, files, got=Got("tls", "speaks no TLS (plain HTTP?)"))
    host.servers[f"http://{NAME}/v2/"] = Got("", "", 200, "OK", API)
    assert statuses(host, entry) == {"answers": "pass", "verified": "pass", "api": "pass"}
    assert statuses(host) == {"answers": "pass", "verified": "fail", "certificate": "fail", "api": "pass"}
    assert statuses(site(make_host, {"/etc/docker/daemon.json": "{}"}), entry)["verified"] == "fail"


# -- whom it believes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "there", "place"),
    [
        ("docker", [], f"/etc/docker/certs.d/{NAME}:5000"),
        ("podman", [], f"/etc/containers/certs.d/{NAME}:5000"),
        ("podman", [f"/etc/docker/certs.d/{NAME}:5000/"], f"/etc/docker/certs.d/{NAME}:5000"),
        (
            "podman",
            [f"/etc/docker/certs.d/{NAME}:5000/", f"/etc/containers/certs.d/{NAME}:5000/"],
            f"/etc/containers/certs.d/{NAME}:5000",
        ),
        ("containerd", [], f"/c/{NAME}:5000"),
        ("containerd", [f"/c/{NAME}_5000_/"], f"/c/{NAME}_5000_"),
        ("containerd", ["/c/_default/"], "/c/_default"),
    ],
)
def test_where_an_engine_looks(make_host: MakeHost, engine: str, there: list[str], place: str) -> None:
    host = make_host({"/etc/containerd/config.toml": 'config_path = "/c"\n', **dict.fromkeys(there, "")})
    assert registries.place(host, engine, f"{NAME}:5000") == place


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"ca.crt": "-> /nowhere"}, "ca.crt leads nowhere"),
        ({"client.cert": "x"}, "client.cert has no client.key"),
        ({"client.key": "x"}, "client.key has no client.cert"),
    ],
)
def test_what_keeps_docker_from_asking_at_all(make_host: MakeHost, files: dict[str, str], fault: str) -> None:
    host = site(make_host, {f"/etc/docker/certs.d/{NAME}/{name}": text for name, text in files.items()})
    found = findings(host, {"registry": [NAME]})[f"registry/docker/{NAME}/certificate"]
    assert found.status.value == "fail"
    assert fault in found.message


def test_hosts_toml_of_containerd(make_host: MakeHost) -> None:
    config = {"/etc/containerd/config.toml": 'config_path = "/c"\n'}
    entry = {"host": NAME, "engine": "containerd"}

    def told(text: str) -> dict[str, str]:
        return statuses(site(make_host, {**config, f"/c/{NAME}/hosts.toml": text}), entry)

    assert told(f'server = "https://{NAME}"\n')["verified"] == "pass"
    assert told("skip_verify = true\n")["verified"] == "fail"
    assert told(f'[host."https://{NAME}"]\nskip_verify = true\n')["verified"] == "fail"
    assert told('[host."https://mirror"]\nskip_verify = true\n')["verified"] == "pass"
    assert told('ca = "ca.crt"\n')["certificate"] == "fail"
    assert told('server = "https://other"\n')["certificate"] == "unknown"
    assert told("[")["certificate"] == "unknown"


def test_containerd_that_is_told_of_no_directory_is_unknown(make_host: MakeHost) -> None:
    found = statuses(site(make_host, {}), {"host": NAME, "engine": "containerd"})
    assert (found["answers"], found["certificate"], found["verified"]) == ("pass", "unknown", "unknown")


# -- what cannot be asked, and what is not wanted -------------------------------------------------


def test_what_cannot_be_asked_is_unknown_and_the_others_are_judged(make_host: MakeHost) -> None:
    host = site(make_host, {})
    host.servers["https://other:5000/v2/"] = HostError("other: no socket: Operation not permitted")
    found = findings(host, {"registry": [NAME, "other:5000"]})
    assert {f.status.value for name, f in found.items() if NAME in name} == {"pass"}
    assert {f.status.value for name, f in found.items() if "other" in name} == {"unknown"}


def test_a_certificate_that_cannot_be_read_is_unknown(make_host: MakeHost) -> None:
    host = site(make_host, {f"/etc/docker/certs.d/{NAME}/ca.crt/": ""})
    found = statuses(host)
    assert (found["answers"], found["certificate"]) == ("pass", "unknown")


def test_a_host_without_a_profile_shows_what_engines_have_certificates_for(make_host: MakeHost) -> None:
    facts = check.inspect(make_host({f"/etc/docker/certs.d/{NAME}/ca.crt": "nothing"}))
    assert facts[f"certificates/docker/{NAME}"].current == ()
    assert check.suggest(facts).section is None


def test_j4_whatever_docker_has_certificates_for(make_host: MakeHost) -> None:
    host = site(make_host, {f"/etc/docker/certs.d/{NAME}/ca.crt": PEM, "/etc/docker/certs.d/empty:5000/": ""})
    section = {"registry": {"configured": "docker", "expires": "14d"}}
    found = {name.removeprefix("registry/"): f.status.value for name, f in findings(host, section).items()}
    of_it = [f"docker/{NAME}/{key}" for key in ("answers", "verified", "certificate", "days", "api")]
    assert found == dict.fromkeys(["configured/docker", *of_it], "pass")


def test_j4_a_node_without_any_has_not_the_sites_authority(make_host: MakeHost) -> None:
    found = findings(make_host(debian()), {"registry": {"configured": "docker"}})
    (name,) = found
    assert (name, found[name].status.value) == ("registry/configured/docker", "fail")
    assert "/etc/docker/certs.d/HOST/ca.crt" in found[name].fix


def test_a_certificate_without_a_fingerprint_is_not_asked_for_where_the_registry_is_trusted(
    make_host: MakeHost,
) -> None:
    host = site(make_host, {})
    host.servers[CA] = Got("connect", "192.168.10.100 port 80: connection refused")
    assert len(statuses(host, {"host": NAME, "ca": CA})) == 4
    assert set(statuses(host, {"host": NAME, "ca": CA}).values()) == {"pass"}


def test_a_recorded_host_says_what_it_said_and_asks_nobody(tmp_path: Path) -> None:
    entry = {"host": "no-such-host.invalid"}
    seen = check.inspect(Recorder(str(tmp_path / "kept")), check.asked([entry], ()))
    again = check.inspect(RecordedHost(str(tmp_path / "kept")), check.asked([entry], ()))
    assert again == seen
    assert "no such name" in str(seen["docker/no-such-host.invalid/answers"].current)
    other = check.inspect(RecordedHost(str(tmp_path / "kept")), ["docker/other"])
    assert isinstance(other["docker/other/answers"].current, Unknown)


@pytest.mark.parametrize(
    "entry",
    [
        "https://harbor.example.com",
        "harbor.example.com/project",
        "",
        {"host": NAME, "ca": "ftp://x/ca.crt"},
        {"host": NAME, "sha256": "ab" * 32},
        {"host": NAME, "ca": CA, "sha256": "abc"},
        {"host": NAME, "proxy": "http://me:secret@p:1"},
    ],
)
def test_what_no_profile_may_say(entry: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(check.SCHEMA).validate([entry])
