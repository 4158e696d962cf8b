"""A virtual machine that has real SR-IOV, two NUMA nodes and GRUB, and that really reboots.

QEMU emulates it, KVM is not needed: its igb is the one emulated network card that is an SR-IOV PF. The image is made
once (`image.py`, `build.sh`), started once and frozen; every test gets a machine thawed from there, in about two
seconds (`guest.py`). `make test-vm` runs what is in this folder.
"""

from vm.guest import Guest as Guest
