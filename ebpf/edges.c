/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that leave and arrive: tc (clsact) on every pod's eth0 and lo.
 *
 * Bulk data is aggregated here (a burst per message, hop and direction); what is
 * passed up whole stands in heads.c. The programs return TC_ACT_UNSPEC so that other filters run. */

BPF_TABLE("array", int, struct sendlog, fresh_sendlog, 1); /* all zero, only read */

/* What holds the sender back now, from the socket's own counters (net/ipv4/tcp_output.c,
 * tcp_write_xmit: the packet that we see is not yet counted in packets_out). */
static inline u8 sender_limit(struct __sk_buff *ctx, u32 end_seq, u32 segments)
{
    void *sk = ctx->sk;
    if (!sk)
        return WHY_STARVED;
    void *tp = tcp_of(sk);
    if (!tp || (u32)LOAD(u32, tp, OFF_TCP_WRITE_SEQ) == end_seq)
        return WHY_STARVED;
    u32 in_flight = LOAD(u32, tp, OFF_TCP_PACKETS_OUT) + segments + LOAD(u32, tp, OFF_TCP_RETRANS_OUT)
                    - LOAD(u32, tp, OFF_TCP_SACKED_OUT) - LOAD(u32, tp, OFF_TCP_LOST_OUT);
    if (in_flight >= (u32)LOAD(u32, tp, OFF_TCP_SND_CWND))
        return WHY_CWND;
    if (after(end_seq + 1448, LOAD(u32, tp, OFF_TCP_SND_UNA) + LOAD(u32, tp, OFF_TCP_SND_WND)))
        return WHY_RWND;
    return WHY_QUEUE;
}

/* Whether the packet that is now sent waited for the receiver's window: TCP's own account of that
 * (tcp_chrono_start in net/ipv4/tcp_output.c) is closed only after it has been sent. */
static inline int window_limited(struct __sk_buff *ctx)
{
    void *sk = ctx->sk;
    void *tp = sk ? tcp_of(sk) : 0;
    return tp && (LOAD(u8, tp, OFF_TCP_CHRONO_TYPE) & 3) == 2; /* TCP_CHRONO_RWND_LIMITED */
}

/* What a sender waited for although its windows had room: TCP does not use the last of a window, but
 * waits for an acknowledgement that lets it send a larger piece (tcp_tso_should_defer). What such an
 * acknowledgement ended was not below the socket, nor what a timer did, more than a round trip without one. */
static inline u8 deferred_for(struct __sk_buff *ctx, u64 since_ns, u64 now_ns)
{
    void *sk = ctx->sk;
    void *tp = sk ? tcp_of(sk) : 0;
    if (!tp)
        return WHY_QUEUE;
    if ((LOAD(u8, tp, OFF_TCP_CHRONO_TYPE) & 3) == 2) /* TCP_CHRONO_RWND_LIMITED */
        return WHY_RWND;
    u64 delivered_us = LOAD(u64, tp, OFF_TCP_DELIVERED_MSTAMP), now_us = now_ns / 1000, since_us = since_ns / 1000;
    if (delivered_us > since_us)
        return now_us < delivered_us + PROMPT_US ? WHY_CWND : WHY_QUEUE;
    return now_us - since_us > (u32)LOAD(u32, tp, OFF_TCP_SRTT_US) >> 3 ? WHY_CWND : WHY_QUEUE;
}

static inline void emit_gap(struct seen *seen, u64 since_ns, u64 now_ns, u64 small_ns, u32 hook, u32 kind)
{
    struct point *event = point_of(kind, now_ns, &seen->key);
    if (!event)
        return;
    event->since_ns = since_ns;
    event->small_ns = small_ns;
    event->a = seen->seq;
    event->b = hook;
    event->c = seen->dir;
    submit_point(event);
}

/* The pause before this packet, charged to what held the sender back after the last one. */
static inline void charge_pause(struct __sk_buff *ctx, struct seen *seen, struct half *mine, struct half *other,
                                u64 now_ns)
{
    u64 pause_ns = now_ns - mine->last_ns;
    u8 why = mine->why == WHY_QUEUE && pause_ns >= DEFERRED_NS ? deferred_for(ctx, mine->last_ns, now_ns) : mine->why;
    if (why == WHY_CWND) {
        mine->cwnd_ns += pause_ns;
    } else if (why == WHY_RWND) {
        mine->rwnd_ns += pause_ns;
    } else if (why == WHY_QUEUE) {
        mine->queue_ns += pause_ns;
    } else {
        u64 since_ns = mine->last_ns;
        /* Nothing to send before a frame allowed it: the frame ended that wait, what the sender took
         * to go on is its own. */
        if (other->small_ns > since_ns && now_ns - other->small_ns < ANSWER_NS) {
            mine->http2_ns += other->small_ns - since_ns;
            since_ns = other->small_ns;
        }
        if (mine->acked_ns > mine->last_ns && mine->acked_ns < now_ns) { /* another CPU's clock read may be newer */
            u64 free_ns = mine->acked_ns > since_ns ? mine->acked_ns : since_ns;
            mine->flight_ns += free_ns - since_ns;
            if (now_ns - free_ns >= GAP_NS)
                emit_gap(seen, free_ns, now_ns, other->small_ns, HOOK_ETH, POINT_GAP);
            else
                mine->starved_ns += now_ns - free_ns;
        } else {
            mine->flight_ns += now_ns - since_ns;
        }
    }
}

/* Copy what stands in the connection to its log, as packets `from` (a multiple of SENT_SLOTS) and on.
 * 0: there is no room for a log. */
static inline struct sendlog *flush_sent(const struct conn_key *key, struct conn *conn, u32 from)
{
    struct sendlog *log = sendlogs.lookup((struct conn_key *)key);
    if (!log) {
        int zero = 0;
        struct sendlog *fresh = fresh_sendlog.lookup(&zero);
        if (!fresh || sendlogs.update((struct conn_key *)key, fresh))
            return 0;
        log = sendlogs.lookup((struct conn_key *)key);
        if (!log)
            return 0;
    }
    u32 slot = from & (SENDLOG_SLOTS - SENT_SLOTS);
#pragma unroll
    for (int i = 0; i < SENT_SLOTS; i++)
        log->slot[slot + i] = conn->sent[i];
    return log;
}

/* A log is 32 KB, of which each packet would touch a cold page: it gets eight at a time. */
static inline void log_send(const struct conn_key *key, struct conn *conn, u32 seq, u64 now_ns)
{
    u32 slot = conn->sent_count++ & (SENT_SLOTS - 1);
    conn->sent[slot].seq = seq;
    conn->sent[slot].ts = now_ns >> 10;
    if (slot == SENT_SLOTS - 1 && !flush_sent(key, conn, conn->sent_count - SENT_SLOTS))
        count_many(LOSS_MAP_FULL, SENT_SLOTS);
}

static inline void account_small(struct __sk_buff *ctx, struct seen *seen, struct half *mine, struct half *other,
                                 u64 now_ns, int egress)
{
    u32 end_seq = seen->seq + seen->payload_bytes;
    if (mine->bytes) {
        mine->small++;
        /* The message's end, unless the other side's frame came in between: then it is the answer to that. */
        if (egress && other->small_ns <= mine->last_ns && now_ns - mine->last_ns < TAIL_GAP_NS && seen->seq == mine->max_seq) {
            mine->last_ns = now_ns;
            mine->max_seq = end_seq;
            mine->bytes += seen->payload_bytes;
            mine->why = sender_limit(ctx, end_seq, 1);
        } else if (!mine->tail_seq && after(end_seq, mine->max_seq)) {
            mine->tail_ns = now_ns;
            mine->tail_seq = end_seq;
        }
    }
    mine->small_ns = now_ns;
}

static inline void account_bulk(struct __sk_buff *ctx, struct seen *seen, struct conn *conn, struct half *mine,
                                struct half *other, u64 now_ns, u32 hook, int egress)
{
    u32 end_seq = seen->seq + seen->payload_bytes;
    /* Bytes seen before are retransmissions; they move no edge. On arrival, bytes behind a hole
     * count as seen only once this end has acknowledged them: before that they may fill it. */
    if (!egress && (!mine->snd_max || after(other->acked_seq, mine->snd_max)))
        mine->snd_max = other->acked_seq;
    u32 seen_seq = mine->snd_max;
    if (seen_seq && !after(end_seq, seen_seq)) /* 0: nothing yet */
        return;
    close_burst(&seen->key, other, hook, seen->dir == DIR_TX ? DIR_RX : DIR_TX, 0);
    u32 segments = ctx->gso_segs ? ctx->gso_segs : 1;
    if (!mine->bytes) {
        mine->first_ns = now_ns;
        mine->first_seq = mine->max_seq = seen->seq;
    } else if (after(mine->first_seq, seen->seq)) {
        /* Overtaken by a later packet: the first byte arrives only now. */
        mine->first_ns = now_ns;
        mine->first_seq = seen->seq;
    } else if (hook == HOOK_LO) {
        /* Held back by a reader that does not read is not a pause of the writer's. */
        if (now_ns - mine->last_ns >= GAP_NS) {
            if (window_limited(ctx))
                emit_gap(seen, mine->last_ns, now_ns, other->small_ns, HOOK_LO, POINT_BLOCKED);
            else if (mine->why == WHY_STARVED)
                emit_gap(seen, mine->last_ns, now_ns, other->small_ns, HOOK_LO, POINT_GAP);
        }
    } else if (egress) {
        charge_pause(ctx, seen, mine, other, now_ns);
    }
    mine->last_ns = now_ns;
    mine->packets += segments;
    mine->bytes += seen->payload_bytes;
    if (after(end_seq, mine->max_seq))
        mine->max_seq = end_seq;
    if (mine->tail_seq && after(end_seq, mine->tail_seq))
        mine->tail_seq = mine->tail_ns = 0;
    if (hook == HOOK_ETH && egress)
        log_send(&seen->key, conn, seen_seq && after(seen_seq, seen->seq) ? seen_seq : seen->seq, now_ns);
    if (egress)
        mine->why = sender_limit(ctx, end_seq, segments);
}

/* A receiver that gets bytes twice says so in the first SACK block (RFC 2883). Linux puts
 * NOP NOP TIMESTAMP NOP NOP SACK, so the block stands at a fixed place. */
static inline void look_for_dsack(struct __sk_buff *ctx, struct seen *seen)
{
    void *data = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    if (data + 78 > end || *(u8 *)(data + 68) != 5)
        return;
    u32 from = bpf_ntohl(*(u32 *)(data + 70)), to = bpf_ntohl(*(u32 *)(data + 74));
    int inside = 0;
    if (*(u8 *)(data + 69) >= 18 && data + 86 <= end) {
        u32 from1 = bpf_ntohl(*(u32 *)(data + 78)), to1 = bpf_ntohl(*(u32 *)(data + 82));
        inside = !after(from1, from) && !after(to, to1);
    }
    if (!inside && after(to, seen->ack))
        return;
    struct point *event = point_of(POINT_DSACK, bpf_ktime_get_ns(), &seen->key);
    if (!event)
        return;
    event->a = from;
    event->b = to - from;
    submit_point(event);
}

/* Half of all packets, and most of them change nothing. */
static inline void account_ack(struct __sk_buff *ctx, struct seen *seen, int egress)
{
    struct conn *conn = conn_of(&seen->key);
    if (!conn)
        return;
    if (egress) {
        if (after(seen->ack, conn->tx.acked_seq) || !conn->tx.acked_seq)
            conn->tx.acked_seq = seen->ack;
        if (seen->header_bytes >= 44)
            look_for_dsack(ctx, seen);
    } else if (conn->tx.snd_max && !conn->tx.acked_ns && !after(conn->tx.snd_max, seen->ack)) {
        conn->tx.acked_ns = bpf_ktime_get_ns();
    }
}

static inline int account_eth(struct __sk_buff *ctx, int egress)
{
    struct seen seen = {};
    if (!parse(ctx, &seen, egress, 0))
        return -1;
    if (seen.udp) {
        emit_packet(ctx, &seen, bpf_ktime_get_ns(), PACKET_DNS, 0, 0);
        return -1;
    }
    u32 payload = seen.payload_bytes;
    if (!payload && !(seen.flags & (FLAG_SYN | FLAG_FIN | FLAG_RST))) {
        account_ack(ctx, &seen, egress);
        return -1;
    }
    struct conn *conn = conn_of(&seen.key);
    if (!conn && ((seen.flags & FLAG_SYN) || payload >= SMALL_BYTES))
        conn = new_conn(&seen.key);
    if (!conn)
        return -1;
    u64 now_ns = bpf_ktime_get_ns();
    struct half *mine = egress ? &conn->tx : &conn->rx;
    struct half *other = egress ? &conn->rx : &conn->tx;
    if (seen.flags & FLAG_ACK) {
        if (egress && (after(seen.ack, mine->acked_seq) || !mine->acked_seq))
            mine->acked_seq = seen.ack;
        if (!egress && other->snd_max && !other->acked_ns && !after(other->snd_max, seen.ack))
            other->acked_ns = now_ns;
    }
    if (seen.flags & (FLAG_SYN | FLAG_FIN | FLAG_RST))
        emit_packet(ctx, &seen, now_ns, PACKET_SETUP, 0, 0);
    else if (payload && mine->heads < HEAD_PACKETS) {
        emit_packet(ctx, &seen, now_ns, PACKET_PAYLOAD, mine, other);
        mine->heads++;
    }
    if (payload >= SMALL_BYTES && mine->tls) {
        u32 skip = mine->record_seq - seen.seq;
        if (mine->tls == TLS_HANDSHAKE) {
            if (mine->heads < HEAD_PACKETS)
                payload = 0;
        } else if (skip - 1 < payload) {
            seen.seq += skip; /* data behind the end of the handshake, in the same packet */
            seen.payload_bytes = payload -= skip;
        }
    }
    if (payload >= SMALL_BYTES)
        account_bulk(ctx, &seen, conn, mine, other, now_ns, HOOK_ETH, egress);
    else if (payload) {
        if (egress && conn->sent_count && after(seen.seq + payload, mine->snd_max))
            log_send(&seen.key, conn, seen.seq, now_ns);
        account_small(ctx, &seen, mine, other, now_ns, egress);
    }
    u32 end_seq = seen.seq + seen.payload_bytes;
    if (egress && seen.payload_bytes) {
        mine->acked_ns = 0;
        if (after(end_seq, mine->snd_max) || !mine->snd_max)
            mine->snd_max = end_seq;
    } else if (!after(seen.seq, mine->snd_max) && after(end_seq, mine->snd_max)) {
        mine->snd_max = end_seq; /* in order; behind a hole it stays where that begins */
    }
    if (seen.flags & (FLAG_FIN | FLAG_RST))
        close_burst(&seen.key, mine, HOOK_ETH, seen.dir, 0);
    if (seen.flags & FLAG_RST)
        forget(&seen.key); /* where nobody listens there is no socket whose end would do it */
    return -1;
}

int tc_eth_out(struct __sk_buff *ctx)
{
    return account_eth(ctx, 1);
}

int tc_eth_in(struct __sk_buff *ctx)
{
    return account_eth(ctx, 0);
}

int tc_lo_out(struct __sk_buff *ctx)
{
    struct seen seen = {};
    if (!parse(ctx, &seen, 1, 1) || seen.udp)
        return -1;
    u32 payload = seen.payload_bytes;
    if (!payload && !(seen.flags & (FLAG_SYN | FLAG_FIN | FLAG_RST)))
        return -1;
    struct conn *conn = conn_of(&seen.key);
    if (!conn && ((seen.flags & FLAG_SYN) || payload >= SMALL_BYTES))
        conn = new_conn(&seen.key);
    if (!conn)
        return -1;
    u64 now_ns = bpf_ktime_get_ns();
    struct half *mine = seen.dir == DIR_TX ? &conn->tx : &conn->rx;
    struct half *other = seen.dir == DIR_TX ? &conn->rx : &conn->tx;
    if (seen.flags & (FLAG_SYN | FLAG_FIN | FLAG_RST))
        emit_packet(ctx, &seen, now_ns, PACKET_SETUP, 0, 0);
    else if (payload && mine->heads < 2) {
        emit_packet(ctx, &seen, now_ns, PACKET_PAYLOAD, mine, other);
        mine->heads++;
    }
    if (payload >= SMALL_BYTES)
        account_bulk(ctx, &seen, conn, mine, other, now_ns, HOOK_LO, 1);
    else if (payload)
        account_small(ctx, &seen, mine, other, now_ns, 1);
    if (payload) {
        u32 end_seq = seen.seq + payload;
        if (after(end_seq, mine->snd_max) || !mine->snd_max)
            mine->snd_max = end_seq;
    }
    if (seen.flags & (FLAG_FIN | FLAG_RST))
        close_burst(&seen.key, mine, HOOK_LO, seen.dir, 0);
    if (seen.flags & FLAG_RST)
        forget(&seen.key);
    return -1;
}
