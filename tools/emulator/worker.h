/* A worker: an OS thread that runs one block at a time, and all that it keeps of the block's threads. */
#ifndef REE_EMULATOR_WORKER_H
#define REE_EMULATOR_WORKER_H

#include "fibres.h"
#include "interface.h"

#include <atomic>
#include <csetjmp>
#include <vector>

typedef unsigned char u8;
typedef unsigned u32;
typedef long long i64;
typedef unsigned long long u64;

enum { LANES = 32, THREADS_MAX = 1024, WARPS_MAX = THREADS_MAX / LANES, WORKERS_MAX = 8 };
enum { SHARED_BYTES = 256 << 10, SIGNAL_STACK_BYTES = 64 << 10, POISON = 0xff };
enum { FAULT_NONE, FAULT_MISUSE, FAULT_ADDRESS };

/* As tools/emulator/device.py lays them out. */
struct Fault {
    i64 kind;
    u64 address;
    char text[480];
};
struct Launch {
    const ree_emulated_kernel *kernel;
    const void *args;
    i64 grid[3];
    i64 block, shared_bytes;
    u64 static_module, static_bytes; /* the TLS module and size of its __shared__ variables */
    u64 seed;
    i64 workers;
};

struct Copy {
    char *shared;
    const char *global; /* null: zeros */
    u32 bytes, group;
};
struct Copies {
    std::vector<Copy> pending; /* in the order in which they were begun */
    u32 committed;             /* groups */
};

struct Factors {
    signed char a[16][32], b[8][32]; /* b: by columns */
};

struct Worker {
    const Launch *launch;
    Fault *fault;
    sigjmp_buf leave; /* to where the worker gives the launch up */
    void *own_stack;  /* the worker's, while fibres run */
    char *shared_start, *static_shared, *signal_stack;

    /* the order in which threads run; [1]: of the last warp's lanes, if it has not all */
    u8 warp_order[WARPS_MAX], lane_order[2][LANES];
    int warps, warp_position, warp, lanes, position;
    const u8 *lane_at;
    ree_meeting meeting, block_meeting; /* what the pass's first lane, the phase's first warp came to */
    bool is_finished;

    void *saved[THREADS_MAX]; /* stack pointers of suspended fibres; null: has not started */
    int stack_of[THREADS_MAX];
    std::vector<char *> stacks;
    std::vector<int> stacks_free;

    /* what lanes bring to a meeting; written in turns, so that a lane can still read after the first has gone on */
    u64 values[2][LANES];
    Factors factors[2];
    int turn;
    int counts[2], phase; /* of __syncthreads_count, in turns too */

    Copies copies[THREADS_MAX];
    bool has_copies;
};

__thread ree_place ree_here;

static Worker workers[WORKERS_MAX];
static std::atomic<i64> next_block;
static std::atomic<bool> is_given_up;

#endif
