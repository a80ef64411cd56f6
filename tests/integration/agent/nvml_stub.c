/* A driver library of one GPU for the binding to load: sizes, versions and error codes as in the real one.
 * NVML_STUB=driver: no driver. NVML_STUB=lost: the device is lost. Calls that are absent here are absent in old drivers. */
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
typedef void *nvmlEventSet_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } nvmlPciInfo_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } nvmlProcessInfo_t;
typedef struct { nvmlDevice_t device; unsigned long long type, data; unsigned gi, ci; } nvmlEventData_t;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, LOST = 15 };

static int gpu, events, waits;

static int is(const char *mode) {
    const char *set = getenv("NVML_STUB");
    return set != NULL && strcmp(set, mode) == 0;
}

const char *nvmlErrorString(nvmlReturn_t code) { return code == LOST ? "GPU is lost" : "stub error"; }
nvmlReturn_t nvmlInitWithFlags(unsigned flags) { (void)flags; return is("driver") ? DRIVER_NOT_LOADED : SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "570.1", size); return SUCCESS; }
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12080; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    (void)index;
    *device = &gpu;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned size) {
    (void)device;
    strncpy(text, "GPU-stub", size);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned size) {
    (void)device;
    strncpy(text, "NVIDIA Stub", size);
    return is("lost") ? LOST : SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info) {
    (void)device;
    strcpy(info->bus_id, "00000000:18:00.0");
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    (void)device;
    *major = 9;
    *minor = 0;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    (void)device;
    if (memory->version != (sizeof(nvmlMemory_v2_t) | 2u << 24)) return 25;
    memory->total = 1000ull << 20;
    memory->reserved = 100ull << 20;
    memory->used = 50ull << 20;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *now, unsigned *next) {
    (void)device, (void)now, (void)next;
    return NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, int *mode) { (void)device; *mode = 3; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    (void)device;
    rates->gpu = 42;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned *degrees) {
    (void)device, (void)sensor;
    *degrees = 34;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *mw) { (void)device; *mw = 95000; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    (void)device;
    *reasons = 0x41;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, int type, int counter, unsigned long long *count) {
    (void)device;
    *count = type == 1 && counter == 0 ? 2 : 99;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t d, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
    (void)d;
    *c = *u = *pending = 0;
    *failed = 1;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *list) {
    (void)device;
    *count = 1;
    if (list == NULL) return INSUFFICIENT_SIZE;
    list[0].pid = 12;
    list[0].used = 5ull << 20;
    return SUCCESS;
}
nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) { *set = &events; return SUCCESS; }
nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) { (void)set; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    (void)device;
    *types = 0x0a;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    return device == &gpu && set == &events && types == 0x0a ? SUCCESS : NOT_SUPPORTED;
}
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned timeout_ms) {
    (void)set;
    if (timeout_ms != 1500 || waits++ > 0) return TIMEOUT;
    data->device = &gpu;
    data->type = 8;
    data->data = 79;
    return SUCCESS;
}
