/* The prelude of every CUDA text: types, arithmetic, storage formats, warp primitives.
 *
 * The same text is compiled by NVRTC for a device and, in tests, by a C++ compiler for the CPU, where REE_EMULATED is
 * defined and the emulator's header stands before it. Floats are rounded only in the functions below, each of which is
 * one IEEE operation to nearest even: a compiler has nothing to contract.
 */
#ifndef REE_CUH
#define REE_CUH

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

#define REE_INLINE __device__ __forceinline__
enum { REE_WARP = 32, REE_CHUNK = 256, REE_LANES = 16 };
#define REE_ALL_LANES 0xffffffffu

#ifdef REE_EMULATED
#include "emulated.cuh"
#else
/* A kernel: its one argument `a`, a struct of 8-byte fields; threads: the most that a block of it has. */
#define REE_KERNEL(name, args_type, threads)                                                                           \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ args_type a)

/* The dynamic shared memory of the block, 16-byte aligned. */
REE_INLINE char *ree_shared(void)
{
    extern __shared__ uint4 ree_shared_memory[];
    return reinterpret_cast<char *>(ree_shared_memory);
}

/* -- float arithmetic: one rounding each ------------------------------------------------------- */
REE_INLINE f32 f32_add(f32 a, f32 b) { return __fadd_rn(a, b); }
REE_INLINE f32 f32_sub(f32 a, f32 b) { return __fsub_rn(a, b); }
REE_INLINE f32 f32_mul(f32 a, f32 b) { return __fmul_rn(a, b); }
REE_INLINE f32 f32_div(f32 a, f32 b) { return __fdiv_rn(a, b); }
REE_INLINE f32 f32_sqrt(f32 a) { return __fsqrt_rn(a); }
REE_INLINE f32 f32_fma(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
REE_INLINE f64 f64_add(f64 a, f64 b) { return __dadd_rn(a, b); }
REE_INLINE f64 f64_sub(f64 a, f64 b) { return __dsub_rn(a, b); }
REE_INLINE f64 f64_mul(f64 a, f64 b) { return __dmul_rn(a, b); }
REE_INLINE f64 f64_div(f64 a, f64 b) { return __ddiv_rn(a, b); }
REE_INLINE f64 f64_sqrt(f64 a) { return __dsqrt_rn(a); }
REE_INLINE f64 f64_fma(f64 a, f64 b, f64 c) { return __fma_rn(a, b, c); }

REE_INLINE u32 f32_bits(f32 a) { return __float_as_uint(a); }
REE_INLINE f32 f32_of_bits(u32 bits) { return __uint_as_float(bits); }
REE_INLINE u64 f64_bits(f64 a) { return static_cast<u64>(__double_as_longlong(a)); }
REE_INLINE f64 f64_of_bits(u64 bits) { return __longlong_as_double(static_cast<i64>(bits)); }

REE_INLINE f32 f32_of_f64(f64 a) { return __double2float_rn(a); }
REE_INLINE f64 f64_of_f32(f32 a) { return static_cast<f64>(a); }
REE_INLINE f32 f32_of_i32(i32 a) { return __int2float_rn(a); }
REE_INLINE f32 f32_of_u32(u32 a) { return __uint2float_rn(a); }
REE_INLINE f32 f32_of_i64(i64 a) { return __ll2float_rn(a); }
REE_INLINE f32 f32_of_u64(u64 a) { return __ull2float_rn(a); }
REE_INLINE f64 f64_of_i32(i32 a) { return static_cast<f64>(a); }
REE_INLINE f64 f64_of_u32(u32 a) { return static_cast<f64>(a); }
REE_INLINE f64 f64_of_i64(i64 a) { return __ll2double_rn(a); }
REE_INLINE f64 f64_of_u64(u64 a) { return __ull2double_rn(a); }

REE_INLINE f32 f32_floor(f32 a) { return ::floorf(a); }
REE_INLINE f32 f32_ceil(f32 a) { return ::ceilf(a); }
REE_INLINE f32 f32_trunc(f32 a) { return ::truncf(a); }
REE_INLINE f32 f32_rint(f32 a) { return ::rintf(a); }
REE_INLINE f64 f64_floor(f64 a) { return ::floor(a); }
REE_INLINE f64 f64_ceil(f64 a) { return ::ceil(a); }
REE_INLINE f64 f64_trunc(f64 a) { return ::trunc(a); }
REE_INLINE f64 f64_rint(f64 a) { return ::rint(a); }

/* d += A B by a warp, all of it: A 16 x 32, B 32 x 8, signed bytes; d wraps. Lane 4 g + t holds, bytes from the lowest:
 *   a[0], a[1]: of rows g, g + 8 the elements k = 4 t .. 4 t + 3; a[2], a[3]: the same of k + 16
 *   b[0], b[1]: of column g the elements k = 4 t .. 4 t + 3, and of k + 16
 *   d[0], d[1]: of row g the columns 2 t, 2 t + 1; d[2], d[3]: of row g + 8
 */
REE_INLINE void ree_mma_s8(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else /* sm_75 has 8 x 8 x 16: the same fragments, one register of A and of B each */
#pragma unroll
    for (int i = 0; i < 4; i++)
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+r"(d[i % 2 * 2]), "+r"(d[i % 2 * 2 + 1])
                     : "r"(a[i]), "r"(b[i / 2]));
#endif
}

/* -- copies of 16 or 4 bytes to shared memory, aligned to their size; zeros if not `inside` --------
 * They take place between the call and the wait, by which the thread sees those of all groups but the last
 * `groups_left`; a commit ends a group. Others see them after a barrier behind that wait.
 */
#if __CUDA_ARCH__ >= 800
REE_INLINE u32 ree_shared_address(void *shared) { return static_cast<u32>(__cvta_generic_to_shared(shared)); }

REE_INLINE void ree_copy_async16(void *shared, const void *global, bool inside = true)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(ree_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(inside ? 16 : 0)
                 : "memory");
}
REE_INLINE void ree_copy_async4(void *shared, const void *global, bool inside = true)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(ree_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(inside ? 4 : 0)
                 : "memory");
}
REE_INLINE void ree_copy_commit(void) { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <int groups_left> REE_INLINE void ree_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" : : "n"(groups_left) : "memory");
}
#else /* sm_75 has none: they take place at the call */
REE_INLINE void ree_copy_async16(void *shared, const void *global, bool inside = true)
{
    *static_cast<uint4 *>(shared) = inside ? *static_cast<const uint4 *>(global) : make_uint4(0, 0, 0, 0);
}
REE_INLINE void ree_copy_async4(void *shared, const void *global, bool inside = true)
{
    *static_cast<u32 *>(shared) = inside ? *static_cast<const u32 *>(global) : 0u;
}
REE_INLINE void ree_copy_commit(void) {}
template <int groups_left> REE_INLINE void ree_copy_wait(void) {}
#endif
#endif

/* -- special values ------------------------------------------------------------------------------ */
REE_INLINE bool f32_is_nan(f32 a) { return (f32_bits(a) & 0x7fffffffu) > 0x7f800000u; }
REE_INLINE bool f64_is_nan(f64 a) { return (f64_bits(a) & 0x7fffffffffffffffull) > 0x7ff0000000000000ull; }
REE_INLINE f32 f32_canonical(f32 a) { return f32_is_nan(a) ? f32_of_bits(0x7fc00000u) : a; }
REE_INLINE f64 f64_canonical(f64 a) { return f64_is_nan(a) ? f64_of_bits(0x7ff8000000000000ull) : a; }
REE_INLINE f32 f32_neg(f32 a) { return f32_of_bits(f32_bits(a) ^ 0x80000000u); }
REE_INLINE f64 f64_neg(f64 a) { return f64_of_bits(f64_bits(a) ^ 0x8000000000000000ull); }
REE_INLINE f32 f32_abs(f32 a) { return f32_of_bits(f32_bits(a) & 0x7fffffffu); }
REE_INLINE f64 f64_abs(f64 a) { return f64_of_bits(f64_bits(a) & 0x7fffffffffffffffull); }

/* |a| with the sign of b; a NaN b counts as positive */
REE_INLINE f32 f32_copysign(f32 a, f32 b)
{
    const u32 sign = f32_is_nan(b) ? 0u : f32_bits(b) & 0x80000000u;
    return f32_of_bits((f32_bits(a) & 0x7fffffffu) | sign);
}
REE_INLINE f64 f64_copysign(f64 a, f64 b)
{
    const u64 sign = f64_is_nan(b) ? 0ull : f64_bits(b) & 0x8000000000000000ull;
    return f64_of_bits((f64_bits(a) & 0x7fffffffffffffffull) | sign);
}

/* IEEE 754-2019 maximum and minimum: NaN if either is, -0 below +0 */
#define REE_EXTREMUM(type, name, better, zeros)                                                                        \
    REE_INLINE type type##_##name(type a, type b)                                                                      \
    {                                                                                                                  \
        if (type##_is_nan(a))                                                                                          \
            return a;                                                                                                  \
        if (type##_is_nan(b))                                                                                          \
            return b;                                                                                                  \
        if (a == b)                                                                                                    \
            return type##_of_bits(type##_bits(a) zeros type##_bits(b));                                                \
        return a better b ? a : b;                                                                                     \
    }
REE_EXTREMUM(f32, max, >, &)
REE_EXTREMUM(f32, min, <, |)
REE_EXTREMUM(f64, max, >, &)
REE_EXTREMUM(f64, min, <, |)
#undef REE_EXTREMUM

/* -- storage formats of 16 bits: a result is rounded to nearest even, a NaN is canonical ---------- */
REE_INLINE f32 f32_of_bf16(u16 bits) { return f32_of_bits(static_cast<u32>(bits) << 16); }

REE_INLINE u16 bf16_of_f32(f32 a)
{
    const u32 bits = f32_bits(a);
    return static_cast<u16>(f32_is_nan(a) ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

REE_INLINE f32 f32_of_f16(u16 bits)
{
    const u32 size = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
    /* as a float, 2^112 too small, subnormals included: one exact product corrects it */
    const u32 finite = f32_bits(f32_mul(f32_of_bits(size << 13), f32_of_bits((127u + 112u) << 23)));
    return f32_of_bits(sign | (size >= 0x7c00u ? (size << 13) | 0x7f800000u : finite));
}

REE_INLINE u16 f16_of_f32(f32 a)
{
    const u32 bits = f32_bits(a), size = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
    u32 value;
    if (f32_is_nan(a))
        return 0x7e00u;
    if (size >= 0x47800000u)
        value = 0x7c00u;
    else if (size >= 0x38800000u) /* normal: rebias, round the lower 13 bits to even by addition */
        value = (size + 0x0fffu - (112u << 23) + ((size >> 13) & 1u)) >> 13;
    else /* subnormal: adding 0.5 leaves it, correctly rounded, in the low bits */
        value = f32_bits(f32_add(f32_of_bits(size), 0.5f)) - 0x3f000000u;
    return static_cast<u16>(sign | value);
}

/* -- integers: division and shifts are defined for every operand ----------------------------------- */
template <class T> REE_INLINE T ree_div(T a, T b)
{
    if (b == T(0))
        return T(0);
    if (T(-1) < T(0) && b == T(-1)) /* MIN / -1 = MIN */
        return static_cast<T>(T(0) - a);
    return a / b;
}
template <class T> REE_INLINE T ree_rem(T a, T b)
{
    if (b == T(0))
        return a;
    if (T(-1) < T(0) && b == T(-1))
        return T(0);
    return a % b;
}

/* -- float to integer: truncates, saturates, NaN gives 0 -------------------------------------------- */
template <class To, class From> REE_INLINE To ree_saturate(From a, To least, To most)
{
    /* both bounds of a type, as floats, are powers of two or round up to one */
    if (!(a == a))
        return To(0);
    if (a <= static_cast<From>(least))
        return least;
    if (a >= static_cast<From>(most))
        return most;
    return static_cast<To>(a);
}
#define REE_I32_MIN (-2147483647 - 1)
#define REE_I64_MIN (-9223372036854775807ll - 1)
template <class From> REE_INLINE i32 i32_of_float(From a)
{
    return ree_saturate<i32, From>(a, REE_I32_MIN, 2147483647);
}
template <class From> REE_INLINE u32 u32_of_float(From a) { return ree_saturate<u32, From>(a, 0u, 0xffffffffu); }
template <class From> REE_INLINE i64 i64_of_float(From a)
{
    return ree_saturate<i64, From>(a, REE_I64_MIN, 9223372036854775807ll);
}
template <class From> REE_INLINE u64 u64_of_float(From a)
{
    return ree_saturate<u64, From>(a, 0ull, 0xffffffffffffffffull);
}

#endif
