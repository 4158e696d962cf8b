#!/bin/bash
# Make the disk of the test machine: Debian 12 with the backported kernel, systemd, GRUB and what hostprep talks to.
#   build.sh FOLDER REQUIREMENT...     leaves disk.qcow2 and pciids.so in FOLDER
# Run by image.py, as root (mmdebstrap makes a chroot); no loop devices, and nothing outside FOLDER is written.
# REQUIREMENTs are hostprep's own dependencies, for the virtual environment /opt/hostprep: pip costs 45 s in the guest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
mirror=${HOSTPREP_VM_MIRROR:-http://deb.debian.org/debian}
root_mb=12288 # the baseline profile wants 10 GB; the file is sparse
root_uuid=5b0c0000-0000-4000-8000-000000000001
work=$out/work
root=$work/root
mkdir -p "$work"

gcc -shared -fPIC -O1 -Wall -Werror -o "$out/pciids.so" "$here/pciids.c" "$here/connectx.c" -ldl
gcc -static -O1 -Wall -Werror -o "$work/udevadm" "$here/udevadm.c"
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --python-version 311 --only-binary=:all: \
    --dest "$work/wheels" "$@" &
downloading=$!

packages=(systemd systemd-sysv udev kmod dbus initramfs-tools zstd linux-image-amd64/bookworm-backports grub-pc
    python3 python3-venv pciutils iproute2 ethtool mstflint procps psmisc e2fsprogs fdisk qemu-guest-agent)

# Modules that nothing here needs: a smaller image boots, and above all indexes its modules, faster. vfio, mlx5_core,
# igb, igbvf and pci-pf-stub stay.
dropped=()
for folder in drivers/{gpu,media,staging,isdn,infiniband/hw,net/{wireless,can,dsa},iio,hid,input/touchscreen,scsi} \
    drivers/{target,usb,video,mmc,mtd,bluetooth} sound fs/{ocfs2,ceph,xfs,btrfs,nfs,nfsd,f2fs,gfs2,jfs,reiserfs,ubifs} \
    net/{bluetooth,mac80211,wireless,sctp,rds}; do
    dropped+=(--dpkgopt="path-exclude=/lib/modules/*/kernel/$folder/*")
    dropped+=(--dpkgopt="path-exclude=/usr/lib/modules/*/kernel/$folder/*")
done
for path in doc/* man/* locale/* initramfs-tools/{hooks,scripts/*}/{udev,dmsetup}; do
    dropped+=(--dpkgopt="path-exclude=/usr/share/$path")
done

# Only what the disk needs goes into the initramfs: packing and unpacking it is what is slow under emulation.
mkdir -p "$work/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\nFSTYPE=ext4\n' >"$work/initramfs-tools/conf.d/vm"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$work/initramfs-tools/modules"
# No udev in there, which would take 3 s for what the system's own does again. What else came with it: blkid, /dev.
mkdir -p "$work"/initramfs-tools/{hooks,scripts/init-bottom}
cat >"$work/initramfs-tools/hooks/blkid" <<'E'
#!/bin/sh -e
[ "$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
copy_exec /sbin/blkid /sbin
E
cat >"$work/initramfs-tools/scripts/init-bottom/dev" <<'E'
#!/bin/sh -e
[ "$1" != prereqs ] || exit 0
mount -n -o move /dev "$rootmnt/dev"
nuke /dev
ln -s "$rootmnt/dev" /dev
E
chmod +x "$work"/initramfs-tools/{hooks/blkid,scripts/init-bottom/dev}

# What modules are built with stays out of the image: the kernel's headers lie beside it, the compiler is this machine's.
mkdir "$work/headers"
cat >"$work/headers/get" <<'E'
#!/bin/bash
set -euo pipefail
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
cd "${0%/*}"
wanted=linux-headers-$(ls "$1/lib/modules")
apt-get download -q "$wanted" $(apt-cache depends "$wanted" | grep -oE 'linux-(headers|kbuild)-\S+')
for package in *.deb; do dpkg -x "$package" .; done
E
chmod +x "$work/headers/get"

mmdebstrap --variant=minbase --mode=root --include="${packages[*]}" --skip=check/empty \
    --keyring=/usr/share/keyrings/debian-archive-keyring.gpg --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt=force-unsafe-io "${dropped[@]}" --essential-hook="copy-in '$work/initramfs-tools' /etc" \
    --customize-hook="$work/headers/get" \
    bookworm "$root" \
    "deb $mirror bookworm main" "deb $mirror bookworm-updates main" "deb $mirror bookworm-backports main" \
    "deb ${mirror%/debian}/debian-security bookworm-security main"

# --- the system
echo vm >"$root/etc/hostname"
echo '127.0.0.1 localhost vm' >"$root/etc/hosts"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
echo "UUID=$root_uuid / ext4 errors=remount-ro,noatime 0 1" >"$root/etc/fstab"
mkdir -p "$root"/etc/systemd/{system.conf.d,journald.conf.d,system-generators} "$root/etc/default/grub.d"
printf '[Manager]\nDefaultTimeoutStopSec=10s\nDefaultTimeoutStartSec=60s\n' >"$root/etc/systemd/system.conf.d/vm.conf"
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n' >"$root/etc/systemd/journald.conf.d/vm.conf"
systemctl --root="$root" --quiet set-default multi-user.target

# Units and generators that only cost time under emulation; none of them has to do with what hostprep looks at.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-tmpfiles-clean.timer getty@tty1.service getty-static.service serial-getty@ttyS0.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-pstore.service \
    systemd-boot-system-token.service systemd-hwdb-update.service systemd-journal-catalog-update.service \
    systemd-sysusers.service systemd-firstboot.service systemd-machine-id-commit.service systemd-update-done.service \
    systemd-journal-flush.service ldconfig.service grub-common.service grub-initrd-fallback.service \
    systemd-ask-password-console.path systemd-ask-password-wall.path systemd-binfmt.service systemd-logind.service \
    modprobe@{configfs,dm_mod,drm,fuse,loop,efi_pstore}.service proc-sys-fs-binfmt_misc.automount \
    sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-tracing.mount systemd-user-sessions.service \
    systemd-networkd.service systemd-networkd-wait-online.service systemd-network-generator.service \
    systemd-repart.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mkdir "$root/etc/systemd/system/qemu-guest-agent.service.d" # a line in the journal for every question is a cost too
printf '[Service]\nStandardError=null\n' >"$root/etc/systemd/system/qemu-guest-agent.service.d/vm.conf"
# Of 320 devices, those that have a driver here, or a unit that waits for them.
coldplug='[Service]\nExecStart=\nExecStart=-udevadm trigger --type=devices --action=add'
for subsystem in block misc net pci virtio virtio-ports; do
    coldplug+=" --subsystem-match=$subsystem"
done
mkdir "$root/etc/systemd/system/systemd-udev-trigger.service.d"
printf "$coldplug\n" >"$root/etc/systemd/system/systemd-udev-trigger.service.d/vm.conf"
for generator in cryptsetup debug getty hibernate-resume integritysetup rc-local run system-update sysv veritysetup; do
    ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-$generator-generator"
done
printf 'blacklist %s\n' kvm_amd kvm_intel aesni_intel ghash_clmulni_intel sha512_ssse3 sha256_ssse3 sha1_ssse3 \
    crct10dif_pclmul crc32_pclmul pcspkr iTCO_wdt lpc_ich psmouse evdev serio_raw button >"$root/etc/modprobe.d/vm.conf"

install "$work/udevadm" "$root/usr/local/sbin" # for update-grub

# --- the card that says it is a ConnectX-5: mlx5_core finds no firmware behind it, pci-pf-stub gives its VFs
echo 'blacklist mlx5_core' >"$root/etc/modprobe.d/connectx.conf"
cat >"$root/etc/udev/rules.d/60-connectx.rules" <<'E'
ACTION=="add", SUBSYSTEM=="pci", ATTR{vendor}=="0x15b3", ATTR{device}=="0x1019", ATTR{driver_override}="pci-pf-stub", RUN+="/sbin/modprobe pci-pf-stub"
E

# --- the card that says it is an A100: what udev loads for it stands in for NVIDIA's driver, where DKMS puts that
kernel=$(ls "$root/lib/modules")
headers=$work/headers/usr/src/linux-headers-$kernel
modules=$root/lib/modules/$kernel/updates/dkms
sed -i "s|/usr/|$work/headers/usr/|g" "$headers/Makefile"
cp -r "$here/nvidia" "$work"
MAKEFLAGS= make -s -C "$headers" M="$work/nvidia" CC=gcc CONFIG_DEBUG_INFO_BTF_MODULES= modules
mkdir -p "$modules"
cp "$work"/nvidia/*.ko "$modules"

# Unpacked here, no boot unpacks them; with the initramfs of these.
chroot "$root" python3 - <<'E'
import lzma, pathlib

for path in pathlib.Path("/lib/modules").rglob("*.ko.xz"):
    path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
    path.unlink()
E
chroot "$root" depmod "$kernel"
chroot "$root" update-initramfs -u -k "$kernel"

# --- GRUB: a serial console, no menu, a kernel that is cheap to emulate; the IOMMU, so that vfio has groups. Ticks are
# periodic: beside another machine a one-shot timer of QEMU's APIC is lost now and then, and its CPU sleeps for ever
# ("rcu: Possible timer handling issue on cpu=0": one boot in eight).
arguments="console=ttyS0 intel_iommu=on iommu=pt mitigations=off nokaslr audit=0 selinux=0 apparmor=0 \
random.trust_cpu=on tsc=reliable cryptomgr.notests rcupdate.rcu_expedited=1 nohz=off highres=off 8250.nr_uarts=1"
cat >"$root/etc/default/grub.d/00-vm.cfg" <<E
GRUB_TIMEOUT=0
GRUB_RECORDFAIL_TIMEOUT=0
GRUB_DISABLE_OS_PROBER=true
GRUB_DISABLE_SUBMENU=true
GRUB_TERMINAL="serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="$arguments"
E
# What grub-install would put there. Only the first boot has this grub.cfg: image.py calls update-grub in it.
mkdir -p "$root"/boot/grub/{i386-pc,fonts}
cp "$root"/usr/lib/grub/i386-pc/*.{mod,lst} "$root/boot/grub/i386-pc"
cp "$root/usr/share/grub/unicode.pf2" "$root/boot/grub/fonts"
chroot "$root" grub-editenv - create
chroot "$root" grub-mkimage -O i386-pc -o /boot/grub/i386-pc/core.img -p '(hd0,gpt2)/boot/grub' biosdisk part_gpt ext2
cat >"$root/boot/grub/grub.cfg" <<E
linux /boot/vmlinuz-$kernel root=UUID=$root_uuid ro $arguments quiet
initrd /boot/initrd.img-$kernel
boot
E

# --- where hostprep goes: its environment, without hostprep itself
wait $downloading
mkdir "$root/wheels"
cp "$work"/wheels/* "$root/wheels"
chroot "$root" sh -ec 'python3 -m venv /opt/hostprep; /opt/hostprep/bin/pip install -q --no-index --no-deps /wheels/*'
rm -r "$root/wheels"
cat >"$root/opt/hostprep/bin/hostprep" <<'E'
#!/opt/hostprep/bin/python
from hostprep.__main__ import main

main()
E
chmod +x "$root/opt/hostprep/bin/hostprep"
ln -s /opt/hostprep/bin/hostprep "$root/usr/local/bin/hostprep"

# --- the disk: GPT with a BIOS boot partition for GRUB, the root, and 64 MiB for whoever wants to swap
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
disk=$work/disk.raw
truncate -s $((2 + root_mb + 64 + 1))M "$disk"
sfdisk -q "$disk" <<E
label: gpt
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649
start=4096, size=$((root_mb * 2048)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
start=$((4096 + root_mb * 2048)), size=$((64 * 2048)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
E
# GRUB 2.06 cannot read ext4 with these two features, which a newer mke2fs may switch on.
features=^metadata_csum_seed
mke2fs -V 2>&1 | grep -q '1\.4[0-6]' || features+=,^orphan_file
mkfs.ext4 -q -F -d "$root" -U "$root_uuid" -N 131072 -O "$features" -E offset=$((2 << 20)) "$disk" ${root_mb}M
# boot.img goes into the MBR, before the partition table, and reads the sector of core.img at 0x5c; the first sector of
# core.img reads where its second one is at 0x1f4 (grub-2.06 include/grub/i386/pc/boot.h).
grub=$root/usr/lib/grub/i386-pc/boot.img core=$root/boot/grub/i386-pc/core.img
(($(stat -c %s "$core") < 1 << 20))
into() { dd of="$disk" bs=1 seek="$1" conv=notrunc status=none; }
head -c 440 "$grub" | into 0
printf '\x00\x08' | into $((0x5c))
into $((2048 * 512)) <"$core"
printf '\x01\x08' | into $((2048 * 512 + 0x1f4))
qemu-img convert -O qcow2 "$disk" "$out/disk.qcow2"
rm -rf "$work"
