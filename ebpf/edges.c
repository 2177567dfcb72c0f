/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that leave and arrive: tc (clsact) on every pod's eth0 and lo.
 *
 * Bulk data is aggregated here (a burst per message, hop and direction); set-up
 * packets, the first payloads of a connection and DNS messages are passed up whole.
 * The programs return TC_ACT_UNSPEC so that other filters run. */

struct seen {
    struct conn_key key;
    u32 seq, ack;
    u32 payload_bytes;
    u32 payload_offset;
    u32 dir; /* against the key */
    u8 flags;
    u8 header_bytes; /* of TCP */
    u8 udp;
};

enum { FLAG_FIN = 1, FLAG_SYN = 2, FLAG_RST = 4, FLAG_PSH = 8, FLAG_ACK = 16 };

BPF_TABLE("percpu_array", int, struct conn, fresh_conn, 1);
BPF_TABLE("array", int, struct sendlog, fresh_sendlog, 1); /* all zero, only read */

static inline int after(u32 a, u32 b)
{
    return (s32)(a - b) > 0;
}

/* IPv4 TCP or UDP; 0: neither, or not a traced pod. Offsets: RFC 791, 9293, 768. */
static inline int parse(struct __sk_buff *ctx, struct seen *seen, int egress, int lo)
{
    void *data = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    if (data + 42 > end)
        return 0;
    u16 ethertype = *(u16 *)(data + 12);
    if (ethertype != bpf_htons(0x0800)) {
        if (ethertype == bpf_htons(0x86dd) && (*(u8 *)(data + 20) == 6 || *(u8 *)(data + 20) == 17))
            count(LOSS_IPV6); /* TCP or UDP that we cannot follow */
        return 0;
    }
    u8 protocol = *(u8 *)(data + 23);
    if (protocol != 6 && protocol != 17)
        return 0;
    if (*(u8 *)(data + 14) != 0x45 || (*(u16 *)(data + 20) & bpf_htons(0x1fff))) {
        count(LOSS_PARSE);
        return 0;
    }
    u32 saddr = *(u32 *)(data + 26), daddr = *(u32 *)(data + 30);
    u32 sport = bpf_ntohs(*(u16 *)(data + 34)), dport = bpf_ntohs(*(u16 *)(data + 36));
    int l_is_source = lo ? sport < dport : egress;
    seen->key.laddr = l_is_source ? saddr : daddr;
    seen->key.raddr = l_is_source ? daddr : saddr;
    seen->key.ports = l_is_source ? sport << 16 | dport : dport << 16 | sport;
    seen->dir = l_is_source ? DIR_TX : DIR_RX;
    seen->udp = protocol == 17;
    if (seen->udp) {
        seen->payload_offset = 42;
        seen->payload_bytes = ctx->len > 42 ? ctx->len - 42 : 0;
        if (sport != 53 && dport != 53)
            return 0;
    } else {
        if (data + 54 > end) {
            count(LOSS_PARSE);
            return 0;
        }
        seen->seq = bpf_ntohl(*(u32 *)(data + 38));
        seen->ack = bpf_ntohl(*(u32 *)(data + 42));
        seen->header_bytes = (*(u8 *)(data + 46) >> 4) * 4;
        seen->flags = *(u8 *)(data + 47);
        seen->payload_offset = 34 + seen->header_bytes;
        seen->payload_bytes = ctx->len > seen->payload_offset ? ctx->len - seen->payload_offset : 0;
    }
    /* Each filter carries a number of its own: the way from the packet to its namespace is longer. */
    int number = ctx->tc_classid;
    u32 *netns = interfaces.lookup(&number);
    if (!netns || !*netns)
        return 0;
    seen->key.netns = *netns;
    return 1;
}

/* Walk the record headers (RFC 8446, section 5.1): a record may begin in an earlier packet.
 *
 * A message begins with the first long record that can be data. Certificates are no message: what the
 * server sends before the client has answered, and the client's first encrypted record, belong to the
 * handshake however long they are (TLS 1.2 hides nothing before its data). Session tickets that carry
 * certificates look like data, and stay below BULK_RECORD_BYTES. */
static inline void walk_records(struct __sk_buff *ctx, struct seen *seen, struct packet *event, struct half *mine,
                                struct half *other)
{
    u32 at = mine->next_record - seen->seq;
    if (after(seen->seq, mine->next_record)) {
        u8 header[5];
        /* It overtook what stands between. Where records go on is unknown until that comes, but a
         * message must not wait for it: a long record of data at the packet's very start is one. */
        if (bpf_skb_load_bytes(ctx, seen->payload_offset, header, 5))
            return;
        u32 length = header[3] << 8 | header[4];
        if (header[0] == 23 && header[1] == 3 && header[2] == 3 && length >= BULK_RECORD_BYTES
            && length <= 16640 && (mine->is_client ? mine->sealed : other->sealed)) {
            mine->tls = TLS_DATA;
            mine->handshake_end = seen->seq;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 12; i++) {
        u8 header[5];
        if (at > 65535 || at + 5 > seen->payload_bytes)
            break;
        if (bpf_skb_load_bytes(ctx, seen->payload_offset + at, header, 5))
            break;
        u32 length = header[3] << 8 | header[4];
        u32 record = (u32)header[0] << 24 | length;
        if (i == 0) event->record0 = record;
        if (i == 1) event->record1 = record;
        if (i == 2) event->record2 = record;
        if (i == 3) event->record3 = record;
        if (i == 4) event->record4 = record;
        if (i == 5) event->record5 = record;
        event->records++;
        if (header[0] == 20) {
            mine->changed_cipher = 1;
        } else if (header[0] == 22 && mine->changed_cipher) {
            mine->sealed = 1; /* TLS 1.2: an encrypted Finished */
        } else if (header[0] == 23) {
            int data = mine->is_client ? mine->sealed : other->sealed;
            if (data && length >= BULK_RECORD_BYTES) {
                mine->tls = TLS_DATA;
                mine->handshake_end = seen->seq + at;
                break;
            }
            mine->sealed = 1;
        }
        at += 5 + length;
        mine->next_record = seen->seq + at;
    }
}

static inline void emit_packet(struct __sk_buff *ctx, struct seen *seen, u64 now_ns, u32 kind, struct half *mine,
                               struct half *other)
{
    count(TRIED);
    struct packet *event = packets.ringbuf_reserve(sizeof(struct packet));
    if (!event) {
        count(LOSS_PACKETS);
        return;
    }
    event->ts_ns = now_ns;
    event->netns = seen->key.netns;
    event->laddr = seen->key.laddr;
    event->raddr = seen->key.raddr;
    event->ports = seen->key.ports;
    event->seq = seen->seq;
    event->ack = seen->ack;
    event->payload_bytes = seen->payload_bytes;
    event->dir = seen->dir;
    event->kind = kind;
    event->flags = seen->flags;
    event->records = 0;
    event->record0 = event->record1 = event->record2 = 0;
    event->record3 = event->record4 = event->record5 = 0;
    event->data_bytes = 0;
    u32 offset = seen->payload_offset;
    u32 bytes = seen->payload_bytes;
    if (bytes > sizeof(event->data))
        bytes = sizeof(event->data);
    /* Verifiers learn nothing from `bytes != 0` (Linux 6.1), but much from n < N before n + 1;
     * the assembler keeps clang from folding the two. */
    u64 n = (u64)bytes - 1;
    if (n < sizeof(event->data)) {
        asm volatile("%0 += 1" : "+r"(n));
        if (bpf_skb_load_bytes(ctx, offset, event->data, n) == 0)
            event->data_bytes = bytes;
    }
    if (kind == PACKET_PAYLOAD && mine) {
        if (mine->heads == 0 && event->data_bytes >= 6 && event->data[0] == 22 && event->data[1] == 3) {
            mine->tls = TLS_HANDSHAKE;
            mine->is_client = event->data[5] == 1;
            mine->next_record = seen->seq;
        }
        if (mine->tls == TLS_HANDSHAKE)
            walk_records(ctx, seen, event, mine, other);
    }
    packets.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline struct conn *conn_of(struct conn_key *key, int may_create)
{
    struct conn *conn = wire.lookup(key);
    if (conn || !may_create)
        return conn;
    int zero = 0;
    struct conn *fresh = fresh_conn.lookup(&zero);
    if (!fresh)
        return 0;
    if (wire.update(key, fresh))
        count(LOSS_MAP_FULL);
    return wire.lookup(key);
}

/* What holds the sender back now, from the socket's own counters (net/ipv4/tcp_output.c,
 * tcp_write_xmit: the packet that we see is not yet counted in packets_out). */
static inline u8 sender_limit(struct __sk_buff *ctx, u32 end_seq, u32 segments)
{
    void *sk = ctx->sk;
    if (!sk)
        return WHY_STARVED;
    void *tp = bpf_skc_to_tcp_sock(sk);
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

static inline void emit_gap(struct seen *seen, u64 since_ns, u64 now_ns, u64 small_ns, u32 hook)
{
    struct point *event = point_of(POINT_GAP, now_ns, &seen->key);
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
static inline void charge_pause(struct seen *seen, struct half *mine, struct half *other, u64 now_ns)
{
    u64 pause_ns = now_ns - mine->last_ns;
    if (mine->why == WHY_CWND) {
        mine->cwnd_ns += pause_ns;
    } else if (mine->why == WHY_RWND) {
        mine->rwnd_ns += pause_ns;
    } else if (mine->why == WHY_QUEUE) {
        mine->queue_ns += pause_ns;
    } else if (other->small_ns > mine->last_ns && now_ns - other->small_ns < 3000000ULL) {
        mine->http2_ns += pause_ns;
    } else if (mine->acked_ns > mine->last_ns && mine->acked_ns < now_ns) { /* another CPU's clock read may be newer */
        u64 starved_ns = now_ns - mine->acked_ns;
        mine->flight_ns += pause_ns - starved_ns;
        if (starved_ns >= GAP_NS)
            emit_gap(seen, mine->acked_ns, now_ns, other->small_ns, HOOK_ETH);
        else
            mine->starved_ns += starved_ns;
    } else {
        mine->flight_ns += pause_ns;
    }
}

static inline void log_send(struct seen *seen, u64 now_ns)
{
    struct sendlog *log = sendlogs.lookup(&seen->key);
    if (!log) {
        int zero = 0;
        struct sendlog *fresh = fresh_sendlog.lookup(&zero);
        if (!fresh)
            return;
        if (sendlogs.update(&seen->key, fresh)) {
            count(LOSS_MAP_FULL);
            return;
        }
        log = sendlogs.lookup(&seen->key);
        if (!log)
            return;
    }
    u32 slot = seen->seq / SENDLOG_BYTES & (SENDLOG_SLOTS - 1);
    log->slot[slot].seq = seen->seq;
    log->slot[slot].ts_us = now_ns / 1000;
}

static inline void account_small(struct seen *seen, struct half *mine, u64 now_ns, int egress)
{
    u32 end_seq = seen->seq + seen->payload_bytes;
    if (mine->bytes) {
        mine->small++;
        if (egress && now_ns - mine->last_ns < TAIL_GAP_NS && seen->seq == mine->max_seq) {
            mine->last_ns = now_ns;
            mine->max_seq = end_seq;
            mine->bytes += seen->payload_bytes;
        } else if (!mine->tail_seq && after(end_seq, mine->max_seq)) {
            mine->tail_ns = now_ns;
            mine->tail_seq = end_seq;
        }
    }
    mine->small_ns = now_ns;
}

static inline void account_bulk(struct __sk_buff *ctx, struct seen *seen, struct half *mine, struct half *other,
                                u64 now_ns, u32 hook, int egress)
{
    u32 end_seq = seen->seq + seen->payload_bytes;
    /* Bytes seen before are retransmissions; they move no edge. On arrival a byte counts as
     * seen only once this end has acknowledged it: before that it may fill a hole. */
    u32 seen_seq = egress ? mine->snd_max : other->acked_seq;
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
        /* Held back by a reader that does not read (the wire's backlog) is not a pause of the writer's. */
        if (mine->why == WHY_STARVED && now_ns - mine->last_ns >= GAP_NS)
            emit_gap(seen, mine->last_ns, now_ns, other->small_ns, HOOK_LO);
    } else if (egress) {
        charge_pause(seen, mine, other, now_ns);
    }
    mine->last_ns = now_ns;
    mine->packets += segments;
    mine->bytes += seen->payload_bytes;
    if (after(end_seq, mine->max_seq))
        mine->max_seq = end_seq;
    if (mine->tail_seq && after(end_seq, mine->tail_seq))
        mine->tail_seq = mine->tail_ns = 0;
    if (hook == HOOK_ETH && egress) {
        log_send(seen, now_ns);
    }
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
    struct conn *conn = wire.lookup(&seen->key);
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
    struct conn *conn = conn_of(&seen.key, (seen.flags & FLAG_SYN) || payload >= SMALL_BYTES);
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
        u32 skip = mine->handshake_end - seen.seq;
        if (mine->tls == TLS_HANDSHAKE && mine->heads < HEAD_PACKETS) {
            payload = 0;
        } else if (mine->handshake_end && skip - 1 < payload) {
            seen.seq += skip; /* data behind the end of the handshake, in the same packet */
            seen.payload_bytes = payload -= skip;
        }
    }
    if (payload >= SMALL_BYTES)
        account_bulk(ctx, &seen, mine, other, now_ns, HOOK_ETH, egress);
    else if (payload)
        account_small(&seen, mine, now_ns, egress);
    if (egress && seen.payload_bytes) {
        u32 end_seq = seen.seq + seen.payload_bytes;
        mine->acked_ns = 0;
        if (after(end_seq, mine->snd_max) || !mine->snd_max)
            mine->snd_max = end_seq;
    }
    if (seen.flags & (FLAG_FIN | FLAG_RST))
        close_burst(&seen.key, mine, HOOK_ETH, seen.dir, 0);
    if (seen.flags & FLAG_RST) {
        /* A refused connection has no socket whose end would call forget(). */
        close_burst(&seen.key, other, HOOK_ETH, !seen.dir, 0);
        wire.delete(&seen.key);
    }
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
    struct conn *conn = conn_of(&seen.key, (seen.flags & FLAG_SYN) || payload >= SMALL_BYTES);
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
        account_bulk(ctx, &seen, mine, other, now_ns, HOOK_LO, 1);
    else if (payload)
        account_small(&seen, mine, now_ns, 1);
    if (payload) {
        u32 end_seq = seen.seq + payload;
        if (after(end_seq, mine->snd_max) || !mine->snd_max)
            mine->snd_max = end_seq;
    }
    if (seen.flags & (FLAG_FIN | FLAG_RST))
        close_burst(&seen.key, mine, HOOK_LO, seen.dir, 0);
    return -1;
}
