/* The only file, beside vec_i8.h, that knows an instruction set.
 *
 * A `vf` holds W floats. Every operation is lane by lane and rounds once, so the width
 * never reaches a result. REE_MR x REE_NR is the register tile of the matrix product, as
 * large as the register file allows: REE_MR rows, REE_NR = REE_NV * W columns. REE_STREAMS is
 * the number of states of 16 integer vectors that are worth computing at once.
 */
#ifndef REE_VEC_H
#define REE_VEC_H

#include <stdint.h>
#include <string.h>

#define REE_INLINE static inline __attribute__((always_inline))

#if defined(REE_ISA_AVX512)

#include <immintrin.h>
#define W 16
#define REE_MR 14
#define REE_NV 2
#define REE_STREAMS 2
typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vmask;

REE_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
REE_INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
REE_INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
REE_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
REE_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
REE_INLINE vmask vf_first(int64_t n) { return (vmask)((1u << n) - 1u); }
REE_INLINE vf vf_load_part(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vf_first(n), p); }
REE_INLINE void vf_store_part(float *p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, vf_first(n), v); }
REE_INLINE vf vf_canonical(vf v)
{
    const vf quiet = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v, quiet);
}
#define VI_ROTATE(v, n) _mm512_ror_epi32(v, n)

#elif defined(REE_ISA_AVX2)

#include <immintrin.h>
#define W 8
#define REE_MR 6
#define REE_NV 2
#define REE_STREAMS 2
typedef __m256 vf;
typedef __m256i vi;

static const int32_t ree_part_mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

REE_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
REE_INLINE void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
REE_INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
REE_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
REE_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
REE_INLINE vi vf_first(int64_t n) { return _mm256_loadu_si256((const __m256i *)(ree_part_mask + 8 - n)); }
REE_INLINE vf vf_load_part(const float *p, int64_t n) { return _mm256_maskload_ps(p, vf_first(n)); }
REE_INLINE void vf_store_part(float *p, vf v, int64_t n) { _mm256_maskstore_ps(p, vf_first(n), v); }
REE_INLINE vf vf_canonical(vf v)
{
    const vf quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(v, quiet, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
/* A rotation by whole bytes is one shuffle: each byte of the index says where its byte comes from. */
REE_INLINE vi vi_rotate_bytes(vi v, const int n)
{
    const uint32_t first = 0x03020100u >> 8 * n | 0x03020100u << (32 - 8 * n);
    const vi words = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    return _mm256_shuffle_epi8(v, _mm256_add_epi32(words, _mm256_set1_epi32((int)first)));
}
#define VI_ROTATE(v, n) \
    ((n) % 8 ? _mm256_or_si256(_mm256_srli_epi32(v, n), _mm256_slli_epi32(v, 32 - (n))) : vi_rotate_bytes(v, (n) / 8))

#else /* vector extensions of the compiler: NEON and portable */

#define W 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

REE_INLINE vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
REE_INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
REE_INLINE vf vf_set(float x) { return (vf){x, x, x, x}; }
REE_INLINE vf vf_zero(void) { return vf_set(0.0f); }
REE_INLINE vf vf_load_part(const float *p, int64_t n)
{
    vf v = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int64_t i = 0; i < n; i++)
        v[i] = p[i];
    return v;
}
REE_INLINE void vf_store_part(float *p, vf v, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = v[i];
}

#if defined(REE_ISA_NEON)
#include <arm_neon.h>
#define REE_MR 6
#define REE_NV 4
#define REE_STREAMS 2
REE_INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
REE_INLINE vi vi_swap_halves(vi v) { return (vi)vrev32q_u16((uint16x8_t)v); }
#define VI_ROTATE(v, n) \
    ((n) == 16 ? vi_swap_halves(v) \
               : (vi)vsriq_n_u32(vshlq_n_u32((uint32x4_t)(v), 32 - (n)), (uint32x4_t)(v), n))
#else
#define REE_MR 4
#define REE_NV 2
#define REE_STREAMS 1
REE_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf){__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1]),
                __builtin_fmaf(a[2], b[2], c[2]), __builtin_fmaf(a[3], b[3], c[3])};
}
#endif

REE_INLINE vf vf_canonical(vf v)
{
    const vi number = v == v;
    const vi quiet = {0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000};
    return (vf)(((vi)v & number) | (quiet & ~number));
}

#endif

#define REE_NR (REE_NV * W)
#define REE_NV_MAX 8 /* vectors of the widest tile (few rows, several panels) */

REE_INLINE vf vf_add(vf a, vf b) { return a + b; }
REE_INLINE vf vf_sub(vf a, vf b) { return a - b; }
REE_INLINE vf vf_mul(vf a, vf b) { return a * b; }
REE_INLINE vf vf_div(vf a, vf b) { return a / b; }

/* Full-lane masks (all ones or zero), as the compiler's vector comparisons give them. */
typedef int32_t vmi __attribute__((vector_size(W * 4), may_alias));
REE_INLINE vf vf_select(vmi mask, vf a, vf b) { return (vf)(((vmi)a & mask) | ((vmi)b & ~mask)); }

/* NaN if either is NaN; -0 < +0 (for equal operands only zeros can differ in bits). */
REE_INLINE vf vf_max(vf a, vf b)
{
    const vf equal = (vf)((vmi)a & (vmi)b);
    const vf unequal = vf_select((vmi)(a > b), a, vf_select((vmi)(a < b), b, a + b));
    return vf_select((vmi)(a == b), equal, unequal);
}
REE_INLINE vf vf_min(vf a, vf b)
{
    const vf equal = (vf)((vmi)a | (vmi)b);
    const vf unequal = vf_select((vmi)(a < b), a, vf_select((vmi)(a > b), b, a + b));
    return vf_select((vmi)(a == b), equal, unequal);
}

/* A `vu` holds W unsigned words; + and ^ are lane by lane. */
typedef uint32_t vu __attribute__((vector_size(W * 4), may_alias));
REE_INLINE vu vu_load(const void *p)
{
    vu v;
    memcpy(&v, p, sizeof v);
    return v;
}
REE_INLINE void vu_store(void *p, vu v) { memcpy(p, &v, sizeof v); }
/* Two vectors of bfloat16 that lie in turns: element 2i is lane i of v[0], element 2i + 1 is lane i of v[1]. So
 * widening is a shift and a mask, with no move between lanes. */
REE_INLINE void vf_load_bf16(vf v[2], const uint16_t *p)
{
    const vu both = vu_load(p);
    v[0] = (vf)(both << 16);
    v[1] = (vf)(both & 0xffff0000u);
}
REE_INLINE vu vu_set(uint32_t x) { return (vu){0} + x; }
/* Each lane rotated to the right by n, a constant in 1..31. */
REE_INLINE vu vu_rotate(vu v, const int n)
{
#if defined(VI_ROTATE)
    return (vu)VI_ROTATE((vi)v, n);
#else
    return v >> n | v << (32 - n);
#endif
}

/* W signed bytes, widened. */
REE_INLINE vu vu_load_i8(const int8_t *p)
{
#if defined(REE_ISA_AVX512)
    return (vu)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(REE_ISA_AVX2)
    return (vu)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    return (vu){(uint32_t)p[0], (uint32_t)p[1], (uint32_t)p[2], (uint32_t)p[3]};
#endif
}

/* A `vl` holds W / 2 signed 64-bit words; + is lane by lane. */
typedef int64_t vl __attribute__((vector_size(W * 4), may_alias));
/* In each lane the product of the lower halves, taken as signed. */
REE_INLINE vl vl_mul_halves(vl a, vl b)
{
#if defined(REE_ISA_AVX512)
    return (vl)_mm512_mul_epi32((__m512i)a, (__m512i)b);
#elif defined(REE_ISA_AVX2)
    return (vl)_mm256_mul_epi32((__m256i)a, (__m256i)b);
#elif defined(REE_ISA_NEON)
    return (vl)vmull_s32(vmovn_s64((int64x2_t)a), vmovn_s64((int64x2_t)b));
#else
    return (vl){(int64_t)(int32_t)a[0] * (int32_t)b[0], (int64_t)(int32_t)a[1] * (int32_t)b[1]};
#endif
}

REE_INLINE float f32_canonical(float x)
{
    const uint32_t quiet = 0x7fc00000;
    float nan;
    memcpy(&nan, &quiet, sizeof nan);
    return x == x ? x : nan;
}

#endif
