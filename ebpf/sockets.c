/* SPDX-License-Identifier: Apache-2.0 */
/* When the application has it: bytes that a pod's process read from or handed to TCP.
 *
 * Tracepoints sock:sock_recv_length and sock:sock_send_length (Linux 6.3, commit
 * 6e6eda44b939); older kernels: kretprobes on tcp_recvmsg and tcp_sendmsg. A write only means
 * "handed to the kernel", so messages are placed by tc; writes close bursts, and tie
 * a proxy's two connections together: within one thread, a receive on one side and
 * the next send on the other. */

struct pair_key {
    struct conn_key from, to;
};

#ifdef HAVE_SOCK_LENGTH
#define SOCK_KEY key_of_sock
#else
#define SOCK_KEY key_of_untyped_sock
#endif

BPF_HASH(last_read, u32, struct conn_key, LAST_READ_ENTRIES);
BPF_HASH(pairs, struct pair_key, u64, PAIRS_ENTRIES);
BPF_TABLE("percpu_array", int, struct conn, fresh_sock, 1);

static inline struct conn *sock_conn_of(struct conn_key *key, int may_create)
{
    struct conn *conn = socks.lookup(key);
    if (conn || !may_create)
        return conn;
    int zero = 0;
    struct conn *fresh = fresh_sock.lookup(&zero);
    if (!fresh)
        return 0;
    if (socks.update(key, fresh))
        count(LOSS_MAP_FULL);
    return socks.lookup(key);
}

static inline void account_sock(void *sk, int bytes, u32 dir)
{
    struct conn_key key = {};
    u64 id = bpf_get_current_pid_tgid();
    u32 tgid = id >> 32, tid = id;
    u32 *process = processes.lookup(&tgid);
    /* A process that nobody has named yet is an application: it may read before it is named. */
    if (!SOCK_KEY(&key, sk))
        return;
    if (process && *process == PROCESS_PROXY) {
        if (dir == DIR_RX) {
            struct conn_key *last = last_read.lookup(&tid);
            if (last)
                *last = key;
            else if (last_read.update(&tid, &key))
                count(LOSS_MAP_FULL);
            return;
        }
        struct conn_key *from = last_read.lookup(&tid);
        if (!from || (from->ports == key.ports && from->raddr == key.raddr))
            return;
        struct pair_key pair = {.from = *from, .to = key};
        u64 one = 1, *n = pairs.lookup(&pair);
        if (n)
            *n += 1;
        else if (pairs.update(&pair, &one))
            count(LOSS_MAP_FULL);
        return;
    }
    int bulk = bytes >= SMALL_BYTES;
    struct conn *conn = sock_conn_of(&key, bulk);
    if (!conn)
        return;
    struct half *mine = dir == DIR_TX ? &conn->tx : &conn->rx;
    struct half *other = dir == DIR_TX ? &conn->rx : &conn->tx;
    u64 now_ns = bpf_ktime_get_ns();
    u32 seq = read_u32(sk + (dir == DIR_TX ? OFF_TCP_WRITE_SEQ : OFF_TCP_COPIED_SEQ));
    if (!bulk) {
        if (mine->bytes && !mine->tail_seq) {
            mine->tail_ns = now_ns;
            mine->tail_seq = seq;
        }
        mine->small++;
        return;
    }
    close_burst(&key, other, HOOK_SOCK, dir == DIR_TX ? DIR_RX : DIR_TX, id);
    if (!mine->bytes) {
        mine->first_ns = now_ns;
        mine->first_seq = seq - bytes;
    }
    mine->last_ns = now_ns;
    mine->max_seq = seq;
    mine->bytes += bytes;
    mine->packets++;
    mine->tail_seq = mine->tail_ns = 0;
}

#ifdef HAVE_SOCK_LENGTH
int raw_sock_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
    int bytes = ctx->args[1], flags = ctx->args[2];
    if (bytes > 0 && !(flags & 2 /* MSG_PEEK */))
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

int kprobe_tcp_recvmsg(struct regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid();
    u32 tgid = id >> 32;
    if (!processes.lookup(&tgid))
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
    if (bytes > 0 && !(call->flags & 2))
        account_sock((void *)call->sk, bytes, DIR_RX);
    recv_calls.delete(&id);
    return 0;
}

int kprobe_tcp_sendmsg(struct regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid();
    u32 tgid = id >> 32;
    if (!processes.lookup(&tgid))
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
