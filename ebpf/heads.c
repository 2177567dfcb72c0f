/* SPDX-License-Identifier: Apache-2.0 */
/* What stands at the head of a packet: addresses and sequence numbers, and the TLS records of a
 * connection's first payloads. Set-up packets, those payloads and DNS messages are passed up whole. */

struct seen {
    struct conn_key key;
    u32 seq, ack;
    u32 payload_bytes;
    u32 payload_offset;
    u32 message_bytes; /* what of the payload can be a message's; see skip_handshake */
    u32 dir; /* against the key */
    u8 flags;
    u8 header_bytes; /* of TCP */
    u8 udp;
};

/* The namespace that a packet is in; 0: none that is traced. */
static inline int place(struct __sk_buff *ctx, struct seen *seen)
{
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

static inline void read_tcp(struct __sk_buff *ctx, struct seen *seen, struct tcp_header *tcp, u32 offset)
{
    seen->seq = bpf_ntohl(tcp->seq);
    seen->ack = bpf_ntohl(tcp->ack);
    seen->header_bytes = (tcp->words >> 4) * 4;
    seen->flags = tcp->flags;
    seen->payload_offset = offset + seen->header_bytes;
    seen->payload_bytes = ctx->len > seen->payload_offset ? ctx->len - seen->payload_offset : 0;
}

#ifdef WATCH_TURNS
/* The same of IPv6, without extension headers. */
static inline int parse_ipv6(struct __sk_buff *ctx, struct seen *seen, int egress, int lo)
{
    void *data = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    struct eth_header *eth = data;
    struct ipv6_header *ip = (void *)(eth + 1);
    struct udp_header *udp = (void *)(ip + 1);
    struct tcp_header *tcp = (void *)udp;
    if ((void *)(udp + 1) > end || (ip->next_header != PROTOCOL_TCP && ip->next_header != PROTOCOL_UDP))
        return 0;
    u32 sport = bpf_ntohs(udp->source), dport = bpf_ntohs(udp->target), offset = sizeof(*eth) + sizeof(*ip);
    seen->udp = ip->next_header == PROTOCOL_UDP;
    if (seen->udp) {
        if (sport != DNS_PORT && dport != DNS_PORT)
            return 0;
        seen->payload_offset = offset + sizeof(*udp);
        seen->payload_bytes = ctx->len > seen->payload_offset ? ctx->len - seen->payload_offset : 0;
    } else {
        if ((void *)(tcp + 1) > end) {
            count(LOSS_PARSE);
            return 0;
        }
        read_tcp(ctx, seen, tcp, offset);
    }
    struct address6 from, to;
    __builtin_memcpy(&from, ip->source, sizeof(from));
    __builtin_memcpy(&to, ip->target, sizeof(to));
    u32 source = alias_of(&from), target = alias_of(&to);
    if (!source || !target) {
        count(LOSS_IPV6);
        return 0;
    }
    int l_is_source = lo ? sport < dport : egress;
    seen->key.laddr = l_is_source ? source : target;
    seen->key.raddr = l_is_source ? target : source;
    seen->key.ports = l_is_source ? sport << 16 | dport : dport << 16 | sport;
    seen->dir = l_is_source ? DIR_TX : DIR_RX;
    return place(ctx, seen);
}
#endif

/* IPv4 TCP or DNS; 0: neither, or not a traced pod, or nothing but an acknowledgement that arrives: what it
 * has changed TCP keeps itself. */
static inline int parse(struct __sk_buff *ctx, struct seen *seen, int egress, int lo)
{
    void *data = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    struct eth_header *eth = data;
    struct ipv4_header *ip = (void *)(eth + 1);
    struct udp_header *udp = (void *)(ip + 1);
    if (unlikely((void *)(udp + 1) > end))
        return 0;
    if (unlikely(eth->type != bpf_htons(ETHERTYPE_IPV4))) {
#ifdef WATCH_TURNS
        return eth->type == bpf_htons(ETHERTYPE_IPV6) ? parse_ipv6(ctx, seen, egress, lo) : 0;
#else
        struct ipv6_header *ip6 = (void *)(eth + 1);
        if (eth->type == bpf_htons(ETHERTYPE_IPV6)
            && (ip6->next_header == PROTOCOL_TCP || ip6->next_header == PROTOCOL_UDP))
            count(LOSS_IPV6); /* that we cannot follow */
        return 0;
#endif
    }
    u8 protocol = ip->protocol;
    if (unlikely(protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP))
        return 0;
    if (unlikely(ip->version_and_words != IPV4_WORDS_20 || (ip->fragment & bpf_htons(FRAGMENT_OFFSET)))) {
        count(LOSS_PARSE);
        return 0;
    }
    u32 sport = bpf_ntohs(udp->source), dport = bpf_ntohs(udp->target); /* where TCP has them, too */
    int l_is_source = lo ? sport < dport : egress;
    seen->key.laddr = l_is_source ? ip->source : ip->target;
    seen->key.raddr = l_is_source ? ip->target : ip->source;
    seen->key.ports = l_is_source ? sport << 16 | dport : dport << 16 | sport;
    seen->dir = l_is_source ? DIR_TX : DIR_RX;
    seen->udp = protocol == PROTOCOL_UDP;
    if (unlikely(seen->udp)) {
        seen->payload_offset = sizeof(*eth) + sizeof(*ip) + sizeof(*udp);
        seen->payload_bytes = ctx->len > seen->payload_offset ? ctx->len - seen->payload_offset : 0;
        if (sport != DNS_PORT && dport != DNS_PORT)
            return 0;
    } else {
        struct tcp_header *tcp = (void *)(ip + 1);
        if (unlikely((void *)(tcp + 1) > end)) {
            count(LOSS_PARSE);
            return 0;
        }
        read_tcp(ctx, seen, tcp, sizeof(*eth) + sizeof(*ip));
#ifndef WATCH_TURNS
        if (!egress && !seen->payload_bytes && !(seen->flags & FLAGS_SETUP))
            return 0;
#endif
    }
    return place(ctx, seen);
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
        if (header[0] == TLS_APPLICATION_DATA && header[1] == TLS_MAJOR && header[2] == 3
            && length >= BULK_RECORD_BYTES && length <= TLS_RECORD_MAX_BYTES && client_sealed(mine, other)) {
            mine->tls = TLS_DATA;
            mine->record_seq = seen->seq;
        }
        return;
    }
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < RECORDS_WALKED; i++) {
        u8 header[5];
        if (at > 65535 || at + 5 > seen->payload_bytes)
            break;
        if (bpf_skb_load_bytes(ctx, seen->payload_offset + at, header, 5))
            break;
        u32 length = header[3] << 8 | header[4];
        u32 record = (u32)header[0] << 24 | length;
        if (i < RECORDS_TOLD)
            (&event->tls_record0)[i] = record;
        event->tls_records++;
        if (header[0] == TLS_CHANGE_CIPHER_SPEC) {
            mine->tls_seen |= TLS_SEEN_CHANGE;
        } else if (header[0] == TLS_HANDSHAKE_RECORD && mine->tls_seen & TLS_SEEN_CHANGE) {
            mine->tls_seen |= TLS_SEEN_SEALED; /* TLS 1.2: an encrypted Finished */
        } else if (header[0] == TLS_APPLICATION_DATA) {
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

/* The first bytes of the payload, and how many they are, into an event. */
#define LOAD_PAYLOAD(ctx, seen, event) ({ \
    (event)->data_bytes = 0; \
    u32 bytes_ = (seen)->payload_bytes; \
    if (bytes_ > sizeof((event)->data)) \
        bytes_ = sizeof((event)->data); \
    /* Verifiers learn nothing from `bytes != 0` (Linux 6.1), but much from n < N before n + 1; \
     * the assembler keeps clang from folding the two. */ \
    u64 n_ = (u64)bytes_ - 1; \
    if (n_ < sizeof((event)->data)) { \
        asm volatile("%0 += 1" : "+r"(n_)); \
        if (bpf_skb_load_bytes(ctx, (seen)->payload_offset, (event)->data, n_) == 0) \
            (event)->data_bytes = bytes_; \
    } \
})

/* A ClientHello in a SYN: its own record is all that can be there. */
static inline void take_first_record(struct seen *seen, struct packet *event, struct head *mine)
{
    u32 length = event->data[3] << 8 | event->data[4];
    event->tls_record0 = (u32)event->data[0] << 24 | length;
    event->tls_records = 1;
    mine->record_seq = seen->seq + 5 + length;
}

/* `kind`: EVENT_SETUP or EVENT_PAYLOAD; `mine`, `other`: what is known of the TLS in this direction and the other.
 * `opening`: of a SYN, which takes less code. */
static inline void emit_packet(struct __sk_buff *ctx, struct seen *seen, struct conn *conn, u64 now_ns, u32 kind,
                               struct head *mine, struct head *other, int opening)
{
    struct packet *event = reserve_packet();
    if (!event)
        return;
    PREFIX(event, kind, now_ns, conn->id, seen->key.netns, 0ULL);
    event->seq = seen->seq;
    event->ack = seen->ack;
    event->payload_bytes = seen->payload_bytes;
    event->direction = seen->dir;
    event->tcp_flags = seen->flags;
    event->tls_records = 0;
    event->tls_record0 = event->tls_record1 = event->tls_record2 = 0;
    event->tls_record3 = event->tls_record4 = event->tls_record5 = 0;
    LOAD_PAYLOAD(ctx, seen, event);
    if (kind == EVENT_PAYLOAD) {
        if (mine->heads == 0 && event->data_bytes >= 6 && event->data[0] == TLS_HANDSHAKE_RECORD
            && event->data[1] == TLS_MAJOR) {
            mine->tls = TLS_HANDSHAKE;
            mine->tls_seen = event->data[5] == TLS_CLIENT_HELLO ? TLS_SEEN_CLIENT : 0;
            mine->record_seq = seen->seq;
            if (opening)
                take_first_record(seen, event, mine);
        }
        if (mine->tls == TLS_HANDSHAKE && !opening)
            walk_records(ctx, seen, event, mine, other);
    }
    submit_packet(event);
}

static inline void emit_dns(struct __sk_buff *ctx, struct seen *seen)
{
    struct dns *event = reserve_packet();
    if (!event)
        return;
    PREFIX(event, EVENT_DNS, bpf_ktime_get_ns(), 0ULL, seen->key.netns, 0ULL);
    full_address(event->local, seen->key.laddr);
    full_address(event->remote, seen->key.raddr);
    event->local_port = seen->key.ports >> 16;
    event->remote_port = seen->key.ports & 0xffff;
    event->direction = seen->dir;
    event->payload_bytes = seen->payload_bytes;
    LOAD_PAYLOAD(ctx, seen, event);
    submit_packet(event);
}
