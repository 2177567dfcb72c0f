/* SPDX-License-Identifier: Apache-2.0 */
/* What stands at the head of a packet: addresses and sequence numbers, and the TLS records of a
 * connection's first payloads. Set-up packets, those payloads and DNS messages are passed up whole. */

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

static inline int after(u32 a, u32 b)
{
    return (s32)(a - b) > 0;
}

/* IPv4 TCP or UDP; 0: neither, or not a traced pod, or nothing but an acknowledgement that arrives: what it
 * has changed TCP keeps itself. Offsets: RFC 791, 9293, 768. */
static inline int parse(struct __sk_buff *ctx, struct seen *seen, int egress, int lo)
{
    void *data = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    if (unlikely(data + 42 > end))
        return 0;
    u16 ethertype = *(u16 *)(data + 12);
    if (unlikely(ethertype != bpf_htons(0x0800))) {
        if (ethertype == bpf_htons(0x86dd) && (*(u8 *)(data + 20) == 6 || *(u8 *)(data + 20) == 17))
            count(LOSS_IPV6); /* TCP or UDP that we cannot follow */
        return 0;
    }
    u8 protocol = *(u8 *)(data + 23);
    if (unlikely(protocol != 6 && protocol != 17))
        return 0;
    if (unlikely(*(u8 *)(data + 14) != 0x45 || (*(u16 *)(data + 20) & bpf_htons(0x1fff)))) {
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
    if (unlikely(seen->udp)) {
        seen->payload_offset = 42;
        seen->payload_bytes = ctx->len > 42 ? ctx->len - 42 : 0;
        if (sport != 53 && dport != 53)
            return 0;
    } else {
        if (unlikely(data + 54 > end)) {
            count(LOSS_PARSE);
            return 0;
        }
        seen->seq = bpf_ntohl(*(u32 *)(data + 38));
        seen->ack = bpf_ntohl(*(u32 *)(data + 42));
        seen->header_bytes = (*(u8 *)(data + 46) >> 4) * 4;
        seen->flags = *(u8 *)(data + 47);
        seen->payload_offset = 34 + seen->header_bytes;
        seen->payload_bytes = ctx->len > seen->payload_offset ? ctx->len - seen->payload_offset : 0;
        if (!egress && !seen->payload_bytes && !(seen->flags & (FLAG_SYN | FLAG_FIN | FLAG_RST)))
            return 0;
    }
#ifdef HAVE_TCX
    void *skb = ((void *(*)(void *, u32))KFUNC_RDONLY_CAST)(ctx, TYPE_SK_BUFF);
    void *dev = (void *)LOAD(u64, skb, OFF_SKB_DEV);
    void *net = (void *)LOAD(u64, dev, OFF_DEV_NET);
    seen->key.netns = LOAD(u32, net, OFF_NET_INUM);
#else
    /* Each filter carries a number of its own: the way from the packet to its namespace is longer. */
    int number = ctx->tc_classid;
    u32 *netns = interfaces.lookup(&number);
    if (unlikely(!netns || !*netns))
        return 0;
    seen->key.netns = *netns;
#endif
    return 1;
}

/* Whether the client has sent an encrypted record. */
static inline int client_sealed(const struct head *mine, const struct head *other)
{
    return (mine->tls_seen & TLS_SEEN_CLIENT ? mine->tls_seen : other->tls_seen) & TLS_SEEN_SEALED;
}

/* Walk the record headers (RFC 8446, section 5.1): a record may begin in an earlier packet.
 *
 * A message begins with the first long record that can be data. Certificates are no message: what the
 * server sends before the client has answered, and the client's first encrypted record, belong to the
 * handshake however long they are (TLS 1.2 hides nothing before its data). Session tickets that carry
 * certificates look like data, and stay below BULK_RECORD_BYTES. */
static inline void walk_records(struct __sk_buff *ctx, struct seen *seen, struct packet *event, struct head *mine,
                                struct head *other)
{
    u32 at = mine->record_seq - seen->seq;
    if (after(seen->seq, mine->record_seq)) {
        u8 header[5];
        /* It overtook what stands between. Where records go on is unknown until that comes, but a
         * message must not wait for it: a long record of data at the packet's very start is one. */
        if (bpf_skb_load_bytes(ctx, seen->payload_offset, header, 5))
            return;
        u32 length = header[3] << 8 | header[4];
        if (header[0] == 23 && header[1] == 3 && header[2] == 3 && length >= BULK_RECORD_BYTES
            && length <= 16640 && client_sealed(mine, other)) {
            mine->tls = TLS_DATA;
            mine->record_seq = seen->seq;
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
            mine->tls_seen |= TLS_SEEN_CHANGE;
        } else if (header[0] == 22 && mine->tls_seen & TLS_SEEN_CHANGE) {
            mine->tls_seen |= TLS_SEEN_SEALED; /* TLS 1.2: an encrypted Finished */
        } else if (header[0] == 23) {
            if (client_sealed(mine, other) && length >= BULK_RECORD_BYTES) {
                mine->tls = TLS_DATA;
                mine->record_seq = seen->seq + at;
                break;
            }
            mine->tls_seen |= TLS_SEEN_SEALED;
        }
        at += 5 + length;
        mine->record_seq = seen->seq + at;
    }
}

static inline void emit_packet(struct __sk_buff *ctx, struct seen *seen, u64 now_ns, u32 kind, struct head *mine,
                               struct head *other)
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
            mine->tls_seen = event->data[5] == 1 ? TLS_SEEN_CLIENT : 0;
            mine->record_seq = seen->seq;
        }
        if (mine->tls == TLS_HANDSHAKE)
            walk_records(ctx, seen, event, mine, other);
    }
    packets.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}
