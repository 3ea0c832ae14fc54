/* Thread pool and executor.
 *
 * A run's progress is one word, `progress` = step << 32 | next box. A thread claims a box by
 * compare-and-swap; whoever finishes the last box of a step opens the next step. A step is
 * complete when its boxes are, not when every thread has passed a barrier, so a thread that the
 * operating system has taken off its core holds up nothing but the box in its hands.
 *
 * Waiting is spinning for a millisecond, longer than most gaps between steps and runs, then sleeping on a
 * condition variable. A thread that is woken on the caller's CPU would wait there for milliseconds, until the
 * scheduler's next tick moves it: so workers are kept off that CPU (`place_workers`).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "fpstate.h"
#include "runtime.h"

enum { MAX_THREADS = 1024, SPIN_NS = 1000000, SPINS_PER_LOOK = 32 };
#define MAX_BOXES ((int64_t)1 << 31)
#define HUGE_PAGE (2 << 20)
#define LINE 64

/* Where the threads' order matters; a test builds the pool with pauses there (tests/test_pool_order.py). */
#if !defined(REE_POOL_PAUSE)
#define REE_POOL_PAUSE ((void)0)
#endif

static struct {
    /* one run at a time */
    pthread_mutex_t run_lock;
    const ree_step *steps;
    int64_t n_steps;
    int64_t n_threads; /* wanted, the caller's included */
    int64_t n_workers; /* started */
    pthread_t workers[MAX_THREADS];
#if defined(__linux__)
    int64_t n_placed; /* workers that were kept off caller_cpu, of the caller's caller_cpus */
    int caller_cpu;
    cpu_set_t caller_cpus;
#endif
    /* sleeping */
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
    _Alignas(LINE) atomic_int sleepers;
    _Alignas(LINE) atomic_uint epoch;      /* changes when there may be something new to do */
    _Alignas(LINE) atomic_ullong progress; /* step << 32 | next box */
    _Alignas(LINE) atomic_llong done;      /* finished boxes of the step */
    _Alignas(LINE) atomic_int open;        /* a run is on: steps may be read */
    _Alignas(LINE) atomic_int inside;      /* workers that may be reading steps */
    atomic_int error;
    atomic_int stop;
} pool = {
    .run_lock = PTHREAD_MUTEX_INITIALIZER,
    .sleep_lock = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
    .n_threads = 1,
};

/* -- scratch ---------------------------------------------------------------------------- */

typedef struct {
    void *memory;
    size_t size;
} scratch_t;

static pthread_key_t scratch_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void free_scratch(void *held)
{
    scratch_t *scratch = held;
    free(scratch->memory);
    free(scratch);
}

void *ree_alloc(int64_t bytes)
{
    const size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : LINE;
    const size_t rounded = ((size_t)bytes + align) / align * align;
    void *memory = NULL;
    if (bytes < 0 || posix_memalign(&memory, align, rounded))
        return NULL;
#if defined(__linux__)
    if (align == HUGE_PAGE)
        madvise(memory, rounded, MADV_HUGEPAGE); /* a hint: failure costs speed only */
#endif
    return memory;
}

void ree_free(void *memory) { free(memory); }

/* This thread's scratch, at least `size` bytes, 64-byte aligned; NULL if there is no memory. */
static void *get_scratch(size_t size)
{
    scratch_t *scratch = pthread_getspecific(scratch_key);
    if (!scratch) {
        scratch = calloc(1, sizeof *scratch);
        if (!scratch || pthread_setspecific(scratch_key, scratch)) {
            free(scratch);
            return NULL;
        }
    }
    if (size > scratch->size || !scratch->memory) {
        void *memory = ree_alloc((int64_t)size);
        if (!memory)
            return NULL;
        free(scratch->memory);
        scratch->memory = memory;
        scratch->size = size;
    }
    return scratch->memory;
}

/* -- waiting ---------------------------------------------------------------------------- */

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void notify(void)
{
    atomic_fetch_add(&pool.epoch, 1);
    if (atomic_load(&pool.sleepers) > 0) {
        pthread_mutex_lock(&pool.sleep_lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep_lock);
    }
}

/* Return once the epoch differs from `seen`. */
static void wait_epoch(unsigned seen)
{
    const int64_t until = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (atomic_load_explicit(&pool.epoch, memory_order_acquire) != seen)
                return;
            cpu_relax();
        }
    } while (now_ns() < until);
    pthread_mutex_lock(&pool.sleep_lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (atomic_load(&pool.epoch) == seen)
        pthread_cond_wait(&pool.wake, &pool.sleep_lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.sleep_lock);
}

/* -- running ---------------------------------------------------------------------------- */

static inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

static inline int64_t count_boxes(const ree_step *step)
{
    return ceil_div(step->rows, step->row_grain) * ceil_div(step->cols, step->col_grain);
}

static void run_box(const ree_step *step, int64_t box)
{
    const int64_t across = ceil_div(step->cols, step->col_grain);
    const int64_t r0 = box / across * step->row_grain;
    const int64_t c0 = box % across * step->col_grain;
    const int64_t r1 = step->rows - r0 < step->row_grain ? step->rows : r0 + step->row_grain;
    const int64_t c1 = step->cols - c0 < step->col_grain ? step->cols : c0 + step->col_grain;
    void *scratch = get_scratch((size_t)step->scratch_bytes);
    if (scratch)
        step->kernel(step->args, r0, r1, c0, c1, scratch);
    else
        atomic_store(&pool.error, ENOMEM);
}

int64_t ree_pair_boxes(const ree_pair *pair) { return count_boxes(&pair->first) + count_boxes(&pair->second); }

void ree_both(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_pair *pair = args;
    const int64_t boxes = count_boxes(&pair->first);
    (void)r0, (void)r1, (void)scratch; /* each box gets the scratch of its own step */
    for (int64_t c = c0; c < c1; c++) {
        if (c < boxes)
            run_box(&pair->first, c);
        else
            run_box(&pair->second, c - boxes);
    }
}

/* Open the first step from `step` on that has a box (or the end of the run). Nobody holds a box now, and until
 * `progress` names the new step nobody can claim one. */
static void open_step(int64_t step)
{
    while (step < pool.n_steps && count_boxes(&pool.steps[step]) == 0)
        step++;
    atomic_store(&pool.done, 0);
    REE_POOL_PAUSE;
    atomic_store(&pool.progress, (unsigned long long)step << 32);
    REE_POOL_PAUSE;
}

/* Take part in the run until all steps are complete. */
static void work(void)
{
    const uint64_t saved = fp_enter();
    for (;;) {
        const unsigned seen = atomic_load(&pool.epoch);
        unsigned long long now = atomic_load(&pool.progress);
        const int64_t number = (int64_t)(now >> 32);
        if (number >= pool.n_steps)
            break;
        const ree_step *step = &pool.steps[number];
        const int64_t boxes = count_boxes(step);
        const int64_t box = (int64_t)(now & 0xffffffffu);
        REE_POOL_PAUSE;
        if (box >= boxes) {
            wait_epoch(seen);
        } else if (atomic_compare_exchange_strong(&pool.progress, &now, now + 1)) {
            run_box(step, box);
            REE_POOL_PAUSE;
            if (atomic_fetch_add(&pool.done, 1) + 1 == boxes) {
                open_step(number + 1);
                notify();
            }
        }
    }
    fp_set(saved);
}

static void *worker(void *unused)
{
    (void)unused;
    while (!atomic_load(&pool.stop)) {
        const unsigned seen = atomic_load(&pool.epoch);
        atomic_fetch_add(&pool.inside, 1);
        REE_POOL_PAUSE;
        if (atomic_load(&pool.open))
            work();
        REE_POOL_PAUSE;
        atomic_fetch_sub(&pool.inside, 1);
        if (!atomic_load(&pool.stop))
            wait_epoch(seen);
    }
    return NULL;
}

/* -- threads ---------------------------------------------------------------------------- */

static void lock_all(void)
{
    pthread_mutex_lock(&pool.run_lock);
    pthread_mutex_lock(&pool.sleep_lock);
}

static void unlock_all(void)
{
    pthread_mutex_unlock(&pool.sleep_lock);
    pthread_mutex_unlock(&pool.run_lock);
}

static void forget_places(void)
{
#if defined(__linux__)
    pool.n_placed = 0;
#endif
}

/* A forked child has none of its parent's threads: it starts its own when it first needs them. */
static void start_afresh(void)
{
    pthread_cond_init(&pool.wake, NULL);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.open, 0);
    pool.n_workers = 0;
    forget_places();
    unlock_all();
}

static void initialise(void)
{
    pthread_key_create(&scratch_key, free_scratch);
    pthread_atfork(lock_all, unlock_all, start_afresh);
}

static void stop_workers(void)
{
    atomic_store(&pool.stop, 1);
    notify();
    for (int64_t i = 0; i < pool.n_workers; i++)
        pthread_join(pool.workers[i], NULL);
    pool.n_workers = 0;
    forget_places();
    atomic_store(&pool.stop, 0);
}

static int start_workers(void)
{
    if (pool.n_workers > pool.n_threads - 1)
        stop_workers();
    while (pool.n_workers < pool.n_threads - 1) {
        const int failed = pthread_create(&pool.workers[pool.n_workers], NULL, worker, NULL);
        if (failed)
            return failed;
#if defined(__linux__)
        pthread_setname_np(pool.workers[pool.n_workers], "ree-worker");
#endif
        pool.n_workers++;
    }
    return 0;
}

/* Let the workers run wherever the caller may, but for the CPU that it is on, if there are enough others. Only
 * speed depends on it, so a failure is ignored. */
static void place_workers(void)
{
#if defined(__linux__)
    const int here = sched_getcpu();
    cpu_set_t cpus;
    if (pool.n_workers == 0 || here < 0 || here >= CPU_SETSIZE ||
        pthread_getaffinity_np(pthread_self(), sizeof cpus, &cpus))
        return;
    if (here == pool.caller_cpu && pool.n_placed == pool.n_workers && CPU_EQUAL(&cpus, &pool.caller_cpus))
        return;
    pool.caller_cpus = cpus;
    if (CPU_COUNT(&cpus) > pool.n_workers)
        CPU_CLR(here, &cpus);
    for (int64_t i = 0; i < pool.n_workers; i++)
        pthread_setaffinity_np(pool.workers[i], sizeof cpus, &cpus);
    pool.n_placed = pool.n_workers;
    pool.caller_cpu = here;
#endif
}

static int check_step(const ree_step *step)
{
    if (!step->kernel || step->rows < 0 || step->cols < 0 || step->row_grain < 1 || step->col_grain < 1 ||
        step->scratch_bytes < 0)
        return EINVAL;
    const int64_t down = ceil_div(step->rows, step->row_grain), across = ceil_div(step->cols, step->col_grain);
    return down > MAX_BOXES || across > MAX_BOXES || (across && down > MAX_BOXES / across) ? EINVAL : 0;
}

static int check_pair(const ree_pair *pair) { return check_step(&pair->first) || check_step(&pair->second); }

int ree_run(const ree_step *steps, int64_t n_steps)
{
    if (n_steps < 0 || n_steps > MAX_BOXES || (n_steps && !steps))
        return EINVAL;
    for (int64_t i = 0; i < n_steps; i++)
        if (check_step(&steps[i]) || (steps[i].kernel == ree_both && check_pair(steps[i].args)))
            return EINVAL;
    pthread_once(&once, initialise);
    pthread_mutex_lock(&pool.run_lock);
    int status = start_workers();
    if (!status) {
        place_workers();
        pool.steps = steps;
        pool.n_steps = n_steps;
        atomic_store(&pool.error, 0);
        /* The first step is there before the door opens: a worker that is already awake may enter at once. */
        open_step(0);
        atomic_store(&pool.open, 1);
        REE_POOL_PAUSE;
        notify();
        work();
        /* A worker enters only while `open`: once none is inside, nobody reads steps. */
        atomic_store(&pool.open, 0);
        for (int i = 0; atomic_load(&pool.inside) > 0; i++) {
            cpu_relax();
            if (i > SPINS_PER_LOOK)
                sched_yield();
        }
        status = atomic_load(&pool.error);
    }
    pthread_mutex_unlock(&pool.run_lock);
    return status;
}

int ree_set_threads(int64_t n_threads)
{
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return EINVAL;
    pthread_once(&once, initialise);
    pthread_mutex_lock(&pool.run_lock);
    pool.n_threads = n_threads;
    pthread_mutex_unlock(&pool.run_lock);
    return 0;
}

int64_t ree_get_threads(void) { return pool.n_threads; }

int ree_cpu_has(const char *isa)
{
#if defined(__x86_64__)
    if (!strcmp(isa, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(isa, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
    if (!strcmp(isa, "neon"))
        return 1;
#endif
    return !strcmp(isa, "portable");
}

/* -- for tests -------------------------------------------------------------------------- */

uint64_t ree_fp_state(void) { return fp_get(); }
uint64_t ree_fp_enter(void) { return fp_enter(); }

void ree_set_fp_state(uint64_t state) { fp_set(state); }

void ree_trace_kernel(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_trace *trace = args;
    for (volatile int64_t i = 0; i < trace->spin; i++)
        ;
    *(volatile char *)scratch = 1; /* scratch must be there */
    for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c++) {
            trace->out[r * trace->cols + c] += 1;
            trace->fp_state[r * trace->cols + c] = fp_get();
        }
}
