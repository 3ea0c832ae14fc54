/* FMA peak and read bandwidth of one thread, for benchmarks; no kernel uses them. */
#include "bench.h"
#include "vec.h"

enum { CHAINS = 12, REPEAT = 64 };

int64_t ree_bench_fma(int64_t rounds)
{
    vf acc[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        acc[i] = vf_zero();
    const vf half = vf_set(0.5f);
    for (int64_t r = 0; r < rounds * REPEAT; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            acc[i] = vf_fma(acc[i], half, half);
    }
    volatile float sink;
    for (int i = 0; i < CHAINS; i++)
        for (int l = 0; l < W; l++)
            sink = acc[i][l];
    (void)sink;
    return (int64_t)CHAINS * REPEAT * W * 2;
}

float ree_bench_read(const float *p, int64_t n)
{
    enum { STREAMS = 8 };
    vf sum[STREAMS];
    for (int s = 0; s < STREAMS; s++)
        sum[s] = vf_zero();
    for (int64_t i = 0; i + STREAMS * W <= n; i += STREAMS * W)
#pragma GCC unroll 8
        for (int s = 0; s < STREAMS; s++)
            sum[s] = vf_add(sum[s], vf_load(p + i + s * W));
    float total = 0.0f;
    for (int s = 0; s < STREAMS; s++)
        for (int l = 0; l < W; l++)
            total += sum[s][l];
    return total;
}
