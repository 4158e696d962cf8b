"""The cards that can be modelled, and what they come with from the factory.

Values are those that public `mstconfig query` transcripts of these cards show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """What is printed on the box: identity, and limits."""

    name: str
    description: str
    psid: str
    firmware: str
    device: int
    vf_device: int
    hardware: int  # hardware id: CR space 0xf0014, and the PCI device id in flash recovery
    not_ready_at: int  # CR address where this generation keeps "static configuration not done" (mstflint: mtcr_ul)
    hca_type: str
    ports: int = 2
    max_vfs: int = 127
    speed: int = 100_000
    link: str = "16.0 GT/s PCIe"
    width: int = 16


KINDS = {
    "cx4lx": Kind(
        "MCX4121A-ACA_Ax",
        "ConnectX-4 Lx EN network interface card; 25GbE dual-port SFP28; PCIe3.0 x8; ROHS R6",
        *("MT_2420110034", "14.32.1010", 0x1015, 0x1016, 0x20B, 0xB0004, "MT4117"),
        max_vfs=63,
        speed=25_000,
        link="8.0 GT/s PCIe",
        width=8,
    ),
    "cx5ex": Kind(
        "MCX516A-CDA_Ax_Bx",
        "ConnectX-5 Ex EN network interface card; 100GbE dual-port QSFP28; PCIe4.0 x16; tall bracket; ROHS R6",
        *("MT_0000000013", "16.35.4030", 0x1019, 0x101A, 0x20D, 0xB5E04, "MT4121"),
    ),
    "cx6dx": Kind(
        "MCX623106AN-CDA_Ax",
        "ConnectX-6 Dx EN adapter card; 100GbE; Dual-port QSFP56; PCIe 4.0 x16; No Crypto",
        *("MT_0000000359", "22.41.1000", 0x101D, 0x101E, 0x212, 0xB5F04, "MT4125"),
    ),
    "cx6lx": Kind(
        "MCX631102AC-ADA_Ax",
        "ConnectX-6 Lx EN adapter card; 25GbE ; Dual-port SFP28; PCIe 4.0 x8; Crypto and Secure Boot",
        *("MT_0000000546", "26.41.1000", 0x101F, 0x101E, 0x216, 0xB5F04, "MT4127"),
        speed=25_000,
        width=8,
    ),
    "cx7": Kind(
        "MCX75310AAS-NEA_Ax",
        "NVIDIA ConnectX-7 HHHL Adapter card; 400GbE / NDR IB; Single-port OSFP; PCIe 5.0 x16",
        *("MT_0000000838", "28.41.1000", 0x1021, 0x101E, 0x218, 0xB5F04, "MT4129"),
        ports=1,
        speed=400_000,
        link="32.0 GT/s PCIe",
    ),
    "bf2": Kind(
        "MBF2H516A-CEEO_Ax_Bx",
        "BlueField-2 DPU 100GbE Dual-Port QSFP56; PCIe Gen4 x16",
        *("MT_0000000703", "24.41.1000", 0xA2D6, 0x101E, 0x214, 0xB5F04, "MT41686"),
    ),
}

# By the name that mstconfig shows. None: this card does not offer the parameter.
COMMON: Mapping[str, int] = {
    "SRIOV_EN": 0,
    "NUM_OF_VFS": 0,
    "NUM_OF_PF": 2,
    "NUM_PF_MSIX_VALID": 1,
    "NUM_PF_MSIX": 63,
    "NUM_VF_MSIX": 11,
    "PF_NUM_OF_VF_VALID": 0,
    "PF_NUM_OF_VF": 0,
    "PF_LOG_BAR_SIZE": 5,
    "VF_LOG_BAR_SIZE": 1,
    "LINK_TYPE": 2,
    "KEEP_ETH_LINK_UP": 1,
    "CQE_COMPRESSION": 0,
    "PHY_FEC_OVERRIDE": 0,
    "ROCE_CONTROL": 2,
    "ADVANCED_PCI_SETTINGS": 0,
}
OWN: Mapping[str, Mapping[str, int | None]] = {
    "cx4lx": {"LINK_TYPE": None, "NUM_OF_VFS": 8, "SRIOV_EN": 1},
    "cx5ex": {},
    "cx6dx": {"LINK_TYPE": None, "NUM_OF_VFS": 8},
    "cx6lx": {"LINK_TYPE": None, "NUM_OF_VFS": 8},
    "cx7": {"LINK_TYPE": 1, "NUM_OF_PF": 1, "NUM_OF_VFS": 16},
    "bf2": {
        "LINK_TYPE": None,
        "NUM_OF_VFS": 16,
        "SRIOV_EN": 1,
        "INTERNAL_CPU_MODEL": 1,
        "INTERNAL_CPU_PAGE_SUPPLIER": 0,
        "INTERNAL_CPU_ESWITCH_MANAGER": 0,
        "INTERNAL_CPU_IB_VPORT0": 0,
        "INTERNAL_CPU_OFFLOAD_ENGINE": 0,
    },
}

FAULTS: Mapping[str, str] = {
    "livefish": "flash recovery: the PCI id is the hardware id, no driver",
    "gone": "the device fell off the bus: configuration space reads all ones",
    "card_absent": "the slot is empty",
    "no_vsec": "no vendor-specific capability, so no way to the firmware",
    "vsec_sem_held": "a tool died with the gateway's semaphore: its ticket",
    "icmd_sem_held": "another tool has the command semaphore: its pid",
    "icmd_stuck": "a firmware command never ends",
    "fw_not_ready": "the firmware is still starting",
    "no_current": "old firmware: reads neither default nor current values",
    "reg_status": 'a register answers with this status: {"get:9030": 4}',
    "lockdown": "kernel lockdown, integrity or confidentiality: no write to configuration space",
    "needs_power_cycle": "the new values come with a power cycle only, and the firmware says so",
    "sriov_numvfs_errno": "a write to sriov_numvfs fails with this errno",
    "sriov_numvfs_short": "the driver makes at most so many VFs, and the write succeeds",
    "sriov_numvfs_delay": "VFs show up so many seconds after the write returned",
}


def factory(kind: str, settings: Mapping[str, int | None]) -> dict[str, int]:
    """The parameters that this card offers, with their factory values."""
    values = {**COMMON, **OWN[kind], **settings}
    return {name: value for name, value in values.items() if value is not None}
