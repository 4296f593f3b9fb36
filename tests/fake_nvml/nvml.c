/* A stand-in for NVIDIA's management library, libnvidia-ml.so.1, for tests on machines without a GPU.
 *
 * It is no NVIDIA code and was written from the published interface alone (nvml.h). It has the functions that the GPU
 * exporter and the speech service call through nvidia-ml-py, under their real names, and knows no hardware: every
 * answer comes from the file that FAKE_NVML names, read anew at each call, so that a test can change a GPU while it
 * is watched. What the file does not hold is answered "not supported", as a GPU does that lacks a thing.
 *
 *     init=18               what nvmlInit answers: 0, or an error of NVML (18: driver and library differ)
 *     session=1             another number than at nvmlInit: that session has ended, as when the driver is loaded anew
 *     driver=535.309.01
 *     count=2               GPUs that NVML enumerates
 *     0.name=NVIDIA A10     a field of GPU 0, see below
 *     0.error=15            every call on GPU 0 answers this (15: the GPU is lost)
 *     event=0 79            XID 79 of GPU 0; each line is delivered once, in order
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
       INSUFFICIENT_SIZE = 7, TIMEOUT = 10, LIBRARY_MISMATCH = 18, GPU_IS_LOST = 15, UNKNOWN = 999 };
enum { EVENT_XID = 0x8 };
enum { VALUE_LENGTH = 256, MAX_GPUS = 64 };

typedef void *Device; /* index + 1, so that GPU 0 is not NULL */
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;
typedef struct { Device device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;

static int initialised;
static long long session; /* `session=` when NVML was initialised */
static int delivered; /* lines `event=` that were handed over */
static unsigned long long registered[MAX_GPUS];

/* The value of the nth line `key=value`; 0 where there is none. */
static int look_up(const char *key, int nth, char value[VALUE_LENGTH]) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t length = strlen(key);
    char line[VALUE_LENGTH];
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file))
        if (!strncmp(line, key, length) && line[length] == '=' && nth-- == 0) {
            line[strcspn(line, "\n")] = '\0';
            strcpy(value, line + length + 1);
            found = 1;
        }
    if (file)
        fclose(file);
    return found;
}

static long long number(const char *key, long long otherwise) {
    char value[VALUE_LENGTH];
    return look_up(key, 0, value) ? strtoll(value, NULL, 0) : otherwise;
}

static int usable(void) { return initialised && number("session", 0) == session; }

/* The text of a GPU's field, once NVML is up and the GPU answers. */
static int field(Device device, const char *name, char value[VALUE_LENGTH]) {
    char key[64];
    if (!usable())
        return UNINITIALIZED;
    snprintf(key, sizeof key, "%td.error", (intptr_t)device - 1);
    int error = (int)number(key, SUCCESS);
    if (error)
        return error;
    snprintf(key, sizeof key, "%td.%s", (intptr_t)device - 1, name);
    return look_up(key, 0, value) ? SUCCESS : NOT_SUPPORTED;
}

static int field_unsigned(Device device, const char *name, unsigned *result) {
    char value[VALUE_LENGTH];
    int error = field(device, name, value);
    if (!error)
        *result = (unsigned)strtoul(value, NULL, 0);
    return error;
}

static int field_long(Device device, const char *name, unsigned long long *result) {
    char value[VALUE_LENGTH];
    int error = field(device, name, value);
    if (!error)
        *result = strtoull(value, NULL, 0);
    return error;
}

static int field_text(Device device, const char *name, char *buffer, unsigned length) {
    char value[VALUE_LENGTH];
    int error = field(device, name, value);
    if (!error)
        snprintf(buffer, length, "%s", value);
    return error;
}

/* --- the library ---------------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int error = (int)number("init", SUCCESS);
    if (!error && !initialised) {
        initialised = 1;
        session = number("session", 0);
    }
    return error;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    initialised = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int error) {
    switch (error) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case LIBRARY_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    char value[VALUE_LENGTH];
    if (!usable())
        return UNINITIALIZED;
    if (!look_up("driver", 0, value))
        return NOT_SUPPORTED;
    snprintf(version, length, "%s", value);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!usable())
        return UNINITIALIZED;
    *count = (unsigned)number("count", 0);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    if (!usable())
        return UNINITIALIZED;
    if (index >= number("count", 0) || index >= MAX_GPUS)
        return INVALID_ARGUMENT;
    *device = (Device)(intptr_t)(index + 1);
    return SUCCESS;
}

/* --- what a GPU is -------------------------------------------------------------------------------------------- */

int nvmlDeviceGetName(Device d, char *name, unsigned length) { return field_text(d, "name", name, length); }
int nvmlDeviceGetUUID(Device d, char *uuid, unsigned length) { return field_text(d, "uuid", uuid, length); }
int nvmlDeviceGetMinorNumber(Device d, unsigned *minor) { return field_unsigned(d, "minor", minor); }

int nvmlDeviceGetPciInfo_v3(Device d, PciInfo *info) { /* 0.pci=00000000:3B:00.0 */
    char value[VALUE_LENGTH];
    int error = field(d, "pci", value);
    if (error)
        return error;
    memset(info, 0, sizeof *info);
    snprintf(info->bus_id, sizeof info->bus_id, "%.31s", value);
    sscanf(value, "%x:%x:%x", &info->domain, &info->bus, &info->device);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0", info->domain & 0xffff,
             info->bus & 0xff, info->device & 0xff);
    return SUCCESS;
}

/* --- how it is ------------------------------------------------------------------------------------------------ */

int nvmlDeviceGetTemperature(Device d, unsigned sensor, unsigned *celsius) {
    return sensor ? NOT_SUPPORTED : field_unsigned(d, "temperature", celsius);
}

int nvmlDeviceGetClockInfo(Device d, unsigned type, unsigned *mhz) {
    const char *names[] = {"clock.graphics", "clock.sm", "clock.memory", "clock.video"};
    return type < 4 ? field_unsigned(d, names[type], mhz) : INVALID_ARGUMENT;
}

int nvmlDeviceGetPowerUsage(Device d, unsigned *mw) { return field_unsigned(d, "power", mw); }
int nvmlDeviceGetEnforcedPowerLimit(Device d, unsigned *mw) { return field_unsigned(d, "power_limit", mw); }
int nvmlDeviceGetTotalEnergyConsumption(Device d, unsigned long long *mj) { return field_long(d, "energy", mj); }
int nvmlDeviceGetCurrentClocksEventReasons(Device d, unsigned long long *m) { return field_long(d, "throttle", m); }
int nvmlDeviceGetCurrPcieLinkWidth(Device d, unsigned *width) { return field_unsigned(d, "pcie_width", width); }
int nvmlDeviceGetMaxPcieLinkWidth(Device d, unsigned *width) { return field_unsigned(d, "pcie_width_max", width); }
int nvmlDeviceGetCurrPcieLinkGeneration(Device d, unsigned *gen) { return field_unsigned(d, "pcie_generation", gen); }
int nvmlDeviceGetPcieReplayCounter(Device d, unsigned *replays) { return field_unsigned(d, "pcie_replays", replays); }

int nvmlDeviceGetMemoryInfo(Device d, Memory *memory) { /* bytes */
    int error = field_long(d, "memory_total", &memory->total);
    error = error ? error : field_long(d, "memory_used", &memory->used);
    memory->free = memory->total - memory->used;
    return error;
}

int nvmlDeviceGetUtilizationRates(Device d, Utilization *percent) {
    int error = field_unsigned(d, "busy", &percent->gpu);
    return error ? error : field_unsigned(d, "memory_busy", &percent->memory);
}

/* --- its memory's errors -------------------------------------------------------------------------------------- */

int nvmlDeviceGetEccMode(Device d, unsigned *current, unsigned *pending) {
    *pending = 0;
    return field_unsigned(d, "ecc", current);
}

/* error type: 0 corrected, 1 uncorrected; counter type: 0 since the driver was loaded, 1 ever */
int nvmlDeviceGetTotalEccErrors(Device d, unsigned error_type, unsigned counter_type, unsigned long long *count) {
    const char *names[2][2] = {{"ecc.corrected", "ecc.corrected_ever"}, {"ecc.uncorrected", "ecc.uncorrected_ever"}};
    if (error_type > 1 || counter_type > 1)
        return INVALID_ARGUMENT;
    return field_long(d, names[error_type][counter_type], count);
}

int nvmlDeviceGetRemappedRows(Device d, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    int error = field_unsigned(d, "remapped.corrected", corrected);
    error = error ? error : field_unsigned(d, "remapped.uncorrected", uncorrected);
    error = error ? error : field_unsigned(d, "remapped.pending", pending);
    return error ? error : field_unsigned(d, "remapped.failed", failed);
}

/* cause: 0 many single-bit errors, 1 a double-bit one; the addresses are zeros */
int nvmlDeviceGetRetiredPages(Device d, unsigned cause, unsigned *count, unsigned long long *addresses) {
    unsigned wanted, room = *count;
    int error = field_unsigned(d, cause ? "retired.double" : "retired.single", &wanted);
    if (error)
        return error;
    *count = wanted;
    if (wanted > room)
        return INSUFFICIENT_SIZE;
    if (addresses)
        memset(addresses, 0, wanted * sizeof *addresses);
    return SUCCESS;
}

int nvmlDeviceGetRetiredPagesPendingStatus(Device d, unsigned *pending) {
    return field_unsigned(d, "retired.pending", pending);
}

/* --- events --------------------------------------------------------------------------------------------------- */

int nvmlEventSetCreate(void **set) {
    if (!usable())
        return UNINITIALIZED;
    *set = &delivered;
    return SUCCESS;
}

int nvmlEventSetFree(void *set) {
    (void)set;
    memset(registered, 0, sizeof registered);
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(Device d, unsigned long long types, void *set) {
    (void)set;
    char value[VALUE_LENGTH];
    int error = field(d, "name", value);
    if (!error)
        registered[(intptr_t)d - 1] |= types;
    return error;
}

int nvmlEventSetWait_v2(void *set, Event *event, unsigned timeout_ms) {
    (void)set;
    char value[VALUE_LENGTH];
    for (unsigned waited = 0; initialised; waited += 20) {
        unsigned gpu;
        unsigned long long xid;
        while (look_up("event", delivered, value)) {
            delivered++;
            if (sscanf(value, "%u %llu", &gpu, &xid) == 2 && gpu < MAX_GPUS && registered[gpu] & EVENT_XID) {
                memset(event, 0, sizeof *event);
                event->device = (Device)(intptr_t)(gpu + 1);
                event->type = EVENT_XID;
                event->data = xid;
                return SUCCESS;
            }
        }
        if (waited >= timeout_ms)
            return TIMEOUT;
        usleep(20 * 1000);
    }
    return UNINITIALIZED;
}
