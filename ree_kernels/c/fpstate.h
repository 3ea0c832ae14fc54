/* The floating-point state of the calling thread: every kernel runs in the default one.
 *
 * Other libraries of the process change it (flush to zero, rounding direction), and with it
 * the bits of every result.
 */
#ifndef REE_FPSTATE_H
#define REE_FPSTATE_H

#include <stdint.h>

#if defined(__x86_64__)

#include <immintrin.h>
#define REE_FP_DEFAULT 0x1f80u /* exceptions masked, nearest even, no FTZ, no DAZ */
static inline uint64_t fp_get(void) { return _mm_getcsr(); }
static inline void fp_set(uint64_t state) { _mm_setcsr((uint32_t)state); }

#elif defined(__aarch64__)

#define REE_FP_DEFAULT 0u
static inline uint64_t fp_get(void)
{
    uint64_t state;
    __asm__ volatile("mrs %0, fpcr" : "=r"(state));
    return state;
}
static inline void fp_set(uint64_t state) { __asm__ volatile("msr fpcr, %0" : : "r"(state)); }

#elif defined(__riscv)

#define REE_FP_DEFAULT 0u
static inline uint64_t fp_get(void)
{
    uint64_t state;
    __asm__ volatile("frcsr %0" : "=r"(state));
    return state;
}
static inline void fp_set(uint64_t state) { __asm__ volatile("fscsr %0" : : "r"(state)); }

#else
#error "no floating-point state guard for this processor"
#endif

/* Enter the default state; returns what fp_set must restore. */
static inline uint64_t fp_enter(void)
{
    const uint64_t saved = fp_get();
    fp_set(REE_FP_DEFAULT);
    return saved;
}

#endif
