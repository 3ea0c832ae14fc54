/* Runs kernels that were compiled with emulated.cuh: grids, a block at a time by each worker. Called by device.py. */
#include "copies.h"
#include "meetings.h"

#include <link.h>
#include <mutex>
#include <pthread.h>

/* -- blocks ----------------------------------------------------------------------------------------------- */
static void run_block(Worker &w, i64 number)
{
    const Launch &l = *w.launch;
    const i64 rows = number / l.grid[0];
    ree_here.block = {static_cast<u32>(number % l.grid[0]), static_cast<u32>(rows % l.grid[1]),
                      static_cast<u32>(rows / l.grid[1])};
    memset(ree_here.shared, POISON, static_cast<size_t>(l.shared_bytes));
    memset(w.static_shared, POISON, l.static_bytes);
    memset(w.saved, 0, static_cast<size_t>(l.block) * sizeof(w.saved[0]));
    forget_copies(w);
    draw_orders(w, number);
    w.warp_position = w.position = w.counts[0] = w.counts[1] = 0;
    w.is_finished = false;
    enter_warp(w);
    const int first = next_thread(w);
    ree_here.thread.x = static_cast<u32>(first);
    ree_fibre_switch(&w.own_stack, start(w, first));
}

/* To nearest even, subnormals kept, no traps, whatever another library has set; gives what stood before. */
static u64 set_arithmetic(u64 state)
{
#if defined(__x86_64__)
    const u64 before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(static_cast<u32>(state));
#else
    u64 before;
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(state));
#endif
    return before;
}
#if defined(__x86_64__)
enum { ARITHMETIC = 0x1f80 };
#else
enum { ARITHMETIC = 0 };
#endif

static bool make_worker(Worker &w)
{
    if (w.shared_start == nullptr)
        w.shared_start = map_guarded(SHARED_BYTES);
    if (w.signal_stack == nullptr)
        w.signal_stack = map_guarded(SIGNAL_STACK_BYTES);
    w.stacks_free.clear();
    for (size_t stack = 0; stack < w.stacks.size(); stack++)
        w.stacks_free.push_back(static_cast<int>(stack));
    return w.shared_start != nullptr && w.signal_stack != nullptr;
}

extern "C" void *__tls_get_addr(size_t *module_and_offset);

static char *static_shared(const Launch &l)
{
    size_t module_and_offset[2] = {l.static_module, 0};
    return l.static_bytes == 0 ? nullptr : static_cast<char *>(__tls_get_addr(module_and_offset));
}

static i64 blocks_of(const Launch &l) { return l.grid[0] * l.grid[1] * l.grid[2]; }

/* Blocks, until none is left or one worker gave up. */
static void *work(void *argument)
{
    Worker &w = *static_cast<Worker *>(argument);
    const Launch &l = *w.launch;
    stack_t signal_stack = {w.signal_stack, 0, SIGNAL_STACK_BYTES}, stack_before;
    sigaltstack(&signal_stack, &stack_before);
    const u64 before = set_arithmetic(ARITHMETIC);
    w.static_shared = static_shared(l);
    ree_here.threads = {static_cast<u32>(l.block), 1, 1};
    ree_here.blocks = {static_cast<u32>(l.grid[0]), static_cast<u32>(l.grid[1]), static_cast<u32>(l.grid[2])};
    ree_here.thread = {0, 0, 0};
    ree_here.shared = w.shared_start + SHARED_BYTES - (l.shared_bytes + 15) / 16 * 16;
    w.warps = static_cast<int>((l.block + LANES - 1) / LANES);
    w.has_copies = true;
    if (sigsetjmp(w.leave, 1) == 0) {
        ree_here.worker = &w;
        for (i64 block = next_block++; block < blocks_of(l) && !is_given_up; block = next_block++)
            run_block(w, block);
    }
    ree_here.worker = nullptr;
    set_arithmetic(before);
    sigaltstack(&stack_before, nullptr);
    return nullptr;
}

/* How many: an OS thread must be worth its start. */
static int workers_of(const Launch &l)
{
    const i64 wanted = blocks_of(l) * l.block < 2048 ? 1 : l.workers < blocks_of(l) ? l.workers : blocks_of(l);
    return wanted < WORKERS_MAX ? static_cast<int>(wanted) : int(WORKERS_MAX);
}

/* With the worker that calls, others; signals that are not theirs go to other threads. */
static void work_together(int n_workers)
{
    pthread_t threads[WORKERS_MAX];
    sigset_t all, before;
    sigfillset(&all);
    for (const int signal : SIGNALS)
        sigdelset(&all, signal);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = 1;
    while (started < n_workers && pthread_create(&threads[started], nullptr, work, &workers[started]) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    work(&workers[0]);
    for (int i = 1; i < started; i++)
        pthread_join(threads[i], nullptr);
}

/* -- for Python -------------------------------------------------------------------------------------------- */
extern "C" {
/* Run a grid; what went wrong is in `fault`. */
void ree_emulator_launch(const Launch *launch, Fault *fault)
{
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const int n_workers = workers_of(*launch);
    Fault faults[WORKERS_MAX];
    next_block = 0;
    is_given_up = false;
    fault->kind = FAULT_NONE;
    for (int i = 0; i < n_workers; i++) {
        workers[i].launch = launch;
        workers[i].fault = &faults[i];
        faults[i].kind = FAULT_NONE;
        if (!make_worker(workers[i])) {
            fault->kind = FAULT_MISUSE;
            snprintf(fault->text, sizeof(fault->text), "no memory for the emulator's stacks");
            return;
        }
    }
    catch_signals();
    work_together(n_workers);
    release_signals();
    for (int i = n_workers; i-- > 0;)
        if (faults[i].kind != FAULT_NONE)
            *fault = faults[i];
}

struct FoundModule {
    uintptr_t address;
    u64 module, bytes;
};

static int find_module(struct dl_phdr_info *info, size_t, void *argument)
{
    FoundModule &found = *static_cast<FoundModule *>(argument);
    u64 bytes = 0;
    bool is_it = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &header = info->dlpi_phdr[i];
        if (header.p_type == PT_LOAD && found.address - info->dlpi_addr - header.p_vaddr < header.p_memsz)
            is_it = true;
        if (header.p_type == PT_TLS)
            bytes = header.p_memsz;
    }
    if (is_it) {
        found.module = info->dlpi_tls_modid;
        found.bytes = bytes;
    }
    return is_it;
}

/* Which TLS module the kernel's static shared memory is, and its size. */
void ree_emulator_static_shared(const ree_emulated_kernel *kernel, u64 *module, u64 *bytes)
{
    FoundModule found = {reinterpret_cast<uintptr_t>(kernel), 0, 0};
    dl_iterate_phdr(find_module, &found);
    *module = found.module;
    *bytes = found.bytes;
}

/* Device memory, poisoned, its end (of 16 bytes) before a page that cannot be touched; null: there is none. */
char *ree_emulator_allocate(u64 bytes)
{
    const size_t rounded = (bytes + 15) / 16 * 16, pages = whole_pages(rounded);
    char *start = map_guarded(pages);
    if (start == nullptr)
        return nullptr;
    start += pages - rounded;
    memset(start, POISON, rounded);
    return start;
}

void ree_emulator_release(char *start, u64 bytes)
{
    const size_t rounded = (bytes + 15) / 16 * 16, pages = whole_pages(rounded);
    unmap_guarded(start + rounded - pages, pages);
}
}
