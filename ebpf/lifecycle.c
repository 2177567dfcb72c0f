/* SPDX-License-Identifier: Apache-2.0 */
/* TCP state changes, retransmissions and dropped packets, from BTF tracepoints. */

/* A socket that closes has given its port back (tcp_set_state in net/ipv4/tcp.c), but not forgotten it. */
static inline void restore_port(struct conn_key *key, void *sk)
{
    void *tp = tcp_of(sk);
    if (tp)
        key->ports |= bpf_ntohs((u16)LOAD(u16, tp, OFF_INET_SPORT)) << 16;
}

/* Whether a closing socket is that of an earlier connection of the same ports: a SYN that met it has begun
 * another, which nothing has answered yet and which has no socket here unless it is the one that sent it. */
static inline int is_earlier(struct conn *conn, u32 old_state)
{
    return conn->opened_ns && old_state != STATE_SYN_SENT && !conn->tx.snd_max != !conn->rx.snd_max;
}

static inline void record_state_change(void *sk, u32 old_state, u32 new_state)
{
    struct conn_key key = {};
    if (!key_of_sock(&key, sk) || !pods.lookup(&key.netns))
        return;
    if (new_state == STATE_CLOSE && !(key.ports >> 16))
        restore_port(&key, sk);
    struct conn *conn = conn_of(&key), *known = conn ? conn : conn_of_other_end(&key);
    if (new_state == STATE_CLOSE && known && is_earlier(known, old_state))
        conn = known = 0;
    struct state_change *event = reserve_point();
    if (event) {
        u64 conn_id = known ? known->id : 0;
        PREFIX(event, EVENT_STATE_CHANGE, bpf_ktime_get_ns(), conn_id, key.netns, bpf_get_current_pid_tgid());
        event->old_state = old_state;
        event->new_state = new_state;
        event->family = LOAD(u16, sk, OFF_SOCK_FAMILY);
        event->local_port = key.ports >> 16;
        event->remote_port = key.ports & 0xffff;
        submit_point(event);
    }
    if (new_state == STATE_CLOSE && old_state != STATE_CLOSE && conn)
        end_conn(&key, conn);
}

/* sock:inet_sock_set_state(sk, oldstate, newstate) */
int raw_inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
    record_state_change((void *)ctx->args[0], ctx->args[1], ctx->args[2]);
    return 0;
}

static inline void record_retransmission(void *sk, void *skb)
{
    struct conn_key key = {};
    if (!key_of_sock(&key, sk) || !pods.lookup(&key.netns))
        return;
    u32 seqs[2] = {}; /* struct tcp_skb_cb begins with seq and end_seq */
    bpf_probe_read_kernel(seqs, sizeof(seqs), skb + OFF_SKB_CB + OFF_TCPCB_SEQ);
    u32 seq = seqs[0];
    u64 now_ns = bpf_ktime_get_ns(), first_sent_ns = 0;
    struct conn *conn = conn_of(&key);
    if (conn)
        first_sent_ns = sent_ns(&key, conn, seq, now_ns);
    else
        conn = conn_of_other_end(&key);
    struct retransmission *event = reserve_point();
    if (!event)
        return;
    u64 conn_id = conn ? conn->id : 0;
    PREFIX(event, EVENT_RETRANSMISSION, now_ns, conn_id, key.netns, 0ULL);
    event->first_sent_ns = first_sent_ns;
    event->later_sent_ns = 0;
    event->rtt_excess_us = 0;
    event->seq = seq;
    event->bytes = seqs[OFF_TCPCB_END_SEQ / 4 - OFF_TCPCB_SEQ / 4] - seq;
    event->tcp_state = (u8)LOAD(u8, sk, OFF_SOCK_STATE);
    void *tp = bpf_skc_to_tcp_sock(sk);
    if (tp) {
        if ((LOAD(u8, tp, OFF_TCP_CA_STATE) & CA_STATE_BITS) == CA_RECOVERY)
            event->later_sent_ns = LOAD(u64, tp, OFF_TCP_RACK_MSTAMP) * 1000;
        event->rtt_excess_us = rtt_excess_us(tp);
    }
    submit_point(event);
}

/* tcp:tcp_retransmit_skb(sk, skb[, err]) */
int raw_tcp_retransmit_skb(struct bpf_raw_tracepoint_args *ctx)
{
#ifdef HAVE_RETRANSMIT_ERROR
    if ((int)ctx->args[2])
        return 0; /* since 6.16 failed attempts come here too, most often because the original is still queued */
#endif
    record_retransmission((void *)ctx->args[0], (void *)ctx->args[1]);
    return 0;
}

/* What is read of a packet before it is known whether it is worth an event: an IP header, and of IPv4 ports too. */
union drop_probe {
    struct {
        struct ipv4_header ip;
        u16 source, target;
    };
    struct ipv6_header ip6;
#ifdef WATCH_TURNS
    struct {
        struct ipv6_header ip6_again;
        u16 source6, target6;
    };
#endif
};

/* Not what is for a group: neighbour discovery and its kind are dropped wherever nobody listens. */
static inline int is_followed(const union drop_probe *packet)
{
    u8 version = packet->ip.version_and_words >> 4;
    int is_ipv6 = version == IPV6_VERSION;
    u8 protocol = is_ipv6 ? packet->ip6.next_header : packet->ip.protocol;
    if (is_ipv6 ? packet->ip6.target[0] == MULTICAST_IPV6 : (packet->ip.target & 0xf0) == MULTICAST_IPV4)
        return 0;
    return (version == IPV4_VERSION || is_ipv6)
           && (protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_ICMP
               || protocol == PROTOCOL_ICMPV6);
}

#ifdef WATCH_TURNS
static inline u64 conn_id_of_drop6(const union drop_probe *packet, u32 netns, u32 dir)
{
    if (packet->ip6.next_header != PROTOCOL_TCP)
        return 0;
    struct address6 from, to;
    __builtin_memcpy(&from, packet->ip6.source, sizeof(from));
    __builtin_memcpy(&to, packet->ip6.target, sizeof(to));
    u32 here = alias_of(&from), there = alias_of(&to);
    u32 source = bpf_ntohs(packet->source6), target = bpf_ntohs(packet->target6);
    int l_is_source = is_loopback(here) ? source < target : dir == DIR_TX;
    struct conn_key key = {.netns = netns};
    key.laddr = l_is_source ? here : there;
    key.raddr = l_is_source ? there : here;
    key.ports = l_is_source ? source << 16 | target : target << 16 | source;
    struct conn *conn = conn_of(&key);
    return conn ? conn->id : 0;
}
#endif

/* The connection that a dropped packet belonged to; 0: none that is known here. */
static inline u64 conn_id_of_drop(const union drop_probe *packet, u32 netns, u32 dir)
{
#ifdef WATCH_TURNS
    if (packet->ip.version_and_words >> 4 == IPV6_VERSION)
        return conn_id_of_drop6(packet, netns, dir);
#endif
    if (packet->ip.version_and_words != IPV4_WORDS_20 || packet->ip.protocol != PROTOCOL_TCP)
        return 0;
    u32 source = bpf_ntohs(packet->source), target = bpf_ntohs(packet->target);
    int l_is_source = is_loopback(packet->ip.source) ? source < target : dir == DIR_TX;
    struct conn_key key = {.netns = netns};
    key.laddr = l_is_source ? packet->ip.source : packet->ip.target;
    key.raddr = l_is_source ? packet->ip.target : packet->ip.source;
    key.ports = l_is_source ? source << 16 | target : target << 16 | source;
    struct conn *conn = conn_of(&key);
    return conn ? conn->id : 0;
}

static inline void record_drop(void *skb, u64 location, u32 reason)
{
    u32 netns = netns_of_packet(skb);
    if (!netns || !pods.lookup(&netns))
        return;
    union drop_probe packet = {};
    u32 ip_offset = LOAD(u16, skb, OFF_SKB_NETWORK_HEADER), tail_offset = LOAD(u32, skb, OFF_SKB_TAIL);
    void *ip = (void *)LOAD(u64, skb, OFF_SKB_HEAD) + ip_offset;
    bpf_probe_read_kernel(&packet, sizeof(packet), ip);
    if (!is_followed(&packet))
        return;
    /* Set when a device hands the packet in (__netif_receive_skb_core in net/core/dev.c). */
    u32 dir = LOAD(u32, skb, OFF_SKB_IIF) ? DIR_RX : DIR_TX;
    struct drop *event = reserve_drop();
    if (!event)
        return;
    PREFIX(event, EVENT_DROP, bpf_ktime_get_ns(), conn_id_of_drop(&packet, netns, dir), netns, 0ULL);
    event->location = location;
    event->reason = reason;
    void *dev = (void *)LOAD(u64, skb, OFF_SKB_DEV);
    event->ifindex = dev ? LOAD(u32, dev, OFF_DEV_IFINDEX) : 0;
    event->direction = dir;
    /* What lies behind the packet's linear part is read with it, and cut off by the reader. */
    event->head_bytes = tail_offset - ip_offset;
    if (event->head_bytes > sizeof(event->head))
        event->head_bytes = sizeof(event->head);
    if (bpf_probe_read_kernel(event->head, sizeof(event->head), ip))
        event->head_bytes = 0;
    submit_drop(event);
}

/* skb:kfree_skb(skb, location, reason, ...); consumed packets do not come here. */
int raw_kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
    record_drop((void *)ctx->args[0], ctx->args[1], ctx->args[2]);
    return 0;
}
