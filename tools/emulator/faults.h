/* What no kernel may do: how it is noticed, and how the worker gets out of it. */
#ifndef REE_EMULATOR_FAULTS_H
#define REE_EMULATOR_FAULTS_H

#include "worker.h"

#include <csignal>
#include <cstdarg>
#include <cstdio>

[[noreturn]] static void give_up(Worker &w, int kind, u64 address, const char *format, va_list arguments)
{
    Fault &fault = *w.fault;
    fault.kind = kind;
    fault.address = address;
    const int length = vsnprintf(fault.text, sizeof(fault.text), format, arguments);
    const ree_index block = ree_here.block;
    if (length < static_cast<int>(sizeof(fault.text)))
        snprintf(fault.text + length, sizeof(fault.text) - static_cast<size_t>(length), " (block %u,%u,%u thread %u)",
                 block.x, block.y, block.z, ree_here.thread.x);
    is_given_up = true;
    siglongjmp(w.leave, 1);
}

[[noreturn]] static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    give_up(*ree_here.worker, FAULT_MISUSE, 0, format, arguments);
}

[[noreturn]] static void fail_at(const void *address, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    give_up(*ree_here.worker, FAULT_ADDRESS, reinterpret_cast<uintptr_t>(address), format, arguments);
}

static const char *const MEETINGS[] = {
    "at __syncwarp", "at __shfl_sync", "at __shfl_up_sync", "at __shfl_down_sync", "at __shfl_xor_sync", "at a vote",
    "at ree_mma_s8", "at __syncthreads", "at __syncthreads_count (_or, _and)", "returned",
};

[[noreturn]] static void fail_apart(int other, ree_meeting others, ree_meeting own)
{
    const bool is_block = (others >= REE_SYNCTHREADS && others != REE_RETURN) ||
                          (own >= REE_SYNCTHREADS && own != REE_RETURN);
    fail("%s: thread %d %s, thread %u %s",
         is_block ? "barrier not reached by all threads" : "warp primitive not reached by all lanes", other,
         MEETINGS[others], ree_here.thread.x, MEETINGS[own]);
}

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction actions_before[4];

static void on_signal(int signal, siginfo_t *info, void *context)
{
    if (ree_here.worker != nullptr) {
        if (signal == SIGFPE)
            fail("integer division by zero or overflow");
        if (signal == SIGILL)
            fail("trap");
        fail_at(info->si_addr, "memory fault at 0x%llx", static_cast<u64>(reinterpret_cast<uintptr_t>(info->si_addr)));
    }
    for (int i = 0; i < 4; i++) /* another thread's, not a kernel's: as if nothing stood before it */
        if (SIGNALS[i] == signal) {
            const struct sigaction &before = actions_before[i];
            if (before.sa_flags & SA_SIGINFO)
                before.sa_sigaction(signal, info, context);
            else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
                before.sa_handler(signal);
            else
                sigaction(signal, &before, nullptr);
        }
}

static void catch_signals(void)
{
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; i++)
        sigaction(SIGNALS[i], &action, &actions_before[i]);
}

static void release_signals(void)
{
    for (int i = 0; i < 4; i++)
        sigaction(SIGNALS[i], &actions_before[i], nullptr);
}

/* -- what -fsanitize calls: the place in the text comes first in what it gives -- */
struct SourcePlace {
    const char *file;
    u32 line, column;
};
#define REE_SANITIZER(name, parameters, ...)                                                                           \
    extern "C" void __ubsan_handle_##name##_abort parameters                                                           \
    {                                                                                                                  \
        fail(__VA_ARGS__);                                                                                             \
    }
REE_SANITIZER(type_mismatch_v1, (const SourcePlace *at, uintptr_t address),
              "%s:%u: misaligned address 0x%llx", at->file, at->line, static_cast<u64>(address))
REE_SANITIZER(out_of_bounds, (const SourcePlace *at, uintptr_t index),
              "%s:%u: index %lld is outside its array", at->file, at->line, static_cast<i64>(index))
REE_SANITIZER(shift_out_of_bounds, (const SourcePlace *at, uintptr_t, uintptr_t count),
              "%s:%u: shift by %lld bits", at->file, at->line, static_cast<i64>(count))
REE_SANITIZER(divrem_overflow, (const SourcePlace *at, uintptr_t, uintptr_t),
              "%s:%u: integer division by zero or overflow", at->file, at->line)

#endif
