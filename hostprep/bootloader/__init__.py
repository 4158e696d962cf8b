"""The kernel's arguments: those it was booted with, and those of the entry that will really boot.

Several checks set arguments (kernel_args, hugepages) and none of them knows the others: each is an `owner`
here. Next boot is read from what the boot loader itself reads (the generated grub.cfg, BLS entries, grubenv),
never from /etc/default/grub, which is only what somebody meant.

Arguments are kept as ordered words without their quotes. Order matters, and so do repeats.
"""

from __future__ import annotations

from hostprep.bootloader.reading import GRUB_CFGS, Boot, container, read
from hostprep.bootloader.words import name_of, split
from hostprep.bootloader.writing import owned, put, regenerate

__all__ = ["GRUB_CFGS", "Boot", "container", "name_of", "owned", "put", "read", "regenerate", "split"]
