/* What emulated.cuh, a part of every kernel's text, and runtime.cc, which runs kernels, know of each other. */
#ifndef REE_EMULATOR_INTERFACE_H
#define REE_EMULATOR_INTERFACE_H

/* A kernel of a module, under its own name. */
struct ree_emulated_kernel {
    void (*run)(const void *args); /* one thread of it */
    unsigned args_bytes, threads_max;
};

struct ree_index {
    unsigned x, y, z;
};

/* Where the running thread is. The worker that runs it, an OS thread, sets it before it goes on. */
struct ree_place {
    ree_index thread, block, blocks, threads;
    char *shared;
    struct Worker *worker;
};
extern __thread ree_place ree_here __attribute__((tls_model("initial-exec")));

/* Where threads meet. Those of a warp, or of a block from REE_SYNCTHREADS on, must come to the same. */
enum ree_meeting {
    REE_SYNCWARP,
    REE_SHFL,
    REE_SHFL_UP,
    REE_SHFL_DOWN,
    REE_SHFL_XOR,
    REE_VOTE,
    REE_MMA,
    REE_SYNCTHREADS,
    REE_SYNCTHREADS_COUNT,
    REE_RETURN
};

extern "C" {
/* The values of all lanes, by lane; bits 1 for lanes that the block does not have. */
const unsigned long long *ree_meet_lanes(ree_meeting meeting, unsigned mask, unsigned long long value);
/* The lanes whose predicate holds. */
unsigned ree_meet_vote(unsigned mask, bool predicate);
void ree_meet_mma(int *d, const unsigned *a, const unsigned *b);
/* The number of threads whose predicate holds. */
int ree_meet_block(ree_meeting meeting, bool predicate);

void ree_copy_later(void *shared, const void *global, unsigned bytes, bool inside);
void ree_copies_commit(void);
void ree_copies_wait(int groups_left);
}

#endif
