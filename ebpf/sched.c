/* SPDX-License-Identifier: Apache-2.0 */
/* Run-queue waiting of the experiment's own threads: runnable, but no CPU.
 *
 * sched:sched_wakeup(p), sched_wakeup_new(p), sched_switch(preempt, prev, next, prev_state). */

BPF_HASH(runnable_since, u32, u64, RUNNABLE_ENTRIES); /* tid -> ns */

/* An entry stays while the thread lives, 0 when it is not waiting: to delete and insert at every
 * switch costs twice what the rest of the program does. */
static inline void enqueue(void *task)
{
    if (LOAD(u32, task, OFF_TASK_FLAGS) & 0x00200000 /* PF_KTHREAD */)
        return;
    u32 tid = LOAD(u32, task, OFF_TASK_PID);
    u64 *since_ns = runnable_since.lookup(&tid);
    if (since_ns) {
        *since_ns = bpf_ktime_get_ns();
        return;
    }
    u32 tgid = LOAD(u32, task, OFF_TASK_TGID);
    if (!processes.lookup(&tgid))
        return;
    u64 now_ns = bpf_ktime_get_ns();
    if (runnable_since.update(&tid, &now_ns))
        count(LOSS_MAP_FULL);
}

int raw_sched_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
    enqueue((void *)ctx->args[0]);
    return 0;
}

int raw_sched_wakeup_new(struct bpf_raw_tracepoint_args *ctx)
{
    enqueue((void *)ctx->args[0]);
    return 0;
}

int raw_sched_switch(struct bpf_raw_tracepoint_args *ctx)
{
    void *prev = (void *)ctx->args[1], *next = (void *)ctx->args[2];
    u64 state = LOAD(u32, prev, OFF_TASK_STATE);
    if (ctx->args[0] || state == 0 /* preempted: still wants a CPU */) {
        enqueue(prev);
    } else if (state & 0x80 /* TASK_DEAD */) {
        u32 dead = LOAD(u32, prev, OFF_TASK_PID);
        runnable_since.delete(&dead);
    }
    u32 tid = LOAD(u32, next, OFF_TASK_PID);
    if (!tid) /* idle */
        return 0;
    u64 *since_ns = runnable_since.lookup(&tid);
    if (!since_ns || !*since_ns)
        return 0;
    u64 from_ns = *since_ns, now_ns = bpf_ktime_get_ns();
    *since_ns = 0;
    if (now_ns - from_ns < WAIT_NS)
        return 0;
    u32 tgid = LOAD(u32, next, OFF_TASK_TGID);
    struct conn_key nobody = {};
    struct point *event = point_of(POINT_WAIT, now_ns, &nobody);
    if (!event)
        return 0;
    event->since_ns = from_ns;
    event->tid = tid;
    event->tgid = tgid;
    submit_point(event);
    return 0;
}
