/* SPDX-License-Identifier: Apache-2.0 */
/* TCP state changes, retransmissions and dropped packets, from BTF tracepoints. */

/* sock:inet_sock_set_state(sk, oldstate, newstate) */
int raw_inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
    void *sk = (void *)ctx->args[0];
    struct conn_key key = {};
    if (!key_of_sock(&key, sk) || !pods.lookup(&key.netns))
        return 0;
    int old_state = ctx->args[1], new_state = ctx->args[2];
    struct point *event = point_of(POINT_STATE, bpf_ktime_get_ns(), &key);
    if (event) {
        u64 id = bpf_get_current_pid_tgid(); /* the owner's only while it calls; softirq borrows anybody's */
        event->a = old_state;
        event->b = new_state;
        event->c = LOAD(u16, sk, OFF_SOCK_FAMILY);
        event->tid = id;
        event->tgid = id >> 32;
        submit_point(event);
    }
    if (new_state == 7 /* TCP_CLOSE */ && old_state != 7)
        forget(&key);
    return 0;
}

/* When the packet that first had these bytes was sent; 0: not known. */
static inline u64 sent_ns(const struct conn_key *key, struct conn *conn, u32 seq, u64 now_ns)
{
    u32 count_now = conn->tx.logged;
    if (!count_now)
        return 0;
    struct sendlog *log = flush_sent(key, conn, (count_now - 1) & ~(SENT_SLOTS - 1));
    if (!log) {
        if (count_now & (SENT_SLOTS - 1))
            count(LOSS_MAP_FULL); /* others were counted when they should have been moved */
        return 0;
    }
    u32 most = SENDLOG_SLOTS - SENT_SLOTS, held = count_now < most ? count_now : most, first = count_now - held;
    u32 before = 0; /* how many begin with `seq` or before it */
#pragma unroll
    for (u32 bit = SENDLOG_SLOTS / 2; bit; bit >>= 1) {
        u32 at = first + before + bit - 1 & (SENDLOG_SLOTS - 1);
        u32 beyond = (held - before - bit | seq - log->slot[at].seq) >> 31;
        asm volatile("" : "+r"(beyond)); /* no branches, and no masks of 0 and -1: verifiers walk both ways, each time */
        before += (beyond ^ 1) * bit;
    }
    if (!before) {
        if (count_now > held)
            count(LOSS_MAP_FULL); /* later packets took the slot: when this was first sent is gone */
        return 0;
    }
    if (!after(conn->tx.snd_max, seq))
        return 0; /* no data: a FIN */
    u32 ago = (u32)(now_ns >> 10) - log->slot[first + before - 1 & (SENDLOG_SLOTS - 1)].ts;
    return now_ns - ((u64)ago << 10);
}

/* tcp:tcp_retransmit_skb(sk, skb[, error]) */
int raw_tcp_retransmit_skb(struct bpf_raw_tracepoint_args *ctx)
{
    void *sk = (void *)ctx->args[0], *skb = (void *)ctx->args[1];
    struct conn_key key = {};
#ifdef HAVE_RETRANSMIT_ERROR
    if ((int)ctx->args[2])
        return 0; /* since 6.16 failed attempts come here too, most often because the original is still queued */
#endif
    if (!key_of_sock(&key, sk) || !pods.lookup(&key.netns))
        return 0;
    u32 seqs[2] = {}; /* struct tcp_skb_cb begins with seq and end_seq */
    bpf_probe_read_kernel(seqs, sizeof(seqs), skb + OFF_SKB_CB + OFF_TCPCB_SEQ);
    u32 seq = seqs[0];
    u64 now_ns = bpf_ktime_get_ns(), since_ns = 0;
    struct conn *conn = conn_of(&key);
    if (conn)
        since_ns = sent_ns(&key, conn, seq, now_ns);
    struct point *event = point_of(POINT_RETRANSMIT, now_ns, &key);
    if (!event)
        return 0;
    event->since_ns = since_ns;
    event->a = seq;
    event->b = seqs[OFF_TCPCB_END_SEQ / 4 - OFF_TCPCB_SEQ / 4] - seq;
    event->c = (u8)LOAD(u8, sk, OFF_SOCK_STATE);
    void *tp = bpf_skc_to_tcp_sock(sk);
    if (tp && (LOAD(u8, tp, OFF_TCP_CA_STATE) & 31) == 3 /* TCP_CA_Recovery */)
        event->small_ns = LOAD(u64, tp, OFF_TCP_RACK_MSTAMP) * 1000;
    submit_point(event);
    return 0;
}

/* skb:kfree_skb(skb, location, reason, ...); consumed packets do not come here. */
int raw_kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
    void *skb = (void *)ctx->args[0];
    struct conn_key key = {};
    void *net = 0;
    void *dev = (void *)LOAD(u64, skb, OFF_SKB_DEV);
    if (dev)
        net = (void *)LOAD(u64, dev, OFF_DEV_NET);
    if (dev && net)
        key.netns = LOAD(u32, net, OFF_NET_INUM);
    if (!key.netns) {
        void *sk = (void *)LOAD(u64, skb, OFF_SKB_SK);
        if (sk) {
            net = (void *)LOAD(u64, sk, OFF_SOCK_NET);
            key.netns = LOAD(u32, net, OFF_NET_INUM);
        }
    }
    if (!key.netns || !pods.lookup(&key.netns))
        return 0;
    /* One read for all: an IPv4 header without options, and as much of TCP or UDP. */
    u32 words[10] = {};
    void *ip = (void *)LOAD(u64, skb, OFF_SKB_HEAD) + LOAD(u16, skb, OFF_SKB_NETWORK_HEADER);
    bpf_probe_read_kernel(words, sizeof(words), ip);
    if ((words[0] & 0xf0) != 0x40)
        return 0;
    u32 header_bytes = (words[0] & 0x0f) * 4, flags = 0;
    u32 total_bytes = bpf_ntohs((u16)(words[0] >> 16)), payload = 0;
    u8 protocol = words[2] >> 8;
    if (protocol != 6 && protocol != 17)
        return 0;
    if (header_bytes != 20)
        bpf_probe_read_kernel(words + 5, 20, ip + header_bytes);
    key.laddr = words[3];
    key.raddr = words[4];
    key.ports = bpf_ntohl(words[5]);
    if (protocol == 6) {
        u16 word = bpf_ntohs((u16)words[8]);
        flags = word & 0xff;
        payload = total_bytes - header_bytes - (word >> 12) * 4;
    } else {
        payload = total_bytes - header_bytes - 8;
    }
    struct point *event = point_of(POINT_DROP, bpf_ktime_get_ns(), &key);
    if (!event)
        return 0;
    event->a = ctx->args[2];
    event->b = (u32)protocol << 16 | flags;
    event->c = payload;
    if (protocol == 6)
        event->small_ns = bpf_ntohl(words[6]);
    submit_point(event);
    return 0;
}
