/* The probe: operations whose result tells contraction, flushing, rounding and NaN apart.
 *
 * Operands are volatile, so that the processor computes them and not the compiler.
 */
#include "probe.h"
#include "dot.h"
#include "sum.h"

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float lane(vf v, int l)
{
    float lanes[W];
    vf_store(lanes, v);
    return lanes[l];
}

static vf opaque(float x)
{
    volatile float hidden = x;
    return vf_set(hidden);
}

/* (1 + 2^-12)^2 - 1 - 2^-11 is 2^-24 exactly, and 0 if the product is rounded first. */
static const char *probe_contraction(void)
{
    volatile float a = float_of(0x3f800800), c = float_of(0xbf801000);
    volatile float apart = a * a + c;
    if (bits_of(apart) != 0)
        return "the compiler fuses a multiplication with an addition";
    const vf av = opaque(a), cv = opaque(c);
    if (bits_of(lane(vf_add(vf_mul(av, av), cv), W - 1)) != 0)
        return "the compiler fuses a vector multiplication with an addition";
    if (bits_of(lane(vf_fma(av, av, cv), W - 1)) != 0x33800000)
        return "fma rounds twice";
    return 0;
}

static const char *probe_subnormals(void)
{
    volatile float tiny = float_of(0x00800000), least = float_of(1), half = 0.5f;
    if (bits_of(tiny * half) != 0x00400000 || bits_of(lane(vf_mul(opaque(tiny), opaque(half)), 0)) != 0x00400000)
        return "subnormal results are flushed to zero";
    if (bits_of(least + least) != 2 || bits_of(lane(vf_add(opaque(least), opaque(least)), 0)) != 2)
        return "subnormal operands are taken as zero";
    return 0;
}

static const char *probe_rounding(void)
{
    volatile float one = 1.0f, three = 3.0f, two = 2.0f, step = float_of(0x33800001);
    if (bits_of(one / three) != 0x3eaaaaab || bits_of(lane(vf_div(opaque(one), opaque(three)), 0)) != 0x3eaaaaab)
        return "division is not correctly rounded";
    if (bits_of(__builtin_sqrtf(two)) != 0x3fb504f3 || bits_of(__builtin_sqrtf(three)) != 0x3fddb3d7)
        return "sqrt is not correctly rounded";
    if (bits_of(one + step) != 0x3f800001 || bits_of(-one - step) != 0xbf800001)
        return "rounding is not to nearest even";
    return 0;
}

static const char *probe_special(void)
{
    volatile float zero = 0.0f;
    if (bits_of(lane(vf_canonical(vf_div(opaque(zero), opaque(zero))), W - 1)) != 0x7fc00000 ||
        bits_of(f32_canonical(-(zero / zero))) != 0x7fc00000)
        return "NaN is not made canonical";
    if (bits_of(lane(vf_max(opaque(-0.0f), opaque(zero)), 0)) != 0 ||
        bits_of(lane(vf_min(opaque(zero), opaque(-0.0f)), 0)) != 0x80000000)
        return "max or min does not order signed zeros";
    if (bits_of(lane(vf_add(opaque(-0.0f), vf_zero()), 0)) != 0)
        return "the compiler drops the addition of +0";
    return 0;
}

const char *ree_probe(void)
{
    const char *(*const probes[])(void) = {probe_contraction, probe_subnormals, probe_rounding, probe_special};
    for (unsigned i = 0; i < sizeof probes / sizeof *probes; i++) {
        const char *wrong = probes[i]();
        if (wrong)
            return wrong;
    }
    return 0;
}
