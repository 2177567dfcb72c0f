/* SPDX-License-Identifier: Apache-2.0 */
/* Dropped packets for somebody who watches: all are counted, by kind, and of each kind the first few in a
 * second are passed up whole. So a flood is as cheap as a map's counter, and what comes with it is still seen. */

#define PASSED_IN_WINDOW 32
#define WINDOW_NS 1000000000ULL
/* Tests shrink it to see a full map counted. */
#ifndef KINDS_ENTRIES
#define KINDS_ENTRIES 16384
#endif

/* Of the reader's concern: every drop is in DROPS_SEEN, and in the end seen = passed + collected + uncounted. */
enum { DROPS_SEEN, DROPS_PASSED, DROPS_COLLECTED, DROPS_UNCOUNTED };

#define COUNTER_SLOTS 16 /* of 8 bytes: no two CPUs share a cache line */

_Static_assert(sizeof(struct drop_kind) == sizeof(((struct dropped *)0)->kind), "a kind is passed up whole");

BPF_RINGBUF_OUTPUT(drops, RING_PAGES);
BPF_F_TABLE("array", int, u64, counters, CPUS * COUNTER_SLOTS, 1024 /* BPF_F_MMAPABLE */);
BPF_HASH(pods, u32, u32, 4096); /* netns inode -> 1 */
BPF_HASH(kinds, struct drop_kind, struct drop_count, KINDS_ENTRIES);

static inline void count(int slot)
{
    int index = bpf_get_smp_processor_id() * COUNTER_SLOTS + slot;
    u64 *n = counters.lookup(&index);
    if (n)
        __sync_fetch_and_add(n, 1); /* an interrupt's program may count in the middle of ours */
}

/* What a packet's headers say beside its kind. */
struct measure {
    u32 source_port;
    u32 packet_bytes;  /* from the IP header on */
    u32 header_bytes;  /* of IP and what is above it */
};

static inline void read_transport(struct drop_kind *kind, struct measure *measure, const void *ip, u32 ip_bytes)
{
    struct tcp_header header = {};
    u8 protocol = kind->protocol;
    measure->header_bytes = ip_bytes + sizeof(struct udp_header); /* ICMP's is as long */
    if (protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP && protocol != PROTOCOL_SCTP)
        return;
    bpf_probe_read_kernel(&header, sizeof(header), ip + ip_bytes);
    measure->source_port = bpf_ntohs(header.source);
    kind->target_port = bpf_ntohs(header.target);
    if (protocol == PROTOCOL_TCP) {
        kind->tcp_flags = header.flags & (FLAGS_SETUP | FLAG_ACK);
        measure->header_bytes = ip_bytes + (header.words >> 4) * 4;
    }
}

static inline void read_ipv4(struct drop_kind *kind, struct measure *measure, const void *ip)
{
    struct ipv4_header header = {};
    bpf_probe_read_kernel(&header, sizeof(header), ip);
    map_address(kind->source, header.source);
    map_address(kind->target, header.target);
    kind->protocol = header.protocol;
    if (!(header.fragment & bpf_htons(FRAGMENT_OFFSET)))
        read_transport(kind, measure, ip, (header.version_and_words & 15) * 4);
}

static inline void read_ipv6(struct drop_kind *kind, struct measure *measure, const void *ip)
{
    struct ipv6_header header = {};
    bpf_probe_read_kernel(&header, sizeof(header), ip);
    __builtin_memcpy(kind->source, header.source, sizeof(header.source));
    __builtin_memcpy(kind->target, header.target, sizeof(header.target));
    kind->protocol = header.next_header;
    read_transport(kind, measure, ip, sizeof(header));
}

static inline void read_arp(struct drop_kind *kind, const void *arp)
{
    struct arp_header header = {};
    bpf_probe_read_kernel(&header, sizeof(header), arp);
    map_address(kind->source, header.sender_low | (u32)header.sender_high << 16);
    map_address(kind->target, header.target_low | (u32)header.target_high << 16);
}

/* What it is; 0: no packet of a network (netlink's and local sockets' messages are freed here too). */
static inline u16 ethertype_of(void *skb, const void *ip)
{
    u16 ethertype = bpf_ntohs((u16)LOAD(u16, skb, OFF_SKB_PROTOCOL)), family;
    void *sk = (void *)LOAD(u64, skb, OFF_SKB_SK);
    if (ethertype || !sk)
        return ethertype;
    /* A TCP socket's own, before IP has written its header: what is there may be an earlier packet's. */
    family = LOAD(u16, sk, OFF_SOCK_FAMILY);
    u8 first = 0;
    bpf_probe_read_kernel(&first, sizeof(first), ip);
    return (family == FAMILY_INET || family == FAMILY_INET6) && first == IPV4_WORDS_20 ? ETHERTYPE_IPV4 : 0;
}

static inline void collect(struct drop_count *counted, u32 payload_bytes)
{
    __sync_fetch_and_add(&counted->collected, 1);
    __sync_fetch_and_add(&counted->bytes, payload_bytes);
    count(DROPS_COLLECTED);
}

/* `counted`: of its kind; 0: more kinds at once than fit. */
static inline void pass_up(void *skb, const struct drop_kind *kind, const struct measure *measure, u64 now_ns,
                           void *ip, struct drop_count *counted)
{
    u32 payload_bytes = measure->packet_bytes - measure->header_bytes;
    if (measure->packet_bytes < measure->header_bytes)
        payload_bytes = 0;
    struct dropped *event = 0;
    if (!counted || counted->passed < PASSED_IN_WINDOW)
        event = drops.ringbuf_reserve(sizeof(struct dropped));
    if (!event) {
        if (counted)
            collect(counted, payload_bytes);
        else
            count(DROPS_UNCOUNTED);
        return;
    }
    if (counted)
        counted->passed++;
    __builtin_memcpy(event->kind, kind, sizeof(event->kind));
    event->ts_ns = now_ns;
    void *dev = (void *)LOAD(u64, skb, OFF_SKB_DEV);
    event->ifindex = dev ? LOAD(u32, dev, OFF_DEV_IFINDEX) : 0;
    event->packet_bytes = measure->packet_bytes;
    event->payload_bytes = payload_bytes;
    event->source_port = measure->source_port;
    /* What lies behind the packet's linear part is read with it, and cut off here. */
    u32 tail_offset = LOAD(u32, skb, OFF_SKB_TAIL), ip_offset = LOAD(u16, skb, OFF_SKB_NETWORK_HEADER);
    event->head_bytes = tail_offset - ip_offset;
    if (event->head_bytes > sizeof(event->head))
        event->head_bytes = sizeof(event->head);
    if (bpf_probe_read_kernel(event->head, sizeof(event->head), ip))
        event->head_bytes = 0;
    drops.ringbuf_submit(event, 0); /* wakes a reader that has read everything */
    count(DROPS_PASSED);
}

/* skb:kfree_skb(skb, location, reason, ...); consumed packets do not come here. */
int raw_kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
    void *skb = (void *)ctx->args[0];
    u32 netns = netns_of_packet(skb);
    if (!netns || !pods.lookup(&netns))
        return 0;
    u32 ip_offset = LOAD(u16, skb, OFF_SKB_NETWORK_HEADER);
    void *head = (void *)LOAD(u64, skb, OFF_SKB_HEAD), *ip = head + ip_offset;
    struct drop_kind kind = {.location = ctx->args[1], .netns = netns, .reason = ctx->args[2]};
    struct measure measure = {};
    kind.ethertype = ethertype_of(skb, ip);
    if (!kind.ethertype)
        return 0;
    /* Set when a device hands the packet in (__netif_receive_skb_core in net/core/dev.c). */
    kind.direction = LOAD(u32, skb, OFF_SKB_IIF) ? DIR_RX : DIR_TX;
    if (kind.ethertype == ETHERTYPE_IPV4)
        read_ipv4(&kind, &measure, ip);
    else if (kind.ethertype == ETHERTYPE_IPV6)
        read_ipv6(&kind, &measure, ip);
    else if (kind.ethertype == ETHERTYPE_ARP)
        read_arp(&kind, ip);
    /* A packet's length is from where its data begins, which may be before or behind the IP header. */
    u32 data_offset = (u32)(LOAD(u64, skb, OFF_SKB_DATA) - (u64)head);
    measure.packet_bytes = LOAD(u32, skb, OFF_SKB_LEN) + data_offset - ip_offset;
    u64 now_ns = bpf_ktime_get_ns();
    count(DROPS_SEEN);
    struct drop_count nothing = {}, *counted = kinds.lookup_or_try_init(&kind, &nothing);
    if (counted) {
        counted->last_ns = now_ns;
        if (now_ns - counted->window_ns > WINDOW_NS) {
            counted->window_ns = now_ns;
            counted->passed = 0;
        }
    }
    pass_up(skb, &kind, &measure, now_ns, ip, counted);
    return 0;
}
