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

#define IMPORT_GAP_NS 250000000ULL
#define NAME_BYTES 256

/* What a process loads at present. */
struct loading {
    u64 first_ns, last_ns, own_ns;
    u32 opens, own_opens;
    u32 tid;
    u32 pad;
};

BPF_HASH(loadings, u32, struct loading, 4096); /* by process */

static inline void emit_loading(u32 tgid, const struct loading *loading)
{
    struct module_load *event = reserve_point();
    if (!event)
        return;
    PREFIX(event, EVENT_MODULE_LOAD, loading->last_ns, 0ULL, 0, (u64)tgid << 32 | loading->tid);
    event->first_ns = loading->first_ns;
    event->opens = loading->opens;
    event->own_opens = loading->own_opens;
    event->own_ns = loading->own_ns;
    *(u64 *)event->pad = 0;
    submit_point(event);
}

/* By the end of its name: .py, .pyc, .so, .so.1 */
static inline int holds_code(const char *name, long bytes)
{
    if (bytes < 4 || bytes > NAME_BYTES)
        return 0;
    char last = name[(bytes - 2) & (NAME_BYTES - 1)], before = name[(bytes - 3) & (NAME_BYTES - 1)];
    return (before == 'p' && last == 'y') || (before == 'y' && last == 'c') || (before == 's' && last == 'o')
           || (before == '.' && last >= '0' && last <= '9');
}

#define WORD(a, b, c, d, e, f, g, h) \
    ((u64)(a) << 56 | (u64)(b) << 48 | (u64)(c) << 40 | (u64)(d) << 32 | (u64)(e) << 24 | (u64)(f) << 16 | (u64)(g) << 8 | (h))

/* Where Python has its libraries and what was installed for it: .../python3.11/..., site-packages, dist-packages;
 * below /usr and /lib are the system's. */
static inline int is_of_a_library(const char *name)
{
    u64 word = 0;
#pragma clang loop unroll(disable)
    for (int i = 0; i < NAME_BYTES; i++) {
        u8 byte = name[i];
        if (!byte)
            break;
        word = word << 8 | byte;
        if (word == WORD('/', 'p', 'y', 't', 'h', 'o', 'n', '3') || word == WORD('s', 'i', 't', 'e', '-', 'p', 'a', 'c')
            || word == WORD('d', 'i', 's', 't', '-', 'p', 'a', 'c'))
            return 1;
    }
    return (name[1] == 'u' && name[2] == 's' && name[3] == 'r' && name[4] == '/')
           || (name[1] == 'l' && name[2] == 'i' && name[3] == 'b');
}

/* sys_enter(regs, number): every system call of the machine comes here, and nearly all go at once. */
int raw_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
    if (ctx->args[1] != SYSCALL_OPENAT)
        return 0;
    u64 id = bpf_get_current_pid_tgid();
    u32 tgid = id >> 32;
    if (!process_kind(tgid) || !is_watching())
        return 0;
    void *regs = (void *)ctx->args[0];
    char name[NAME_BYTES];
    long bytes = bpf_probe_read_user_str(name, sizeof(name), (void *)LOAD(u64, regs, OFF_REGS_SECOND));
    if (!holds_code(name, bytes))
        return 0;
    u64 now_ns = bpf_ktime_get_ns();
    u32 own = !is_of_a_library(name);
    struct loading *loading = loadings.lookup(&tgid);
    if (loading && now_ns - loading->last_ns < IMPORT_GAP_NS) {
        loading->last_ns = now_ns;
        loading->opens++;
        loading->own_opens += own;
        if (own)
            loading->own_ns = now_ns;
        return 0;
    }
    if (loading)
        emit_loading(tgid, loading);
    struct loading fresh = {.first_ns = now_ns, .last_ns = now_ns, .opens = 1, .own_opens = own, .tid = id};
    fresh.own_ns = own ? now_ns : 0;
    if (loadings.update(&tgid, &fresh))
        count(LOSS_MAP_FULL);
    return 0;
}

/* sched:sched_process_exit(task[, group_dead]): nothing more will come that could end what it loaded. */
int raw_sched_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
    void *task = (void *)ctx->args[0];
    u32 tgid = LOAD(u32, task, OFF_TASK_TGID);
    if (LOAD(u32, task, OFF_TASK_PID) != tgid)
        return 0;
    struct loading *loading = loadings.lookup(&tgid);
    if (!loading)
        return 0;
    emit_loading(tgid, loading);
    loadings.delete(&tgid);
    return 0;
}
#endif
