/* SPDX-License-Identifier: Apache-2.0 */
/* Run-queue waiting of the experiment's own threads: runnable, but no CPU.
 *
 * sched:sched_wakeup(p), sched_wakeup_new(p), sched_switch(preempt, prev, next, prev_state). */

BPF_HASH(runnable_since, u32, u64, 16384); /* tid -> ns */

static inline int traced_task(void *task, u32 *tid)
{
    u32 tgid = read_u32(task + OFF_TASK_TGID);
    if (!processes.lookup(&tgid))
        return 0;
    *tid = read_u32(task + OFF_TASK_PID);
    return tgid;
}

static inline void enqueue(void *task, u64 now_ns)
{
    u32 tid = 0;
    if (!traced_task(task, &tid))
        return;
    if (runnable_since.update(&tid, &now_ns))
        count(LOSS_MAP_FULL);
}

int raw_sched_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
    enqueue((void *)ctx->args[0], bpf_ktime_get_ns());
    return 0;
}

int raw_sched_wakeup_new(struct bpf_raw_tracepoint_args *ctx)
{
    enqueue((void *)ctx->args[0], bpf_ktime_get_ns());
    return 0;
}

int raw_sched_switch(struct bpf_raw_tracepoint_args *ctx)
{
    void *prev = (void *)ctx->args[1], *next = (void *)ctx->args[2];
    u64 now_ns = bpf_ktime_get_ns();
    if (ctx->args[0] || read_u32(prev + OFF_TASK_STATE) == 0 /* preempted: still wants a CPU */)
        enqueue(prev, now_ns);
    u32 tid = 0, tgid = traced_task(next, &tid);
    if (!tgid)
        return 0;
    u64 *since_ns = runnable_since.lookup(&tid);
    if (!since_ns)
        return 0;
    u64 from_ns = *since_ns;
    runnable_since.delete(&tid);
    if (now_ns - from_ns < WAIT_NS)
        return 0;
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
