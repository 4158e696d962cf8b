/* Preloaded into QEMU with pciids.c: the igb that shows a ConnectX's id has the way to its firmware too.
 *
 * mstflint (mtcr_ul, functional VSEC) knows nothing of a card but its configuration space: a vendor-specific capability
 * is a gateway of a few words, behind it lie address spaces, one of them the command mailbox. A query takes 80,000
 * accesses, so the gateway is here; a command, of which a query takes some forty, goes over a socket to who answers for
 * the firmware (HOSTPREP_CONNECTX is its path), as one byte that says what is asked, and the mailbox:
 *
 *   'C' MAILBOX  ->  MAILBOX      a register access
 *   'V'          ->  4 bytes      how many VFs the card offers since its last start, little endian
 *
 * PCIDevice.config_read and config_write of the device are replaced. Nothing is kept in QEMU's own copy of the
 * configuration space, so a machine that was frozen without the gateway can be thawed with it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef uint32_t (*read_function)(void *device, uint32_t address, int size);
typedef void (*write_function)(void *device, uint32_t address, uint32_t value, int size);

enum { FIRST_CAPABILITY = 0x34, GATEWAY = 0xe0, GATEWAY_BYTES = 0x18, VENDOR_SPECIFIC = 0x09 };
enum { CONTROL = 4, COUNTER = 8, SEMAPHORE = 0xc, ADDRESS = 0x10, DATA = 0x14 };
enum { COMMAND_EXT = 1, CR = 2, COMMAND = 3, SEMAPHORES = 0xa };
enum { HARDWARE_ID = 0xf0014, COMMAND_CONTROL = 0, MAILBOX_SIZE = 0x1000, MAILBOX = 0x100000, MAILBOX_BYTES = 0x340 };
enum { REGISTER_ACCESS = 0x9001, BAD_OPCODE = 1, CONNECTX5 = 0x20d };
static const uint32_t FLAG = 1u << 31;

static struct {
    void *device;
    read_function read;
    write_function write;
    int firmware;      /* the socket */
    uint32_t total_at; /* where the SR-IOV capability has TotalVFs; InitialVFs is before it */
    uint32_t space, known, ticket, owner, address, data, control, command_owner;
    uint8_t mailbox[MAILBOX_BYTES];
} card;

static int ask(char what, const void *question, size_t length, void *answer, size_t wanted) {
    uint8_t message[1 + MAILBOX_BYTES] = {what};
    memcpy(message + 1, question, length);
    if (send(card.firmware, message, 1 + length, MSG_NOSIGNAL) != (ssize_t)(1 + length)) return 0;
    for (size_t got = 0; got < wanted;) {
        ssize_t more = recv(card.firmware, (uint8_t *)answer + got, wanted - got, 0);
        if (more <= 0) return 0;
        got += more;
    }
    return 1;
}

static void execute(void) {
    int known = card.control >> 16 == REGISTER_ACCESS && ask('C', card.mailbox, MAILBOX_BYTES, card.mailbox, MAILBOX_BYTES);
    card.control = (card.control & 0xffff00fe) | (known ? 0 : BAD_OPCODE) << 8;
}

static uint32_t big(const uint8_t *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }

static uint32_t space_read(uint32_t address) {
    if (card.space == SEMAPHORES && address == 0) return card.command_owner;
    if (card.space == CR) return address == HARDWARE_ID ? CONNECTX5 : 0;
    if (address == COMMAND_CONTROL) return card.control;
    if (address == MAILBOX_SIZE) return MAILBOX_BYTES;
    uint32_t at = address - MAILBOX;
    return at <= MAILBOX_BYTES - 4 ? big(card.mailbox + at) : 0;
}

static void space_write(uint32_t address, uint32_t value) {
    if (card.space == SEMAPHORES && address == 0) {
        if (!value || !card.command_owner) card.command_owner = value;
    } else if (card.space == COMMAND || card.space == COMMAND_EXT) {
        uint32_t at = address - MAILBOX;
        if (at <= MAILBOX_BYTES - 4) {
            for (int i = 0; i < 4; i++) card.mailbox[at + i] = value >> (24 - 8 * i);
        } else if (address == COMMAND_CONTROL) {
            int go = value & 1 && !(card.control & 1);
            card.control = value;
            if (go) execute();
        }
    }
}

static uint32_t gateway_read(uint32_t word) {
    switch (word) {
    case 0: return VENDOR_SPECIFIC | GATEWAY_BYTES << 16; /* no next one; the last byte: functional, not recovery */
    case CONTROL: return (card.known ? 1u << 29 : 0) | card.space;
    case COUNTER: return card.ticket = card.ticket + 1 ? card.ticket + 1 : 1;
    case SEMAPHORE: return card.owner;
    case ADDRESS: return card.address;
    default: return card.data;
    }
}

static void gateway_write(uint32_t word, uint32_t value) {
    uint32_t space = value & 0xffff;
    switch (word) {
    case CONTROL:
        card.known = space == COMMAND_EXT || space == CR || space == COMMAND || space == SEMAPHORES;
        if (card.known) card.space = space;
        break;
    case SEMAPHORE:
        if (!value || !card.owner) card.owner = value;
        break;
    case DATA: card.data = value; break;
    case ADDRESS:
        card.address = value & 0x3fffffff;
        if (value & FLAG) { /* a write: the flag falls when it is done */
            space_write(card.address, card.data);
        } else { /* a read: the flag rises when it is done */
            card.data = space_read(card.address);
            card.address |= FLAG;
        }
    }
}

/* One byte of what is laid over the configuration space; -1 where nothing is. */
static int over(void *device, uint32_t at) {
    if (at == card.total_at || at == card.total_at - 2) {
        uint8_t total[4] = {0};
        return ask('V', "", 0, total, 4) ? total[0] : 0;
    }
    if (at == card.total_at + 1 || at == card.total_at - 1) return 0;
    uint32_t next = FIRST_CAPABILITY, last = next;
    while ((next = card.read(device, next, 1) & 0xff)) last = ++next; /* where the last `next` stands */
    return at == last ? GATEWAY : -1;
}

static uint32_t config_read(void *device, uint32_t address, int size) {
    if (address >= GATEWAY && address < GATEWAY + GATEWAY_BYTES)
        return gateway_read((address - GATEWAY) & ~3u) >> 8 * (address & 3);
    uint32_t value = card.read(device, address, size);
    for (int i = 0; i < size; i++) {
        int byte = over(device, address + i);
        if (byte >= 0) value = (value & ~(0xffu << 8 * i)) | (uint32_t)byte << 8 * i;
    }
    return value;
}

static void config_write(void *device, uint32_t address, uint32_t value, int size) {
    if (address >= GATEWAY && address < GATEWAY + GATEWAY_BYTES) {
        if (size == 4 && !(address & 3)) gateway_write(address - GATEWAY, value);
        return;
    }
    card.write(device, address, value, size);
}

/* Called by pciids.c with a device that shows a ConnectX's id, and where its SR-IOV capability is. */
void connectx_insert(void *device, unsigned sriov) {
    const char *path = getenv("HOSTPREP_CONNECTX");
    void *standard = dlsym(RTLD_DEFAULT, "pci_default_read_config");
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    if (!path || !*path || !standard) return;
    void **field = device;
    int i = 0;
    while (i < 600 && field[i] != standard) i++;
    if (i == 600) {
        fprintf(stderr, "connectx: PCIDevice.config_read was not found\n");
        return;
    }
    strncpy(name.sun_path, path, sizeof name.sun_path - 1);
    card.firmware = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(card.firmware, (struct sockaddr *)&name, sizeof name)) {
        perror("connectx");
        return;
    }
    card.device = device;
    card.total_at = sriov + 0x0e;
    card.read = (read_function)field[i];
    card.write = (write_function)field[i + 1];
    field[i] = (void *)config_read;
    field[i + 1] = (void *)config_write;
}
