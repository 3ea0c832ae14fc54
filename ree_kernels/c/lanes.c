#include "lanes.h"

#include <math.h>

void ree_dot_lanes(const float *a, const float *b, const int64_t *counts, int64_t k, int64_t lanes, float *out)
{
    for (int64_t i = 0; i < lanes; i++)
        out[i] = 0;
    for (int64_t j = 0; j < k; j++, a += lanes, b += lanes)
        for (int64_t i = 0; i < lanes; i++) {
            const float next = fmaf(a[i], b[i], out[i]);
            out[i] = j < counts[i] ? next : out[i];
        }
}
