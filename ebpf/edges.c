/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that leave and arrive: tcx or clsact on every pod's eth0 and lo.
 *
 * Bulk data is aggregated (a burst per message, hop and direction, in bursts.c); what is
 * passed up whole stands in heads.c. The programs return TC_ACT_UNSPEC so that other filters run. */

static inline void note_ack(struct conn *conn, u32 ack)
{
    if (after(ack, conn->acked_seq) || !conn->acked_seq)
        conn->acked_seq = ack;
}

static inline void emit_duplicate_ack(struct conn *conn, u32 seq, u32 bytes)
{
    struct duplicate_ack *event = reserve_point();
    if (!event)
        return;
    PREFIX(event, EVENT_DUPLICATE_ACK, bpf_ktime_get_ns(), conn->id, conn->key.netns, 0ULL);
    event->seq = seq;
    event->bytes = bytes;
    submit_point(event);
}

/* A receiver that gets bytes twice says so in the first SACK block (RFC 2883). */
static inline void look_for_dsack(struct __sk_buff *ctx, struct seen *seen, struct conn *conn)
{
    void *data = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    struct sack_options *options = data + ACK_OPTIONS_OFFSET;
#ifdef WATCH_TURNS
    if (is_alias(seen->key.laddr))
        options = data + ACK_OPTIONS_OFFSET + IPV6_MORE_BYTES;
#endif
    if ((void *)(options + 1) > end || options->sack_kind != TCP_OPTION_SACK)
        return;
    u32 from = bpf_ntohl(options->from0), to = bpf_ntohl(options->to0);
    u32 *block1 = (void *)(options + 1);
    int inside = 0;
    if (options->sack_bytes >= SACK_TWO_BLOCKS && (void *)(block1 + 2) <= end) {
        u32 from1 = bpf_ntohl(block1[0]), to1 = bpf_ntohl(block1[1]);
        inside = !after(from1, from) && !after(to, to1);
    }
    if (inside || !after(to, seen->ack))
        emit_duplicate_ack(conn, from, to - from);
}

/* An acknowledgement that leaves. */
static inline void account_ack(struct __sk_buff *ctx, struct seen *seen)
{
    struct conn *conn = conn_of(&seen->key);
    if (!conn)
        return;
    note_ack(conn, seen->ack);
    if (seen->header_bytes >= ACK_WITH_SACK_BYTES)
        look_for_dsack(ctx, seen, conn);
}

/* Whether a packet has anything that the programs look at in its connection. */
static inline int is_bare_ack(struct seen *seen)
{
    return !seen->payload_bytes && !(seen->flags & FLAGS_SETUP);
}

#ifdef WATCH_TURNS
static inline struct bpf_sock *socket_of_ipv6(struct __sk_buff *ctx, struct seen *seen)
{
    struct bpf_sock_tuple ends __attribute__((aligned(8)));
    __builtin_memset(&ends, 0, sizeof(ends));
    full_address((u8 *)ends.ipv6.saddr, seen->key.raddr);
    full_address((u8 *)ends.ipv6.daddr, seen->key.laddr);
    ends.ipv6.sport = bpf_htons((u16)seen->key.ports);
    ends.ipv6.dport = bpf_htons((u16)(seen->key.ports >> 16));
    return bpf_skc_lookup_tcp(ctx, &ends, sizeof(ends.ipv6), BPF_F_CURRENT_NETNS, 0);
}
#endif

/* Whether a socket is connected on this end of what arrives. Data that comes for one that has just gone (a session
 * ticket after the client has hung up) would otherwise begin a connection of its own. */
static inline int has_socket(struct __sk_buff *ctx, struct seen *seen)
{
    struct bpf_sock_tuple ends = {};
    ends.ipv4.saddr = seen->key.raddr;
    ends.ipv4.daddr = seen->key.laddr;
    ends.ipv4.sport = bpf_htons((u16)seen->key.ports);
    ends.ipv4.dport = bpf_htons((u16)(seen->key.ports >> 16));
#ifdef WATCH_TURNS
    struct bpf_sock *sk = is_alias(seen->key.laddr)
                              ? socket_of_ipv6(ctx, seen)
                              : bpf_skc_lookup_tcp(ctx, &ends, sizeof(ends.ipv4), BPF_F_CURRENT_NETNS, 0);
#else
    struct bpf_sock *sk = bpf_skc_lookup_tcp(ctx, &ends, sizeof(ends.ipv4), BPF_F_CURRENT_NETNS, 0);
#endif
    if (!sk)
        return 0;
    int connected = sk->state != STATE_LISTEN && sk->state != STATE_TIME_WAIT;
    bpf_sk_release(sk);
    return connected;
}

/* The connection of a packet, if it has one or is to have one from now on. `arrives`: for a socket of this end. */
static inline struct conn *conn_of_packet(struct __sk_buff *ctx, struct seen *seen, int arrives)
{
    struct conn *conn = conn_of(&seen->key);
    if (unlikely(!conn && seen->payload_bytes >= SMALLEST_KNOWN && (!arrives || has_socket(ctx, seen))))
        return new_conn(&seen->key, 0, 0);
    return conn;
}

/* A SYN, or the answer to one. It stands apart because verifiers walk each way through what follows again.
 * Data in it (TCP Fast Open, RFC 7413) begins one behind its own number; of a message it is the smallest part,
 * and burst and pauses begin with the packet after it. */
static inline void record_syn(struct __sk_buff *ctx, struct seen *seen)
{
    struct conn *conn = open_conn(&seen->key, conn_of(&seen->key), seen->flags, seen->seq, seen->ack);
    if (!conn)
        return;
    struct half *mine = seen->dir == DIR_TX ? &conn->tx : &conn->rx;
    struct head *head = seen->dir == DIR_TX ? &conn->tx_head : &conn->rx_head;
    u64 now_ns = bpf_ktime_get_ns();
    if (seen->flags & FLAG_ACK && seen->dir == DIR_TX)
        conn->acked_seq = seen->ack; /* whatever left before was about an earlier connection */
    emit_packet(ctx, seen, conn, now_ns, EVENT_SETUP, head, head, 1);
    seen->seq++;
    if (seen->payload_bytes && !head->heads) {
        emit_packet(ctx, seen, conn, now_ns, EVENT_PAYLOAD, head, head, 1);
        head->heads++;
    }
    if (!mine->snd_max)
        mine->snd_max = seen->seq + seen->payload_bytes;
}

/* The heads of a connection's packets, as long as they are worth passing up. */
static inline void record_head(struct __sk_buff *ctx, struct seen *seen, struct conn *conn, struct head *head,
                               struct head *other, u64 now_ns, u8 most)
{
    u32 kind = seen->flags & FLAGS_SETUP ? EVENT_SETUP : EVENT_PAYLOAD;
    if (kind == EVENT_PAYLOAD && (!seen->payload_bytes || head->heads >= most))
        return;
    emit_packet(ctx, seen, conn, now_ns, kind, head, other, 0);
    if (kind == EVENT_PAYLOAD)
        head->heads++;
}

/* What of a packet's payload can be a message's: TLS handshakes are none, nor what stands before their end. */
static inline void skip_handshake(struct seen *seen, struct head *head)
{
    if (seen->payload_bytes < SMALL_BYTES || !head->tls)
        return;
    u32 skip = head->record_seq - seen->seq;
    if (head->tls == TLS_HANDSHAKE) {
        if (head->heads < HEAD_PACKETS)
            seen->message_bytes = 0;
    } else if (skip - 1 < seen->payload_bytes) {
        seen->seq += skip; /* data behind the end of the handshake, in the same packet */
        seen->message_bytes = seen->payload_bytes -= skip;
    }
}

/* Up to where the bytes of this direction have been seen. */
static inline void advance(struct seen *seen, struct half *mine, int egress)
{
    u32 end_seq = seen->seq + seen->payload_bytes;
    if (egress && seen->payload_bytes) {
        if (after(end_seq, mine->snd_max) || !mine->snd_max)
            mine->snd_max = end_seq;
    } else if (!after(seen->seq, mine->snd_max) && after(end_seq, mine->snd_max)) {
        mine->snd_max = end_seq; /* in order; behind a hole it stays where that begins */
    }
}

/* A SYN that meets what the peer still holds of an earlier connection of the same ports is answered with an
 * acknowledgement of that one, which its sender resets before it sends the SYN again (RFC 9293, section 3.5.1,
 * figure 9). That reset stands at the earlier one's number and ends nothing of this. */
static inline int resets_earlier(struct seen *seen, struct half *mine, struct half *other)
{
    return !(seen->flags & FLAG_ACK) && mine->snd_max && !other->snd_max && seen->seq != mine->snd_max;
}

static inline void record_end(struct seen *seen, struct conn *conn, struct half *mine, struct half *other, u32 hook)
{
    if (seen->flags & (FLAG_FIN | FLAG_RST))
        close_burst(conn, mine, hook, seen->dir, 0);
#ifdef WATCH_TURNS
    if (seen->flags & (FLAG_FIN | FLAG_RST))
        end_turn(conn, seen->dir == DIR_TX ? &conn->tx_speech : &conn->rx_speech, hook, seen->dir);
#endif
    if (seen->flags & FLAG_RST && !resets_earlier(seen, mine, other))
        end_conn(&seen->key, conn); /* where nobody listens there is no socket whose end would do it */
}

static inline void record_eth(struct __sk_buff *ctx, int egress)
{
    struct seen seen = {};
    if (!parse(ctx, &seen, egress, 0))
        return;
    if (unlikely(seen.udp)) {
        emit_dns(ctx, &seen);
        return;
    }
    if (is_bare_ack(&seen)) {
#ifdef WATCH_TURNS
        if (!egress) {
            struct conn *acked = conn_of(&seen.key);
            if (acked)
                hear_ack(acked, seen.ack);
            return;
        }
#endif
        account_ack(ctx, &seen);
        return;
    }
    if (unlikely(seen.flags & FLAG_SYN)) {
        record_syn(ctx, &seen);
        return;
    }
    struct conn *conn = conn_of_packet(ctx, &seen, !egress);
    if (unlikely(!conn))
        return;
#ifdef WATCH_TURNS
    if (!egress && seen.flags & FLAG_ACK)
        hear_ack(conn, seen.ack);
#endif
    struct half *mine = egress ? &conn->tx : &conn->rx;
    struct half *other = egress ? &conn->rx : &conn->tx;
    struct head *head = egress ? &conn->tx_head : &conn->rx_head;
    if (egress && seen.flags & FLAG_ACK)
        note_ack(conn, seen.ack);
    void *tp = egress && seen.payload_bytes >= SMALL_BYTES ? sender_of(ctx) : 0;
    if (likely(goes_on(&seen, mine, other, head))) {
        u32 end_seq = seen.seq + seen.payload_bytes;
        u64 now_ns = sent_at(tp, end_seq, mine->last_ns);
        if (egress && now_ns > mine->last_ns)
            charge_pause(tp, &seen, conn, mine, other, now_ns);
        extend_burst(ctx, tp, &seen, conn, mine, now_ns, seen.seq, HOOK_ETH, egress);
#ifdef WATCH_TURNS
        SPEAK_ON_WIRE(conn, &seen, now_ns, HOOK_ETH);
#endif
        mine->snd_max = end_seq;
        return;
    }
    u64 now_ns = bpf_ktime_get_ns();
    if (!egress && seen.payload_bytes && mine->snd_max && seen.seq != mine->snd_max)
        mine->holes = 1;
    record_head(ctx, &seen, conn, head, egress ? &conn->rx_head : &conn->tx_head, now_ns, HEAD_PACKETS);
#ifdef WATCH_TURNS
    if (seen.payload_bytes && (!mine->snd_max || after(seen.seq + seen.payload_bytes, mine->snd_max)))
        SPEAK_ON_WIRE(conn, &seen, now_ns, HOOK_ETH);
#endif
    seen.message_bytes = seen.payload_bytes;
    skip_handshake(&seen, head);
    if (seen.message_bytes >= SMALL_BYTES) {
        account_bulk(ctx, tp, &seen, conn, mine, other, now_ns, HOOK_ETH, egress);
    } else if (seen.message_bytes) {
        if (egress && mine->logged && after(seen.seq + seen.payload_bytes, mine->snd_max))
            log_send(&seen.key, conn, seen.seq, now_ns);
        account_small(ctx, &seen, mine, other, now_ns, egress);
    }
    advance(&seen, mine, egress);
    record_end(&seen, conn, mine, other, HOOK_ETH);
}

/* Both ends of a connection on loopback are the pod's, and every packet is seen as it leaves. */
static inline void record_lo(struct __sk_buff *ctx)
{
    struct seen seen = {};
    if (!parse(ctx, &seen, 1, 1) || seen.udp || is_bare_ack(&seen))
        return;
    if (unlikely(seen.flags & FLAG_SYN)) {
        record_syn(ctx, &seen);
        return;
    }
    struct conn *conn = conn_of_packet(ctx, &seen, 0);
    if (!conn)
        return;
    u64 now_ns = bpf_ktime_get_ns();
    struct half *mine = seen.dir == DIR_TX ? &conn->tx : &conn->rx;
    struct half *other = seen.dir == DIR_TX ? &conn->rx : &conn->tx;
    struct head *head = seen.dir == DIR_TX ? &conn->tx_head : &conn->rx_head;
    record_head(ctx, &seen, conn, head, seen.dir == DIR_TX ? &conn->rx_head : &conn->tx_head, now_ns, LO_HEAD_PACKETS);
#ifdef WATCH_TURNS
    if (seen.payload_bytes && (!mine->snd_max || after(seen.seq + seen.payload_bytes, mine->snd_max)))
        SPEAK_ON_WIRE(conn, &seen, now_ns, HOOK_LO);
#endif
    if (seen.payload_bytes >= SMALL_BYTES)
        account_bulk(ctx, sender_of(ctx), &seen, conn, mine, other, now_ns, HOOK_LO, 1);
    else if (seen.payload_bytes)
        account_small(ctx, &seen, mine, other, now_ns, 1);
    advance(&seen, mine, 1);
    record_end(&seen, conn, mine, other, HOOK_LO);
}

int tc_eth_out(struct __sk_buff *ctx)
{
    record_eth(ctx, 1);
    return PASS_ON;
}

int tc_eth_in(struct __sk_buff *ctx)
{
    record_eth(ctx, 0);
    return PASS_ON;
}

int tc_lo_out(struct __sk_buff *ctx)
{
    record_lo(ctx);
    return PASS_ON;
}
