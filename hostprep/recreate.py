"""Making again what no kernel keeps over a reboot, from the records that hostprep wrote: `hostprep apply --boot`.

It takes no profile, since it decides nothing: the records say what an apply has made the next boot bring. What is not
as they say is a failure with a name, and all else is done.

Jobs and containers that run are no obstacle here, as they are to `hostprep apply`: it is done at boot, before those
who start them (pbs_mom, slurmd, Docker, the kubelet), and a job that waits for the VFs must not keep them away. Who
uses a device is asked of each check all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from hostprep import boot_record as boot
from hostprep.errors import HostError
from hostprep.host import Host
from hostprep.judge import show
from hostprep.model import Change, Facts, Unknown
from hostprep.perform import Failure, Performer, name_of
from hostprep.registry import Recreating, preparation, recreating

TIMEOUT_S = 60.0  # for all devices to be there; a ConnectX-7 takes up to 10 s to come out of reset, and there are many


def records(host: Host, failures: list[Failure]) -> dict[str, boot.Record]:
    """The records by check. One that cannot be relied on is a failure."""
    found: dict[str, boot.Record] = {}
    for name in boot.names(host):
        try:
            if record := boot.read(host, name):
                found[name] = record
        except HostError as e:
            failures.append(Failure(name, str(e), e.hint))
    return found


def recreate(
    performer: Performer,
    found: Mapping[str, boot.Record],
    before: Callable[[], None] = lambda: None,
    timeout: float = TIMEOUT_S,
) -> None:
    """Wait for the devices, then make the running system what the records say; `before` is called before a change."""
    host = performer.host
    if not host.settled(lambda: all(boot.present(host, record) for record in found.values()), timeout):
        performer.progress(f"not all devices were there within {timeout:g} s")
    for name, record in found.items():
        check = recreating(performer.checks[name]) if name in performer.checks else None
        if check is None:
            performer.failures.append(Failure(name, "this hostprep has no check that makes this again"))
        else:
            _of_check(performer, check, record, before)


def _of_check(performer: Performer, check: Recreating, record: boot.Record, before: Callable[[], None]) -> None:
    """Device by device: one whose driver refuses must not take from the others what they have."""
    if prepare := preparation(check):
        try:
            prepare(performer.host)
        except HostError as e:
            performer.progress(f"{check.NAME}: {e}")  # what it was for cannot be read then, and that is told
    facts = performer.facts(check)
    if isinstance(facts, Unknown):
        performer.failures.append(Failure(check.NAME, f"cannot be read: {facts.reason}"))
        return
    sound = [address for address in record if _is_sound(performer, check, facts, address, record)]
    for address in sound:
        if todo := _of_device(check.at_boot(facts), address):
            before()
            performer.perform(todo, beside_jobs=True)
    _believe_what_is_there(performer, check, sound)


def _is_sound(performer: Performer, check: Recreating, facts: Facts, address: str, record: boot.Record) -> bool:
    """Is the device of a record there, the same as ever, and can all that is recorded of it be read?"""
    try:
        why = boot.missing(performer.host, address) or boot.replaced(performer.host, address, record[address])
    except HostError as e:
        why = str(e)
    if why:
        where = f"{boot.DIRECTORY}/{check.NAME}.json"
        hint = f"Is the card gone, or moved? See lspci -nn. If that is for good, take its line out of {where}."
        performer.failures.append(Failure(f"{check.NAME}/{address}", why, hint))
        return False
    for key in (f"{address}/{name}" for name in record[address]):
        fact = facts.get(key)
        if fact is not None and isinstance(fact.current, Unknown):
            performer.failures.append(Failure(f"{check.NAME}/{key}", f"cannot be read: {fact.current.reason}"))
    return True


def _believe_what_is_there(performer: Performer, check: Recreating, sound: Iterable[str]) -> None:
    """What is still not as recorded, and was not told yet, is a failure too."""
    facts = performer.facts(check)
    told = {name for failure in performer.failures for name in failure.name.split(", ")}
    for change in check.at_boot(facts) if not isinstance(facts, Unknown) else ():
        address = change.key.partition("/")[0]
        if address in sound and name_of(change) not in told:
            reason = f"asked for {show(change.after)}, the running system has {show(change.before)}"
            performer.failures.append(Failure(name_of(change), reason, "See the kernel log: dmesg"))
    if isinstance(facts, Unknown):
        performer.failures.append(Failure(check.NAME, f"cannot be read: {facts.reason}"))


def _of_device(changes: Iterable[Change], address: str) -> list[Change]:
    return [change for change in changes if change.key.partition("/")[0] == address]
