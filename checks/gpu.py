"""GPUs: NVIDIA's, present, with the driver that the cluster needs or without any, set as wanted, and healthy.

    gpu: {count: 1, model: A100, driver: unloaded}     # a kind host: the driver runs in a worker, not here

    gpu:
      count: 8                      # at least one where nothing is said
      model: A100                   # a word of its name, or vendor:device as in 10de:20b2
      cards: "10de:20b2"            # which GPUs, all if left out: an address, vendor:device, driver; or a glob
      driver: ">=535.104.05"        # loaded (if left out), unloaded, vfio-pci, a version, or >= a version
      persistence: true
      ecc: true
      mig: [3g.40gb, 3g.40gb]       # or true, false
      compute_mode: default         # exclusive-process, prohibited
      nvlinks: 12                   # at least so many up; also temperature, retired_pages, ecc_errors, pcie_width
      ignored_xids: [63]
      installer: /root/openkasugai/driver/nvidia/NVIDIA-Linux-x86_64-550.90.12.run
      makefile: /root/openkasugai/Makefile

Presence comes from the PCI bus, without any driver: class 03xx and vendor 10de in sysfs. `bus` says whether the card
answers there: one that has fallen off reads all ones. Its name is the driver's, udev's or that of pci.ids.

Asking changes nothing. NVML is asked only while the nvidia module is loaded and /dev/nvidiactl is there, since it
would load the one and make the other; and in a child process with a deadline of its own, so that a driver that is
stuck is a finding. A field that a model does not have is no fault.

unloaded: none of NVIDIA's modules is in the kernel. Next boot: none is named in modules-load.d, /etc/modules or the
initramfs, and none is loaded by udev for the card; /etc/modprobe.d/00-hostprep-gpu.conf is what apply writes. Unloading
goes in order of dependency, and is refused, with the holder's name, while something uses a GPU; and where modprobe
could not bring the same driver back, since a container has loaded its own or an upgrade has replaced the file. Once a
worker of the cluster has the GPU this is as it should be: put gpu/modules into the profile's `advisory` then.

loaded: `driver/in-step` is the library (libnvidia-ml) against the kernel module. After an upgrade they differ, and
nothing works until a reboot or until the module is loaded anew.

Modes: ECC and, up to Ampere, MIG are kept by the card, with a pending value for the next boot. Persistence, compute
mode, MIG instances and, from Hopper on, MIG are lost at a reboot: apply records them in /etc/hostprep/boot/gpu.json,
and hostprep-apply.service makes them again (nvidia-persistenced does the same for persistence). MIG is changed while
no process runs on the GPU, and instances are only made where there are none.

Health: uncorrectable ECC errors, retired pages (up to Volta) or remapped rows (from Ampere on), Xids in the kernel log
since boot, clocks held down by heat or power, temperature, PCIe width (generation only under load, since an idle card
lowers it), NVLinks, fabric manager, and NVML's recovery action. ecc_errors limits the uncorrectable ones of the card's
whole life.

installer: the file that the cluster installs the driver from is there, and named for the version that runs here, and
for the one that the Makefile names (NVIDIA_DRIVER_FILE).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hostprep import boot_record, kmod, pci
from hostprep.errors import HostError
from hostprep.host import Host, attempt
from hostprep.host.nvml import Gpu, Nvml
from hostprep.model import Change, Desired, Facet, Fact, Facts, Goals, Reading, Section, Suggestion, Unknown, Value
from hostprep.nvidia import devices, driver, fabric, health, modes, xid
from hostprep.nvidia.driver import ANSWERS, LOADED, UNLOADED
from hostprep.nvidia.health import looked_at

NAME = "gpu"
MOVING = (
    "users",
    "*/users",
    "*/temperature",
    "*/temperature-margin",
    "*/utilization",
    "*/clock-reasons",
    "*/processes",
)

_MODEL = {
    "description": "a word of the GPU's name, such as A100, or its vendor:device, such as 10de:20b2",
    "type": "string",
    "pattern": r"^[A-Za-z0-9][A-Za-z0-9 :._-]*$(?!\n)",
}
_PATH = {"description": "an absolute path on this host", "type": "string", "pattern": r"^/[^\x00-\x1f]*$(?!\n)"}
_LIMIT = {"type": "integer", "minimum": 0}
SCHEMA = {
    "description": "NVIDIA GPUs: how many, which, their driver, modes and health.",
    "type": "object",
    "properties": {
        "count": {"description": "GPUs on the PCI bus", "type": "integer", "minimum": 1},
        "model": _MODEL,
        "cards": {**pci.SELECTOR, "description": "a PCI address, vendor:device, a driver; or a glob of these"},
        "driver": {
            "description": "loaded, unloaded, vfio-pci, a version such as 550.90.12, or a minimum: >=535.104.05",
            "type": "string",
            "pattern": r"^(loaded|unloaded|vfio-pci|(>= ?)?[0-9]+(\.[0-9]+)*)$(?!\n)",
        },
        "persistence": {"description": "persistence mode", "type": "boolean"},
        "ecc": {"description": "ECC mode", "type": "boolean"},
        "mig": {
            "description": "MIG mode: true, false, or the instances of each GPU, such as [3g.40gb, 3g.40gb]",
            "anyOf": [
                {"type": "boolean"},
                {
                    "type": "array",
                    "items": {
                        "description": "a MIG profile, such as 1g.10gb",
                        "type": "string",
                        "pattern": r"^[1-8]g\.[0-9]+gb(\+[a-z.]+)*$(?!\n)",
                    },
                    "minItems": 1,
                },
            ],
        },
        "compute_mode": {"enum": ["default", "exclusive-process", "prohibited"]},
        "nvlinks": {**_LIMIT, "description": "at least so many NVLinks of each GPU are up"},
        "temperature": {**_LIMIT, "description": "degrees Celsius, at most; else the card's own limit"},
        "retired_pages": {**_LIMIT, "description": f"at most; {health.RETIRED_PAGES} if left out"},
        "ecc_errors": {**_LIMIT, "description": "uncorrectable errors in the card's whole life, at most"},
        "pcie_width": {"description": "lanes, at least; else what card and slot can", "enum": [1, 2, 4, 8, 16, 32]},
        "ignored_xids": {"description": "Xids that are no finding here", "type": "array", "items": {"type": "integer"}},
        "installer": {**_PATH, "description": "the NVIDIA-Linux-*.run that the cluster installs from"},
        "makefile": {**_PATH, "description": "OpenKasugai's Makefile, which names NVIDIA_DRIVER_FILE"},
    },
    "additionalProperties": False,
    "minProperties": 1,
    "dependentRequired": {"makefile": ["installer"]},
}

VFIO = "vfio-pci"
FALLEN = "reads all ones"
NVML_S = 25.0  # eight GPUs without persistence take long to start; below the deadline, so that the rest is told
_MODPROBE = "/etc/modprobe.d/00-hostprep-gpu.conf"  # of several files the first decides
_MODULES_LOAD = "/etc/modules-load.d/hostprep-gpu.conf"
_CONTROL = "/dev/nvidiactl"
_FILES = ("installer/", "makefile/")


# -- looking --------------------------------------------------------------------------------------


def asked(want: Section, keys: Iterable[str]) -> Sequence[str]:
    section = want if isinstance(want, dict) else {}
    named = [f"{name}{section[name]}" for name in ("installer", "makefile") if name in section]
    changed = [key for key in keys if key.startswith(_FILES) or key.rpartition("/")[2] in modes.NAMES]
    return list(dict.fromkeys([*named, *changed]))


def inspect(host: Host, names: Sequence[str] = ()) -> Facts:
    facts = {name: Fact.fixed(attempt(_file, host, name)) for name in names if name.startswith(_FILES)}
    gpus = attempt(devices.gpus, host)
    if isinstance(gpus, Unknown):
        return facts | {"*": Fact.fixed(gpus)}
    modalias = [gpu.modalias for gpu in gpus]
    now, later = attempt(driver.loaded, host), attempt(driver.later, host, modalias)
    facts |= _driver(host, now, later)
    facts |= {key: fact for gpu in gpus for key, fact in _device(gpu, later).items()}
    if gpus and isinstance(now, tuple) and "nvidia" in now:
        told = _in_use(host, gpus)
        facts |= {key: fact for key, fact in told.items() if fact.current is not None or key not in facts}
    return facts | modes.untold(host, NAME, facts, [name for name in names if not name.startswith(_FILES)])


def _file(host: Host, name: str) -> str | None:
    kind, _, path = name.partition("/")
    path = f"/{path}"
    if kind == "makefile":
        text = host.read(path)
        return None if text is None else driver.makefile_version(text, path)
    if (size := host.size(path)) is None:
        return None
    return driver.installer_version(path) or "no version in its name" if size else "empty"


def _driver(host: Host, now: tuple[str, ...] | Unknown, later: tuple[str, ...] | Unknown) -> dict[str, Fact]:
    """The kernel driver: is it loaded, which of its modules, and which version; now and at the next boot."""
    return {
        "driver": Fact(_is_loaded(now), _is_loaded(later)),
        "modules": Fact(now, later),
        "driver/version": Fact(attempt(driver.version, host), attempt(_later_version, host, later)),
        "driver/on-disk": Fact.fixed(attempt(_on_disk, host)),
        "driver/forbidden": Fact.fixed(attempt(kmod.forbidden_by, host, "nvidia") or None),
        "driver/early": Fact.fixed(attempt(driver.early, host) or None),
    }


def _is_loaded(modules: tuple[str, ...] | Unknown) -> str | Unknown:
    return modules if isinstance(modules, Unknown) else LOADED if "nvidia" in modules else UNLOADED


def _on_disk(host: Host) -> str | None:
    return driver.version_on_disk(host, host.kernel())


def _later_version(host: Host, later: tuple[str, ...] | Unknown) -> str | None:
    if isinstance(later, Unknown):
        raise HostError(later.reason)
    return driver.later_version(host) if "nvidia" in later else None


def _device(gpu: devices.Device, later: tuple[str, ...] | Unknown) -> dict[str, Fact]:
    """One GPU as the bus shows it."""
    after: Reading = later if isinstance(later, Unknown) else "nvidia" if "nvidia" in later else None
    bound = gpu.driver or None
    facts = {
        "id": Fact.fixed(gpu.vendor_device),
        "driver": Fact(bound, after if bound == "nvidia" else bound),
        "names": Fact.fixed(()),
        "name": Fact.fixed(gpu.name),
        "bus": Fact.fixed(gpu.answers if isinstance(gpu.answers, Unknown) else ANSWERS if gpu.answers else FALLEN),
        "pcie-width": Fact.fixed(gpu.width),
        "pcie-width-max": Fact.fixed(gpu.width_max),
    }
    return {f"{gpu.address}/{name}": fact for name, fact in facts.items()}


def _in_use(host: Host, gpus: Sequence[devices.Device]) -> dict[str, Fact]:
    """What a driver that is loaded tells: NVML, the kernel log, who uses it, and the fabric of NVSwitches."""
    facts = {"users": Fact.fixed(attempt(driver.users, host))}
    facts |= _xids(host, gpus) | _fabric(host)
    told = attempt(_ask, host, [gpu.address for gpu in gpus])
    if isinstance(told, Unknown):
        return facts | {"nvml": Fact.fixed(told)}
    facts["nvml"] = Fact.fixed(told.error or ANSWERS)
    facts["driver/library"] = Fact.fixed(told.library or None)
    facts["cuda"] = Fact.fixed(told.cuda or None)
    record = attempt(modes.record, host, NAME)
    for one in told.gpus:
        facts |= _told(host, one, record)
    return facts


def _ask(host: Host, addresses: Sequence[str]) -> Nvml:
    if not host.exists(_CONTROL):
        raise HostError(
            f"{_CONTROL}: not there, and asking NVML would make it: a look changes nothing. nvidia-modprobe makes it, "
            "and at every boot nvidia-persistenced.service does"
        )
    return host.nvml(addresses, NVML_S)


def _told(host: Host, gpu: Gpu, record: boot_record.Record | Unknown) -> dict[str, Fact]:
    """What NVML tells of one GPU. What is read before the GPU is lost counts for nothing."""
    facts = {f"{gpu.address}/nvml": Fact.fixed(gpu.error or ANSWERS)}
    if gpu.error:
        return facts
    fields = dict(gpu.fields)
    name = fields.pop("name", None)
    facts |= health.facts(gpu.address, fields) | modes.facts(host, gpu, record)
    return facts | ({f"{gpu.address}/name": Fact.fixed(name)} if isinstance(name, str) else {})


def _xids(host: Host, gpus: Sequence[devices.Device]) -> dict[str, Fact]:
    events = attempt(xid.read, host)
    if isinstance(events, Unknown):
        return {"xids": Fact.fixed(events)}
    said: dict[str, tuple[str, ...]] = {gpu.address: () for gpu in gpus}
    said |= {f"{device}.0": told for device, told in xid.faults(events).items()}
    return {f"{address}/xids": Fact.fixed(phrases) for address, phrases in said.items()}


def _fabric(host: Host) -> dict[str, Fact]:
    switches = attempt(fabric.switches, host)
    if isinstance(switches, Unknown):
        return {"nvswitches": Fact.fixed(switches)}
    facts = {"nvswitches": Fact.fixed(tuple(switches))}
    if switches:
        manager = attempt(fabric.manager, host)
        known = manager if isinstance(manager, Unknown) else manager.version if manager.running else None
        facts["fabric-manager"] = Fact.fixed(known)
    return facts


# -- deciding -------------------------------------------------------------------------------------


def decide(facts: Facts, want: Section) -> Goals:
    selected = pci.select(facts, want["cards"]) if "cards" in want else pci.addresses(facts)
    goals = {"count": _count(facts, want, len(selected))} | _installer(facts, want)
    wanted = want.get("driver", LOADED)
    goals |= _kernel_driver(facts, wanted)
    for address in selected:
        goals |= _presence(facts, address, want, wanted)
    if wanted in (UNLOADED, VFIO):
        return goals | _in_vain(want, wanted) | modes.forgotten(facts, modes.RECORDED)
    if "nvml" not in facts:
        return goals
    goals |= _log(facts, selected, want)  # above all where NVML does not answer: it says why
    if facts["nvml"].current != ANSWERS:
        return goals
    if want.get("mig") is False:
        goals |= modes.forgotten(facts, ["mig-devices"])
    for address in selected:
        goals |= _nvml(facts, address)
        if facts.get(f"{address}/nvml", _NOTHING).current == ANSWERS:
            goals |= modes.goals(facts, address, want) | health.goals(facts, address, want)
    return goals | ({} if "cards" in want else _elsewhere(facts))


def suggest(facts: Facts) -> Suggestion:
    """How many of which device, with or without a driver, and the modes that the card itself keeps."""
    addresses = pci.addresses(facts)
    if not addresses:
        return Suggestion(None)
    section: dict[str, Any] = {"count": len(addresses)}
    notes = {}
    devices_here = {facts[f"{address}/id"].current for address in addresses}
    if len(devices_here) == 1:
        section["model"] = devices_here.pop()
        notes["model"] = str(facts[f"{addresses[0]}/name"].current or "")
    drivers = {facts[f"{address}/driver"].current for address in addresses}
    section["driver"] = VFIO if drivers == {VFIO} else facts["driver"].current
    if section["driver"] == LOADED:
        notes["driver"] = f"version {facts['driver/version'].current}; a minimum is written >=535.104.05"
        lasting = {"ecc": True, "mig": False}
        section |= {
            mode: wanted
            for mode, wanted in lasting.items()
            if all(facts.get(f"{address}/{mode}") == Fact.fixed(wanted) for address in addresses)
        }
    return Suggestion(section, notes)


_NOTHING = Fact.fixed(None)
_TOLD_BY_NVML = ("persistence", "ecc", "mig", "compute_mode", "nvlinks", "temperature", "retired_pages", "ecc_errors")


def _in_vain(want: Section, wanted: str) -> dict[str, Desired]:
    """What a profile asks of GPUs that it wants without NVIDIA's driver, which alone could tell."""
    why = Unknown(f"NVIDIA's driver alone tells it, and this profile has driver: {wanted}")
    goal = Desired(None, live=False, persist=False, counted=why)
    return {name.replace("_", "-"): goal for name in _TOLD_BY_NVML if name in want}


def _count(facts: Facts, want: Section, found: int) -> Desired:
    selector = want.get("cards", "10de:*")
    means = pci.nothing(facts, selector, "GPU") if not found else f"On the PCI bus {found} match {selector}."
    fix = "See lspci -nn -d 10de: and the BIOS; a card that is missing is not powered, not seated, or dead."
    exact = "count" in want
    goal = looked_at(want.get("count", 1), means, fix, "==" if exact else ">=")
    return goal._replace(counted=facts["*"].current if "*" in facts else found)


def _presence(facts: Facts, address: str, want: Section, wanted: str) -> dict[str, Desired]:
    """What the bus tells of one GPU, whatever its driver."""
    goals = {
        "bus": looked_at(
            ANSWERS, _FALLEN_OFF, "Power the host off and on; if it comes back, the card or its slot fails."
        )
    }
    if "model" in want:
        goals["model"] = _model(facts, address, want["model"])
    width, most = (facts[f"{address}/{name}"].current for name in ("pcie-width", "pcie-width-max"))
    most = want.get("pcie_width", most)
    if most is not None and (width is not None or "pcie_width" in want):
        means = "Its PCIe link has lost lanes: card and slot can do more."
        goal = looked_at(most if isinstance(most, int) else 1, means, _RESEAT, ">=")
        silent = Unknown("it tells no width of a PCIe link: it sleeps, or is that of a virtual machine")
        goals["pcie-width"] = goal._replace(counted=silent if width is None else _worse(width, most))
    loaded = wanted == VFIO or facts.get("driver", _NOTHING).current == LOADED
    goals |= _bound(facts[f"{address}/driver"].current, wanted, loaded)
    return {f"{address}/{name}": goal for name, goal in goals.items()}


def _worse(reading: Reading, limit: Reading) -> Reading:
    """A reading that is to be compared with another is unknown where that is."""
    return limit if isinstance(limit, Unknown) else reading


_FALLEN_OFF = "It is listed on the bus and does not answer: it has fallen off."
_RESEAT = "Seat the card anew; look at the slot, the riser and the BIOS."


def _model(facts: Facts, address: str, model: str) -> Desired:
    name, vendor_device = facts[f"{address}/name"].current, str(facts[f"{address}/id"].current)
    fix = "This profile is for other GPUs."
    if model.lower() == vendor_device or (isinstance(name, str) and devices.is_called(name, vendor_device, model)):
        return looked_at(model, "", fix)._replace(counted=model)
    if name is None:
        nameless = Unknown(f"nothing on this host knows the name of {vendor_device}; a profile may name that instead")
        return looked_at(model, "", fix)._replace(counted=nameless)
    return looked_at(model, f"This GPU is a {name} ({vendor_device}).", fix)._replace(counted=name)


_HOLDERS = {
    "nouveau": (
        "nouveau, the kernel's own driver, has it, and NVIDIA's cannot take it.",
        "Write 'blacklist nouveau' to /etc/modprobe.d/nouveau.conf; update-initramfs -u (or dracut -f); reboot.",
    ),
    VFIO: (
        "vfio-pci has it: it is set aside for a virtual machine.",
        "Take it out of vfio-pci.ids=, /etc/modprobe.d and driver_override; or have the profile say driver: vfio-pci.",
    ),
}


def _bound(holder: Reading, wanted: str, loaded: bool) -> dict[str, Desired]:
    """The driver that is bound to a GPU; what the nvidia module does is told once for all GPUs."""
    name = {UNLOADED: None, VFIO: VFIO}.get(wanted, "nvidia")
    if (holder is None and (wanted == UNLOADED or not loaded)) or (wanted == UNLOADED and holder == "nvidia"):
        return {}
    means, fix = _HOLDERS.get(
        str(holder),
        ("No driver is bound to it.", "See dmesg: does this driver support this card?")
        if holder is None
        else (f"{holder} has it.", "Unbind it from that driver."),
    )
    return {"driver": looked_at(name, means, fix)}


def _kernel_driver(facts: Facts, wanted: str) -> dict[str, Desired]:
    if wanted == VFIO:
        return {}
    if wanted == UNLOADED:
        return {"modules": _unloaded(facts)}
    goals = {"driver": _held(facts) or _loaded(facts)}
    if facts.get("driver", _NOTHING).current != LOADED:
        return goals
    if wanted != LOADED:
        goals["driver/version"] = _version(wanted)
    return goals | _answering(facts) | _manager(facts)


def _unloaded(facts: Facts) -> Desired:
    early = facts["driver/early"].current if "driver/early" in facts else None
    named = f"the initramfs loads it ({early})" if early else ""
    why = _used(facts) or _irrevocable(facts)
    return Desired(
        (),
        refused_now=why,
        refused_next=named,
        means=f"NVIDIA's driver is in this kernel. {_sentence(why)}".strip(),
        fix="Take it out of there, and run update-initramfs -u (or dracut -f)."
        if named
        else "Stop what uses the GPUs.",
    )


def _irrevocable(facts: Facts) -> str:
    """Why the driver could not be loaded again: a container has brought its own (K16), or an upgrade replaced it."""
    running, found = (facts.get(f"driver/{name}", _NOTHING).current for name in ("version", "on-disk"))
    if running is None or running == found:
        return ""
    why = f"the file of the module is {found}, and {running} runs" if found else _NO_MODULE
    for reading in (running, found):
        why = reading.reason if isinstance(reading, Unknown) else why
    return f"it could not be loaded again: {why}"


_NO_MODULE = "there is no nvidia module for this kernel"


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}." if phrase else ""


def _used(facts: Facts) -> str:
    """Why the driver must not be taken from the GPUs."""
    users = facts["users"].current if "users" in facts else ()
    if isinstance(users, Unknown):
        return f"who uses the GPUs cannot be told: {users.reason}"
    return f"in use by {'; '.join(users)}" if isinstance(users, tuple) and users else ""


def _held(facts: Facts) -> Desired | None:
    """Another driver that has all GPUs, and takes them at the next boot again: then nvidia finds none to load for."""
    holders = {facts[f"{address}/driver"].current for address in pci.addresses(facts)}
    if facts.get("driver", _NOTHING).current != UNLOADED or not holders or holders & {None, "nvidia"}:
        return None
    holder = ", ".join(sorted(map(str, holders)))
    why = f"{holder} has every GPU"
    means, fix = _HOLDERS.get(holder, (f"{why}.", "Unbind them from that driver."))
    return Desired(LOADED, refused_now=why, refused_next=why, means=means, fix=fix, counted=UNLOADED)


def _loaded(facts: Facts) -> Desired:
    found, forbidden = (facts.get(f"driver/{name}", _NOTHING).current for name in ("on-disk", "forbidden"))
    goal = Desired(LOADED, means="NVIDIA's driver is not loaded.")
    if found is None or isinstance(found, Unknown):
        why = found.reason if isinstance(found, Unknown) else _NO_MODULE
        return goal._replace(
            refused_now=why,
            refused_next=why,
            means=f"NVIDIA's driver is not loaded: {why}.",
            fix="Install NVIDIA's driver; after a new kernel: dkms autoinstall.",
        )
    if forbidden and forbidden != _MODPROBE:
        why = forbidden.reason if isinstance(forbidden, Unknown) else f"{forbidden} forbids it"
        return goal._replace(refused_now=why, refused_next=why, fix=f"Take nvidia out of {forbidden}, and apply again.")
    return goal


def _version(wanted: str) -> Desired:
    version = wanted.removeprefix(">=").strip()
    fix = f"Install version {version}{' or later' if wanted != version else ''} of NVIDIA's driver, and reboot."
    return looked_at(version, "", fix, ">=" if wanted.startswith(">=") else "==")


def _answering(facts: Facts) -> dict[str, Desired]:
    """Does NVML answer, and is its library that of the kernel module?"""
    if "nvml" not in facts:  # there is no GPU to ask it for
        return {}
    error = facts["nvml"].current
    means, fix = _NVML_ERRORS.get(str(error), (f"NVML says {error}.", "See dmesg, and run nvidia-smi."))
    library = facts.get("driver/library", _NOTHING).current
    if not isinstance(library, str):
        return {"nvml": looked_at(ANSWERS, means, fix)}
    # A mismatch is told by driver/in-step alone, with both versions.
    goals = {} if error == _MISMATCH else {"nvml": looked_at(ANSWERS, means, fix)}
    now, later = facts["driver/version"]
    goals["driver/in-step"] = Desired(
        library,
        of="driver/version",
        live=False,
        persist=False,
        means=f"The kernel module is {now}, and the library (libnvidia-ml) {library}: the driver was upgraded, and "
        "nothing works until this host reboots, or the module is unloaded and loaded anew.",
        fix="Reboot this host, or load the module anew."
        if later == library
        else f"Install module and library of one version (dkms status): the next boot loads {later}. Then reboot.",
    )
    return goals


_MISMATCH = "LIB_RM_VERSION_MISMATCH"
_NVML_ERRORS = {
    _MISMATCH: (
        "NVML's library and the kernel module are of different versions: the driver was upgraded under way.",
        "Reboot this host, or unload and load the nvidia modules (modprobe -r, modprobe).",
    ),
    "LIBRARY_NOT_FOUND": (
        "The kernel module is loaded, and NVIDIA's library (libnvidia-ml.so.1) is not installed.",
        "Install the library of the same version as the module.",
    ),
    "DRIVER_NOT_LOADED": (
        "The nvidia module is loaded, and NVML cannot talk to it.",
        "See dmesg for NVRM; reboot this host.",
    ),
    "NO_PERMISSION": ("NVML may not be asked: /dev/nvidia* are not open to us.", "Run hostprep as root."),
}


def _manager(facts: Facts) -> dict[str, Desired]:
    """Where there are NVSwitches, GPUs cannot be used without a fabric manager of the driver's own version."""
    switches = facts.get("nvswitches", _NOTHING).current
    if isinstance(switches, Unknown):
        return {"nvswitches": looked_at((), "", "")}
    if not switches:
        return {}
    running, version = facts["fabric-manager"].current, facts["driver/version"].current
    means = (
        "This host has NVSwitches, and no fabric manager runs."
        if running is None
        else f"The fabric manager is {running}, and the driver {version}: it refuses to work with another."
    )
    fix = f"Install nvidia-fabricmanager {version}, and systemctl enable --now nvidia-fabricmanager."
    return {"fabric-manager": looked_at(version if isinstance(version, str) else "", means, fix)}


def _nvml(facts: Facts, address: str) -> dict[str, Desired]:
    """What NVML and the kernel log say of a GPU that is on the bus."""
    error = str(facts.get(f"{address}/nvml", _NOTHING).current or "NOT_FOUND")
    means = {
        "NOT_FOUND": "It is on the PCI bus, and NVML does not list it: the driver could not start it.",
        "GPU_IS_LOST": "NVML has lost it: it has fallen off the bus or does not answer.",
        "NO_PERMISSION": "NVML may not be asked about it: a container that was not given it?",
    }.get(error, f"NVML says {error} of it.")
    fix = "See dmesg for NVRM and Xid; reset it or reboot, and if it comes back have the card looked at."
    return {f"{address}/nvml": looked_at(ANSWERS, means, fix)}


def _elsewhere(facts: Facts) -> dict[str, Desired]:
    """What NVML or the kernel log tell of that is no GPU on the bus any more."""
    known = set(pci.addresses(facts))
    gone = [key.partition("/")[0] for key in facts if key.endswith("/nvml") and key.partition("/")[0] not in known]
    means = "NVML lists it, and the PCI bus does not: it was removed or has fallen off."
    return {f"{address}/bus": looked_at(ANSWERS, means, "Reboot this host.") for address in gone}


def _log(facts: Facts, selected: Sequence[str], want: Section) -> dict[str, Desired]:
    """The kernel log since boot: what a GPU or an NVSwitch has said of itself, and is no fault of an application."""
    if "xids" in facts:
        return {"xids": looked_at((), "", "Run hostprep as root, or give the kernel log more room: log_buf_len=.")}
    others = set(pci.addresses(facts)) - set(selected)
    told = {key: fact.current for key, fact in facts.items() if key.endswith("/xids")}
    goals = {f"{address}/xids": looked_at((), "", "") for address in selected}
    for key, said in told.items():
        if key.removesuffix("/xids") in others or not isinstance(said, tuple):
            continue
        left = tuple(phrase for phrase in said if xid.number_of(phrase) not in want.get("ignored_xids", ()))
        fix = xid.meaning(xid.number_of(left[0])).fix if left else ""
        goals[key] = looked_at((), f"In the kernel log since boot: Xid {'; '.join(left)}.", fix)._replace(counted=left)
    return goals


def _installer(facts: Facts, want: Section) -> dict[str, Desired]:
    """K15: the file that the driver is installed from is named for the version that is meant."""
    if "installer" not in want:
        return {}
    path = want["installer"]
    found = facts.get(f"installer{path}", _NOTHING).current
    version = found if isinstance(found, str) and found[:1].isdigit() else ""
    wrong = f"{path} is not there." if found is None else "" if version else f"{path}: {found}."
    goals: dict[str, Desired] = {}
    if "makefile" in want:
        makes = facts.get(f"makefile{want['makefile']}", _NOTHING).current
        means = wrong or f"{want['makefile']} names {makes or 'none, for it is not there'}; the file is {found}."
        goal = looked_at(makes if isinstance(makes, str) else "a version", means, _INSTALLER)
        goals["installer/makefile"] = goal._replace(counted=makes if isinstance(makes, Unknown) else found)
    running = facts.get("driver/version", _NOTHING).current
    if isinstance(running, str):
        means = wrong or f"The driver that runs here is {running}; the file is {found}."
        goals["installer/driver"] = looked_at(running, means, _INSTALLER)._replace(counted=found)
    return goals or {"installer": looked_at(version or "a version", wrong, _INSTALLER)._replace(counted=found)}


_INSTALLER = "Put the file there whose name has the right version, or mend what names it."


# -- changing -------------------------------------------------------------------------------------


def disrupts(facts: Facts, change: Change) -> str:
    """Who would lose a GPU: whoever uses it when the driver goes, or what runs on it when MIG changes."""
    if change.key in _DRIVER_KEYS:
        return "" if change.after == LOADED else _used(facts)
    return modes.disrupts(facts, change)


def at_boot(facts: Facts) -> Sequence[Change]:
    """What our boot unit makes again: what the record says and is not so."""
    return [Change(NAME, key, Facet.CURRENT, now, later) for key, now, later in modes.to_make_again(facts)]


def prepare(host: Host) -> None:
    """At boot: the device nodes that NVML needs, where neither udev nor nvidia-persistenced has made them yet."""
    if driver.loaded(host) and not host.exists(_CONTROL):
        minors = [gpu.minor for gpu in devices.gpus(host) if gpu.minor is not None]
        host.run("nvidia-modprobe", *(word for minor in minors for word in ("-c", str(minor))), timeout=NVML_S)


def apply(host: Host, changes: Sequence[Change]) -> None:
    for change in changes:
        if change.key in _DRIVER_KEYS:
            (_load if change.facet is Facet.CURRENT else _persist)(host, change)
    modes.apply(host, NAME, [change for change in changes if change.key not in _DRIVER_KEYS])


_DRIVER_KEYS = ("modules", "driver")


def _load(host: Host, change: Change) -> None:
    """Put modules into the running kernel, or take them out."""
    before = driver.loaded(host) if change.after == UNLOADED else _names(change.before)  # add-ons have come with it
    after = _names(change.after)
    if gone := [name for name in before if name not in after]:
        kmod.unload(host, gone)
    if new := [name for name in after if name not in before]:
        kmod.load(host, new)


def _names(value: Value) -> tuple[str, ...]:
    """The modules that a value of `modules` or `driver` stands for."""
    return value if isinstance(value, tuple) else ("nvidia",) if value == LOADED else ()


def _persist(host: Host, change: Change) -> None:
    """Have the next boot load the driver, or not, by one file of our own for each."""
    wanted = bool(_names(change.after))
    ours = host.read(_MODPROBE) is not None
    host.replace(_MODPROBE, None if wanted else driver.forbidding())
    if wanted and not ours:
        host.replace(_MODULES_LOAD, "# Written by hostprep apply; hostprep revert takes it away.\nnvidia\n")
    elif not wanted:
        host.replace(_MODULES_LOAD, None)
