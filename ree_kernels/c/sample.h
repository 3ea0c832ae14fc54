/* The draw of a token from logits, and log-probabilities (docs/SAMPLING.md). */
#ifndef REE_SAMPLE_H
#define REE_SAMPLE_H

#include "abi.h"

enum { REE_SAMPLE_NAN = -1 };

/* logits: [vocab], 1 <= vocab <= 2^20. bias: added to the logits of `bias_tokens`, which differ. seen: the different
 * tokens of the history, `counts` how often each was drawn (0: it stands in the prompt alone).
 * temperature 0 is greedy; top_k 0 is all, else <= vocab. */
typedef struct {
    const float *logits;
    int64_t vocab;
    const int32_t *bias_tokens;
    const float *bias;
    int64_t biases;
    const int32_t *seen;
    const int32_t *counts;
    int64_t seen_tokens;
    float repetition_penalty, presence_penalty, frequency_penalty;
    float temperature, top_p, min_p;
    int64_t top_k;
    uint64_t random_bits;
} ree_sample_args;

/* The random bits for a position: words 0 (high) and 1 of Philox4x32-10; counter (position, 0, 1), key seed. */
uint64_t ree_sample_random_bits(uint64_t seed, uint64_t position);

/* The token, or REE_SAMPLE_NAN if a logit is NaN. */
int64_t ree_sample(const ree_sample_args *args, void *scratch);

/* Log-softmax of raw logits: of `token` (not if it is negative), and of the `count` <= vocab largest, in order. */
typedef struct {
    const float *logits;
    int64_t vocab, token, count;
    int64_t *tokens;
    float *logprobs;
    float token_logprob;
} ree_logprobs_args;

/* 0, or REE_SAMPLE_NAN if a logit is NaN. */
int64_t ree_logprobs(ree_logprobs_args *args, void *scratch);

/* Scratch of either. */
int64_t ree_sample_scratch_bytes(int64_t vocab);

/* exp of n floats in [-110, 0] and log of n finite floats >= 1, for tests. */
void ree_sample_exp(const float *x, float *y, int64_t n);
void ree_sample_log(const float *x, float *y, int64_t n);

#endif
