/* A libnvidia-ml.so.1 without a GPU: NVML's binary interface, answered from a scenario file.
 *
 * The environment variable NVML_STUB_SCENARIO names the file. It is read again whenever it changed, so a test steers a
 * running process by replacing it (write beside it, then rename). Lines are `key=value`; blank ones and those that
 * start with # are skipped. For every key K: `K=!N` fails the call with NVML's code N, `K.delay_ms=N` makes the call
 * sleep first (no lock is held), and a key that is not there answers NOT_SUPPORTED unless said otherwise below.
 *
 *   init=!18                        fails initialisation; shutdown.delay_ms delays the end
 *   driver_gone=!N                  every call but init, shutdown and errorString fails: the driver went under us
 *   driver_version= nvml_version= cuda_version=13000
 *   count=N                         default: 1 + the highest gpuN
 *   gpuN.delay_ms=N lost=1 handle=!4    any call on its handle, or on its MIG devices' handles
 *   gpuN.uuid name                  have a default; \xNN in a name is that byte
 *   gpuN.pci_bus_id=00000000:3B:00.0 architecture minor performance_state persistence_mode temperature (°C)
 *   gpuN.margin_temperature power power_limit (mW) energy (mJ) clocks_event_reasons (0x… is fine)
 *   gpuN.clock.sm max_clock.sm      (MHz) and so .graphics .memory .video
 *   gpuN.memory=TOTAL RESERVED FREE USED    memory_v1=TOTAL FREE USED    utilization=GPU MEMORY (percent)
 *   gpuN.ecc.corrected.volatile     and so .uncorrected and .aggregate
 *   gpuN.remapped_rows=CORRECTABLE UNCORRECTABLE PENDING FAILED
 *   gpuN.field.ID=N                 field values; fields=!N fails the whole call
 *   gpuN.processes=PID:BYTES PID:BYTES
 *   gpuN.xids=13 79                 grows; entries that were there at registration are not delivered
 *   gpuN.gpm=1 gpm.ID=VALUE         as NVML gives it: percent or MiB/s
 *   gpuN.mig_mode=CURRENT PENDING mig_slots=7
 *   gpuN.migM.uuid                  without it slot M is empty: NOT_FOUND
 *   gpuN.migM.gi ci slices          and any key of a GPU, for the calls that take a MIG handle
 *
 * Whenever a client comes or goes, a line is added to the file that NVML_STUB_JOURNAL names, if it names one: how many
 * clients there are then, how many event sets and GPM samples are held, and how many calls are being delayed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_GPUS = 64, MAX_SLOTS = 16, KEY_SIZE = 96, VALUE_SIZE = 8192 };

typedef enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, OUT_OF_MEMORY = 20, VERSION_MISMATCH = 25, UNKNOWN = 999,
    UNSET = -1 /* ours: the scenario has no such key */
} nvmlReturn_t;

typedef struct { uint64_t total, free, used; } nvmlMemory_t;
typedef struct { unsigned version; uint64_t total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned version, sensor; int temperature; } nvmlTemperature_t;
typedef struct { unsigned version; int margin; } nvmlMarginTemperature_t;
typedef struct { unsigned pid; uint64_t used; unsigned gpu_instance, compute_instance; } nvmlProcessInfo_t;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} nvmlPciInfo_t;
typedef struct {
    unsigned field, scope;
    int64_t timestamp, latency;
    unsigned type, result;
    uint64_t value;
} nvmlFieldValue_t;
typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    uint64_t memory_mib;
} nvmlDeviceAttributes_t;

/* A handle is an address in this table: the GPU itself, then its MIG slots. */
typedef struct nvmlDevice_st { char unused; } *nvmlDevice_t;
static struct nvmlDevice_st devices[MAX_GPUS][1 + MAX_SLOTS];

typedef struct nvmlEventSet_st { bool registered[MAX_GPUS]; int delivered[MAX_GPUS]; } *nvmlEventSet_t;
typedef struct {
    nvmlDevice_t device;
    uint64_t type, data;
    unsigned gpu_instance, compute_instance;
} nvmlEventData_t;
typedef struct nvmlGpmSample_st { nvmlDevice_t device; } *nvmlGpmSample_t;
typedef struct {
    unsigned id, result;
    double value;
    const char *short_name, *long_name, *unit;
} nvmlGpmMetric_t;
typedef struct {
    unsigned version, count;
    nvmlGpmSample_t first, second;
    nvmlGpmMetric_t metrics[477]; /* older headers have fewer: only `count` of them are ours to touch */
} nvmlGpmMetricsGet_t;
typedef struct { unsigned version, supported; } nvmlGpmSupport_t;

/* The sizes of NVIDIA's own header, nvml.h of CUDA 13.5. */
_Static_assert(sizeof(nvmlReturn_t) == 4, "nvmlReturn_t");
_Static_assert(sizeof(nvmlMemory_t) == 24, "nvmlMemory_t");
_Static_assert(sizeof(nvmlMemory_v2_t) == 40, "nvmlMemory_v2_t");
_Static_assert(sizeof(nvmlUtilization_t) == 8, "nvmlUtilization_t");
_Static_assert(sizeof(nvmlTemperature_t) == 12, "nvmlTemperature_v1_t");
_Static_assert(sizeof(nvmlMarginTemperature_t) == 8, "nvmlMarginTemperature_v1_t");
_Static_assert(sizeof(nvmlProcessInfo_t) == 24, "nvmlProcessInfo_v2_t");
_Static_assert(sizeof(nvmlPciInfo_t) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(nvmlFieldValue_t) == 40, "nvmlFieldValue_t");
_Static_assert(sizeof(nvmlDeviceAttributes_t) == 40, "nvmlDeviceAttributes_t");
_Static_assert(sizeof(nvmlEventData_t) == 32, "nvmlEventData_t");
_Static_assert(sizeof(nvmlGpmMetric_t) == 40, "nvmlGpmMetric_t");
_Static_assert(sizeof(nvmlGpmMetricsGet_t) == 24 + 477 * 40, "nvmlGpmMetricsGet_t");
_Static_assert(sizeof(nvmlGpmSupport_t) == 8, "nvmlGpmSupport_t");

/* ---- the scenario ---- */

typedef struct { const char *key, *value; } Entry;

static struct {
    char *text;
    Entry *entries; /* sorted by key */
    size_t count;
    int gpus;             /* 1 + the highest gpuN */
    int file;             /* kept open, lest its inode number be given to the next version */
    struct stat version;
} scenario = {.file = -1};
static pthread_mutex_t scenario_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int clients, event_sets, gpm_samples, delayed_calls;

static int by_key(const void *left, const void *right) {
    return strcmp(((const Entry *)left)->key, ((const Entry *)right)->key);
}

static char *trimmed(char *text) {
    text += strspn(text, " \t");
    for (size_t length = strlen(text); length && strchr(" \t\r", text[length - 1]); length--) text[length - 1] = '\0';
    return text;
}

static void parse(void) {
    char *rest = scenario.text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char *value = trimmed(line), *key = strsep(&value, "=");
        int gpu;
        if (*key == '#' || !*key) continue;
        if (!value) {
            fprintf(stderr, "nvml stub: no = in the line %s\n", key);
            continue;
        }
        scenario.entries = realloc(scenario.entries, (scenario.count + 1) * sizeof(Entry));
        scenario.entries[scenario.count++] = (Entry){trimmed(key), trimmed(value)};
        if (sscanf(key, "gpu%d.", &gpu) == 1 && gpu >= scenario.gpus) scenario.gpus = gpu + 1;
    }
    if (scenario.count) qsort(scenario.entries, scenario.count, sizeof(Entry), by_key);
}

/* Read the file anew if it changed; the last version stays in force while there is none. Says whether there is one. */
static bool refresh(void) {
    const char *path = getenv("NVML_STUB_SCENARIO");
    struct stat now;
    if (!path || stat(path, &now)) return scenario.text;
    if (scenario.text && now.st_ino == scenario.version.st_ino && now.st_size == scenario.version.st_size
        && !memcmp(&now.st_mtim, &scenario.version.st_mtim, sizeof now.st_mtim))
        return true;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &now)) return scenario.text;
    char *text = calloc(1, (size_t)now.st_size + 1);
    ssize_t length = read(file, text, (size_t)now.st_size);
    text[length > 0 ? length : 0] = '\0';
    if (scenario.file >= 0) close(scenario.file);
    free(scenario.text);
    scenario.text = text;
    scenario.file = file;
    scenario.version = now;
    scenario.count = 0;
    scenario.gpus = 0;
    parse();
    return true;
}

/* What the scenario says of a key, at once: SUCCESS and its value, the code of `!N`, or UNSET. */
static nvmlReturn_t find(const char *key, char *value) {
    nvmlReturn_t result = UNSET;
    pthread_mutex_lock(&scenario_lock);
    Entry wanted = {key, NULL};
    const Entry *entry = refresh() && scenario.count
        ? bsearch(&wanted, scenario.entries, scenario.count, sizeof(Entry), by_key) : NULL;
    if (entry) {
        snprintf(value, VALUE_SIZE, "%s", entry->value);
        result = value[0] == '!' ? (nvmlReturn_t)atoi(value + 1) : SUCCESS;
    }
    pthread_mutex_unlock(&scenario_lock);
    return result;
}

static void sleep_ms(long milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) && errno == EINTR) {}
}

static void delay(const char *key) {
    char name[KEY_SIZE + 16], value[VALUE_SIZE];
    snprintf(name, sizeof name, "%s.delay_ms", key);
    if (find(name, value) != SUCCESS) return;
    delayed_calls++;
    sleep_ms(atol(value));
    delayed_calls--;
}

static nvmlReturn_t numbers(const char *key, const char *value, int count, uint64_t *out) {
    for (int i = 0; i < count; i++) {
        char *end;
        out[i] = strtoull(value, &end, 0);
        if (end == value) {
            fprintf(stderr, "nvml stub: %s needs %d numbers\n", key, count);
            return UNKNOWN;
        }
        value = end;
    }
    return SUCCESS;
}

static nvmlReturn_t copied(const char *text, char *out, unsigned length) {
    if (!out) return INVALID_ARGUMENT;
    return (unsigned)snprintf(out, length, "%s", text) < length ? SUCCESS : INSUFFICIENT_SIZE;
}

/* ---- handles, and asking for a value ---- */

static bool known(nvmlDevice_t device) { return device >= devices[0] && device < devices[MAX_GPUS]; }
static int gpu_of(nvmlDevice_t device) { return (int)((device - devices[0]) / (1 + MAX_SLOTS)); }
static int slot_of(nvmlDevice_t device) { return (int)((device - devices[0]) % (1 + MAX_SLOTS)) - 1; } /* -1: a GPU */
static nvmlDevice_t parent_of(nvmlDevice_t device) { return devices[gpu_of(device)]; }

static const char *key_of(nvmlDevice_t device, const char *name, char *key) {
    if (slot_of(device) < 0) snprintf(key, KEY_SIZE, "gpu%d.%s", gpu_of(device), name);
    else snprintf(key, KEY_SIZE, "gpu%d.mig%d.%s", gpu_of(device), slot_of(device), name);
    return key;
}

static nvmlReturn_t find_of(nvmlDevice_t device, const char *name, char *value) {
    char key[KEY_SIZE];
    return find(key_of(device, name, key), value);
}

static nvmlReturn_t driver_state(void) {
    char value[VALUE_SIZE];
    if (!clients) return UNINITIALIZED;
    nvmlReturn_t result = find("driver_gone", value);
    return result == UNSET ? SUCCESS : result;
}

static nvmlReturn_t device_state(nvmlDevice_t device) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = driver_state();
    if (result) return result;
    if (find_of(parent_of(device), "lost", value) == SUCCESS && atoi(value)) return GPU_IS_LOST;
    return slot_of(device) >= 0 && find_of(device, "uuid", value) == UNSET ? NOT_FOUND : SUCCESS;
}

/* The start of every call on a handle. */
static nvmlReturn_t enter(nvmlDevice_t device) {
    char name[KEY_SIZE];
    if (!clients) return UNINITIALIZED;
    if (!known(device)) return INVALID_ARGUMENT;
    snprintf(name, sizeof name, "gpu%d", gpu_of(device));
    delay(name);
    return device_state(device);
}

/* One value within a call: its own delay, then whatever holds after it. */
static nvmlReturn_t get(nvmlDevice_t device, const char *name, char *value) {
    char key[KEY_SIZE];
    delay(key_of(device, name, key));
    nvmlReturn_t result = device_state(device);
    return result ? result : find(key, value);
}

static nvmlReturn_t ask_optional(nvmlDevice_t device, const char *name, char *value) {
    nvmlReturn_t result = enter(device);
    return result ? result : get(device, name, value);
}

static nvmlReturn_t ask(nvmlDevice_t device, const char *name, char *value) {
    nvmlReturn_t result = ask_optional(device, name, value);
    return result == UNSET ? NOT_SUPPORTED : result;
}

static nvmlReturn_t ask_numbers(nvmlDevice_t device, const char *name, int count, uint64_t *out) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = ask(device, name, value);
    return result ? result : numbers(name, value, count, out);
}

static nvmlReturn_t ask_unsigned(nvmlDevice_t device, const char *name, unsigned *out) {
    uint64_t number;
    nvmlReturn_t result = ask_numbers(device, name, 1, &number);
    if (!result) *out = (unsigned)number;
    return result;
}

static nvmlReturn_t ask_text(nvmlDevice_t device, const char *name, const char *unset, char *out, unsigned length) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = ask_optional(device, name, value);
    if (result == UNSET) return copied(unset, out, length);
    return result ? result : copied(value, out, length);
}

/* ---- the library ---- */

static void tell(const char *what) {
    const char *path = getenv("NVML_STUB_JOURNAL");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    if (file < 0) return;
    dprintf(file, "%s clients=%d event_sets=%d gpm_samples=%d delayed_calls=%d\n", what, clients, event_sets,
            gpm_samples, delayed_calls);
    close(file);
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    char value[VALUE_SIZE];
    delay("init");
    pthread_mutex_lock(&scenario_lock);
    bool readable = refresh();
    pthread_mutex_unlock(&scenario_lock);
    if (!readable) {
        fprintf(stderr, "nvml stub: NVML_STUB_SCENARIO names no readable file\n");
        return DRIVER_NOT_LOADED;
    }
    nvmlReturn_t result = find("init", value);
    if (result != SUCCESS && result != UNSET) return result;
    clients++;
    tell("init");
    return SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    delay("shutdown");
    int now = clients;
    while (now > 0 && !atomic_compare_exchange_weak(&clients, &now, now - 1)) {}
    tell("shutdown");
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result) {
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires restart", "The operating system has blocked the request.",
        "RM has detected an NVML/RM version mismatch.", "GPU is currently in use", "Insufficient Memory", "No data",
        "vGPU operation not supported with ECC enabled", "Insufficient Resources", "Frequency Not Supported",
        "Argument Version Mismatch", "Deprecated", "Not Ready", "GPU Not Found", "Invalid State",
        "Reset Type Not Supported",
    };
    return (size_t)result < sizeof texts / sizeof *texts ? texts[result] : "Unknown Error";
}

static nvmlReturn_t ask_system(const char *key, char *value) {
    if (!clients) return UNINITIALIZED;
    delay(key);
    nvmlReturn_t result = driver_state();
    return result ? result : find(key, value);
}

static nvmlReturn_t system_text(const char *key, char *out, unsigned length) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = ask_system(key, value);
    return result == UNSET ? NOT_SUPPORTED : result ? result : copied(value, out, length);
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length) {
    return system_text("driver_version", out, length);
}
nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned length) { return system_text("nvml_version", out, length); }

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *out) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = ask_system("cuda_version", value);
    if (!result) *out = atoi(value);
    return result == UNSET ? NOT_SUPPORTED : result;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *out) { return nvmlSystemGetCudaDriverVersion(out); }

/* ---- counting and finding GPUs ---- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *out) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = ask_system("count", value);
    if (result != SUCCESS && result != UNSET) return result;
    pthread_mutex_lock(&scenario_lock);
    int count = result == UNSET ? scenario.gpus : atoi(value);
    pthread_mutex_unlock(&scenario_lock);
    *out = (unsigned)(count < MAX_GPUS ? count : MAX_GPUS);
    return SUCCESS;
}

/* Hand out a handle: here a GPU that is lost, or that we may not open, says so. */
static nvmlReturn_t opened(nvmlDevice_t device, nvmlDevice_t *out) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = enter(device);
    if (!result) result = get(parent_of(device), "handle", value);
    if (result != SUCCESS && result != UNSET) return result;
    *out = device;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
    unsigned count;
    nvmlReturn_t result = nvmlDeviceGetCount_v2(&count);
    if (result) return result;
    return index < count ? opened(devices[index], out) : INVALID_ARGUMENT;
}

static const char *default_uuid(nvmlDevice_t device, char *uuid) {
    snprintf(uuid, KEY_SIZE, "GPU-00000000-0000-0000-0000-%012d", gpu_of(device));
    return uuid;
}

/* The device for which `matches` holds; a MIG slot is one when it has a UUID. */
static nvmlReturn_t search(bool (*matches)(nvmlDevice_t, const char *), const char *wanted, nvmlDevice_t *out) {
    unsigned count;
    nvmlReturn_t result = nvmlDeviceGetCount_v2(&count);
    if (result) return result;
    for (nvmlDevice_t device = devices[0]; device < devices[count]; device++)
        if (matches(device, wanted)) return opened(device, out);
    return NOT_FOUND;
}

static bool has_uuid(nvmlDevice_t device, const char *wanted) {
    char value[VALUE_SIZE], uuid[KEY_SIZE];
    nvmlReturn_t result = find_of(device, "uuid", value);
    if (result == UNSET && slot_of(device) < 0) return !strcmp(wanted, default_uuid(device, uuid));
    return result == SUCCESS && !strcmp(wanted, value);
}

static bool has_bus_id(nvmlDevice_t device, const char *wanted) {
    char value[VALUE_SIZE];
    unsigned a[3], b[3];
    return slot_of(device) < 0 && find_of(device, "pci_bus_id", value) == SUCCESS
        && sscanf(value, "%x:%x:%x", a, a + 1, a + 2) == 3 && sscanf(wanted, "%x:%x:%x", b, b + 1, b + 2) == 3
        && !memcmp(a, b, sizeof a);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out) { return search(has_uuid, uuid, out); }
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *out) { return search(has_bus_id, id, out); }

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *out) {
    nvmlReturn_t result = enter(device);
    if (!result) *out = (unsigned)(slot_of(device) < 0 ? gpu_of(device) : slot_of(device));
    return result;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned length) {
    char unset[KEY_SIZE];
    return ask_text(device, "uuid", known(device) ? default_uuid(device, unset) : "", out, length);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned length) {
    nvmlReturn_t result = ask_text(device, "name", "Stub GPU", out, length);
    if (result) return result;
    char *to = out;
    for (const char *from = out; *from; to++) { /* \xNN is a byte */
        unsigned byte;
        int length = 1;
        *to = sscanf(from, "\\x%2x%n", &byte, &length) == 1 ? (char)byte : *from;
        from += length;
    }
    *to = '\0';
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *out) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = ask(known(device) ? parent_of(device) : device, "pci_bus_id", value);
    if (result) return result;
    memset(out, 0, sizeof *out);
    if (sscanf(value, "%x:%x:%x", &out->domain, &out->bus, &out->device) != 3) return UNKNOWN;
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%04X:%02X:%02X.0", out->domain & 0xFFFF, out->bus & 0xFF,
             out->device & 0x1F);
    return copied(value, out->bus_id, sizeof out->bus_id);
}

/* ---- one number ---- */

#define UNSIGNED(function, key) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned *out) { return ask_unsigned(device, key, out); }
UNSIGNED(nvmlDeviceGetArchitecture, "architecture")
UNSIGNED(nvmlDeviceGetComputeInstanceId, "ci")
UNSIGNED(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
UNSIGNED(nvmlDeviceGetGpuInstanceId, "gi")
UNSIGNED(nvmlDeviceGetMaxMigDeviceCount, "mig_slots")
UNSIGNED(nvmlDeviceGetMinorNumber, "minor")
UNSIGNED(nvmlDeviceGetPerformanceState, "performance_state")
UNSIGNED(nvmlDeviceGetPersistenceMode, "persistence_mode")
UNSIGNED(nvmlDeviceGetPowerManagementLimit, "power_limit")
UNSIGNED(nvmlDeviceGetPowerUsage, "power")

#define UNSIGNED_LONG(function, key) \
    nvmlReturn_t function(nvmlDevice_t device, uint64_t *out) { return ask_numbers(device, key, 1, out); }
UNSIGNED_LONG(nvmlDeviceGetCurrentClocksEventReasons, "clocks_event_reasons")
UNSIGNED_LONG(nvmlDeviceGetCurrentClocksThrottleReasons, "clocks_event_reasons")
UNSIGNED_LONG(nvmlDeviceGetTotalEnergyConsumption, "energy")

static nvmlReturn_t clock_of(nvmlDevice_t device, const char *key, unsigned domain, unsigned *out) {
    static const char *const domains[] = {"graphics", "sm", "memory", "video"};
    char name[KEY_SIZE];
    if (domain >= 4) return INVALID_ARGUMENT;
    snprintf(name, sizeof name, "%s.%s", key, domains[domain]);
    return ask_unsigned(device, name, out);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned domain, unsigned *out) {
    return clock_of(device, "clock", domain, out);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned domain, unsigned *out) {
    return clock_of(device, "max_clock", domain, out);
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *out) {
    return sensor ? INVALID_ARGUMENT : ask_unsigned(device, "temperature", out);
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *out) {
    if (out->version != 0x100000C) return VERSION_MISMATCH;
    return nvmlDeviceGetTemperature(device, out->sensor, (unsigned *)&out->temperature);
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_t *out) {
    if (out->version != 0x1000008) return VERSION_MISMATCH;
    return ask_unsigned(device, "margin_temperature", (unsigned *)&out->margin);
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned error, unsigned counter, uint64_t *out) {
    char name[KEY_SIZE];
    if (error > 1 || counter > 1) return INVALID_ARGUMENT;
    snprintf(name, sizeof name, "ecc.%s.%s", error ? "uncorrected" : "corrected", counter ? "aggregate" : "volatile");
    return ask_numbers(device, name, 1, out);
}

/* ---- several numbers ---- */

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *out) {
    return ask_numbers(device, "memory_v1", 3, &out->total);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *out) {
    return out->version == 0x2000028 ? ask_numbers(device, "memory", 4, &out->total) : VERSION_MISMATCH;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *out) {
    uint64_t percent[2];
    nvmlReturn_t result = ask_numbers(device, "utilization", 2, percent);
    if (!result) *out = (nvmlUtilization_t){(unsigned)percent[0], (unsigned)percent[1]};
    return result;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *correctable, unsigned *uncorrectable,
                                       unsigned *pending, unsigned *failed) {
    uint64_t rows[4];
    nvmlReturn_t result = ask_numbers(device, "remapped_rows", 4, rows);
    if (result) return result;
    *correctable = (unsigned)rows[0];
    *uncorrectable = (unsigned)rows[1];
    *pending = (unsigned)rows[2];
    *failed = (unsigned)rows[3];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields) {
    char name[KEY_SIZE], value[VALUE_SIZE];
    struct timespec now;
    nvmlReturn_t result = ask_optional(device, "fields", value);
    if (result != SUCCESS && result != UNSET) return result;
    clock_gettime(CLOCK_REALTIME, &now);
    for (nvmlFieldValue_t *field = fields; field < fields + count; field++) {
        snprintf(name, sizeof name, "field.%u", field->field);
        result = get(device, name, value);
        field->timestamp = now.tv_sec * 1000000 + now.tv_nsec / 1000;
        field->latency = 0;
        field->type = 3; /* unsigned long long */
        field->result = result == UNSET ? NOT_SUPPORTED : result ? result : numbers(name, value, 1, &field->value);
    }
    return SUCCESS;
}

/* Asked first for the number of processes (an array of no room), then for them. */
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *out) {
    char value[VALUE_SIZE], *rest = value;
    unsigned found = 0, room = *count;
    nvmlReturn_t result = ask(device, "processes", value);
    if (result) return result;
    for (char *word; (word = strsep(&rest, " "));) {
        unsigned long long pid, bytes;
        if (sscanf(word, "%llu:%llu", &pid, &bytes) != 2) continue;
        if (found++ < room) out[found - 1] = (nvmlProcessInfo_t){(unsigned)pid, bytes, ~0U, ~0U};
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

static nvmlReturn_t no_processes(nvmlDevice_t device, unsigned *count) {
    nvmlReturn_t result = enter(device);
    if (!result) *count = 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *out) {
    (void)out;
    return no_processes(device, count);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *out) {
    (void)out;
    return no_processes(device, count);
}

/* ---- MIG ---- */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    uint64_t modes[2];
    nvmlReturn_t result = ask_numbers(device, "mig_mode", 2, modes);
    if (result) return result;
    *current = (unsigned)modes[0];
    *pending = (unsigned)modes[1];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *out) {
    char value[VALUE_SIZE];
    unsigned slots;
    nvmlReturn_t result = nvmlDeviceGetMaxMigDeviceCount(device, &slots);
    if (result) return result;
    if (index >= slots || index >= MAX_SLOTS) return INVALID_ARGUMENT;
    result = get(parent_of(device) + 1 + index, "uuid", value); /* an empty slot is NOT_FOUND */
    if (!result) *out = parent_of(device) + 1 + index;
    return result;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *out) {
    nvmlReturn_t result = enter(device);
    if (!result) *out = slot_of(device) >= 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t *out) {
    nvmlReturn_t result = enter(device);
    if (!result && slot_of(device) < 0) result = INVALID_ARGUMENT;
    if (!result) *out = parent_of(device);
    return result;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *out) {
    char value[VALUE_SIZE];
    unsigned slices;
    uint64_t total = 0;
    nvmlReturn_t result = ask_unsigned(device, "slices", &slices);
    if (result) return result;
    if (find_of(device, "memory", value) == SUCCESS) total = strtoull(value, NULL, 0);
    *out = (nvmlDeviceAttributes_t){.gpu_slices = slices, .compute_slices = slices, .memory_mib = total >> 20};
    return SUCCESS;
}

/* ---- XID events ---- */

enum { XID_EVENT = 8 };
static pthread_mutex_t event_lock = PTHREAD_MUTEX_INITIALIZER;

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) {
    nvmlReturn_t result = driver_state();
    if (result) return result;
    event_sets++;
    return (*out = calloc(1, sizeof **out)) ? SUCCESS : OUT_OF_MEMORY;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    if (!clients) return UNINITIALIZED;
    event_sets--;
    free(set);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, uint64_t *out) {
    char value[VALUE_SIZE];
    nvmlReturn_t result = ask(device, "xids", value);
    if (!result) *out = XID_EVENT;
    return result;
}

/* How many XIDs there are in a list, and the one at `index`. */
static int xids_in(char *list, int index, uint64_t *xid) {
    int count = 0;
    for (char *word; (word = strsep(&list, " "));)
        if (*word && count++ == index) *xid = strtoull(word, NULL, 0);
    return count;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, uint64_t types, nvmlEventSet_t set) {
    char value[VALUE_SIZE];
    if (!set || !(types & XID_EVENT)) return INVALID_ARGUMENT;
    nvmlReturn_t result = ask(device, "xids", value);
    if (result) return result;
    pthread_mutex_lock(&event_lock);
    set->delivered[gpu_of(device)] = xids_in(value, -1, NULL);
    set->registered[gpu_of(device)] = true;
    pthread_mutex_unlock(&event_lock);
    return SUCCESS;
}

/* The next event of a GPU, UNSET where it has none; the last words of a lost one come before the loss. */
static nvmlReturn_t next_event(nvmlEventSet_t set, int gpu, nvmlEventData_t *out) {
    char value[VALUE_SIZE];
    int *delivered = &set->delivered[gpu];
    uint64_t xid = 0;
    nvmlReturn_t result = find_of(devices[gpu], "xids", value);
    if (result == SUCCESS) {
        int count = xids_in(value, *delivered, &xid);
        if (*delivered > count) *delivered = count; /* the list was begun anew */
    }
    if (result != SUCCESS || !xid) {
        nvmlReturn_t state = device_state(devices[gpu]);
        return state ? state : result ? result : UNSET;
    }
    ++*delivered;
    *out = (nvmlEventData_t){devices[gpu], XID_EVENT, xid, ~0U, ~0U};
    return SUCCESS;
}

static nvmlReturn_t any_event(nvmlEventSet_t set, nvmlEventData_t *out) {
    nvmlReturn_t found = driver_state();
    if (found) return found;
    found = UNSET;
    pthread_mutex_lock(&event_lock);
    for (int gpu = 0; gpu < MAX_GPUS && found != SUCCESS; gpu++) {
        nvmlReturn_t result = set->registered[gpu] ? next_event(set, gpu, out) : UNSET;
        if (result != UNSET) found = result;
    }
    pthread_mutex_unlock(&event_lock);
    return found;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *out, unsigned timeout_ms) {
    if (!set || !out) return INVALID_ARGUMENT;
    memset(out, 0, sizeof *out);
    for (unsigned waited = 0;; waited += 5) {
        nvmlReturn_t result = any_event(set, out);
        if (result != UNSET) return result;
        if (waited >= timeout_ms) return TIMEOUT;
        sleep_ms(timeout_ms - waited < 5 ? timeout_ms - waited : 5);
    }
}

/* ---- GPM ---- */

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *out) {
    if (out->version != 1) return VERSION_MISMATCH;
    return ask_unsigned(known(device) ? parent_of(device) : device, "gpm", &out->supported);
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *out) {
    gpm_samples++;
    return (*out = calloc(1, sizeof **out)) ? SUCCESS : OUT_OF_MEMORY;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    gpm_samples--;
    free(sample);
    return SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample) {
    nvmlGpmSupport_t support = {1, 0};
    nvmlReturn_t result = nvmlGpmQueryDeviceSupport(device, &support);
    if (!result) result = device_state(device); /* a MIG device may have gone, while its GPU has not */
    if (result) return result;
    if (!support.supported) return NOT_SUPPORTED;
    sample->device = device;
    return SUCCESS;
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned gpu_instance, nvmlGpmSample_t sample) {
    char value[VALUE_SIZE];
    if (!known(device)) return INVALID_ARGUMENT;
    for (nvmlDevice_t slot = parent_of(device) + 1; slot <= parent_of(device) + MAX_SLOTS; slot++)
        if (find_of(slot, "gi", value) == SUCCESS && (unsigned)atoi(value) == gpu_instance)
            return nvmlGpmSampleGet(slot, sample);
    nvmlReturn_t result = enter(device);
    return result ? result : NOT_FOUND;
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *out) {
    char name[KEY_SIZE], value[VALUE_SIZE];
    if (out->version != 1) return VERSION_MISMATCH;
    if (!out->first || !out->second || out->first->device != out->second->device) return INVALID_ARGUMENT;
    nvmlReturn_t result = enter(out->first->device);
    if (result) return result;
    for (nvmlGpmMetric_t *metric = out->metrics; metric < out->metrics + out->count; metric++) {
        snprintf(name, sizeof name, "gpm.%u", metric->id);
        result = get(out->first->device, name, value);
        metric->result = result == UNSET ? NOT_SUPPORTED : result;
        metric->value = result ? 0 : strtod(value, NULL);
    }
    return SUCCESS;
}

/* ---- what other NVML clients ask for before they start: a failure of the scenario's, else NOT_SUPPORTED ---- */

#define UNSUPPORTED(function, key) \
    nvmlReturn_t function(nvmlDevice_t device) { \
        char value[VALUE_SIZE]; \
        nvmlReturn_t result = ask(device, key, value); \
        return result ? result : NOT_SUPPORTED; \
    }
UNSUPPORTED(nvmlDeviceGetBAR1MemoryInfo, "bar1_memory")
UNSUPPORTED(nvmlDeviceGetComputeMode, "compute_mode")
UNSUPPORTED(nvmlDeviceGetConfComputeMemSizeInfo, "confidential_memory")
UNSUPPORTED(nvmlDeviceGetCudaComputeCapability, "compute_capability")
UNSUPPORTED(nvmlDeviceGetDecoderUtilization, "decoder_utilization")
UNSUPPORTED(nvmlDeviceGetDisplayActive, "display_active")
UNSUPPORTED(nvmlDeviceGetDisplayMode, "display_mode")
UNSUPPORTED(nvmlDeviceGetDriverModel_v2, "driver_model")
UNSUPPORTED(nvmlDeviceGetEncoderUtilization, "encoder_utilization")
UNSUPPORTED(nvmlDeviceGetFanSpeed, "fan_speed")
UNSUPPORTED(nvmlDeviceGetPcieThroughput, "pcie_throughput")
UNSUPPORTED(nvmlDeviceGetProcessUtilization, "process_utilization")
UNSUPPORTED(nvmlDeviceGetSamples, "samples")
UNSUPPORTED(nvmlDeviceGetSerial, "serial")
