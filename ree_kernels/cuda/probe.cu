/* The probe: every operation that the arithmetic leans on, on operands that a compiler cannot see.
 *
 * out[operation * n + i] has the bits of the result for operands i; cuda_probe.py lists the operations in this order.
 */
#include "ree.cuh"

struct ree_probe_args { const u64 *x; const u64 *y; const u64 *z; u64 *out; i64 n; };

/* Results one below the other, n apart. */
struct ree_column { u64 *at; i64 n; };

REE_INLINE void ree_put(ree_column &out, u64 bits)
{
    *out.at = bits;
    out.at += out.n;
}

#define REE_PROBE(name)                                                                                                \
    REE_INLINE void name##_case(ree_column &out, u64 x, u64 y, u64 z);                                                 \
    REE_KERNEL(name, ree_probe_args, 128)                                                                              \
    {                                                                                                                  \
        const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;                                         \
        ree_column out = {a.out + i, a.n};                                                                             \
        if (i < a.n)                                                                                                   \
            name##_case(out, a.x[i], a.y[i], a.z[i]);                                                                  \
    }                                                                                                                  \
    REE_INLINE void name##_case(ree_column &out, u64 x_bits, u64 y_bits, u64 z_bits)

/* The sum of a product has kernels to itself: a compiler contracts only a product that nothing else reads. In the last
 * kernel it stands in plain C, held by the compiler's options alone.
 */
#define REE_PROBE_FLOAT(F, U)                                                                                          \
    REE_PROBE(ree_probe_##F)                                                                                           \
    {                                                                                                                  \
        const F x = F##_of_bits(static_cast<U>(x_bits)), y = F##_of_bits(static_cast<U>(y_bits));                      \
        const F z = F##_of_bits(static_cast<U>(z_bits));                                                               \
        ree_put(out, F##_bits(F##_canonical(F##_add(x, y))));                                                          \
        ree_put(out, F##_bits(F##_canonical(F##_sub(x, y))));                                                          \
        ree_put(out, F##_bits(F##_canonical(F##_mul(x, y))));                                                          \
        ree_put(out, F##_bits(F##_canonical(F##_div(x, y))));                                                          \
        ree_put(out, F##_bits(F##_canonical(F##_sqrt(x))));                                                            \
        ree_put(out, F##_bits(F##_canonical(F##_fma(x, y, z))));                                                       \
        ree_put(out, F##_bits(F##_canonical(F##_max(x, y))));                                                          \
        ree_put(out, F##_bits(F##_canonical(F##_min(x, y))));                                                          \
        ree_put(out, F##_bits(F##_canonical(F##_floor(x))));                                                           \
        ree_put(out, F##_bits(F##_canonical(F##_ceil(x))));                                                            \
        ree_put(out, F##_bits(F##_canonical(F##_trunc(x))));                                                           \
        ree_put(out, F##_bits(F##_canonical(F##_rint(x))));                                                            \
        ree_put(out, static_cast<u32>(i32_of_float(x)));                                                               \
        ree_put(out, u32_of_float(x));                                                                                 \
        ree_put(out, static_cast<u64>(i64_of_float(x)));                                                               \
        ree_put(out, u64_of_float(x));                                                                                 \
    }                                                                                                                  \
    REE_PROBE(ree_probe_##F##_sum)                                                                                     \
    {                                                                                                                  \
        const F x = F##_of_bits(static_cast<U>(x_bits)), y = F##_of_bits(static_cast<U>(y_bits));                      \
        const F z = F##_of_bits(static_cast<U>(z_bits));                                                               \
        ree_put(out, F##_bits(F##_canonical(F##_add(F##_mul(x, y), z))));                                              \
    }                                                                                                                  \
    REE_PROBE(ree_probe_##F##_plain)                                                                                   \
    {                                                                                                                  \
        const F x = F##_of_bits(static_cast<U>(x_bits)), y = F##_of_bits(static_cast<U>(y_bits));                      \
        const F z = F##_of_bits(static_cast<U>(z_bits));                                                               \
        ree_put(out, F##_bits(F##_canonical(x * y + z)));                                                              \
        ree_put(out, F##_bits(F##_canonical(x / y)));                                                                  \
    }
REE_PROBE_FLOAT(f32, u32)
REE_PROBE_FLOAT(f64, u64)
#undef REE_PROBE_FLOAT

REE_PROBE(ree_probe_formats)
{
    const f32 x = f32_of_bits(static_cast<u32>(x_bits));
    ree_put(out, bf16_of_f32(x));
    ree_put(out, f16_of_f32(x));
    ree_put(out, f64_bits(f64_canonical(f64_of_f32(x))));
    ree_put(out, f32_bits(f32_canonical(f32_of_f64(f64_of_bits(x_bits)))));
    ree_put(out, f32_bits(f32_canonical(f32_of_bf16(static_cast<u16>(x_bits)))));
    ree_put(out, f32_bits(f32_canonical(f32_of_f16(static_cast<u16>(x_bits)))));
    ree_put(out, f32_bits(f32_of_i32(static_cast<i32>(x_bits))));
    ree_put(out, f32_bits(f32_of_u32(static_cast<u32>(x_bits))));
    ree_put(out, f32_bits(f32_of_i64(static_cast<i64>(x_bits))));
    ree_put(out, f32_bits(f32_of_u64(x_bits)));
    ree_put(out, f64_bits(f64_of_i32(static_cast<i32>(x_bits))));
    ree_put(out, f64_bits(f64_of_u32(static_cast<u32>(x_bits))));
    ree_put(out, f64_bits(f64_of_i64(static_cast<i64>(x_bits))));
    ree_put(out, f64_bits(f64_of_u64(x_bits)));
}
#undef REE_PROBE
