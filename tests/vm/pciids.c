/* Preloaded into QEMU: gives a device other PCI ids, so that the guest sees another maker's card.
 *
 *   cc -shared -fPIC -o pciids.so pciids.c connectx.c -ldl
 *   LD_PRELOAD=./pciids.so qemu-system-x86_64 ... -device igb,id=x15b3-1019-101a -device i6300esb,id=x10de-20b2-0302
 *
 * An igb whose id is xVENDOR-DEVICE-VF shows VENDOR:DEVICE, and its VFs are VENDOR:VF: Linux reads the VFs' device id
 * from the SR-IOV capability. An i6300esb, the smallest device that can be frozen, has xVENDOR-DEVICE-CLASS instead.
 * QEMU exports object_class_by_name(): before any device is made, PCIDeviceClass.realize of both is wrapped. Nothing
 * is assumed of struct offsets but that realize is four pointers before vendor_id, which holds from QEMU 8 to 10. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

void connectx_insert(void *device, unsigned sriov); /* connectx.c */

enum { INTERFACE = 0x09, CLASS = 0x0a, CAPABILITIES = 0x100, SRIOV = 0x10, VF_DEVICE_ID = 0x1a, MELLANOX = 0x15b3 };
enum { E820_RESERVED = 2 };

typedef void (*realize_function)(void *device, void **error);

struct kind {
    const char *name;
    uint16_t vendor, device;
    realize_function realize;
};

static struct kind igb = {"igb", 0x8086, 0x10c9, NULL}, watchdog = {"i6300esb", 0x8086, 0x25ab, NULL};
static char *(*path_component)(void *);

static int is_pointer(const void *p) {
    return (uintptr_t)p >= 0x10000 && !((uintptr_t)p >> 47) && !((uintptr_t)p & 7);
}

/* PCIDevice.config is the one pointer to bytes that start with the ids, with two more pointers (cmask, wmask) next. */
static uint8_t *configuration(void *device, const struct kind *kind) {
    uint8_t **field = device;
    for (int i = 0; i < 400; i++) {
        if (!is_pointer(field[i]) || !is_pointer(field[i + 1]) || !is_pointer(field[i + 2])) continue;
        uint16_t *ids = (uint16_t *)field[i];
        if (ids[0] == kind->vendor && ids[1] == kind->device) return field[i];
    }
    return NULL;
}

static void realize(void *device, void **error, const struct kind *kind) {
    unsigned vendor, id, third;
    kind->realize(device, error);
    const char *name = path_component(device);
    if (!name || sscanf(name, "x%4x-%4x-%4x", &vendor, &id, &third) != 3) return;
    uint8_t *config = configuration(device, kind);
    if (!config) {
        fprintf(stderr, "pciids: the configuration space of %s was not found\n", name);
        return;
    }
    *(uint16_t *)config = vendor;
    *(uint16_t *)(config + 2) = id;
    if (kind == &watchdog) {
        config[INTERFACE] = 0;
        *(uint16_t *)(config + CLASS) = third;
        return;
    }
    for (unsigned at = CAPABILITIES; at; at = *(uint32_t *)(config + at) >> 20)
        if (*(uint16_t *)(config + at) == SRIOV) {
            *(uint16_t *)(config + at + VF_DEVICE_ID) = third;
            if (vendor == MELLANOX) connectx_insert(device, at);
        }
}

/* At a reset, forget what was translated: else GRUB puts the kernel over the one that ran, where each byte that is
 * written is first looked up in the code that was made of the old ones: 5 s of the 8 that it takes (QEMU 10.0). */
static void forget(void *opaque) {
    void *(*cpu)(int) = dlsym(RTLD_DEFAULT, "qemu_get_cpu");
    void (*flush)(void *) = dlsym(RTLD_DEFAULT, "tb_flush");
    if (cpu && flush) flush(cpu(0));
}

/* GRUB 2.06 moves the kernel, 58 MiB, byte by byte, from the start of its memory to where it is to run: from 1 MiB to
 * 16 MiB. QEMU's TLB has 256 pages then, in which both ends want the same place, and a byte takes 70 ns: 4 s. One page
 * that is no memory, behind GRUB's modules, and the start is elsewhere. */
static void reserve_page(void) {
    void (*reserve)(uint64_t, uint64_t, uint32_t) = dlsym(RTLD_DEFAULT, "e820_add_entry");
    if (reserve) reserve(0x180000, 0x1000, E820_RESERVED);
}

static void make_reboots_cheap(void) {
    static int done;
    void (*at_reset)(void (*)(void *), void *) = dlsym(RTLD_DEFAULT, "qemu_register_reset");
    if (done++) return;
    if (at_reset) at_reset(forget, NULL);
    reserve_page();
}

static void realize_igb(void *device, void **error) {
    make_reboots_cheap();
    realize(device, error, &igb);
}
static void realize_watchdog(void *device, void **error) { realize(device, error, &watchdog); }

static void wrap(void **class, struct kind *kind, realize_function with) {
    for (int i = 8; class && !kind->realize && i < 200; i++) {
        uint16_t *ids = (uint16_t *)(class + i);
        if (ids[0] != kind->vendor || ids[1] != kind->device) continue;
        kind->realize = (realize_function)class[i - 4];
        class[i - 4] = (void *)with;
        return;
    }
}

/* QEMU's first thread starts before its types are ready, its second before there are devices. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    static int threads;
    if (!real) real = dlsym(RTLD_NEXT, "pthread_create");
    void *(*class_by_name)(const char *) = dlsym(RTLD_DEFAULT, "object_class_by_name");
    path_component = dlsym(RTLD_DEFAULT, "object_get_canonical_path_component");
    if (++threads >= 2 && class_by_name && path_component) {
        wrap(class_by_name(igb.name), &igb, realize_igb);
        wrap(class_by_name(watchdog.name), &watchdog, realize_watchdog);
    }
    return real(thread, attributes, start, argument);
}
