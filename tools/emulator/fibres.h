/* Stacks, and going from one to another without leaving the OS thread: registers that a call keeps, nothing else. */
#ifndef REE_EMULATOR_FIBRES_H
#define REE_EMULATOR_FIBRES_H

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

/* Save the running fibre's stack pointer at `save`, go on with the fibre that was saved as `target`. */
extern "C" void ree_fibre_switch(void **save, void *target);

#if defined(__x86_64__)
asm(R"(
    .text
    .type ree_fibre_switch, @function
ree_fibre_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size ree_fibre_switch, . - ree_fibre_switch
)");
enum { FIBRE_WORDS = 8, FIBRE_ENTRY = 6 }; /* six registers, the entry, its caller: none */
#elif defined(__aarch64__)
asm(R"(
    .text
    .type ree_fibre_switch, %function
ree_fibre_switch:
    stp x29, x30, [sp, #-160]!
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #160
    ret
    .size ree_fibre_switch, . - ree_fibre_switch
)");
enum { FIBRE_WORDS = 20, FIBRE_ENTRY = 1 }; /* x29, the entry as x30, the other registers */
#else
#error "fibres are written for x86-64 and aarch64"
#endif

enum { FIBRE_STACK_BYTES = 128 << 10 };

inline size_t page_bytes(void)
{
    static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

inline size_t whole_pages(size_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); }

/* Where `bytes`, whole pages, begin, a page that cannot be touched on either side; null if there is no memory. */
inline char *map_guarded(size_t bytes)
{
    const size_t page = page_bytes();
    void *all = mmap(nullptr, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        return nullptr;
    char *start = static_cast<char *>(all) + page;
    if (mprotect(start, bytes, PROT_READ | PROT_WRITE) == 0)
        return start;
    munmap(all, bytes + 2 * page);
    return nullptr;
}

inline void unmap_guarded(char *start, size_t bytes) { munmap(start - page_bytes(), bytes + 2 * page_bytes()); }

/* What `ree_fibre_switch` goes to so that `entry`, which never returns, runs on the stack with this upper end. */
inline void *fibre_start(char *stack, void (*entry)(void))
{
    uintptr_t *words = reinterpret_cast<uintptr_t *>(stack) - FIBRE_WORDS;
    memset(words, 0, FIBRE_WORDS * sizeof(uintptr_t));
    words[FIBRE_ENTRY] = reinterpret_cast<uintptr_t>(entry);
    return words;
}

#endif
