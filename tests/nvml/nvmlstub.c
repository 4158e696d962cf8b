/* A libnvidia-ml.so.1 that tells what a text file says. No code of NVIDIA's is in it.
 *
 * $NVMLSTUB_CONFIG names an INI file: [system], [gpu] for what all GPUs have in common, [gpu 0], [gpu 1] ...
 *
 *   key          the function's name without nvmlDevice or nvmlSystem, and .ARGUMENT for what it is asked about:
 *                GetTemperatureThreshold.1, GetTotalEccErrors.1.0, FieldValue.230
 *   value        what it gives, separated by blanks: GetEccMode = 1 1. !NAME or !15 is an error. A function that has no
 *                key is NOT_SUPPORTED; a number in GetNvLinkState past those that have one is INVALID_ARGUMENT.
 *
 * More keys:
 *   Init = !NAME             what nvmlInit ends in
 *   Say = TEXT               printed on stdout by nvmlInit
 *   Hang = FUNCTION          this function does not return (Init, GetName ...); in [system] or of one GPU
 *   Crash = FUNCTION         this one ends in SIGSEGV
 *   Handle = !NAME           what asking for the handle of a GPU ends in
 *   Lost = 1                 the GPU has fallen off the bus
 *   LostAt = FUNCTION        it does so when this one is called
 *   SetEccMode = !NAME       what setting it ends in; without the key it succeeds where GetEccMode is supported
 *   SetMigMode = NAME        activation status: the mode stays pending
 *   GpuInstanceProfile.INDEX = ID SLICES COUNT MEGABYTES NAME
 *   Instances = PROFILE ...  profile ids of the GPU instances that there are, -1 for none; each has a compute instance
 *   CreateGpuInstance.ID, GpuInstanceDestroy, ComputeInstanceDestroy = !NAME
 *
 * What is set is appended to a file of the same form, CONFIG.state, which the next process reads behind CONFIG.
 * Functions newer than -DDRIVER=MAJOR are left out, as in a driver of that time. */

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#ifndef DRIVER
#define DRIVER 999
#endif
#define API __attribute__((visibility("default")))

typedef unsigned int u32;
typedef unsigned long long u64;

enum { MAX_GPUS = 64, MAX_ENTRIES = 8192, MAX_INSTANCES = 8, SLICES = 7, SYSTEM = -2, ALL_GPUS = -1, NONE = -1 };

/* nvml.h, nvmlReturn_t */
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, INSUFFICIENT_RESOURCES = 23, ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999
};
static const char *const error_names[] = {
    "SUCCESS", "UNINITIALIZED", "INVALID_ARGUMENT", "NOT_SUPPORTED", "NO_PERMISSION", "ALREADY_INITIALIZED",
    "NOT_FOUND", "INSUFFICIENT_SIZE", "INSUFFICIENT_POWER", "DRIVER_NOT_LOADED", "TIMEOUT", "IRQ_ISSUE",
    "LIBRARY_NOT_FOUND", "FUNCTION_NOT_FOUND", "CORRUPTED_INFOROM", "GPU_IS_LOST", "RESET_REQUIRED",
    "OPERATING_SYSTEM", "LIB_RM_VERSION_MISMATCH", "IN_USE", "MEMORY", "NO_DATA", "VGPU_ECC_NOT_SUPPORTED",
    "INSUFFICIENT_RESOURCES", "FREQ_NOT_SUPPORTED", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED", "NOT_READY",
    "GPU_NOT_FOUND", "INVALID_STATE", "RESET_TYPE_NOT_SUPPORTED",
};

struct instance { int gpu, profile; };                 /* a GPU instance, and the compute instance in it */
struct device { int gpu; struct instance *instance; }; /* a GPU, or a MIG device */

static struct device gpus[MAX_GPUS], mig_devices[MAX_GPUS][MAX_INSTANCES];
static struct instance instances[MAX_GPUS][MAX_INSTANCES];
static int gpu_count, initialized, lost[MAX_GPUS];

/* -- the description ---------------------------------------------------------------------------------------------- */

static struct { int section; char *key, *value; } entries[MAX_ENTRIES];
static int entry_count;

static char *trimmed(char *text)
{
    char *end = text + strlen(text);
    while (end > text && strchr(" \t\r\n", end[-1]))
        *--end = 0;
    return text + strspn(text, " \t");
}

/* The value of a key; what is said later, and what is said of one GPU, counts. */
static const char *value_of(int section, const char *key)
{
    for (int i = entry_count - 1; i >= 0; i--)
        if (entries[i].section == section && !strcasecmp(entries[i].key, key))
            return entries[i].value;
    return section >= 0 ? value_of(ALL_GPUS, key) : NULL;
}

static int error_code(const char *name)
{
    for (int i = 0; i < (int)(sizeof error_names / sizeof *error_names); i++)
        if (!strcasecmp(name, error_names[i]))
            return i;
    return atoi(name) ? atoi(name) : UNKNOWN;
}

/* What a call ends in whose value this is. */
static int outcome(const char *value, int without)
{
    return !value ? without : *value == '!' ? error_code(value + 1) : SUCCESS;
}

static int read_file(const char *path)
{
    char line[4096], *equals;
    int section = SYSTEM, number;
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    while (fgets(line, sizeof line, file) && entry_count < MAX_ENTRIES) {
        char *text = trimmed(line);
        if (*text == '[') {
            section = !strncmp(text, "[system", 7) ? SYSTEM : ALL_GPUS;
            if (sscanf(text, "[gpu %d]", &number) == 1 && number >= 0 && number < MAX_GPUS) {
                section = number;
                gpu_count = number >= gpu_count ? number + 1 : gpu_count;
            }
        } else if (*text && *text != '#' && (equals = strchr(text, '='))) {
            *equals = 0;
            entries[entry_count].section = section;
            entries[entry_count].key = strdup(trimmed(text));
            entries[entry_count++].value = strdup(trimmed(equals + 1));
        }
    }
    fclose(file);
    return 1;
}

static const char *state_path(void)
{
    static char path[4096];
    const char *config = getenv("NVMLSTUB_CONFIG");
    snprintf(path, sizeof path, "%s.state", config ? config : "/nonexistent");
    return path;
}

static int load(void)
{
    const char *config = getenv("NVMLSTUB_CONFIG");
    entry_count = gpu_count = 0;
    memset(lost, 0, sizeof lost);
    memset(instances, 0, sizeof instances);
    if (!config || !read_file(config))
        return DRIVER_NOT_LOADED;
    read_file(state_path());
    for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
        char *at = (char *)value_of(gpu, "Instances"), *end;
        gpus[gpu].gpu = gpu;
        for (int i = 0; i < MAX_INSTANCES; i++) {
            instances[gpu][i].gpu = mig_devices[gpu][i].gpu = gpu;
            instances[gpu][i].profile = at ? strtol(at, &end, 0) : NONE;
            if (at && end == at)
                instances[gpu][i].profile = NONE;
            at = at ? end : at;
            mig_devices[gpu][i].instance = &instances[gpu][i];
        }
    }
    return outcome(value_of(SYSTEM, "Init"), SUCCESS);
}

static int keep(int gpu, const char *format, ...)
{
    va_list arguments;
    FILE *file = fopen(state_path(), "a");
    if (!file)
        return UNKNOWN;
    fprintf(file, "[gpu %d]\n", gpu);
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fclose(file);
    int was = initialized, result = load();
    initialized = was;
    return result;
}

/* -- what every function begins with ------------------------------------------------------------------------------ */

static int is_named(int section, const char *what, const char *function)
{
    const char *value = value_of(section, what);
    return value && !strcasecmp(value, function);
}

static void misbehave(int section, const char *function)
{
    while (is_named(section, "Hang", function))
        pause();
    if (is_named(section, "Crash", function))
        raise(SIGSEGV);
}

static int valid(const struct device *device)
{
    return (device >= gpus && device < gpus + gpu_count)
        || (device >= mig_devices[0] && device < mig_devices[0] + MAX_GPUS * MAX_INSTANCES);
}

static int enter(const struct device *device, const char *function)
{
    if (!initialized)
        return UNINITIALIZED;
    if (!valid(device))
        return INVALID_ARGUMENT;
    misbehave(SYSTEM, function);
    misbehave(device->gpu, function);
    lost[device->gpu] |= is_named(device->gpu, "LostAt", function) || value_of(device->gpu, "Lost");
    return lost[device->gpu] ? GPU_IS_LOST : SUCCESS;
}

/* The numbers of a key; `function` is what precedes its first dot. */
static int numbers(const struct device *device, const char *key, u64 *out, int count)
{
    char function[96];
    snprintf(function, sizeof function, "%.*s", (int)strcspn(key, "."), key);
    int result = enter(device, function);
    const char *value = result ? NULL : value_of(device->gpu, key);
    if (!result)
        result = outcome(value, NOT_SUPPORTED);
    char *at = (char *)value;
    for (int i = 0; !result && i < count; i++)
        out[i] = strtoull(at, &at, 0);
    return result;
}

static int text(const char *value, char *out, u32 size)
{
    int result = outcome(value, NOT_SUPPORTED);
    if (!result && strlen(value) >= size)
        return INSUFFICIENT_SIZE;
    if (!result)
        strcpy(out, value);
    return result;
}

static const char *keyed(char *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, 96, format, arguments);
    va_end(arguments);
    return buffer;
}

/* -- the system --------------------------------------------------------------------------------------------------- */

API int nvmlInitWithFlags(u32 flags)
{
    (void)flags;
    int result = load();
    misbehave(SYSTEM, "Init");
    if (value_of(SYSTEM, "Say"))
        dprintf(1, "%s\n", value_of(SYSTEM, "Say"));
    initialized += !result;
    return result;
}

API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API int nvmlShutdown(void) { return initialized ? (initialized--, SUCCESS) : UNINITIALIZED; }

API const char *nvmlErrorString(int code)
{
    return code >= 0 && code < (int)(sizeof error_names / sizeof *error_names) ? error_names[code] : "Unknown Error";
}

API int nvmlSystemGetDriverVersion(char *out, u32 size)
{
    return initialized ? text(value_of(SYSTEM, "GetDriverVersion"), out, size) : UNINITIALIZED;
}

/* The library's own version needs neither driver nor nvmlInit. */
API int nvmlSystemGetNVMLVersion(char *out, u32 size)
{
    if (!entry_count)
        load();
    return text(value_of(SYSTEM, "GetNVMLVersion"), out, size);
}

API int nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    const char *value = value_of(SYSTEM, "GetCudaDriverVersion");
    int result = outcome(value, NOT_SUPPORTED);
    if (!result)
        *out = atoi(value);
    return result;
}

API int nvmlDeviceGetCount_v2(u32 *out)
{
    *out = gpu_count;
    return initialized ? SUCCESS : UNINITIALIZED;
}

static int give(int gpu, struct device **out)
{
    int result = enter(&gpus[gpu], "GetHandle");
    *out = &gpus[gpu];
    return result ? result : outcome(value_of(gpu, "Handle"), SUCCESS);
}

API int nvmlDeviceGetHandleByIndex_v2(u32 index, struct device **out)
{
    return !initialized ? UNINITIALIZED : index < (u32)gpu_count ? give(index, out) : INVALID_ARGUMENT;
}

/* 0000:04:00.0 and 00000000:04:00.0 are the same. */
static int same_address(const char *one, const char *other)
{
    u32 a[4], b[4];
    if (sscanf(one, "%x:%x:%x.%x", &a[0], &a[1], &a[2], &a[3]) != 4)
        return 0;
    return sscanf(other, "%x:%x:%x.%x", &b[0], &b[1], &b[2], &b[3]) == 4 && !memcmp(a, b, sizeof a);
}

API int nvmlDeviceGetHandleByPciBusId_v2(const char *address, struct device **out)
{
    for (int gpu = 0; initialized && gpu < gpu_count; gpu++)
        if (value_of(gpu, "GetPciInfo") && same_address(value_of(gpu, "GetPciInfo"), address))
            return give(gpu, out);
    return initialized ? NOT_FOUND : UNINITIALIZED;
}

struct pci_info { char legacy[16]; u32 domain, bus, device, ids, subsystem_ids; char address[32]; };

API int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci_info *out)
{
    int result = enter(device, "GetPciInfo");
    const char *value = result ? NULL : value_of(device->gpu, "GetPciInfo");
    if (result || (result = outcome(value, NOT_SUPPORTED)))
        return result;
    memset(out, 0, sizeof *out);
    if (sscanf(value, "%x:%x:%x", &out->domain, &out->bus, &out->device) != 3)
        return UNKNOWN;
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus, out->device);
    snprintf(out->address, sizeof out->address, "%08X:%02X:%02X.0", out->domain, out->bus, out->device);
    return SUCCESS;
}

/* -- what a GPU tells --------------------------------------------------------------------------------------------- */

#define TEXT(name)                                                              \
    API int nvmlDevice##name(struct device *device, char *out, u32 size)        \
    {                                                                           \
        int result = enter(device, #name);                                      \
        return result ? result : text(value_of(device->gpu, #name), out, size); \
    }
#define NUMBER(name)                                          \
    API int nvmlDevice##name(struct device *device, u32 *out) \
    {                                                         \
        u64 found = 0;                                        \
        int result = numbers(device, #name, &found, 1);       \
        if (!result)                                          \
            *out = found;                                     \
        return result;                                        \
    }
#define PAIR(name)                                                        \
    API int nvmlDevice##name(struct device *device, u32 *one, u32 *other) \
    {                                                                     \
        u64 found[2] = {0};                                               \
        int result = numbers(device, #name, found, 2);                    \
        if (!result) {                                                    \
            *one = found[0];                                              \
            *other = found[1];                                            \
        }                                                                 \
        return result;                                                    \
    }
#define BITS(name) \
    API int nvmlDevice##name(struct device *device, u64 *out) { return numbers(device, #name, out, 1); }
#define NUMBER_OF(name)                                                     \
    API int nvmlDevice##name(struct device *device, u32 argument, u32 *out) \
    {                                                                       \
        char key[96];                                                       \
        u64 found = 0;                                                      \
        int result = numbers(device, keyed(key, #name ".%u", argument), &found, 1); \
        if (!result)                                                        \
            *out = found;                                                   \
        return result;                                                      \
    }

TEXT(GetUUID)
TEXT(GetSerial)
TEXT(GetVbiosVersion)
NUMBER(GetArchitecture)
NUMBER(GetMinorNumber)
NUMBER(GetDisplayActive)
NUMBER(GetPersistenceMode)
NUMBER(GetComputeMode)
NUMBER(GetCurrPcieLinkGeneration)
NUMBER(GetMaxPcieLinkGeneration)
NUMBER(GetCurrPcieLinkWidth)
NUMBER(GetMaxPcieLinkWidth)
NUMBER(GetRetiredPagesPendingStatus)
NUMBER(GetMaxMigDeviceCount)
PAIR(GetEccMode)
PAIR(GetMigMode)
BITS(GetCurrentClocksThrottleReasons)
NUMBER_OF(GetTemperature)
NUMBER_OF(GetTemperatureThreshold)
#if DRIVER >= 535
BITS(GetCurrentClocksEventReasons)
#endif

API int nvmlDeviceGetUtilizationRates(struct device *device, u32 *out)
{
    u64 found[2] = {0};
    int result = numbers(device, "GetUtilizationRates", found, 2);
    for (int i = 0; !result && i < 2; i++)
        out[i] = found[i];
    return result;
}

API int nvmlDeviceGetMemoryInfo(struct device *device, u64 *out) { return numbers(device, "GetMemoryInfo", out, 3); }

API int nvmlDeviceGetNvLinkState(struct device *device, u32 link, u32 *out)
{
    char key[96];
    u64 found = 0;
    int result = numbers(device, keyed(key, "GetNvLinkState.%u", link), &found, 1);
    if (!result)
        *out = found;
    /* a GPU that has links calls the number of one that it does not have invalid */
    return result == NOT_SUPPORTED && value_of(device->gpu, "GetNvLinkState.0") ? INVALID_ARGUMENT : result;
}

API int nvmlDeviceGetTotalEccErrors(struct device *device, u32 kind, u32 counter, u64 *out)
{
    char key[96];
    return numbers(device, keyed(key, "GetTotalEccErrors.%u.%u", kind, counter), out, 1);
}

API int nvmlDeviceGetRemappedRows(struct device *device, u32 *right, u32 *wrong, u32 *pending, u32 *failed)
{
    u64 found[4] = {0};
    int result = numbers(device, "GetRemappedRows", found, 4);
    if (!result) {
        *right = found[0];
        *wrong = found[1];
        *pending = found[2];
        *failed = found[3];
    }
    return result;
}

/* The numbers of a key, however many; for functions that are asked for the number of them first. */
static int list(struct device *device, const char *key, u64 *out, u32 *count)
{
    int result = numbers(device, key, out, 0);
    char *at = result ? NULL : (char *)value_of(device->gpu, key), *end;
    *count = 0;
    for (; at && *count < 256; at = end, ++*count) {
        out[*count] = strtoull(at, &end, 0);
        if (end == at)
            break;
    }
    return result;
}

API int nvmlDeviceGetRetiredPages(struct device *device, u32 cause, u32 *count, u64 *out)
{
    char key[96];
    u64 found[256];
    u32 have, room = *count;
    int result = list(device, keyed(key, "GetRetiredPages.%u", cause), found, &have);
    *count = have;
    if (!result && (!out || room < have))
        return have ? INSUFFICIENT_SIZE : SUCCESS;
    if (!result)
        memcpy(out, found, have * sizeof *found);
    return result;
}

struct process { u32 pid; u64 memory; u32 gpu_instance, compute_instance; };

static int processes(struct device *device, const char *key, u32 *count, struct process *out)
{
    u64 found[256];
    u32 have, room = *count;
    int result = list(device, key, found, &have);
    *count = have;
    if (!result && room < have)
        return INSUFFICIENT_SIZE;
    for (u32 i = 0; !result && i < have; i++)
        out[i] = (struct process){found[i], 1 << 20, ~0u, ~0u};
    return result;
}

#define PROCESSES(kind, version)                                                                                      \
    API int nvmlDeviceGet##kind##RunningProcesses_##version(struct device *device, u32 *count, struct process *out)   \
    {                                                                                                                 \
        return processes(device, "Get" #kind "RunningProcesses", count, out);                                         \
    }
PROCESSES(Compute, v2)
PROCESSES(Graphics, v2)
PROCESSES(MPSCompute, v2)
#if DRIVER >= 510
PROCESSES(Compute, v3)
PROCESSES(Graphics, v3)
PROCESSES(MPSCompute, v3)
#endif

struct field { u32 id, scope; long long time, latency; u32 type; int result; u64 value; };

API int nvmlDeviceGetFieldValues(struct device *device, int count, struct field *fields)
{
    char key[96];
    int result = enter(device, "GetFieldValues");
    for (int i = 0; !result && i < count; i++) {
        fields[i].type = 1; /* unsigned int */
        fields[i].result = numbers(device, keyed(key, "FieldValue.%u", fields[i].id), &fields[i].value, 1);
    }
    return result;
}

struct fabric { unsigned char cluster[16]; u32 status, clique, state; };

#if DRIVER >= 525
API int nvmlDeviceGetGpuFabricInfo(struct device *device, struct fabric *out)
{
    u64 found[4] = {0};
    int result = numbers(device, "GetGpuFabricInfo", found, 4);
    if (!result)
        *out = (struct fabric){{0}, found[0], found[1], found[2]};
    return result;
}
#endif

#if DRIVER >= 545
struct fabric_v2 { u32 version; unsigned char cluster[16]; u32 status, clique, state, health; };

API int nvmlDeviceGetGpuFabricInfoV(struct device *device, struct fabric_v2 *out)
{
    u64 found[4] = {0};
    int result = numbers(device, "GetGpuFabricInfo", found, 4);
    if (!result && out->version != (sizeof *out | 2 << 24))
        return ARGUMENT_VERSION_MISMATCH;
    if (!result)
        *out = (struct fabric_v2){out->version, {0}, found[0], found[1], found[2], found[3]};
    return result;
}
#endif

#if DRIVER >= 570
struct temperature { u32 version, sensor; int value; };
struct margin { u32 version; int value; };

API int nvmlDeviceGetTemperatureV(struct device *device, struct temperature *out)
{
    char key[96];
    u64 found = 0;
    int result = numbers(device, keyed(key, "GetTemperature.%u", out->sensor), &found, 1);
    if (!result)
        out->value = (int)found;
    return result;
}

API int nvmlDeviceGetMarginTemperature(struct device *device, struct margin *out)
{
    u64 found = 0;
    int result = numbers(device, "GetMarginTemperature", &found, 1);
    if (!result)
        out->value = (int)found;
    return result;
}
#endif

/* -- what a GPU is told ------------------------------------------------------------------------------------------- */

/* May it be set? It must be there, and the description must not say otherwise. */
static int may_set(struct device *device, const char *set, const char *get)
{
    u64 found[2];
    int result = enter(device, set);
    if (!result)
        result = numbers(device, get, found, 1);
    return result ? result : outcome(value_of(device->gpu, set), SUCCESS);
}

API int nvmlDeviceSetPersistenceMode(struct device *device, u32 mode)
{
    int result = may_set(device, "SetPersistenceMode", "GetPersistenceMode");
    return result ? result : keep(device->gpu, "GetPersistenceMode = %u", mode);
}

API int nvmlDeviceSetComputeMode(struct device *device, u32 mode)
{
    int result = may_set(device, "SetComputeMode", "GetComputeMode");
    return result ? result : keep(device->gpu, "GetComputeMode = %u", mode);
}

/* The mode becomes pending: a boot brings it. */
API int nvmlDeviceSetEccMode(struct device *device, u32 mode)
{
    u64 now = 0;
    int result = may_set(device, "SetEccMode", "GetEccMode");
    if (!result)
        result = numbers(device, "GetEccMode", &now, 1);
    return result ? result : keep(device->gpu, "GetEccMode = %llu %u", now, mode);
}

/* The GPU is reset at once, unless the description gives a status that says why not. */
API int nvmlDeviceSetMigMode(struct device *device, u32 mode, u32 *status)
{
    u64 now = 0;
    int result = may_set(device, "SetMigMode", "GetMigMode");
    if (!result)
        result = numbers(device, "GetMigMode", &now, 1);
    if (result)
        return result;
    const char *stays = value_of(device->gpu, "SetMigMode");
    *status = stays ? error_code(stays) : SUCCESS;
    return keep(device->gpu, "GetMigMode = %llu %u", stays ? now : mode, mode);
}

/* -- MIG ---------------------------------------------------------------------------------------------------------- */

struct profile { int id, slices, count, megabytes; char name[96]; };

static int profile_at(int gpu, u32 index, struct profile *out)
{
    char key[96];
    const char *value = value_of(gpu, keyed(key, "GpuInstanceProfile.%u", index));
    return value
        && sscanf(value, "%d %d %d %d %95s", &out->id, &out->slices, &out->count, &out->megabytes, out->name) == 5;
}

static int profile_of(int gpu, int id, struct profile *out)
{
    for (u32 index = 0; index < 32; index++)
        if (profile_at(gpu, index, out) && out->id == id)
            return 1;
    return 0;
}

static int mig(struct device *device, const char *function)
{
    u64 enabled = 0;
    int result = enter(device, function);
    if (!result)
        result = numbers(device, "GetMigMode", &enabled, 1);
    return result ? result : enabled ? SUCCESS : NOT_SUPPORTED;
}

static int keep_instances(int gpu)
{
    char all[128] = "";
    for (int i = 0; i < MAX_INSTANCES; i++) /* empty places too: handles stay what they are */
        snprintf(all + strlen(all), sizeof all - strlen(all), " %d", instances[gpu][i].profile);
    return keep(gpu, "Instances =%s", all);
}

API int nvmlDeviceGetName(struct device *device, char *out, u32 size)
{
    struct profile profile;
    int result = enter(device, "GetName");
    if (!result)
        result = text(value_of(device->gpu, "GetName"), out, size);
    if (!result && device->instance && profile_of(device->gpu, device->instance->profile, &profile))
        snprintf(out + strlen(out), size - strlen(out), " MIG %s", profile.name);
    return result;
}

API int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, u32 index, struct device **out)
{
    int result = mig(device, "GetMigDeviceHandleByIndex");
    if (result)
        return result;
    *out = &mig_devices[device->gpu][index];
    return index < MAX_INSTANCES && instances[device->gpu][index].profile != NONE ? SUCCESS : NOT_FOUND;
}

#if DRIVER >= 510
struct profile_info {
    u32 version, id, peer_to_peer, slices, count, multiprocessors, engines[5];
    u64 megabytes;
    char name[96];
};

API int nvmlDeviceGetGpuInstanceProfileInfoV(struct device *device, u32 index, struct profile_info *out)
{
    struct profile profile;
    int result = mig(device, "GetGpuInstanceProfileInfo");
    if (result || !profile_at(device->gpu, index, &profile))
        return result ? result : NOT_SUPPORTED;
    *out = (struct profile_info){
        .version = out->version, .id = profile.id, .slices = profile.slices, .count = profile.count,
        .megabytes = profile.megabytes};
    snprintf(out->name, sizeof out->name, "MIG %.90s", profile.name);
    return SUCCESS;
}
#endif

API int nvmlDeviceGetGpuInstances(struct device *device, u32 profile, struct instance **out, u32 *count)
{
    int result = mig(device, "GetGpuInstances");
    *count = 0;
    for (int i = 0; !result && i < MAX_INSTANCES; i++)
        if (instances[device->gpu][i].profile == (int)profile)
            out[(*count)++] = &instances[device->gpu][i];
    return result;
}

API int nvmlDeviceCreateGpuInstance(struct device *device, u32 id, struct instance **out)
{
    char key[96];
    struct profile wanted, other;
    int used = 0, free_at = -1, result = mig(device, "CreateGpuInstance");
    if (!result)
        result = outcome(value_of(device->gpu, keyed(key, "CreateGpuInstance.%u", id)), SUCCESS);
    if (result || !profile_of(device->gpu, id, &wanted))
        return result ? result : INVALID_ARGUMENT;
    for (int i = MAX_INSTANCES - 1; i >= 0; i--) {
        if (profile_of(device->gpu, instances[device->gpu][i].profile, &other))
            used += other.slices;
        else
            free_at = i;
    }
    if (free_at < 0 || used + wanted.slices > SLICES)
        return INSUFFICIENT_RESOURCES;
    instances[device->gpu][free_at].profile = id;
    *out = &instances[device->gpu][free_at];
    return SUCCESS; /* kept once it has a compute instance */
}

API int nvmlGpuInstanceDestroy(struct instance *instance)
{
    int result = outcome(value_of(instance->gpu, "GpuInstanceDestroy"), SUCCESS);
    if (result)
        return result;
    instance->profile = NONE;
    return keep_instances(instance->gpu);
}

struct compute_profile { u32 id, slices, count, multiprocessors, engines[5]; };

API int nvmlGpuInstanceGetComputeInstanceProfileInfo(
    struct instance *instance, u32 index, u32 engine, struct compute_profile *out)
{
    static const u32 slices[] = {1, 2, 3, 4, 7};
    struct profile profile;
    (void)engine;
    if (index >= sizeof slices / sizeof *slices || !profile_of(instance->gpu, instance->profile, &profile)
        || slices[index] > (u32)profile.slices)
        return NOT_SUPPORTED;
    *out = (struct compute_profile){.id = index, .slices = slices[index], .count = profile.slices / slices[index]};
    return SUCCESS;
}

/* Each GPU instance has one compute instance, of the whole of it. */
API int nvmlGpuInstanceGetComputeInstances(struct instance *instance, u32 id, struct instance **out, u32 *count)
{
    static const u32 slices[] = {1, 2, 3, 4, 7};
    struct profile profile;
    *count = id < sizeof slices / sizeof *slices && profile_of(instance->gpu, instance->profile, &profile)
        && slices[id] == (u32)profile.slices;
    if (*count)
        out[0] = instance;
    return SUCCESS;
}

API int nvmlGpuInstanceCreateComputeInstance(struct instance *instance, u32 id, struct instance **out)
{
    (void)id;
    *out = instance;
    return keep_instances(instance->gpu);
}

API int nvmlComputeInstanceDestroy(struct instance *instance)
{
    return outcome(value_of(instance->gpu, "ComputeInstanceDestroy"), SUCCESS);
}
