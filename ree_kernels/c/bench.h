/* The machine's limits, measured: the yardsticks of the benchmarks. */
#ifndef REE_BENCH_H
#define REE_BENCH_H

#include <stdint.h>

/* Run `rounds` rounds of independent FMA chains that touch no memory; the flops of one round. */
int64_t ree_bench_fma(int64_t rounds);

/* Read n floats once, front to back; a value that depends on all of them. */
float ree_bench_read(const float *p, int64_t n);

#endif
