/* SPDX-License-Identifier: Apache-2.0 */
/* When the application has it: bytes that a pod's process read from or handed to TCP.
 *
 * Tracepoints sock:sock_recv_length and sock:sock_send_length (Linux 6.3, commit
 * 6e6eda44b939); older kernels: kretprobes on tcp_recvmsg and tcp_sendmsg. A write only means
 * "handed to the kernel", so messages are placed by tc; writes close bursts, and tie
 * a proxy's two connections together: within one thread, a receive on one side and
 * the next send on the other. */

struct pair_key {
    u64 from, to; /* identities of connections */
};

#ifdef HAVE_SOCK_LENGTH
#define SOCK_KEY key_of_sock
#else
#define SOCK_KEY key_of_untyped_sock
#endif

/* tgid << 32 | tid. Newer kernels compile this call into the program, unlike bpf_get_current_pid_tgid's. */
static inline u64 current_id(void)
{
#ifdef HAVE_SOCK_LENGTH
    void *task = (void *)bpf_get_current_task_btf();
    return LOAD(u32, task, OFF_TASK_TGID) << 32 | LOAD(u32, task, OFF_TASK_PID);
#else
    return bpf_get_current_pid_tgid();
#endif
}

/* Where reading or writing has got to. */
static inline u32 seq_of_sock(void *sk, u32 dir)
{
#ifdef HAVE_SOCK_LENGTH
    void *tp = tcp_of(sk);
    if (!tp)
        return 0;
    return dir == DIR_TX ? LOAD(u32, tp, OFF_TCP_WRITE_SEQ) : LOAD(u32, tp, OFF_TCP_COPIED_SEQ);
#else
    return read_u32(sk + (dir == DIR_TX ? OFF_TCP_WRITE_SEQ : OFF_TCP_COPIED_SEQ));
#endif
}

/* Now: TCP looks at the clock when it has handed bytes to a reader (tcp_rcv_space_adjust), and when it has
 * taken more of them from a writer, who may have gone on copying since. */
static inline u64 moved_at(void *sk, struct half *mine, u32 dir)
{
#ifdef HAVE_SOCK_LENGTH
    void *tp = tcp_of(sk);
    if (tp && (dir == DIR_RX || mine->bytes)) {
        u64 cached_ns = LOAD(u64, tp, OFF_TCP_CLOCK_CACHE);
        return cached_ns > mine->last_ns ? cached_ns : mine->last_ns;
    }
#endif
    return bpf_ktime_get_ns();
}

BPF_HASH(last_read, u32, u64, LAST_READ_ENTRIES); /* by thread: the connection */
BPF_HASH(pairs, struct pair_key, u64, PAIRS_ENTRIES);

/* A proxy's thread: what it writes comes from where it read last. */
static inline void record_pair(struct conn *conn, u32 tid, u32 dir)
{
    u64 *last = last_read.lookup(&tid);
    if (dir == DIR_RX) {
        if (last)
            *last = conn->id;
        else if (last_read.update(&tid, &conn->id))
            count(LOSS_MAP_FULL);
        return;
    }
    if (!last || *last == conn->id)
        return;
    struct pair_key pair = {.from = *last, .to = conn->id};
    u64 one = 1, *n = pairs.lookup(&pair);
    if (n)
        *n += 1;
    else if (pairs.update(&pair, &one))
        count(LOSS_MAP_FULL);
}

/* An application's read or write. */
static inline void record_bytes(void *sk, struct conn *conn, int bytes, u32 dir, u64 id)
{
    struct half *mine = dir == DIR_TX ? &conn->sock_tx : &conn->sock_rx;
    struct half *other = dir == DIR_TX ? &conn->sock_rx : &conn->sock_tx;
    if (bytes < SMALL_BYTES) {
        if (mine->bytes && !mine->tail_end_seq) {
            mine->tail_ns = bpf_ktime_get_ns();
            mine->tail_end_seq = seq_of_sock(sk, dir);
        }
        mine->small_packets++;
        return;
    }
    u32 seq = seq_of_sock(sk, dir);
    u64 now_ns = moved_at(sk, mine, dir);
    if (ends_burst(mine, other, bytes))
        close_burst(conn, other, HOOK_SOCK, dir == DIR_TX ? DIR_RX : DIR_TX, id);
    if (!mine->bytes) {
        mine->first_ns = now_ns;
        mine->first_seq = seq - bytes;
    }
    mine->last_ns = now_ns;
    mine->end_seq = seq;
    mine->bytes += bytes;
    mine->packets++;
    if (mine->tail_end_seq)
        mine->tail_end_seq = mine->tail_ns = 0;
}

static inline void account_sock(void *sk, int bytes, u32 dir)
{
    struct conn_key key = {};
    u64 id = current_id();
    int zero = 0;
    u32 *on = watching.lookup(&zero);
    if (!on || !*on || !SOCK_KEY(&key, sk))
        return;
    int is_proxy = process_kind(id >> 32) == PROCESS_PROXY;
    struct conn *conn = conn_of(&key);
    if (unlikely(!conn)) {
        /* A socket that has closed has given its port back, and nothing would end what began here. */
        if (key.ports >> 16 && (is_proxy || bytes >= SMALLEST_KNOWN) && pods.lookup(&key.netns))
            conn = new_conn_of_socket(&key);
        if (!conn)
            return;
    }
#ifdef WATCH_TURNS
    u32 end_seq = seq_of_sock(sk, dir);
    speak(conn, dir == DIR_TX ? &conn->sock_tx_speech : &conn->sock_rx_speech,
          dir == DIR_TX ? &conn->sock_rx_speech : &conn->sock_tx_speech, end_seq - bytes, end_seq, bpf_ktime_get_ns(),
          HOOK_SOCK, dir, id);
#endif
    /* A process that nobody has named yet is an application: it may read before it is named. */
    if (is_proxy)
        record_pair(conn, id, dir);
    else
        record_bytes(sk, conn, bytes, dir, id);
}

#ifdef HAVE_SOCK_LENGTH
int raw_sock_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
    int bytes = ctx->args[1], flags = ctx->args[2];
    if (bytes > 0 && !(flags & MSG_PEEK_FLAG))
        account_sock((void *)ctx->args[0], bytes, DIR_RX);
    return 0;
}

int raw_sock_send_length(struct bpf_raw_tracepoint_args *ctx)
{
    int bytes = ctx->args[1];
    if (bytes > 0)
        account_sock((void *)ctx->args[0], bytes, DIR_TX);
    return 0;
}
#else
/* x86_64 calling convention; struct pt_regs is laid out as in arch/x86/include/asm/ptrace.h. */
struct regs {
    u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
};
struct call { u64 sk; u32 flags; u32 pad; };
BPF_HASH(recv_calls, u64, struct call, 4096);
BPF_HASH(send_calls, u64, struct call, 4096);

/* Which calls to remember until they return. By namespace and not by process, because a process
 * may read before it has been named; a machine's other sockets would fill the maps, though. */
static inline int of_a_pod(void *sk)
{
    u64 net = read_ptr(sk + OFF_SOCK_NET);
    u32 netns = read_u32((void *)net + OFF_NET_INUM);
    return pods.lookup(&netns) != 0;
}

int kprobe_tcp_recvmsg(struct regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid();
    if (!of_a_pod((void *)ctx->di))
        return 0;
    struct call call = {.sk = ctx->di, .flags = ctx->cx}; /* sk, msg, len, flags */
    if (recv_calls.update(&id, &call))
        count(LOSS_MAP_FULL);
    return 0;
}

int kretprobe_tcp_recvmsg(struct regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid();
    struct call *call = recv_calls.lookup(&id);
    if (!call)
        return 0;
    int bytes = ctx->ax;
    if (bytes > 0 && !(call->flags & MSG_PEEK_FLAG))
        account_sock((void *)call->sk, bytes, DIR_RX);
    recv_calls.delete(&id);
    return 0;
}

int kprobe_tcp_sendmsg(struct regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid();
    if (!of_a_pod((void *)ctx->di))
        return 0;
    struct call call = {.sk = ctx->di};
    if (send_calls.update(&id, &call))
        count(LOSS_MAP_FULL);
    return 0;
}

int kretprobe_tcp_sendmsg(struct regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid();
    struct call *call = send_calls.lookup(&id);
    if (!call)
        return 0;
    int bytes = ctx->ax;
    if (bytes > 0)
        account_sock((void *)call->sk, bytes, DIR_TX);
    send_calls.delete(&id);
    return 0;
}
#endif
