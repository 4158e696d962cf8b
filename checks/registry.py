r"""Registry: it can be reached as the container engine reaches it, its certificate is trusted, and it is a registry.

    registry: [harbor.example.com]
    registry:
      - host: 192.168.10.100                         # with :PORT where it is not 443
        ca: "http://192.168.10.100/harbor/ca.crt"    # where apply may fetch the site's authority
        sha256: 3C:6F:1A:9E:0B:77:52:D8:41:C3:AA:19:E0:5D:F2:64:8B:30:97:CE:12:6A:B5:4F:D9:01:7E:83:5B:C8:24:EF
        expires: 14d                                 # at least so long is everything in its chain still valid
      - {host: "mirror.example.com:5000", engine: podman, proxy: none}
      - {host: "lab:5000", insecure: true}           # the engine must be told not to verify it
    registry: {configured: docker, expires: 14d}     # those that docker has certificates for: at least one

engine is docker if it is not said; or podman, or containerd (as Kubernetes uses it). The registry is asked for /v2/ as
that engine would ask: through the proxy that it is told of (docker info; daemon.json, drop-ins of its service; of
podman /etc/environment), with the system's authorities and those of its own directory for this registry, and with its
client certificates:

    docker       /etc/docker/certs.d/HOST[:PORT]/*.crt
    podman       /etc/containers/certs.d/HOST[:PORT]/*.crt, or else where docker has them
    containerd   hosts.toml or *.crt below its config_path

A registry that does not answer, whose certificate is refused, or in whose place something else answers (the page of a
proxy) is a failure. One that could not be asked is unknown. Certificates are verified as the engines do it: for an
address the certificate must name that address, and its CN counts for nothing. Docker verifies nothing on loopback;
here it is verified all the same. No login is made, and nothing is pulled: 401 is a good answer.

ca: wanted in the engine's directory. apply fetches it (without a proxy) and writes it as ca.crt, or, where there is
another ca.crt, beside that; from then on the engine believes it, without a restart. It must have the fingerprint that
the profile gives in `sha256`; without one, hostprep shows the fingerprint of what is there and does nothing: compare
it with what the registry's owner says (openssl x509 -noout -fingerprint -sha256 -in ca.crt), then put it into the
profile. So it does no harm that it comes over plain HTTP. revert takes it away again.

insecure: whether the engine is told not to verify a registry, now and at the next boot. Where the profile does not
allow that by `insecure: true` it is a failure, since whoever is in between could give this host any image.

What hostprep does not see: that a running docker takes authorities of the system's store only when it starts; mirrors
that an engine asks first; the proxy of a shell in which somebody calls podman.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hostprep.engines import registries
from hostprep.engines.proxies import without_login
from hostprep.engines.registries import Folder, Settings
from hostprep.errors import ChangeFailed, HostError
from hostprep.host import Host, attempt
from hostprep.model import (
    Change,
    Desired,
    Fact,
    Facts,
    Goals,
    Reading,
    Section,
    Suggestion,
    Unknown,
    from_json,
    to_json,
)
from hostprep.quantities import DURATION_PATTERN, parse_duration

if TYPE_CHECKING:
    from hostprep.host.remote import Got

NAME = "registry"

_HOST = {
    "description": "a registry's name or address, and its port where that is not 443: harbor.example.com:5000",
    "type": "string",
    "pattern": r"^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$(?!\n)",
}
_ENTRY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "host": _HOST,
        "engine": {"description": "docker, podman or containerd", "enum": list(registries.ENGINES)},
        "ca": {
            "description": "the URL of the authority's certificate: http://harbor.example.com/ca.crt",
            "type": "string",
            "pattern": r"^https?://[A-Za-z0-9.:\[\]-]+(/[!-~]*)?$(?!\n)",
        },
        "sha256": {
            "description": "the fingerprint of that certificate: 64 hexadecimal digits, with colons or without",
            "type": "string",
            "pattern": r"^[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}$(?!\n)",
        },
        "expires": {
            "description": "how long its certificates must be valid yet, at least: 14d",
            "type": "string",
            "pattern": DURATION_PATTERN,
        },
        "insecure": {"description": "true: the engine does not verify it", "type": "boolean"},
        "proxy": {
            "description": "none, or the proxy that the engine goes through: http://proxy.example.com:3128",
            "type": "string",
            "pattern": r"^(none|https?://[^\s/@]+)$(?!\n)",
        },
    },
    "required": ["host"],
    "dependentRequired": {"sha256": ["ca"]},
    "additionalProperties": False,
}
_CONFIGURED = {
    "type": "object",
    "properties": {
        "configured": {
            "description": "docker or podman: the registries that it has certificates for",
            "enum": [*registries.CERTS],
        },
        "expires": _ENTRY["properties"]["expires"],
    },
    "required": ["configured"],
    "additionalProperties": False,
}
SCHEMA = {
    "description": "Registries that the container engine must reach and trust.",
    "anyOf": [
        {
            "description": "registries (harbor.example.com), or {host: ..., ca: ...}",
            "type": "array",
            "items": {
                "description": "a registry (harbor.example.com), or {host: ..., ca: ...}",
                "anyOf": [_HOST, _ENTRY],
            },
            "minItems": 1,
        },
        _CONFIGURED,
    ],
}

MOVING = ("*/days",)
ANSWERS, TRUSTED, API = "answers", "trusted", "v2"
ASK_S = 8.0  # for one question to one server
LOOK_S = 20.0  # for all of them, at once
_CA = "ca/"
_ALL = "configured/"
_UNTRUSTED, _CLIENT = "not trusted", "client certificate"  # in the words of hostprep/host/remote.py
_CLIENT_FIX = "Put a client's certificate and key, client.cert and client.key, beside the registry's ca.crt."
_LIMIT = 256 * 1024  # bytes; an authority's certificate has about 2000
_DOCKER_HUB = {"docker.io": "registry-1.docker.io"}


# -- looking --------------------------------------------------------------------------------------


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    """`ENGINE/HOST` of each registry, or `configured/ENGINE`; of each certificate `ca/ENGINE/HOST/URL`, as in facts,
    and its fingerprint.
    """
    names = [f"{_ALL}{want['configured']}"] if isinstance(want, dict) else []
    for entry in _entries(want):
        names += [_prefix(entry), *([_ca_name(entry)] if "ca" in entry else [])]
    known = {name.partition(" ")[0] for name in names}
    return list(dict.fromkeys([*names, *(key for key in keys if key.startswith(_CA) and key not in known)]))


def _entries(want: Section) -> list[dict[str, Any]]:
    """Those that a profile names."""
    listed = () if isinstance(want, dict) else want or ()
    return [{"host": each} if isinstance(each, str) else dict(each) for each in listed]


def _prefix(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('engine', 'docker')}/{entry['host']}"


def _ca_key(entry: Mapping[str, Any]) -> str:
    return f"{_CA}{_prefix(entry)}/{entry['ca']}"


def _ca_name(entry: Mapping[str, Any]) -> str:
    """No URL has a blank in it."""
    return f"{_ca_key(entry)} {registries.colons(entry['sha256'])}" if "sha256" in entry else _ca_key(entry)


def _ca_parts(key: str) -> tuple[str, str, str]:
    """Engine, registry and URL."""
    engine, registry, url = key.removeprefix(_CA).split("/", 2)
    return engine, registry, url


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    facts: dict[str, Fact] = {} if names else _unasked(host)
    wanted = [name for name in names if not name.startswith(_ALL)]
    for engine in (name.removeprefix(_ALL) for name in names if name.startswith(_ALL)):
        found = attempt(registries.configured, host, engine)
        facts[f"{_ALL}{engine}"] = Fact.fixed(found if isinstance(found, Unknown) else len(found))
        wanted += [f"{engine}/{name}" for name in (() if isinstance(found, Unknown) else found)]
    registered = [name for name in wanted if not name.startswith(_CA)]
    told = {e: attempt(registries.settings, host, e) for e in {name.partition("/")[0] for name in registered}}
    works = [(name, _work(host, name, told)) for name in dict.fromkeys(wanted)]
    for name, answer in host.together(works, LOOK_S).items():
        if isinstance(answer, str):
            facts |= _unread(name, answer)
        else:
            facts |= {key: Fact(*map(from_json, sides)) for key, sides in json.loads(answer).items()}
    return facts


def _unasked(host: Host) -> dict[str, Fact]:
    """The registries that an engine has certificates for."""
    found = {}
    for engine, path in registries.CERTS.items():
        for name in host.names(path):
            certs = attempt(registries.folder, host, engine, name)
            found[f"certificates/{engine}/{name}"] = Fact.fixed(
                certs if isinstance(certs, Unknown) else certs.certificates
            )
    return found


def _work(host: Host, name: str, told: Mapping[str, tuple[Settings, Settings] | Unknown]) -> Callable[[], bytes]:
    def work() -> bytes:
        try:
            engine = name.partition("/")[0]
            found = _offered(host, name) if name.startswith(_CA) else _look(host, name, told[engine])
        except HostError as e:
            found = _unread(name, str(e))
        return json.dumps({key: [to_json(side) for side in fact] for key, fact in found.items()}).encode()

    return work


def _unread(name: str, reason: str) -> dict[str, Fact]:
    key = name.partition(" ")[0]
    of_registry = ("/answers", "/certificate", "/api", "/days", "/verified", "/proxy")
    more = ("", "/offered") if key.startswith(_CA) else of_registry
    return {f"{key}{what}": Fact.fixed(Unknown(reason)) for what in more}


def _look(host: Host, name: str, told: tuple[Settings, Settings] | Unknown) -> dict[str, Fact]:
    engine, _, registry = name.partition("/")
    if isinstance(told, Unknown):
        return _unread(name, told.reason)
    server, port = _server(registry)
    now, later = told
    verified = Fact(*(attempt(registries.verifies, host, engine, registry, each) for each in told))
    through = registries.proxy(now, "https", server, port)
    facts = {
        f"{name}/verified": verified,
        f"{name}/proxy": Fact(
            without_login(through) or None, without_login(registries.proxy(later, "https", server, port)) or None
        ),
    }
    own = attempt(registries.folder, host, engine, registry)
    roots = attempt(registries.system_roots, host)
    got = _asked(host, f"https://{_address(registry)}/v2/", own, roots, engine, through)
    no_tls = verified.current is False and got.fault == "tls"
    if no_tls:
        plain = _address(registry) if port != 443 else server
        got = host.http_get(f"http://{plain}/v2/", None, registries.proxy(now, "http", server, port), ASK_S, _LIMIT)
    facts |= _certificate_facts(name, got, own, roots, no_tls)
    if got.fault == "certificate":  # is it a registry all the same?
        got = host.http_get(f"https://{_address(registry)}/v2/", None, through, ASK_S, _LIMIT)
    down = got.fault in ("name", "connect", "proxy")
    silent = Unknown(f"{registry} was not reached") if down else f"it {got.why}" if got.fault else None
    return {
        **facts,
        f"{name}/answers": Fact.fixed(got.why if down else ANSWERS),
        f"{name}/api": Fact.fixed(silent or _api(got)),
    }


def _server(registry: str) -> tuple[str, int]:
    name, _, port = registry.rpartition(":") if re.search(r":[0-9]+$", registry) else (registry, "", "443")
    return _DOCKER_HUB.get(name, name), int(port)


def _address(registry: str) -> str:
    return _DOCKER_HUB.get(registry, registry)


def _asked(host: Host, url: str, own: Folder | Unknown, roots: str | Unknown, engine: str, through: str) -> Got:
    """Ask as the engine does; unverified where its certificates cannot be read, or keep it from asking at all."""
    from hostprep.host.remote import Trust

    readable = not isinstance(own, Unknown) and not isinstance(roots, Unknown) and not own.fault
    if not readable:
        return host.http_get(url, None, through, ASK_S, _LIMIT)
    assert isinstance(own, Folder)
    return host.http_get(url, Trust(engine, f"{roots}\n{own.pem}", own.pairs), through, ASK_S, _LIMIT)


def _certificate_facts(
    name: str, got: Got, own: Folder | Unknown, roots: str | Unknown, plain: bool
) -> dict[str, Fact]:
    trusted: Reading = TRUSTED
    if got.fault in ("name", "connect", "proxy"):
        trusted = Unknown("the registry was not reached")
    elif got.fault in ("certificate", "tls"):
        trusted = f"{'its certificate' if got.fault == 'certificate' else 'it'} {got.why}"
    elif not got.chain:
        trusted = "it speaks plain HTTP" if plain else Unknown("the certificate cannot be told")
    for part in (own, roots):
        if isinstance(part, Unknown):
            trusted = part
    if isinstance(own, Folder) and own.fault:
        trusted = f"the engine does not even ask it: {own.fault}"
    facts = {f"{name}/certificate": Fact.fixed(trusted)}
    if got.chain:
        leaf, *above = got.chain
        facts[f"{name}/days"] = Fact.fixed(_days(min(each.ends for each in got.chain)))
        facts[f"{name}/subject"] = Fact.fixed(leaf.subject)
        facts[f"{name}/issuer"] = Fact.fixed(leaf.issuer)
        facts[f"{name}/names"] = Fact.fixed(leaf.names)
        facts[f"{name}/begins"] = Fact.fixed(_date(leaf.begins))
        facts[f"{name}/ends"] = Fact.fixed(_date(leaf.ends))
        if above:
            first = min(above, key=lambda each: each.ends)
            facts[f"{name}/authority-ends"] = Fact.fixed(f"{_date(first.ends)} {first.subject}")
    else:
        facts[f"{name}/days"] = Fact.fixed(Unknown("the certificate was not seen"))
    return facts


def _days(ends: int) -> int:
    """Whole days left; negative from the moment on when there are none."""
    return int((ends - time.time()) // 86400)


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _api(got: Got) -> str:
    """https://distribution.github.io/distribution/spec/api/: 200, or 401 with how to log in. A page is no registry."""
    says = got.header("docker-distribution-api-version").lower().startswith("registry/2")
    kind = got.header("content-type").partition(";")[0].strip().lower()
    login = got.header("www-authenticate").lower()
    if got.status == 200 and (says or (kind.endswith("json") and got.body.strip() in ("{}", "true", ""))):
        return API
    if got.status == 401 and (says or login.startswith("bearer") or (login and kind.endswith("json"))):
        return API
    if 300 <= got.status < 400:
        return f"it redirects to {without_login(got.header('location'))[:100] or 'nowhere'}"
    said = f"it answers {got.status} {got.reason}".rstrip()
    return f"{said}, but not as a registry does ({kind or 'of no kind'})" if got.status in (200, 401) else said


def _offered(host: Host, name: str) -> dict[str, Fact]:
    """What the engine has; and what is there to be fetched, unless that is here already."""
    key, _, wanted = name.partition(" ")
    engine, registry, url = _ca_parts(key)
    own = attempt(registries.folder, host, engine, registry)
    has: Reading = own if isinstance(own, Unknown) else own.certificates
    place = attempt(registries.place, host, engine, registry)
    facts = {key: Fact.fixed(has), f"{key}/place": Fact.fixed(place)}
    if not isinstance(has, tuple) or wanted not in has:
        facts[f"{key}/offered"] = Fact.fixed(attempt(lambda: tuple(sorted(_fetched(host, url)))))
    return facts


def _fetched(host: Host, url: str) -> dict[str, bytes]:
    """The certificates at a URL, by fingerprint. HostError where there are none."""
    got = host.http_get(url, None, "", ASK_S, _LIMIT)
    if got.fault:
        raise HostError(f"{url}: {_sentence(got)}")
    if 300 <= got.status < 400:
        raise HostError(f"{url}: redirects to {without_login(got.header('location'))[:100]}: name that in its place")
    if got.status != 200:
        raise HostError(f"{url}: the server answers {got.status} {got.reason}".rstrip())
    found = registries.certificates(got.body.encode("latin-1"))
    if not found or got.more:
        raise HostError(f"{url}: is no certificate" if not got.more else f"{url}: is larger than a certificate is")
    return found


def _sentence(got: Got) -> str:
    return got.why if got.fault in ("name", "connect", "proxy") else f"the server {got.why}"


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    goals: dict[str, Desired] = {}
    entries = _entries(want)
    if isinstance(want, dict):
        engine = want["configured"]
        goals[f"{_ALL}{engine}"] = _seen(1, f"{engine} has certificates for no registry.", _none_fix(engine), ">=")
        entries = [{**want, "engine": engine, "host": name} for name in _configured(facts, engine)]
    for entry in entries:
        name = _prefix(entry)
        cure = ""
        if "ca" in entry and (goal := _ca_goal(facts, entry)) is not None:
            goals[_ca_key(entry)] = goal
            if goal.value != _now(facts, _ca_key(entry)):
                cure = f"hostprep apply --only {NAME}"
                if goal.refused_next:
                    cure = f"First what is said of {_ca_key(entry)}."
        goals |= _registry_goals(facts, entry, name, cure)
    return {
        key: goal if (goal.of or key) in facts else goal._replace(counted=Unknown("was not looked at"))
        for key, goal in goals.items()
    }


def _configured(facts: Facts, engine: str) -> list[str]:
    keys = (key for key in facts if key.startswith(f"{engine}/") and key.endswith("/answers"))
    return [key.removeprefix(f"{engine}/").removesuffix("/answers") for key in keys]


def _none_fix(engine: str) -> str:
    place = f"{registries.CERTS[engine]}/HOST/ca.crt"
    return f"Put the authority of the site's registry into {place}, or name the registry and its ca in the profile."


def _now(facts: Facts, key: str) -> Reading:
    return facts[key].current if key in facts else Unknown("was not looked at")


def _seen(value: str | int | bool | None, means: str, fix: str, op: str = "==") -> Desired:
    return Desired(value, op, live=False, persist=False, means=means, fix=fix)


def _registry_goals(facts: Facts, entry: Mapping[str, Any], name: str, cure: str) -> Goals:
    """Where it is not reached, or its certificate not trusted, that alone is told: the rest cannot be better."""
    engine, _, registry = name.partition("/")
    proxy = _now(facts, f"{name}/proxy")
    through = f" {engine} goes through the proxy {proxy}." if isinstance(proxy, str) else ""
    goals = {
        f"{name}/answers": _seen(
            ANSWERS,
            f"{registry} is not reached: {_now(facts, f'{name}/answers')}.{through}",
            _proxy_fix(engine, registry) if through else "Look at the registry, and at the network on the way to it.",
        )
    }
    goals |= _setting_goals(facts, entry, name)
    answers = _now(facts, f"{name}/answers")
    if isinstance(answers, str) and answers != ANSWERS:
        return goals
    if not entry.get("insecure"):
        goals[f"{name}/certificate"] = _certificate_goal(facts, name, cure)
        if "expires" in entry:
            goals[f"{name}/days"] = _days_goal(facts, entry["expires"], name)
    goals[f"{name}/api"] = _seen(
        API,
        f"{registry} does not answer as a registry: {_now(facts, f'{name}/api')}.{through}",
        _CLIENT_FIX
        if _CLIENT in str(_now(facts, f"{name}/api"))
        else f"Look at the registry's own log, and at what is in front of it: curl -ki https://{registry}/v2/",
    )
    return goals


def _proxy_fix(engine: str, registry: str) -> str:
    where = "/etc/environment" if engine == "podman" else f"/etc/systemd/system/{engine}.service.d"
    restart = "" if engine == "podman" else f", then restart {engine}"
    return f"If it is to be asked directly: add {_server(registry)[0]} to NO_PROXY ({where}){restart}."


def _setting_goals(facts: Facts, entry: Mapping[str, Any], name: str) -> Goals:
    engine, _, registry = name.partition("/")
    places = {"docker": "insecure-registries in /etc/docker/daemon.json", "podman": "/etc/containers/registries.conf"}
    where = places.get(engine, "skip_verify in hosts.toml")
    if entry.get("insecure"):
        means = f"{engine} is not told that {registry} is insecure, and will refuse it."
        goals = {f"{name}/verified": _seen(False, means, f"Set it ({where}), or give the registry a certificate.")}
    else:
        means = f"{engine} is told not to verify {registry}, so whoever is in between can give it any image."
        fix = f"Take it out ({where}), or allow it in the profile by insecure: true."
        goals = {f"{name}/verified": _seen(True, means, fix)}
    if "proxy" in entry:
        proxy = _now(facts, f"{name}/proxy")
        wanted = None if entry["proxy"] == "none" else entry["proxy"]
        means = (
            f"{engine} goes to {registry} {f'through {proxy}' if proxy else 'directly'}; wanted is {entry['proxy']}."
        )
        goals[f"{name}/proxy"] = _seen(wanted, means, _proxy_fix(engine, registry))
    return goals


def _certificate_goal(facts: Facts, name: str, cure: str) -> Desired:
    engine, _, registry = name.partition("/")
    why = _now(facts, f"{name}/certificate")
    issuer, names, begins, ends = (_now(facts, f"{name}/{what}") for what in ("issuer", "names", "begins", "ends"))
    more, fix = "", f"See what it says: openssl s_client -connect {':'.join(map(str, _server(registry)))}"
    if " is not for " in str(why):
        listed = ", ".join(names[:5]) if isinstance(names, tuple) and names else "none: a CN does not count"
        more = f", but for: {listed}"
        fix = f"Name the registry as its certificate does, or have one made with {_alternative(registry)} in it."
    elif str(why).endswith(_UNTRUSTED):
        more = f" (issued by {issuer})" if isinstance(issuer, str) else ""
        fix = cure or f"Put its authority's certificate, as PEM, where {engine} looks: hostprep explain {NAME} (ca)."
    elif "expired" in str(why) or "valid yet" in str(why):
        more = f" (valid {begins} to {ends})" if isinstance(ends, str) else ""
        fix = f"Look at this host's clock; or renew the certificate of {registry}."
    elif _CLIENT in str(why):
        fix = _CLIENT_FIX
    return _seen(TRUSTED, f"{registry}: {why}{more}.", fix)


def _alternative(registry: str) -> str:
    name = _server(registry)[0].strip("[]")
    try:
        return f"subjectAltName IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"subjectAltName DNS:{name}"


def _days_goal(facts: Facts, wanted: str, name: str) -> Desired:
    days, ends, authority = (_now(facts, f"{name}/{what}") for what in ("days", "ends", "authority-ends"))
    above = f", and that of its authority on {authority}" if isinstance(authority, str) else ""
    means = f"Its certificate ends on {ends}{above}: {days} days are left, and {wanted} are wanted."
    return _seen(-(-parse_duration(wanted) // 86400), means, "Renew it before it ends: all pulls fail then.", ">=")


def _ca_goal(facts: Facts, entry: Mapping[str, Any]) -> Desired | None:
    """None: the profile gives no fingerprint, and none is needed, since the engine trusts the registry without it."""
    key = _ca_key(entry)
    has, offered, place = (_now(facts, each) for each in (key, f"{key}/offered", f"{key}/place"))
    known = has if isinstance(has, tuple) else ()
    on_offer = offered if isinstance(offered, tuple) else ()
    means = f"{place} has not the authority's certificate of {entry['ca']}."
    if "sha256" in entry:
        wanted = registries.colons(entry["sha256"])
        if wanted in known:
            return Desired(known, live=False)
        refused = fix = ""
        if isinstance(offered, Unknown):
            refused, fix = (
                f"it cannot be fetched: {offered.reason}",
                "Make it available there, or put it in place by hand.",
            )
        elif wanted not in on_offer:
            refused = f"{entry['ca']} has another certificate: {', '.join(on_offer)}"
            fix = "Ask the registry's owner which is right, and correct the profile or the server. It may be an attack."
        said = f"{means} Refused: {refused}." if refused else means
        return Desired(tuple(sorted({*known, wanted})), live=False, refused_next=refused, means=said, fix=fix)
    trusted = _now(facts, f"{_prefix(entry)}/certificate")
    if known and not (str(trusted).endswith(_UNTRUSTED) and set(on_offer) - set(known)):
        return Desired(known, live=False)
    if trusted == TRUSTED:
        return None
    if isinstance(offered, Unknown):
        refused, fix = f"it cannot be fetched: {offered.reason}", "Make it available there, or put it in place by hand."
    else:
        refused = f"the profile gives no fingerprint; what is there has {' and '.join(on_offer)}"
        fix = (
            f"Compare that with what the registry's owner says, then put beside ca: sha256: {on_offer[0]}"
            if on_offer
            else ""
        )
    missing = tuple(sorted({*known, *(on_offer or ("a certificate",))}))
    return Desired(missing, live=False, refused_next=refused, means=f"{means} Refused: {refused}.", fix=fix)


def suggest(facts: Facts) -> Suggestion:
    """The registries that an engine has certificates for."""
    found: list[Any] = []
    for key in facts:
        kind, _, rest = key.partition("/")
        if kind == "certificates" and isinstance(held := facts[key].current, tuple) and held:
            engine, _, name = rest.partition("/")
            found.append(name if engine == "docker" else {"host": name, "engine": engine})
    return Suggestion(found or None, {"": "add ca and sha256, so that apply can fetch the authority's certificate"})


# -- changing -------------------------------------------------------------------------------------


def apply(host: Host, changes: Sequence[Change]) -> None:
    for change in changes:
        before, after = (set(side) if isinstance(side, tuple) else set() for side in (change.before, change.after))
        engine, registry, url = _ca_parts(change.key)
        place = registries.place(host, engine, registry)
        for gone in sorted(before - after):
            _remove(host, place, gone)
        if wanted := sorted(after - before):
            _install(host, place, url, wanted)


def _install(host: Host, place: str, url: str, wanted: Sequence[str]) -> None:
    """Write what has the fingerprint that was asked for, and nothing else that comes with it."""
    if host.rehearsing:  # what it comes to, without asking for it once more
        host.run("curl", "--fail", "--output", _new_file(host, place, wanted[0]), url)
        return
    try:
        found = _fetched(host, url)
    except HostError as e:
        raise ChangeFailed(str(e), "Make it available there, or put it in place by hand.") from e
    for each in wanted:
        if each not in found:
            why = f"{url}: has another certificate by now: {', '.join(sorted(found))}"
            raise ChangeFailed(why, "Ask the registry's owner which is right. It may be an attack.")
        host.replace(_new_file(host, place, each), registries.pem(found[each]))


def _new_file(host: Host, place: str, certificate: str) -> str:
    """The name by which documents know it; where another certificate has that, one of its own."""
    taken = host.exists(f"{place}/ca.crt")
    return f"{place}/ca-{certificate.replace(':', '')[:8].lower()}.crt" if taken else f"{place}/ca.crt"


def _remove(host: Host, place: str, gone: str) -> None:
    for name in host.names(place):
        if name.endswith(".crt") and set(registries.certificates(host.read_bytes(f"{place}/{name}") or b"")) == {gone}:
            host.replace(f"{place}/{name}", None)
            return
    raise ChangeFailed(f"{place}: no file has this certificate, and no other: {gone}", "Take it out by hand.")
