/* SPDX-License-Identifier: Apache-2.0 */
/* Processes that traced ones start, and the programs that they begin: what starts a task. */

#ifdef WATCH_TURNS
static inline void emit_process_start(void *task, u32 parent, u32 how)
{
    struct process_start *event = reserve_point();
    if (!event)
        return;
    u64 id = (u64)LOAD(u32, task, OFF_TASK_TGID) << 32 | LOAD(u32, task, OFF_TASK_PID);
    PREFIX(event, EVENT_PROCESS_START, bpf_ktime_get_ns(), 0ULL, 0, id);
    event->parent = parent;
    event->how = how;
    bpf_probe_read_kernel(event->command, sizeof(event->command), task + OFF_TASK_COMM);
    *(u64 *)event->pad = 0;
    submit_point(event);
}

static inline int is_watching(void)
{
    int zero = 0;
    u32 *on = watching.lookup(&zero);
    return on && *on;
}

/* sched:sched_process_fork(parent, child): threads come here too. */
int raw_sched_process_fork(struct bpf_raw_tracepoint_args *ctx)
{
    void *parent = (void *)ctx->args[0], *child = (void *)ctx->args[1];
    u32 parent_tgid = LOAD(u32, parent, OFF_TASK_TGID), tgid = LOAD(u32, child, OFF_TASK_TGID);
    if (tgid == parent_tgid || !is_watching())
        return 0;
    int index = tgid / 32;
    u64 *word = processes.lookup(&index);
    if (!word)
        return 0;
    u32 shift = tgid % 32 * 2;
    u64 before = *word >> shift & 3, kind = process_kind(parent_tgid);
    /* A number comes again: what it stood for is over. Other processes share the word. */
    if (before != kind)
        __sync_fetch_and_add(word, (kind - before) << shift);
    if (kind)
        emit_process_start(child, parent_tgid, HOW_FORK);
    return 0;
}

/* sched:sched_process_exec(task, old_pid, bprm) */
int raw_sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
    void *task = (void *)ctx->args[0];
    if (is_watching() && process_kind(LOAD(u32, task, OFF_TASK_TGID))) {
        void *parent = (void *)LOAD(u64, task, OFF_TASK_REAL_PARENT);
        emit_process_start(task, LOAD(u32, parent, OFF_TASK_TGID), HOW_EXEC);
    }
    return 0;
}
#endif
