/* Stands in for the NVIDIA driver's libnvidia-ml.so.1: two GPUs, the first one split by MIG on
 * demand. What it answers lies in a file that the tests map into memory and change while it runs;
 * the same structures are written down in stub.py. Built with -DWITHOUT_X it lacks the function X.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef int Result;
typedef uintptr_t Device;

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25
};

/* Every place is either a GPU (0 and 1) or a MIG instance of the first one (2 and 3). */
enum { NUM_GPUS = 2, NUM_PLACES = 4 };

struct place {
    char uuid[64];
    char bus_id[32];
    uint64_t total_bytes, free_bytes, throttle_reasons;
    uint32_t temperature_c, power_mw, utilization_percent, is_present;
};

struct state {
    int32_t init_result, find_result, memory_result, telemetry_result, temperature_result;
    int32_t shutdown_result;
    uint32_t is_split, sees_board, is_hanging, num_hanging;
    uint64_t num_inits, num_shutdowns, num_memory, num_telemetry, num_forbidden;
    struct place places[NUM_PLACES];
};

static struct state *state;
static unsigned num_users, generation;
static int is_lost;

static int attach(void) {
    const char *path = getenv("NVML_STUB_STATE");
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0)
        return 0;
    state = mmap(0, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return state != MAP_FAILED;
}

/* A handle is good until the library was shut down by all its users, as a driver's is. */
static Device handle_of(unsigned place) { return ((uintptr_t)generation << 8) | (place + 1); }

static Result place_of(Device device, struct place **place) {
    unsigned number = (unsigned)(device & 0xff) - 1;
    if (!num_users)
        return UNINITIALIZED;
    if (device >> 8 != generation || number >= NUM_PLACES)
        return INVALID_ARGUMENT;
    *place = &state->places[number];
    return SUCCESS;
}

static Result found(unsigned place, Device *device) {
    if (!num_users)
        return UNINITIALIZED;
    if (state->find_result)
        return state->find_result;
    *device = handle_of(place);
    return SUCCESS;
}

static int is_instance(unsigned place) { return place >= NUM_GPUS; }

static void hang_if_told(void) {
    struct timespec moment = {0, 1000000};
    if (!state->is_hanging)
        return;
    __sync_fetch_and_add(&state->num_hanging, 1);
    while (state->is_hanging)
        nanosleep(&moment, 0);
    __sync_fetch_and_sub(&state->num_hanging, 1);
}

/* A GPU that is lost stays lost until the library is initialised anew. */
static Result answer(Result result) {
    if (result == GPU_IS_LOST)
        is_lost = 1;
    return is_lost ? GPU_IS_LOST : result;
}

#ifndef WITHOUT_INIT
Result nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!state && !attach())
        return DRIVER_NOT_LOADED;
    state->num_inits++;
    if (state->init_result)
        return state->init_result;
    if (num_users++ == 0) {
        generation++;
        is_lost = 0;
    }
    return SUCCESS;
}
#endif

Result nvmlShutdown(void) {
    if (!num_users)
        return UNINITIALIZED;
    state->num_shutdowns++;
    num_users--;
    return state->shutdown_result;
}

#ifndef WITHOUT_ERROR_STRING
const char *nvmlErrorString(Result result) {
    return result == 77 ? "a code from a later driver" : "in the driver's own words";
}
#endif

Result nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 0;
    for (unsigned place = 0; place < NUM_GPUS; place++)
        *count += state->places[place].is_present;
    return num_users ? state->find_result : UNINITIALIZED;
}

Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    return index < NUM_GPUS ? found(index, device) : INVALID_ARGUMENT;
}

static Result find(const char *name, int by_bus_id, Device *device) {
    for (unsigned place = 0; place < NUM_PLACES; place++) {
        struct place *here = &state->places[place];
        if (here->is_present && !strcmp(by_bus_id ? here->bus_id : here->uuid, name))
            return found(place, device);
    }
    return num_users ? NOT_FOUND : UNINITIALIZED;
}

Result nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) { return find(uuid, 0, device); }

Result nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Device *device) {
    return find(bus_id, 1, device);
}

#ifndef WITHOUT_MIG
Result nvmlDeviceIsMigDeviceHandle(Device device, unsigned *is_mig) {
    struct place *place;
    Result result = place_of(device, &place);
    *is_mig = !result && is_instance((unsigned)(place - state->places));
    return result;
}

Result nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
    struct place *place;
    Result result = place_of(device, &place);
    if (!result && place != state->places)
        return NOT_SUPPORTED;
    *current = *pending = state->is_split;
    return result;
}

Result nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *count) {
    (void)device;
    *count = 7;
    return SUCCESS;
}

Result nvmlDeviceGetMigDeviceHandleByIndex(Device board, unsigned index, Device *device) {
    (void)board;
    unsigned place = NUM_GPUS + index;
    if (place >= NUM_PLACES || !state->places[place].is_present)
        return NOT_FOUND;
    return found(place, device);
}

Result nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device device, Device *board) {
    (void)device;
    return state->sees_board ? found(0, board) : NO_PERMISSION;
}
#endif

struct memory { uint64_t total, free, used; };

#ifndef WITHOUT_MEMORY
Result nvmlDeviceGetMemoryInfo(Device device, struct memory *memory) {
    struct place *place;
    Result result = place_of(device, &place);
    if (result)
        return result;
    state->num_memory++;
    hang_if_told();
    if (place == state->places && state->is_split)
        return NO_PERMISSION; /* as in a container that may see its instance alone */
    memory->total = place->total_bytes;
    memory->free = place->free_bytes;
    memory->used = 1; /* makes no sense, so that whoever reads it is found out */
    return answer(state->memory_result);
}
#endif

static Result telemetry(Device device, struct place **place) {
    Result result = place_of(device, place);
    if (result)
        return result;
    state->num_telemetry++;
    if (is_instance((unsigned)(*place - state->places)))
        return NOT_SUPPORTED;
    return answer(state->telemetry_result);
}

/* The one value that can be made to fail alone, by whichever name it is asked. */
static Result temperature_of(Device device, int32_t *degrees) {
    struct place *place;
    Result result = telemetry(device, &place);
    *degrees = result ? 0 : (int32_t)place->temperature_c;
    return result ? result : state->temperature_result;
}

struct temperature { uint32_t version, sensor; int32_t degrees; };

#ifndef WITHOUT_NEW_NAMES
Result nvmlDeviceGetTemperatureV(Device device, struct temperature *temperature) {
    if (temperature->version != 0x100000C)
        return ARGUMENT_VERSION_MISMATCH;
    return temperature_of(device, &temperature->degrees);
}

Result nvmlDeviceGetCurrentClocksEventReasons(Device device, uint64_t *reasons) {
    struct place *place;
    Result result = telemetry(device, &place);
    *reasons = result ? 0 : place->throttle_reasons;
    return result;
}
#endif

#ifndef WITHOUT_OLD_NAMES
Result nvmlDeviceGetTemperature(Device device, unsigned sensor, unsigned *degrees) {
    return sensor ? INVALID_ARGUMENT : temperature_of(device, (int32_t *)degrees);
}

Result nvmlDeviceGetCurrentClocksThrottleReasons(Device device, uint64_t *reasons) {
    struct place *place;
    Result result = telemetry(device, &place);
    *reasons = result ? 0 : place->throttle_reasons;
    return result;
}
#endif

Result nvmlDeviceGetPowerUsage(Device device, unsigned *milliwatts) {
    struct place *place;
    Result result = telemetry(device, &place);
    *milliwatts = result ? 0 : place->power_mw;
    return result;
}

struct rates { uint32_t gpu, memory; };

#ifndef WITHOUT_UTILIZATION
Result nvmlDeviceGetUtilizationRates(Device device, struct rates *rates) {
    struct place *place;
    Result result = telemetry(device, &place);
    rates->gpu = result ? 0 : place->utilization_percent;
    rates->memory = 0;
    return result;
}
#endif

/* What must never be asked: it takes milliseconds, under a lock that all users share. */
static Result forbidden(void) {
    if (state)
        state->num_forbidden++;
    return SUCCESS;
}
Result nvmlDeviceGetComputeRunningProcesses_v3(Device d, unsigned *n, void *p) {
    (void)d, (void)p, *n = 0;
    return forbidden();
}
Result nvmlDeviceGetGraphicsRunningProcesses_v3(Device d, unsigned *n, void *p) {
    (void)d, (void)p, *n = 0;
    return forbidden();
}
