/* The sampler as a kernel of a job: one draw of a token, and log-probabilities (tools/cross/draws.py). */
#include "sample.h"

/* seen, counts: the different tokens of the history, and how often each was drawn. numbers: temperature, top_p, min_p,
 * penalties of repetition, presence and frequency. tokens: gets the one drawn, the random bits of its position, and
 * the `top` largest; logprobs: gets that of the token drawn, then theirs. */
typedef struct {
    const float *logits;
    const int32_t *bias_tokens;
    const float *bias;
    const int32_t *seen, *counts;
    const float *numbers;
    int64_t *tokens;
    float *logprobs;
    int64_t vocab, biases, seen_tokens, top_k, top;
    uint64_t seed, position;
} draw_args;

void cross_draw(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    (void)r0, (void)r1, (void)c0, (void)c1; /* there is one box */
    const draw_args *g = args;
    const uint64_t random_bits = ree_sample_random_bits(g->seed, g->position);
    const ree_sample_args draw = {
        .logits = g->logits, .vocab = g->vocab, .bias_tokens = g->bias_tokens, .bias = g->bias, .biases = g->biases,
        .seen = g->seen, .counts = g->counts, .seen_tokens = g->seen_tokens,
        .temperature = g->numbers[0], .top_p = g->numbers[1], .min_p = g->numbers[2],
        .repetition_penalty = g->numbers[3], .presence_penalty = g->numbers[4], .frequency_penalty = g->numbers[5],
        .top_k = g->top_k, .random_bits = random_bits};
    g->tokens[0] = ree_sample(&draw, scratch);
    g->tokens[1] = (int64_t)random_bits;
    ree_logprobs_args logs = {.logits = g->logits, .vocab = g->vocab, .token = g->tokens[0], .count = g->top,
                              .tokens = g->tokens + 2, .logprobs = g->logprobs + 1};
    ree_logprobs(&logs, scratch);
    g->logprobs[0] = logs.token_logprob;
}
