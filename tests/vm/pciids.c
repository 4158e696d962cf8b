/* Preloaded into QEMU: gives an igb other PCI ids, so that the guest sees another maker's card with real SR-IOV.
 *
 *   cc -shared -fPIC -o pciids.so pciids.c -ldl
 *   LD_PRELOAD=./pciids.so qemu-system-x86_64 ... -device igb,id=x15b3-1019-101a
 *
 * A device whose id is xVENDOR-DEVICE-VF shows VENDOR:DEVICE, and its VFs are VENDOR:VF: Linux reads the VFs' device
 * id from the SR-IOV capability. QEMU exports object_class_by_name(): before any device is made, PCIDeviceClass.realize
 * of igb is wrapped. Nothing is assumed of struct offsets but that realize is four pointers before vendor_id, which
 * holds from QEMU 8 to 10. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

enum { VENDOR = 0x8086, DEVICE = 0x10c9, SRIOV = 0x10, VF_DEVICE_ID = 0x1a };

typedef void (*realize_function)(void *device, void **error);

static realize_function igb_realize;
static char *(*path_component)(void *);

static int is_pointer(const void *p) {
    return (uintptr_t)p >= 0x10000 && !((uintptr_t)p >> 47) && !((uintptr_t)p & 7);
}

/* PCIDevice.config is the one pointer to bytes that start with the ids, with two more pointers (cmask, wmask) next. */
static uint8_t *configuration(void *device) {
    uint8_t **field = device;
    for (int i = 0; i < 400; i++) {
        if (!is_pointer(field[i]) || !is_pointer(field[i + 1]) || !is_pointer(field[i + 2])) continue;
        uint16_t *ids = (uint16_t *)field[i];
        if (ids[0] == VENDOR && ids[1] == DEVICE) return field[i];
    }
    return NULL;
}

static void realize(void *device, void **error) {
    unsigned vendor, pf, vf;
    igb_realize(device, error);
    const char *id = path_component(device);
    if (!id || sscanf(id, "x%4x-%4x-%4x", &vendor, &pf, &vf) != 3) return;
    uint8_t *config = configuration(device);
    if (!config) {
        fprintf(stderr, "pciids: the configuration space of %s was not found\n", id);
        return;
    }
    *(uint16_t *)config = vendor;
    *(uint16_t *)(config + 2) = pf;
    for (unsigned at = 0x100; at; at = *(uint32_t *)(config + at) >> 20)
        if (*(uint16_t *)(config + at) == SRIOV) *(uint16_t *)(config + at + VF_DEVICE_ID) = vf;
}

static void wrap_igb(void) {
    static int done;
    void *(*class_by_name)(const char *) = dlsym(RTLD_DEFAULT, "object_class_by_name");
    path_component = dlsym(RTLD_DEFAULT, "object_get_canonical_path_component");
    void **class = !done && class_by_name && path_component ? class_by_name("igb") : NULL;
    for (int i = 8; class && i < 200; i++) {
        uint16_t *ids = (uint16_t *)(class + i);
        if (ids[0] != VENDOR || ids[1] != DEVICE) continue;
        igb_realize = (realize_function)class[i - 4];
        class[i - 4] = (void *)realize;
        done = 1;
        return;
    }
}

/* QEMU's first thread starts before its types are ready, its second before there are devices. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    static int threads;
    if (!real) real = dlsym(RTLD_NEXT, "pthread_create");
    if (++threads >= 2) wrap_igb();
    return real(thread, attributes, start, argument);
}
