"""Cards whose firmware is a table, and a mstconfig that tells and sets it in the words of 4.31."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fakes import FakeHost

from hostprep import pci
from hostprep.errors import CommandFailed, HostError

FACTORY = {
    "SRIOV_EN": "False(0)",
    "NUM_OF_VFS": "0",
    "PF_NUM_OF_VF_VALID": "False(0)",
    "LINK_TYPE_P1": "ETH(2)",
    "LINK_TYPE_P2": "ETH(2)",
}
WORDS = {"IB": "IB(1)", "ETH": "ETH(2)", "True": "True(1)", "False": "False(0)"}
MAXIMUM = 127
OWN = "PF_NUM_OF_VF"


def failed(output: str) -> CommandFailed:
    return CommandFailed(f"mstconfig: exit 3: {output.strip().splitlines()[-1]}", status=3, output=output)


class Card:
    """All PFs share one table, but for PF_NUM_OF_VF, which is there only while PF_NUM_OF_VF_VALID is stored."""

    def __init__(self, *addresses: str, device: str = "1019", guid: str = "", **settings: str | None) -> None:
        self.addresses = addresses
        self.device = device
        self.guid = guid
        factory = {name: value for name, value in {**FACTORY, **settings}.items() if value is not None}
        self.default = dict(factory)
        self.next = dict(factory)
        self.current = dict(factory)
        self.own_next = dict.fromkeys(addresses, "0")
        self.own_current = dict.fromkeys(addresses, "0")
        self.read_only: set[str] = set()
        self.columns = ("Default", "Current", "Next Boot")
        self.trouble: Callable[[], str] | None = None  # what every command says; may raise
        self.needs_power_cycle = False
        self.writes: list[str] = []

    def files(self) -> dict[str, str]:
        files = {}
        for port, address in enumerate(self.addresses):
            path = f"{pci.DEVICES}/{address}"
            files |= {
                f"{path}/class": "0x020000\n",
                f"{path}/vendor": "0x15b3\n",
                f"{path}/device": f"0x{self.device}\n",
            }
            files |= {f"{path}/driver": "-> ../../../bus/pci/drivers/mlx5_core"}
            files |= {f"{path}/net/ens{int(address[5:7], 16)}f{port}np{port}/ifindex": "2\n"}
            if self.guid:
                files[f"{path}/infiniband/mlx5_{port}/sys_image_guid"] = f"{self.guid}\n"
        return files

    def start(self, host: FakeHost) -> None:
        """The next values become the current ones, and sysfs shows what the firmware now offers."""
        self.current, self.own_current = dict(self.next), dict(self.own_next)
        for address in self.addresses:
            own = self.current.get("PF_NUM_OF_VF_VALID") == "True(1)"
            number = self.own_current[address] if own else self.current["NUM_OF_VFS"]
            if self.current["SRIOV_EN"] == "True(1)" and number != "0":
                host.put(f"{pci.DEVICES}/{address}/sriov_totalvfs", f"{number}\n")

    def run(self, address: str, verb: str, words: Sequence[str]) -> str:
        if self.trouble is not None and (said := self.trouble()):
            raise failed(said)
        return self._query(address, words) if verb == "q" else self._set(address, words)

    def _columns(self, address: str) -> dict[str, dict[str, str]]:
        shown = {"Default": dict(self.default), "Current": dict(self.current), "Next Boot": dict(self.next)}
        if "True(1)" in (self.next.get("PF_NUM_OF_VF_VALID"), self.current.get("PF_NUM_OF_VF_VALID")):
            own = {"Default": "0", "Current": self.own_current[address], "Next Boot": self.own_next[address]}
            for column, value in own.items():
                shown[column][OWN] = value
        return shown

    def _query(self, address: str, names: Sequence[str]) -> str:
        shown = self._columns(address)
        head = "\nDevice #1:\n----------\n\nDevice:             " + address + "\n\n"
        table = f"{'Configurations:':<20}{''.join(f'{c:>20}' for c in self.columns)}\n"
        for name in names:
            if name not in shown["Next Boot"]:
                raise failed(f"{head}{table}-E- The Device doesn't support {name} parameter\n")
            values = "".join(f"{shown[c][name]:<20} " for c in self.columns)
            mark = "*" if shown["Next Boot"][name] != shown["Default"][name] else " "
            table += f"{mark}{'RO' if name in self.read_only else '  '}     {name:<44}{values}\n"
        return head + table + "The '*' shows parameters with next value different from default/current value.\n"

    def _set(self, address: str, words: Sequence[str]) -> str:
        shown = self._columns(address)["Next Boot"]
        for word in words:
            name, _, value = word.partition("=")
            if name not in shown:
                raise failed(f"-E- The Device doesn't support {name} parameter\n")
            if name in ("NUM_OF_VFS", OWN) and int(value) > MAXIMUM:
                said = f"-E- Parameter {name}' value is larger than maximum allowed {MAXIMUM}\n"
                raise failed(f"Applying... Failed!\n{said}")
        for word in words:
            name, _, value = word.partition("=")
            self.writes.append(f"{address} {word}")
            if name == OWN:
                self.own_next[address] = value
                continue
            if shown[name] in ("True(1)", "False(0)"):
                value = "True" if value in ("1", "True") else "False"
            self.next[name] = WORDS.get(value, value)
        machine = "power cycle" if self.needs_power_cycle else "reboot"
        return f"Applying... Done!\n-I- Please {machine} machine to load new configurations.\n"


def plug(host: FakeHost, *cards: Card) -> None:
    """Put cards into a host, and mstconfig beside them."""
    by_address = {address: card for card in cards for address in card.addresses}
    for card in cards:
        for path, text in card.files().items():
            host.put(path, text)

    def mstconfig(argv: Sequence[str]) -> str:
        if argv[1] == "-v":
            return "mstconfig, mstflint 4.21.0, Git SHA Hash: N/A\n"
        address, rest = argv[2], [word for word in argv[3:] if word not in ("-e", "-y")]
        assert argv[1] == "-d"
        if address not in by_address:
            raise HostError(f"the test has no card at {address}")
        return by_address[address].run(address, rest[0], rest[1:])

    host.put("/usr/bin/mstconfig", "")
    host.commands["mstconfig"] = mstconfig
