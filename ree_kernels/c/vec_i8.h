/* Products of bytes: the second file, beside vec.h, that knows an instruction set.
 *
 * A *step* takes four consecutive k's: to each lane of 32 bits it adds the four products of a word of A's bytes, the
 * same for all lanes, and of the lane's word of B's bytes. Sums wrap modulo 2^32, so no order reaches a result. There
 * are two *ways*:
 *
 *   pairs  both operands widened to 16 bits, products added in pairs; exact for all bytes of A, signed or not, and on
 *          every instruction set. (The x86 instruction that multiplies bytes in pairs saturates, and is not used.)
 *   dot    one instruction for a step, where the processor has it: chosen at run time on x86. It wants A unsigned on
 *          x86 and signed on ARM; A of the other kind has the top bit of its bytes flipped, which adds +-128 to each,
 *          and the sums of B's columns times 128 take that off again.
 *
 * I8_MR_way rows x I8_NR = I8_NV * W columns is the register tile; I8_WORDS_way: the words that hold four of A's
 * bytes; I8_FLIPS_SIGNED_way, I8_FLIPS_UNSIGNED_way: which A is flipped.
 */
#ifndef REE_VEC_I8_H
#define REE_VEC_I8_H

#include "vec.h"

typedef int16_t v16 __attribute__((vector_size(W * 4), may_alias));
typedef struct {
    v16 even, odd; /* bytes 0 and 2, bytes 1 and 3 of each word, widened */
} vb_pairs;

REE_INLINE vb_pairs vb_load_pairs(const void *p)
{
    const v16 bytes = (v16)vu_load(p);
    return (vb_pairs){bytes << 8 >> 8, bytes >> 8};
}

#define I8_WORDS_pairs 2
#define I8_FLIPS_SIGNED_pairs 0
#define I8_FLIPS_UNSIGNED_pairs 0
#define I8_WORDS_dot 1

/* sum + the products of 16-bit lanes, added in pairs. */
#if defined(REE_ISA_AVX512)

#define I8_NV 2
#define I8_MR_pairs 12
REE_INLINE vu vu_pair_products(vu sum, v16 a, v16 b)
{
    return sum + (vu)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}

#define I8_HAS_DOT 1
#define I8_MR_dot 14
#define I8_TARGET_dot __attribute__((target("avx512vnni")))
#define I8_FLIPS_SIGNED_dot 1
#define I8_FLIPS_UNSIGNED_dot 0
REE_INLINE int i8_cpu_has_dot(void) { return __builtin_cpu_supports("avx512vnni"); }
REE_INLINE I8_TARGET_dot vu vu_dot(vu sum, vu a, vu b)
{
    return (vu)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

#elif defined(REE_ISA_AVX2)

#define I8_NV 2
#define I8_MR_pairs 4
REE_INLINE vu vu_pair_products(vu sum, v16 a, v16 b)
{
    return sum + (vu)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

#if __GNUC__ >= 11 /* knows the instruction without AVX-512 */
#define I8_HAS_DOT 1
#define I8_MR_dot 6
#define I8_TARGET_dot __attribute__((target("avxvnni")))
#define I8_FLIPS_SIGNED_dot 1
#define I8_FLIPS_UNSIGNED_dot 0
REE_INLINE int i8_cpu_has_dot(void) { return __builtin_cpu_supports("avxvnni"); }
REE_INLINE I8_TARGET_dot vu vu_dot(vu sum, vu a, vu b)
{
    return (vu)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}
#endif

#elif defined(REE_ISA_NEON)

#define I8_NV 4
#define I8_MR_pairs 4
REE_INLINE vu vu_pair_products(vu sum, v16 a, v16 b)
{
    return (vu)vpadalq_s16((int32x4_t)sum, vmulq_s16((int16x8_t)a, (int16x8_t)b)); /* 255 * -128 fits 16 bits */
}

#if defined(__ARM_FEATURE_DOTPROD)
#define I8_HAS_DOT 1
#define I8_MR_dot 6
#define I8_TARGET_dot
#define I8_FLIPS_SIGNED_dot 0
#define I8_FLIPS_UNSIGNED_dot 1
REE_INLINE int i8_cpu_has_dot(void) { return 1; }
REE_INLINE vu vu_dot(vu sum, vu a, vu b) { return (vu)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b); }
#endif

#else

#define I8_NV 4
#define I8_MR_pairs 2
REE_INLINE vu vu_pair_products(vu sum, v16 a, v16 b)
{
    const vi products = (vi)(a * b); /* 255 * -128 fits 16 bits */
    return sum + (vu)(products << 16 >> 16) + (vu)(products >> 16);
}

#endif

#define I8_NR (I8_NV * W)
#define I8_TARGET_pairs

REE_INLINE vu vu_step_pairs(vu sum, const uint32_t *a, vb_pairs b)
{
    return vu_pair_products(vu_pair_products(sum, (v16)vu_set(a[0]), b.even), (v16)vu_set(a[1]), b.odd);
}

#if defined(I8_HAS_DOT)
typedef vu vb_dot;
REE_INLINE I8_TARGET_dot vb_dot vb_load_dot(const void *p) { return vu_load(p); }
REE_INLINE I8_TARGET_dot vu vu_step_dot(vu sum, const uint32_t *a, vb_dot b) { return vu_dot(sum, vu_set(a[0]), b); }
#endif

#endif
