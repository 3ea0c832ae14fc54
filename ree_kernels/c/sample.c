/* Sampling without sorting: what is kept is a threshold in the order of tokens, found by selection.
 *
 * Weights are integers, so their sums have no order, and the draw goes through tokens in ascending order; a sorted
 * list is never needed. Blocks of tokens are surveyed first (largest value, later sum of weights), so that most
 * blocks need not be looked at again.
 */
#include "sample.h"

#include "fpstate.h"
#include "real.h"
#include "sum.h"

enum {
    BLOCK = 64,
    BUCKET_BITS = 11, /* of a key, that one level of selection tells apart */
    BUCKETS = 1 << BUCKET_BITS,
};
#define KEY_LOWEST INT32_MIN /* below the key of every value */
#define WEIGHT_ONE 512.0     /* 2^9 + p holds p rounded to 43 bits after the point in its last bits */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t blocks_of(int64_t n) { return (n + BLOCK - 1) / BLOCK; }

/* ---- order -------------------------------------------------------------------------- */

/* An integer that grows with the value; -0 is -1 here. */
REE_INLINE int32_t raw_key(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

/* The same with equal keys for both zeros. */
REE_INLINE int32_t key_of(float x)
{
    const int32_t key = raw_key(x);
    return key == -1 ? 0 : key;
}

REE_INLINE float value_of(int32_t key)
{
    const int32_t bits = key ^ (key >> 31 & 0x7fffffff);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Values in ascending order of their tokens, and the key of each block's largest. */
typedef struct {
    const float *x;
    const int32_t *tokens; /* NULL: value i is token i's */
    int64_t n;
    int32_t *largest;
} values;

/* What is kept of values: those with larger keys, and the first `ties` with this one. */
typedef struct {
    int32_t key;
    int64_t ties;
    uint64_t weight; /* of all that is kept */
} cut;

static const cut everything = {KEY_LOWEST, 0, 0};

typedef struct {
    float *adjusted, *taken_x, *p;
    int32_t *taken_tokens, *largest, *keys;
    uint64_t *weights, *sums;
} memory;

int64_t ree_sample_scratch_bytes(int64_t vocab)
{
    return vocab * (int64_t)(2 * sizeof(float) + 2 * sizeof(int32_t) + sizeof(uint64_t)) +
           blocks_of(vocab) * (int64_t)(sizeof(int32_t) + sizeof(uint64_t)) + 8 * 64;
}

static void *place(char **free_bytes, int64_t bytes)
{
    char *found = *free_bytes;
    *free_bytes += (bytes + 63) / 64 * 64;
    return found;
}

static memory memory_of(void *scratch, int64_t vocab)
{
    char *bytes = scratch;
    memory m;
    m.weights = place(&bytes, vocab * 8);
    m.sums = place(&bytes, blocks_of(vocab) * 8);
    m.largest = place(&bytes, blocks_of(vocab) * 4);
    m.adjusted = place(&bytes, vocab * 4);
    m.taken_x = place(&bytes, vocab * 4);
    m.taken_tokens = place(&bytes, vocab * 4);
    m.keys = place(&bytes, vocab * 4);
    m.p = m.adjusted; /* log-probabilities adjust nothing */
    return m;
}

/* Fills `largest`; the key of the largest value, or KEY_LOWEST if there is a NaN. */
static int32_t survey(const values *v)
{
    const int32_t infinite = raw_key(__builtin_inff()), lowest = raw_key(-__builtin_inff());
    int32_t top = KEY_LOWEST, bottom = INT32_MAX;
    for (int64_t b = 0; b * BLOCK < v->n; b++) {
        const int64_t count = min64(v->n - b * BLOCK, BLOCK);
        int32_t high = KEY_LOWEST, low = INT32_MAX;
        for (int64_t i = 0; i < count; i++) {
            const int32_t key = raw_key(v->x[b * BLOCK + i]);
            high = key > high ? key : high;
            low = key < low ? key : low;
        }
        high = high == -1 ? 0 : high;
        v->largest[b] = high;
        top = high > top ? high : top;
        bottom = low < bottom ? low : bottom;
    }
    return top > infinite || bottom < lowest ? KEY_LOWEST : top;
}

static int64_t first_with_key(const values *v, int32_t key)
{
    int64_t b = 0;
    while (v->largest[b] != key) b++;
    int64_t i = b * BLOCK;
    while (key_of(v->x[i]) != key) i++;
    return i;
}

/* ---- selection ---------------------------------------------------------------------- */

/* Moves the items of the bucket (some bits of the key) in which the sum of weights, from the highest bucket down,
 * reaches `need` to the front; adds the weight of the buckets above to `above`. Gives how many items that are. */
static int64_t select_bucket(int shift, int32_t *keys, uint64_t *weights, int64_t n, uint64_t need, uint64_t *above)
{
    uint64_t held[BUCKETS] = {0};
    uint32_t wanted = BUCKETS - 1;
#define BUCKET_OF(key) (((uint32_t)(key) ^ 0x80000000u) >> shift & (BUCKETS - 1))
    for (int64_t i = 0; i < n; i++) held[BUCKET_OF(keys[i])] += weights ? weights[i] : 1;
    while (*above + held[wanted] < need) *above += held[wanted--];
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t key = keys[i];
        keys[kept] = key;
        if (weights) weights[kept] = weights[i];
        kept += BUCKET_OF(key) == wanted;
    }
#undef BUCKET_OF
    return kept;
}

/* The highest cut whose weight is at least `need`, 0 < need <= the sum of weights (NULL: 1 each). Keys and weights
 * are moved. Equal keys have equal weights. */
static cut select_cut(int32_t *keys, uint64_t *weights, int64_t n, uint64_t need)
{
    uint64_t above = 0;
    uint32_t differ = 0;
    for (int64_t i = 0; i < n; i++) differ |= (uint32_t)(keys[i] ^ keys[0]);
    int bits = differ ? 32 - __builtin_clz(differ) : 0; /* low ones in which keys may still differ */
    while (bits > 0 && n > 1) {
        bits = bits > BUCKET_BITS ? bits - BUCKET_BITS : 0;
        n = select_bucket(bits, keys, weights, n, need, &above);
    }
    const uint64_t each = weights ? weights[0] : 1, ties = (need - above + each - 1) / each;
    return (cut){keys[0], (int64_t)ties, above + ties * each};
}

/* The first k in the order: the k-th largest of blocks' largest values bounds the threshold from below. */
static cut cut_of_count(const values *v, int64_t k, const memory *m)
{
    const int64_t blocks = blocks_of(v->n);
    int32_t bound = KEY_LOWEST;
    if (k <= blocks) {
        memcpy(m->keys, v->largest, (size_t)blocks * sizeof *m->keys);
        bound = select_cut(m->keys, NULL, blocks, (uint64_t)k).key;
    }
    int64_t n = 0;
    for (int64_t b = 0; b < blocks; b++) {
        if (v->largest[b] < bound) continue;
        const int64_t end = min64(v->n, (b + 1) * BLOCK);
        for (int64_t i = b * BLOCK; i < end; i++) {
            const int32_t key = key_of(v->x[i]);
            m->keys[n] = key;
            n += key >= bound;
        }
    }
    return select_cut(m->keys, NULL, n, (uint64_t)k);
}

/* Copies what is kept of all tokens' values. */
static values take(const values *v, cut c, const memory *m)
{
    int64_t n = 0, ties = c.ties;
    for (int64_t b = 0; b * BLOCK < v->n; b++) {
        if (v->largest[b] < c.key) continue;
        const int64_t end = min64(v->n, (b + 1) * BLOCK);
        for (int64_t i = b * BLOCK; i < end; i++) {
            const int32_t key = key_of(v->x[i]);
            const int tie = key == c.key, kept = (key > c.key) | (tie & (ties > 0));
            m->taken_x[n] = v->x[i];
            m->taken_tokens[n] = (int32_t)i;
            n += kept;
            ties -= tie;
        }
    }
    return (values){m->taken_x, m->taken_tokens, n, m->largest};
}

/* ---- weights ------------------------------------------------------------------------ */

typedef struct {
    float max, temperature, min_p;
} shape;

/* exp((x - max) / temperature), or exp(low) where the argument is below that; 1 where x is max, an infinity, too. */
REE_INLINE void exps(const float *x, int64_t n, float max, float temperature, float low, float *p)
{
    if (max - max != 0.0f) {
        for (int64_t i = 0; i < n; i++) p[i] = x[i] == max ? 1.0f : 0.0f;
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const float d = (x[i] - max) / temperature;
        p[i] = d > low ? d : low;
    }
    for (int64_t i = 0; i < n; i++) p[i] = exp_f32(p[i]); /* apart: else the compiler branches, and no vectors */
}

/* rint(p * 2^43), 0 where p < min_p. What lies below e^-64 has no weight; no exp of it makes a slow subnormal. */
static void weigh(const shape *s, const float *x, int64_t n, uint64_t *weights)
{
    float p[BLOCK];
    exps(x, n, s->max, s->temperature, -64.0f, p);
    for (int64_t i = 0; i < n; i++) {
        const uint64_t weight = bits_of_f64((double)p[i] + WEIGHT_ONE) - bits_of_f64(WEIGHT_ONE);
        weights[i] = weight & -(uint64_t)(p[i] >= s->min_p);
    }
}

static uint64_t sum_weights(const values *v, const shape *s, uint64_t *sums)
{
    uint64_t total = 0;
    for (int64_t b = 0; b * BLOCK < v->n; b++) {
        uint64_t weights[BLOCK], sum = 0;
        const int64_t count = min64(v->n - b * BLOCK, BLOCK);
        weigh(s, v->x + b * BLOCK, count, weights);
        for (int64_t i = 0; i < count; i++) sum += weights[i];
        sums[b] = sum;
        total += sum;
    }
    return total;
}

/* The smallest integer >= top_p * total. */
static uint64_t needed(float top_p, uint64_t total)
{
    uint32_t bits;
    memcpy(&bits, &top_p, sizeof bits);
    const uint32_t exponent = bits >> 23, fraction = bits & 0x7fffffu;
    const uint32_t significand = exponent ? fraction | 0x800000u : fraction;
    const int shift = 150 - (int)(exponent ? exponent : 1); /* top_p = significand / 2^shift */
    const unsigned __int128 product = (unsigned __int128)total * significand;
    if (shift > 87) return 1; /* the product has at most 24 + 63 bits */
    return (uint64_t)((product + ((unsigned __int128)1 << shift) - 1) >> shift);
}

/* A lower bound of the key at which the order reaches weight `need`, and in `sums` the weights of blocks' largest:
 * if those alone are enough, the key at which they reach it. */
static int32_t bound_of_weight(const values *v, const shape *s, uint64_t need, const memory *m)
{
    const int64_t blocks = blocks_of(v->n);
    uint64_t total = 0;
    for (int64_t b = 0; b < blocks; b += BLOCK) {
        float x[BLOCK];
        const int64_t count = min64(blocks - b, BLOCK);
        for (int64_t i = 0; i < count; i++) x[i] = value_of(v->largest[b + i]);
        weigh(s, x, count, m->sums + b);
        for (int64_t i = 0; i < count; i++) total += m->sums[b + i];
    }
    if (total < need) return KEY_LOWEST;
    memcpy(m->keys, v->largest, (size_t)blocks * sizeof *m->keys);
    memcpy(m->weights, m->sums, (size_t)blocks * sizeof *m->weights);
    return select_cut(m->keys, m->weights, blocks, need).key;
}

/* The shortest prefix of the order with weight `need`. The lightest values, of which all together weigh no more than
 * may be left out, are not looked at. */
static cut cut_of_weight(const values *v, const shape *s, uint64_t total, uint64_t need, const memory *m)
{
    const uint64_t light = (total - need) / (uint64_t)v->n;
    const int32_t bound = bound_of_weight(v, s, need, m);
    int64_t n = 0;
    for (int64_t b = 0; b * BLOCK < v->n; b++) {
        if (v->largest[b] < bound || m->sums[b] <= light) continue;
        uint64_t weights[BLOCK];
        const int64_t count = min64(v->n - b * BLOCK, BLOCK);
        weigh(s, v->x + b * BLOCK, count, weights);
        for (int64_t i = 0; i < count; i++) {
            const int32_t key = key_of(v->x[b * BLOCK + i]);
            m->keys[n] = key;
            m->weights[n] = weights[i];
            n += (key >= bound) & (weights[i] > light);
        }
    }
    return select_cut(m->keys, m->weights, n, need);
}

/* The value at which the sum of kept weights, tokens ascending, first exceeds r. sums: of blocks, where all is kept. */
static int64_t find(const values *v, const shape *s, cut c, const uint64_t *sums, uint64_t r)
{
    for (int64_t b = 0;; b++) {
        if (v->largest[b] < c.key) continue;
        if (c.key == KEY_LOWEST && sums[b] <= r) {
            r -= sums[b];
            continue;
        }
        uint64_t weights[BLOCK];
        const int64_t count = min64(v->n - b * BLOCK, BLOCK);
        weigh(s, v->x + b * BLOCK, count, weights);
        for (int64_t i = 0; i < count; i++) {
            const int32_t key = key_of(v->x[b * BLOCK + i]);
            if (key < c.key || (key == c.key && c.ties-- <= 0)) continue;
            if (r < weights[i]) return b * BLOCK + i;
            r -= weights[i];
        }
    }
}

/* ---- random numbers ----------------------------------------------------------------- */

uint64_t ree_sample_random_bits(uint64_t seed, uint64_t position)
{
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = 0, c3 = 1;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)c0 * 0xd2511f53u, b = (uint64_t)c2 * 0xcd9e8d57u;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return (uint64_t)c0 << 32 | c1;
}

/* ---- the draw ----------------------------------------------------------------------- */

/* Logits with bias and penalties. */
static const float *adjusted(const ree_sample_args *a, const memory *m)
{
    if (a->biases == 0 && a->seen_tokens == 0) return a->logits;
    float *x = m->adjusted;
    memcpy(x, a->logits, (size_t)a->vocab * sizeof *x);
    for (int64_t i = 0; i < a->biases; i++) x[a->bias_tokens[i]] += a->bias[i];
    for (int64_t i = 0; i < a->seen_tokens; i++) {
        float *logit = x + a->seen[i];
        *logit = *logit > 0.0f ? *logit / a->repetition_penalty : *logit * a->repetition_penalty;
        if (a->counts[i] == 0) continue;
        const float often = (float)a->counts[i] * a->frequency_penalty;
        *logit = *logit - often - a->presence_penalty;
    }
    return x;
}

static __attribute__((noinline)) int64_t draw(const ree_sample_args *a, const memory *m)
{
    values v = {adjusted(a, m), NULL, a->vocab, m->largest};
    const int32_t top = survey(&v);
    if (top == KEY_LOWEST) return REE_SAMPLE_NAN;
    if (a->temperature == 0.0f) return first_with_key(&v, top);
    if (a->top_k > 0 && a->top_k < v.n) {
        v = take(&v, cut_of_count(&v, a->top_k, m), m);
        survey(&v);
    }
    const shape s = {value_of(top), a->temperature, a->min_p};
    uint64_t total = sum_weights(&v, &s, m->sums);
    const uint64_t need = needed(a->top_p, total);
    cut c = everything;
    if (need < total) {
        c = cut_of_weight(&v, &s, total, need, m);
        total = c.weight;
    }
    const uint64_t number = (uint64_t)((unsigned __int128)a->random_bits * total >> 64);
    const int64_t place = find(&v, &s, c, m->sums, number);
    return v.tokens ? v.tokens[place] : place;
}

int64_t ree_sample(const ree_sample_args *args, void *scratch)
{
    const uint64_t saved = fp_enter();
    const memory m = memory_of(scratch, args->vocab);
    const int64_t token = draw(args, &m);
    fp_set(saved);
    return token;
}

/* ---- log-probabilities -------------------------------------------------------------- */

/* Stable, so that equal values stay in the order of their tokens; lists are short. */
static void sort_descending(const values *v, float *x, int32_t *tokens)
{
    for (int64_t i = 1; i < v->n; i++) {
        const float value = x[i];
        const int32_t token = tokens[i];
        int64_t j = i;
        for (; j > 0 && x[j - 1] < value; j--) {
            x[j] = x[j - 1];
            tokens[j] = tokens[j - 1];
        }
        x[j] = value;
        tokens[j] = token;
    }
}

static __attribute__((noinline)) int64_t logprobs(ree_logprobs_args *a, const memory *m)
{
    const values v = {a->logits, NULL, a->vocab, m->largest};
    const int32_t top = survey(&v);
    if (top == KEY_LOWEST) return REE_SAMPLE_NAN;
    const float max = value_of(top);
    exps(v.x, v.n, max, 1.0f, -110.0f, m->p);
    const float log_sum = log_f32(sum_row(m->p, v.n));
#define LOGPROB(x) (((x) == max ? 0.0f : (x) - max) - log_sum)
    if (a->token >= 0) a->token_logprob = LOGPROB(v.x[a->token]);
    if (a->count == 0) return 0;
    const values first = take(&v, cut_of_count(&v, a->count, m), m);
    sort_descending(&first, m->taken_x, m->taken_tokens);
    for (int64_t i = 0; i < first.n; i++) {
        a->tokens[i] = first.tokens[i];
        a->logprobs[i] = LOGPROB(first.x[i]);
    }
#undef LOGPROB
    return 0;
}

int64_t ree_logprobs(ree_logprobs_args *args, void *scratch)
{
    const uint64_t saved = fp_enter();
    const memory m = memory_of(scratch, args->vocab);
    const int64_t status = logprobs(args, &m);
    fp_set(saved);
    return status;
}

void ree_sample_exp(const float *x, float *y, int64_t n)
{
    const uint64_t saved = fp_enter();
    exps(x, n, 0.0f, 1.0f, -110.0f, y);
    fp_set(saved);
}

void ree_sample_log(const float *x, float *y, int64_t n)
{
    const uint64_t saved = fp_enter();
    for (int64_t i = 0; i < n; i++) y[i] = log_f32(x[i]);
    fp_set(saved);
}
