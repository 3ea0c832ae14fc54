/* CUDA for a C++ compiler: what stands in ree.cuh for a device, for the CPU. Included by ree.cuh.
 *
 * Only what the kernels may use is here: no float atomics, no libm, no masks but the full one.
 */
#ifndef REE_EMULATED_CUH
#define REE_EMULATED_CUH

#include <stddef.h>
#include "interface.h"

#define __device__
#define __host__
#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
/* an OS thread runs one block at a time */
#define __shared__ static thread_local

#define threadIdx (ree_here.thread)
#define blockIdx (ree_here.block)
#define blockDim (ree_here.threads)
#define gridDim (ree_here.blocks)
enum { warpSize = 32 };

/* A kernel: its one argument `a`, a struct of 8-byte fields; threads: the most that a block of it has. */
#define REE_KERNEL(name, args_type, threads)                                                                           \
    static __forceinline__ void name##_thread(const args_type a);                                                      \
    static void name##_run(const void *args) { name##_thread(*static_cast<const args_type *>(args)); }                 \
    static_assert(sizeof(args_type) % 8 == 0 && (threads) <= 1024, "a kernel's arguments or threads");                 \
    extern "C" __attribute__((visibility("default"))) const ree_emulated_kernel name = {name##_run, sizeof(args_type), \
                                                                                        threads};                      \
    static __forceinline__ void name##_thread(const args_type a)

REE_INLINE char *ree_shared(void) { return ree_here.shared; }

/* -- vector types ------------------------------------------------------------------------------ */
#define REE_VECTORS(type, name, align2, align4)                                                                        \
    struct alignas(align2) name##2 {                                                                                   \
        type x, y;                                                                                                     \
    };                                                                                                                 \
    struct alignas(align4) name##4 {                                                                                   \
        type x, y, z, w;                                                                                               \
    };                                                                                                                 \
    REE_INLINE name##2 make_##name##2(type x, type y) { return {x, y}; }                                               \
    REE_INLINE name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
REE_VECTORS(float, float, 8, 16)
REE_VECTORS(double, double, 16, 16)
REE_VECTORS(int, int, 8, 16)
REE_VECTORS(unsigned, uint, 8, 16)
REE_VECTORS(long long, longlong, 16, 16)
REE_VECTORS(unsigned long long, ulonglong, 16, 16)
REE_VECTORS(short, short, 4, 8)
REE_VECTORS(unsigned short, ushort, 4, 8)
REE_VECTORS(signed char, char, 2, 4)
REE_VECTORS(unsigned char, uchar, 2, 4)
#undef REE_VECTORS

/* -- float arithmetic: one rounding each ------------------------------------------------------- */
REE_INLINE f32 f32_add(f32 a, f32 b) { return a + b; }
REE_INLINE f32 f32_sub(f32 a, f32 b) { return a - b; }
REE_INLINE f32 f32_mul(f32 a, f32 b) { return a * b; }
REE_INLINE f32 f32_div(f32 a, f32 b) { return a / b; }
REE_INLINE f32 f32_sqrt(f32 a) { return __builtin_sqrtf(a); }
REE_INLINE f32 f32_fma(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
REE_INLINE f64 f64_add(f64 a, f64 b) { return a + b; }
REE_INLINE f64 f64_sub(f64 a, f64 b) { return a - b; }
REE_INLINE f64 f64_mul(f64 a, f64 b) { return a * b; }
REE_INLINE f64 f64_div(f64 a, f64 b) { return a / b; }
REE_INLINE f64 f64_sqrt(f64 a) { return __builtin_sqrt(a); }
REE_INLINE f64 f64_fma(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }

template <class To, class From> REE_INLINE To ree_bits_as(From from)
{
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}
REE_INLINE u32 f32_bits(f32 a) { return ree_bits_as<u32>(a); }
REE_INLINE f32 f32_of_bits(u32 bits) { return ree_bits_as<f32>(bits); }
REE_INLINE u64 f64_bits(f64 a) { return ree_bits_as<u64>(a); }
REE_INLINE f64 f64_of_bits(u64 bits) { return ree_bits_as<f64>(bits); }

REE_INLINE f32 f32_of_f64(f64 a) { return static_cast<f32>(a); }
REE_INLINE f64 f64_of_f32(f32 a) { return static_cast<f64>(a); }
REE_INLINE f32 f32_of_i32(i32 a) { return static_cast<f32>(a); }
REE_INLINE f32 f32_of_u32(u32 a) { return static_cast<f32>(a); }
REE_INLINE f32 f32_of_i64(i64 a) { return static_cast<f32>(a); }
REE_INLINE f32 f32_of_u64(u64 a) { return static_cast<f32>(a); }
REE_INLINE f64 f64_of_i32(i32 a) { return static_cast<f64>(a); }
REE_INLINE f64 f64_of_u32(u32 a) { return static_cast<f64>(a); }
REE_INLINE f64 f64_of_i64(i64 a) { return static_cast<f64>(a); }
REE_INLINE f64 f64_of_u64(u64 a) { return static_cast<f64>(a); }

REE_INLINE f32 f32_floor(f32 a) { return __builtin_floorf(a); }
REE_INLINE f32 f32_ceil(f32 a) { return __builtin_ceilf(a); }
REE_INLINE f32 f32_trunc(f32 a) { return __builtin_truncf(a); }
REE_INLINE f32 f32_rint(f32 a) { return __builtin_rintf(a); }
REE_INLINE f64 f64_floor(f64 a) { return __builtin_floor(a); }
REE_INLINE f64 f64_ceil(f64 a) { return __builtin_ceil(a); }
REE_INLINE f64 f64_trunc(f64 a) { return __builtin_trunc(a); }
REE_INLINE f64 f64_rint(f64 a) { return __builtin_rint(a); }

/* -- integers ------------------------------------------------------------------------------------ */
template <class T> REE_INLINE T ree_least(T a, T b) { return a < b ? a : b; }
template <class T> REE_INLINE T ree_most(T a, T b) { return a > b ? a : b; }
#define REE_EXTREMA(T, A, B)                                                                                           \
    REE_INLINE T min(A a, B b) { return ree_least<T>(static_cast<T>(a), static_cast<T>(b)); }                          \
    REE_INLINE T max(A a, B b) { return ree_most<T>(static_cast<T>(a), static_cast<T>(b)); }
REE_EXTREMA(int, int, int)
REE_EXTREMA(unsigned, unsigned, unsigned)
REE_EXTREMA(unsigned, int, unsigned)
REE_EXTREMA(unsigned, unsigned, int)
REE_EXTREMA(long, long, long)
REE_EXTREMA(unsigned long, unsigned long, unsigned long)
REE_EXTREMA(long long, long long, long long)
REE_EXTREMA(unsigned long long, unsigned long long, unsigned long long)
REE_EXTREMA(unsigned long long, long long, unsigned long long)
REE_EXTREMA(unsigned long long, unsigned long long, long long)
#undef REE_EXTREMA

REE_INLINE int __popc(unsigned a) { return __builtin_popcount(a); }
REE_INLINE int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
REE_INLINE int __clz(int a) { return a == 0 ? 32 : __builtin_clz(static_cast<unsigned>(a)); }
REE_INLINE int __clzll(long long a) { return a == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(a)); }
REE_INLINE int __ffs(int a) { return __builtin_ffs(a); }
REE_INLINE int __ffsll(long long a) { return __builtin_ffsll(a); }
REE_INLINE unsigned long long __brevll(unsigned long long a)
{
    unsigned long long reversed = 0;
    for (int bit = 0; bit < 64; bit++)
        reversed |= (a >> bit & 1u) << (63 - bit);
    return reversed;
}
REE_INLINE unsigned __brev(unsigned a) { return static_cast<unsigned>(__brevll(a) >> 32); }
REE_INLINE int __mulhi(int a, int b) { return static_cast<int>(static_cast<i64>(a) * b >> 32); }
REE_INLINE unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<u64>(a) * b >> 32); }
REE_INLINE long long __mul64hi(long long a, long long b)
{
    return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}
REE_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
/* the upper, the lower half of high:low, shifted by shift mod 32 */
REE_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift)
{
    return static_cast<unsigned>((static_cast<u64>(high) << 32 | low) << (shift & 31u) >> 32);
}
REE_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    return static_cast<unsigned>((static_cast<u64>(high) << 32 | low) >> (shift & 31u));
}
REE_INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors)
{
    const u64 bytes = static_cast<u64>(b) << 32 | a;
    unsigned result = 0;
    for (int n = 0; n < 4; n++)
        result |= static_cast<unsigned>(bytes >> 8 * (selectors >> 4 * n & 7u) & 0xffu) << 8 * n;
    return result;
}

/* -- memory -------------------------------------------------------------------------------------- */
template <class T> REE_INLINE T __ldg(const T *address) { return *address; }
REE_INLINE void __threadfence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
REE_INLINE void __threadfence_block(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#define REE_ATOMIC(name, type, value)                                                                                  \
    REE_INLINE type name(type *address, type operand)                                                                  \
    {                                                                                                                  \
        type old = __atomic_load_n(address, __ATOMIC_RELAXED);                                                         \
        while (!__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {        \
        }                                                                                                              \
        return old;                                                                                                    \
    }
#define REE_ATOMICS(type)                                                                                              \
    REE_ATOMIC(atomicMin, type, old < operand ? old : operand)                                                         \
    REE_ATOMIC(atomicMax, type, old > operand ? old : operand)                                                         \
    REE_ATOMIC(atomicAnd, type, old &operand)                                                                          \
    REE_ATOMIC(atomicOr, type, old | operand)                                                                          \
    REE_ATOMIC(atomicXor, type, old ^ operand)
#define REE_ATOMICS_WITHOUT_LL(type)                                                                                   \
    REE_INLINE type atomicAdd(type *address, type operand)                                                             \
    {                                                                                                                  \
        return __atomic_fetch_add(address, operand, __ATOMIC_SEQ_CST);                                                 \
    }                                                                                                                  \
    REE_INLINE type atomicExch(type *address, type value)                                                              \
    {                                                                                                                  \
        return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                                                  \
    }                                                                                                                  \
    REE_INLINE type atomicCAS(type *address, type old, type value)                                                     \
    {                                                                                                                  \
        __atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
        return old;                                                                                                    \
    }
REE_ATOMICS(int)
REE_ATOMICS(unsigned)
REE_ATOMICS(long long)
REE_ATOMICS(unsigned long long)
REE_ATOMICS_WITHOUT_LL(int)
REE_ATOMICS_WITHOUT_LL(unsigned)
REE_ATOMICS_WITHOUT_LL(unsigned long long)
#undef REE_ATOMIC
#undef REE_ATOMICS
#undef REE_ATOMICS_WITHOUT_LL

/* -- the block ----------------------------------------------------------------------------------- */
REE_INLINE void __syncthreads(void) { ree_meet_block(REE_SYNCTHREADS, false); }
REE_INLINE int __syncthreads_count(int predicate) { return ree_meet_block(REE_SYNCTHREADS_COUNT, predicate != 0); }
REE_INLINE int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
REE_INLINE int __syncthreads_and(int predicate) { return __syncthreads_count(predicate == 0) == 0; }

/* -- the warp ------------------------------------------------------------------------------------ */
REE_INLINE void __syncwarp(unsigned mask = REE_ALL_LANES) { ree_meet_lanes(REE_SYNCWARP, mask, 0); }
REE_INLINE unsigned __ballot_sync(unsigned mask, int predicate) { return ree_meet_vote(mask, predicate != 0); }
REE_INLINE int __any_sync(unsigned mask, int predicate) { return ree_meet_vote(mask, predicate != 0) != 0; }
REE_INLINE int __all_sync(unsigned mask, int predicate) { return ree_meet_vote(mask, predicate == 0) == 0; }

/* The value of lane `source` or, where `reads` is false, the own one. */
template <class T, class Bits>
REE_INLINE T ree_shfl(ree_meeting meeting, unsigned mask, T value, int source, bool reads)
{
    const u64 *lanes = ree_meet_lanes(meeting, mask, ree_bits_as<Bits>(value));
    return reads ? ree_bits_as<T>(static_cast<Bits>(lanes[source & 31])) : value;
}

/* A group is `width` lanes, from lane & -width on. */
#define REE_SHUFFLES(T, Bits)                                                                                          \
    REE_INLINE T __shfl_sync(unsigned mask, T value, int lane, int width = 32)                                         \
    {                                                                                                                  \
        const int own = static_cast<int>(threadIdx.x % 32);                                                            \
        return ree_shfl<T, Bits>(REE_SHFL, mask, value, (own & -width) | (lane & (width - 1)), true);                  \
    }                                                                                                                  \
    REE_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)                                \
    {                                                                                                                  \
        const int own = static_cast<int>(threadIdx.x % 32), source = own - static_cast<int>(delta);                    \
        return ree_shfl<T, Bits>(REE_SHFL_UP, mask, value, source, source >= (own & -width));                          \
    }                                                                                                                  \
    REE_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)                              \
    {                                                                                                                  \
        const int own = static_cast<int>(threadIdx.x % 32), source = own + static_cast<int>(delta);                    \
        return ree_shfl<T, Bits>(REE_SHFL_DOWN, mask, value, source, source <= (own | (width - 1)));                   \
    }                                                                                                                  \
    REE_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32)                                    \
    {                                                                                                                  \
        const int own = static_cast<int>(threadIdx.x % 32), source = own ^ lanes;                                      \
        return ree_shfl<T, Bits>(REE_SHFL_XOR, mask, value, source, source <= (own | (width - 1)));                    \
    }
REE_SHUFFLES(int, unsigned)
REE_SHUFFLES(unsigned, unsigned)
REE_SHUFFLES(long, unsigned long)
REE_SHUFFLES(unsigned long, unsigned long)
REE_SHUFFLES(long long, unsigned long long)
REE_SHUFFLES(unsigned long long, unsigned long long)
REE_SHUFFLES(float, unsigned)
REE_SHUFFLES(double, unsigned long long)
#undef REE_SHUFFLES

REE_INLINE void ree_mma_s8(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ree_meet_mma(d, a, b); }

/* -- copies to shared memory: nothing is there before the wait ----------------------------------- */
REE_INLINE void ree_copy_async16(void *shared, const void *global, bool inside = true)
{
    ree_copy_later(shared, global, 16, inside);
}
REE_INLINE void ree_copy_async4(void *shared, const void *global, bool inside = true)
{
    ree_copy_later(shared, global, 4, inside);
}
REE_INLINE void ree_copy_commit(void) { ree_copies_commit(); }
template <int groups_left> REE_INLINE void ree_copy_wait(void) { ree_copies_wait(groups_left); }

#endif
