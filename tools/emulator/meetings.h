/* What threads meet for: the functions that emulated.cuh calls. */
#ifndef REE_EMULATOR_MEETINGS_H
#define REE_EMULATOR_MEETINGS_H

#include "threads.h"

static Worker &warp_worker(u32 mask)
{
    if (mask != 0xffffffffu)
        fail("a warp primitive of lanes 0x%08x: only that of all lanes is emulated", mask);
    return *ree_here.worker;
}

const u64 *ree_meet_lanes(ree_meeting meeting, u32 mask, u64 value)
{
    Worker &w = warp_worker(mask);
    u64 *values = w.values[w.turn];
    values[ree_here.thread.x % LANES] = value;
    meet(w, meeting);
    return values;
}

u32 ree_meet_vote(u32 mask, bool predicate)
{
    const u64 *values = ree_meet_lanes(REE_VOTE, mask, predicate);
    u32 lanes = 0;
    for (int lane = 0; lane < ree_here.worker->lanes; lane++)
        lanes |= static_cast<u32>(values[lane]) << lane;
    return lanes;
}

int ree_meet_block(ree_meeting meeting, bool predicate)
{
    Worker &w = *ree_here.worker;
    const int phase = w.phase;
    w.counts[phase] += predicate;
    meet(w, meeting);
    return w.counts[phase];
}

static int dot_32(const signed char *a, const signed char *b)
{
    int sum = 0;
    for (int k = 0; k < 32; k++)
        sum += a[k] * b[k];
    return sum;
}

/* See ree.cuh for which lane holds what. */
void ree_meet_mma(int *d, const u32 *a, const u32 *b)
{
    Worker &w = warp_worker(0xffffffffu);
    if (w.lanes < LANES)
        fail("ree_mma_s8 in a warp of %d lanes", w.lanes);
    Factors &factors = w.factors[w.turn];
    const u32 g = ree_here.thread.x % LANES / 4, t = ree_here.thread.x % 4;
    for (u32 i = 0; i < 4; i++)
        memcpy(&factors.a[g + i % 2 * 8][4 * t + i / 2 * 16], &a[i], 4);
    for (u32 i = 0; i < 2; i++)
        memcpy(&factors.b[g][4 * t + i * 16], &b[i], 4);
    meet(w, REE_MMA);
    for (u32 i = 0; i < 4; i++) {
        const int sum = dot_32(factors.a[g + i / 2 * 8], factors.b[2 * t + i % 2]);
        d[i] = static_cast<int>(static_cast<u32>(d[i]) + static_cast<u32>(sum));
    }
}

#endif
