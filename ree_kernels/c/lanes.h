/* Folds of many elements side by side, for those who check single elements. */
#ifndef REE_LANES_H
#define REE_LANES_H

#include "abi.h"

/* out[i] = FMA chain from +0 over the first counts[i] of k rows of a and b, both [k, lanes]. */
void ree_dot_lanes(const float *a, const float *b, const int64_t *counts, int64_t k, int64_t lanes, float *out);

#endif
