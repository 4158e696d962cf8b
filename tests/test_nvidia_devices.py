"""GPUs as the PCI bus shows them: K3, K16 and J1, without any driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from fakes import FakeHost

from hostprep.errors import HostError
from hostprep.model import Unknown
from hostprep.nvidia import devices

MakeHost = Callable[..., FakeHost]
A = "/sys/bus/pci/devices/0000:3b:00.0"
PCI_IDS = """\
# comment
10dd  Evans & Sutherland
\t20b2  Not this one
10de  NVIDIA Corporation
\t15f8  GP100GL [Tesla P100 PCIe 16GB]
\t\t10de 118f  a subsystem
# a comment between
\t20b2  GA100 [A100 SXM4 80GB]
10df  Emulex Corporation
\t20ff  Not this one either
"""


def a_gpu(**more: str) -> dict[str, str]:
    files = {"vendor": "0x10de", "device": "0x20b2", "class": "0x030200", "config": "\xde\x10\xb2\x20 and so on"}
    return {f"{A}/{name}": text for name, text in {**files, **more}.items() if text}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, True),
        ({"class": "0x030000"}, True),  # VGA
        ({"class": "0x040300"}, False),  # its sound function
        ({"class": "0x068000"}, False),  # an NVSwitch
        ({"vendor": "0x1002"}, False),  # AMD's
        ({"physfn/vendor": "0x10de"}, False),  # a VF of a vGPU
    ],
)
def test_a_gpu_is_told_by_class_and_vendor(make_host: MakeHost, changed: Mapping[str, str], found: bool) -> None:
    host = make_host(a_gpu(**changed))
    assert [gpu.address for gpu in devices.gpus(host)] == (["0000:3b:00.0"] if found else [])


def test_a_host_without_gpus_has_none(make_host: MakeHost) -> None:
    assert devices.gpus(make_host({})) == []


@pytest.mark.parametrize(("config", "answers"), [("\xde\x10\xb2\x20", True), ("\xff" * 64, False)])
def test_what_has_fallen_off_the_bus_reads_all_ones(make_host: MakeHost, config: str, answers: bool) -> None:
    host = make_host(a_gpu())
    (host.real(f"{A}/config"),)
    with open(host.real(f"{A}/config"), "wb") as f:
        f.write(config.encode("latin-1"))
    assert devices.gpus(host)[0].answers is answers


def test_a_configuration_space_that_is_not_there_is_unknown(make_host: MakeHost) -> None:
    assert isinstance(devices.gpus(make_host(a_gpu(config="")))[0].answers, Unknown)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"/proc/driver/nvidia/gpus/0000:3b:00.0/information": "Model: \t\t Tesla P100-PCIE-16GB\nIRQ:   1"},
         "Tesla P100-PCIE-16GB"),
        ({"/proc/driver/nvidia/gpus/0000:3b:00.0/information": "Model: \t\t Unknown\n",
          "/usr/share/hwdata/pci.ids": PCI_IDS}, "GA100 [A100 SXM4 80GB]"),
        ({"/run/udev/data/+pci:0000:3b:00.0": "I:1\nE:ID_MODEL_FROM_DATABASE=GA100 [A100 SXM4 80GB]\n"},
         "GA100 [A100 SXM4 80GB]"),
        ({"/usr/share/misc/pci.ids": PCI_IDS}, "GA100 [A100 SXM4 80GB]"),
        ({"/usr/share/misc/pci.ids": "10de  NVIDIA\n\t15f8  GP100GL\n"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_its_name_is_known_without_a_driver(make_host: MakeHost, files: Mapping[str, str], name: str | None) -> None:
    """K16: on the kind host the driver is not loaded, and the model must be known all the same."""
    assert devices.gpus(make_host({**a_gpu(), **files}))[0].name == name


@pytest.mark.parametrize(
    ("name", "model", "is_called"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100", True),
        ("GA100 [A100 SXM4 80GB]", "a100", True),
        ("GA100 [A100 SXM4 80GB]", "A10", False),
        ("GA102GL [A10]", "A100", False),
        ("Tesla P100-PCIE-16GB", "P100", True),
        ("Tesla P100-PCIE-16GB", "Tesla P100", True),
        ("GA100 [A100 SXM4 80GB]", "10DE:20B2", True),
        ("NVIDIA H100 80GB HBM3", "A100", False),
    ],
)
def test_a_model_is_a_whole_word_of_the_name(name: str, model: str, is_called: bool) -> None:
    """An A100 is no A10."""
    assert devices.is_called(name, "10de:20b2", model) is is_called


@pytest.mark.parametrize(
    ("card", "slot", "most"), [("16", "16", 16), ("16", "8", 8), ("16", "255", 16), ("", "", None), ("0", "0", None)]
)
def test_the_narrower_of_card_and_slot_decides_how_wide_a_link_can_be(
    make_host: MakeHost, card: str, slot: str, most: int | None
) -> None:
    real = "/sys/devices/pci0000:3a/0000:3a:00.0"
    files = {f"{real}/0000:3b:00.0/{name.rpartition('/')[2]}": text for name, text in a_gpu().items()}
    files |= {f"{real}/0000:3b:00.0/max_link_width": card, f"{real}/max_link_width": slot}
    host = make_host({name: text for name, text in files.items() if text} | {A: f"-> {real}/0000:3b:00.0"})
    assert devices.gpus(host)[0].width_max == most


@pytest.mark.parametrize(
    ("files", "width"),
    [
        ({"current_link_width": "8"}, 8),
        ({"current_link_width": "63"}, None),  # all ones
        ({"current_link_width": "0"}, None),  # a virtual machine
        ({"current_link_width": "4", "power/runtime_status": "suspended"}, None),
        ({}, None),
    ],
)
def test_a_link_that_sleeps_or_is_none_has_no_width(
    make_host: MakeHost, files: Mapping[str, str], width: int | None
) -> None:
    assert devices.gpus(make_host(a_gpu(**files)))[0].width == width


def test_garbage_on_the_bus_is_an_error_of_the_host(make_host: MakeHost) -> None:
    with pytest.raises(HostError, match="class: not a number"):
        devices.gpus(make_host(a_gpu(**{"class": "garbage"})))
