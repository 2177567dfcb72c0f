/* SPDX-License-Identifier: Apache-2.0 */
/* Run-queue waiting of the experiment's own threads: runnable, but no CPU.
 *
 * sched:sched_switch(preempt, prev, next, prev_state). The scheduler keeps the account itself
 * (struct sched_info, kernel/sched/stats.h): last_queued, since when a thread waits on this CPU's
 * run queue, and run_delay, what it waited on others before it was moved. Both are by the run
 * queue's own clock, which the scheduler has read just before this tracepoint. So nothing need be
 * watched when a thread is woken, and no clock be read until there is something to say.
 *
 * A thread that is pushed aside for every packet of others waits a few hundred times for some tens of
 * microseconds, which made up a quarter of what looked like computing. So waits too short for an event
 * of their own are told with the next one, once they are long enough together. */

BPF_HASH(delays, u32, u64, DELAYS_ENTRIES); /* tid -> how much of all its waiting has been told, in ns */

static inline void record_cpu_wait(u64 waited_ns, u32 tid, u32 tgid)
{
    struct cpu_wait *event = reserve_point();
    if (!event)
        return;
    u64 now_ns = bpf_ktime_get_ns();
    PREFIX(event, EVENT_CPU_WAIT, now_ns, 0ULL, 0, (u64)tgid << 32 | tid);
    event->since_ns = now_ns - waited_ns;
    submit_point(event);
}

int raw_sched_switch(struct bpf_raw_tracepoint_args *ctx)
{
    void *prev = (void *)ctx->args[1], *next = (void *)ctx->args[2];
    if ((u32)LOAD(u32, prev, OFF_TASK_STATE) & TASK_DEAD_STATE && !ctx->args[0]) {
        u32 dead = LOAD(u32, prev, OFF_TASK_PID);
        if (process_kind(LOAD(u32, prev, OFF_TASK_TGID)))
            delays.delete(&dead);
    }
    u32 tgid = LOAD(u32, next, OFF_TASK_TGID);
    if (!process_kind(tgid))
        return 0;
    u64 queued_ns = LOAD(u64, next, OFF_TASK_LAST_QUEUED), delay_ns = LOAD(u64, next, OFF_TASK_RUN_DELAY);
    if (!queued_ns)
        return 0;
    void *cfs_rq = (void *)LOAD(u64, next, OFF_TASK_CFS_RQ);
    void *rq = (void *)LOAD(u64, cfs_rq, OFF_CFS_RQ_RQ);
    u64 waited_ns = LOAD(u64, rq, OFF_RQ_CLOCK) - queued_ns;
    delay_ns += waited_ns;
    u32 tid = LOAD(u32, next, OFF_TASK_PID);
    u64 *told_ns = delays.lookup(&tid);
    if (!told_ns) {
        u64 before_ns = delay_ns - waited_ns;
        if (delays.update(&tid, &before_ns))
            count(LOSS_MAP_FULL);
        told_ns = delays.lookup(&tid);
    } else if (delay_ns >= *told_ns) {
        waited_ns = delay_ns - *told_ns;
    } else { /* another thread's number again */
        *told_ns = delay_ns - waited_ns;
    }
    if ((s64)waited_ns < (s64)WAIT_NS)
        return 0;
    if (told_ns)
        *told_ns = delay_ns;
    record_cpu_wait(waited_ns, tid, tgid);
    return 0;
}
