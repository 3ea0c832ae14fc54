/* exp and log of binary32 as ree/element/real.py defines them: binary64 inside, rounded once.
 *
 * Both are correctly rounded for all arguments (docs/FUNCTIONS.md). Loops over exp_f32 vectorise.
 */
#ifndef REE_REAL_H
#define REE_REAL_H

#include "vec.h"

#define REAL_MAGIC 6755399441055744.0 /* 1.5 * 2^52: adding it rounds to an integer held in the low bits */
#define REAL_ONE 0x3ff0000000000000u
#define REAL_LOG2_E 0x1.71547652b82fep+0
#define REAL_LN2_HI 0x1.62e42fefa38p-1 /* 42 bits: its product with an exponent is exact */
#define REAL_LN2_LO 0x1.ef35793c7673p-45

REE_INLINE uint64_t bits_of_f64(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

REE_INLINE double f64_of_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

REE_INLINE double fma_f64(double a, double b, double c) { return __builtin_fma(a, b, c); }

/* (exp(r) - 1 - r) / r^2: the even and the odd powers, each by Horner's rule. */
REE_INLINE double exp_polynomial(double r)
{
    const double square = r * r;
    double even = fma_f64(square, 0x1.2891d4ffbb0f9p-22, 0x1.a019b8ca26fcfp-16);
    double odd = fma_f64(square, 0x1.af390ba7e6f47p-26, 0x1.71de0d85293b8p-19);
    even = fma_f64(even, square, 0x1.6c16c1789d1d7p-10);
    odd = fma_f64(odd, square, 0x1.a01a01a7cebcdp-13);
    even = fma_f64(even, square, 0x1.5555555553d37p-5);
    odd = fma_f64(odd, square, 0x1.11111111109a6p-7);
    even = fma_f64(even, square, 0x1.0000000000001p-1);
    odd = fma_f64(odd, square, 0x1.5555555555556p-3);
    return fma_f64(odd, r, even);
}

/* e^x for -110 <= x <= 110; below the result is that of -110, which is 0. */
REE_INLINE float exp_f32(float narrow)
{
    const double x = narrow;
    const double shifted = fma_f64(x, REAL_LOG2_E, REAL_MAGIC);
    const double n = shifted - REAL_MAGIC;
    const double r = fma_f64(n, -REAL_LN2_LO, fma_f64(n, -REAL_LN2_HI, x));
    const double small = fma_f64(r * r, exp_polynomial(r), r);
    return (float)((small + 1.0) * f64_of_bits((bits_of_f64(shifted) << 52) + REAL_ONE));
}

/* (log(1 + f) - f) by s = f / (2 + f). */
REE_INLINE double log_minus(double f)
{
    const double s = f / (f + 2.0), z = s * s, square = z * z;
    double even = fma_f64(square, 0x1.0fb0fb89e1befp-3, 0x1.745cf694ca0bcp-3);
    double odd = fma_f64(square, 0x1.0c908637ec8ffp-3, 0x1.3b1cb8a0268a6p-3);
    even = fma_f64(even, square, 0x1.249249247370bp-2);
    odd = fma_f64(odd, square, 0x1.c71c72073dd65p-3);
    even = fma_f64(even, square, 0x1.5555555555555p-1);
    odd = fma_f64(odd, square, 0x1.9999999999a4ep-2);
    return s * fma_f64(z, fma_f64(odd, z, even), -f);
}

/* total + small (|total| >= |small|) rounded to odd, so that rounding once more does no harm. */
REE_INLINE double odd_sum(double large, double small)
{
    const double total = large + small, error = small - (total - large);
    const uint64_t bits = bits_of_f64(total);
    if (error == 0.0 || (bits & 1))
        return total;
    return f64_of_bits((error > 0.0) == (total > 0.0) ? bits + 1 : bits - 1);
}

/* ln x for a positive, finite x. */
REE_INLINE float log_f32(float narrow)
{
    const uint64_t bits = bits_of_f64(narrow);
    const int64_t exponent = (int64_t)(bits - 0x3fe6a09e667f3bcdu) >> 52;
    const double e = (double)exponent, f = f64_of_bits(bits - ((uint64_t)exponent << 52)) - 1.0;
    const double high = e * REAL_LN2_HI, total = high + f, rest = f - (total - high);
    return (float)odd_sum(total, rest + fma_f64(e, REAL_LN2_LO, log_minus(f)));
}

#endif
