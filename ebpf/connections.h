/* SPDX-License-Identifier: Apache-2.0 */
/* Connections: finding one by its addresses and ports, beginning and ending one, and its bursts. */

#ifdef WATCH_TURNS
/* A key has 32 bits for an address. One of IPv6 stands there by an alias: a hash of it among IPv4's class E, which
 * nobody has (RFC 1112, section 4), and ::1 in 127/8, where loopbacks are. Another address of the same hash is
 * counted and not followed. */
#define LOOPBACK6_ALIAS 0x06ffff7f /* 127.255.255.6 */
#define LOOPBACK6_LOW (1ULL << 56) /* the lower half of ::1 */

static inline int is_alias(u32 address)
{
    return (address & 0xf0) == 0xf0 || address == LOOPBACK6_ALIAS;
}

/* 0: none is free. */
static inline u32 alias_of(struct address6 *address)
{
    u64 mixed = (address->high * 0x9e3779b97f4a7c15ULL ^ address->low) * 0xbf58476d1ce4e5b9ULL;
    u32 alias = (u32)(mixed >> 32) | 0xf0;
    if (!address->high && address->low == LOOPBACK6_LOW)
        alias = LOOPBACK6_ALIAS;
    struct address6 *known = addresses6.lookup(&alias);
    if (likely(known))
        return known->high == address->high && known->low == address->low ? alias : 0;
    return addresses6.update(&alias, address) ? 0 : alias;
}
#endif

/* An address of a key as events have it. */
static inline void full_address(u8 *to, u32 address)
{
#ifdef WATCH_TURNS
    if (is_alias(address)) {
        struct address6 *known = addresses6.lookup(&address);
        if (known) {
            *(u64 *)to = known->high;
            *(u64 *)(to + 8) = known->low;
            return;
        }
    }
#endif
    map_address(to, address);
}

/* A helper call costs 20 to 50 ns, an array's lookup next to nothing (the kernel compiles it into the program),
 * so the hash is asked only for a connection that the array of recent numbers does not have. */
static inline struct conn *conn_of(const struct conn_key *key)
{
    u32 slot = (key->ports ^ key->netns * 0x85ebca6b) * 0x9e3779b1 >> (32 - RECENT_BITS);
    u32 *number = recent.lookup(&slot);
    if (!number)
        return 0;
    u32 guess = *number;
    struct conn *conn = conns.lookup(&guess);
    if (likely(conn && conn->key.ports == key->ports && conn->key.netns == key->netns && conn->key.laddr == key->laddr
               && conn->key.raddr == key->raddr))
        return conn;
    u32 *known = numbers.lookup((struct conn_key *)key);
    if (!known)
        return 0;
    u32 index = *known;
    *number = index;
    return conns.lookup(&index);
}

static inline void emit_connection(struct conn *conn, u64 now_ns)
{
    struct connection *event = reserve_connection();
    if (!event)
        return;
    PREFIX(event, EVENT_CONNECTION, now_ns, conn->id, conn->key.netns, 0ULL);
    event->opened_ns = conn->opened_ns;
    full_address(event->local, conn->key.laddr);
    full_address(event->remote, conn->key.raddr);
    event->local_port = conn->key.ports >> 16;
    event->remote_port = conn->key.ports & 0xffff;
    event->first_seq = conn->first_seq;
#ifdef WATCH_TURNS
    event->family = is_alias(conn->key.laddr) ? FAMILY_INET6 : FAMILY_INET;
#else
    event->family = FAMILY_INET;
#endif
    *(u64 *)event->pad = 0;
    submit_connection(event);
}

/* `opened_ns`: when its SYN came by, and `first_seq` that one's sequence number; 0: not seen. */
static inline struct conn *new_conn(const struct conn_key *key, u64 opened_ns, u32 first_seq)
{
    u32 number = 0;
    if (free_numbers.pop(&number)) {
        count(LOSS_MAP_FULL);
        return 0;
    }
    struct conn *conn = conns.lookup(&number);
    if (!conn)
        return 0;
    u64 id = ((conn->id >> 32) + 1) << 32 | number; /* of a number that is ours alone: no other CPU counts here */
    __builtin_memset(conn, 0, sizeof(*conn));
    conn->id = id;
    conn->opened_ns = opened_ns;
    conn->first_seq = first_seq;
    conn->key = *key;
    if (numbers.insert((struct conn_key *)key, &number)) {
        conn->key.netns = 0;
        free_numbers.push(&number, 0);
        conn = conn_of(key); /* another CPU was first */
        if (!conn)
            count(LOSS_MAP_FULL);
        return conn;
    }
    emit_connection(conn, opened_ns ? opened_ns : bpf_ktime_get_ns());
    return conn;
}

static inline void free_conn(const struct conn_key *key, struct conn *conn)
{
    u32 number = conn->id;
    if (numbers.delete((struct conn_key *)key))
        return; /* another CPU was first */
    if (conn->tx.logged)
        sendlogs.delete((struct conn_key *)key);
    conn->key.netns = 0;
    free_numbers.push(&number, 0);
}

/* The other end's key of a connection on loopback, of which both ends are the pod's. */
static inline struct conn_key other_end(const struct conn_key *key)
{
    struct conn_key other = {.netns = key->netns, .laddr = key->raddr, .raddr = key->laddr};
    other.ports = key->ports << 16 | key->ports >> 16;
    return other;
}

/* On loopback packets go by the key of the listener's end alone; 0: not on loopback, or not known either. */
static inline struct conn *conn_of_other_end(const struct conn_key *key)
{
    if (!is_loopback(key->laddr))
        return 0;
    struct conn_key other = other_end(key);
    return conn_of(&other);
}

/* For a socket of which no packet has made a connection. On loopback the connecting end, whose reads and
 * writes are kept apart, begins with the SYN that packets gave to the listener's. */
static inline struct conn *new_conn_of_socket(const struct conn_key *key)
{
    struct conn *other = conn_of_other_end(key);
    return new_conn(key, other ? other->opened_ns : 0, other ? other->first_seq : 0);
}

/* Whether an IPv6 socket's peer is one of IPv4, by the two words of its address. */
#define IS_MAPPED(high, low) (!(high) && ((low) & 0xffffffff) == 0xffff0000)
#if defined(WATCH_TURNS) && defined(OFF_SOCK_V6_LADDR)
#define KEY_OF_IPV6(key, load) ({ \
    struct address6 there_ = {.high = load(OFF_SOCK_V6_RADDR), .low = load(OFF_SOCK_V6_RADDR + 8)}; \
    int ok_ = 1; \
    if (!IS_MAPPED(there_.high, there_.low) && (there_.high || there_.low)) { \
        struct address6 here_ = {.high = load(OFF_SOCK_V6_LADDR), .low = load(OFF_SOCK_V6_LADDR + 8)}; \
        (key)->laddr = alias_of(&here_); \
        (key)->raddr = alias_of(&there_); \
        ok_ = (key)->laddr && (key)->raddr; \
    } \
    ok_; \
})
#endif

/* Fill the key from a TCP socket. v4-mapped IPv6 sockets (gRPC's) keep their IPv4 addresses in
 * the same members. 0: not TCP. */
static inline int key_of_sock(struct conn_key *key, const void *sk)
{
    u64 family = LOAD(u16, sk, OFF_SOCK_FAMILY);
    if ((family != FAMILY_INET && family != FAMILY_INET6) || LOAD(u16, sk, OFF_SOCK_PROTOCOL) != PROTOCOL_TCP)
        return 0;
    void *net = (void *)LOAD(u64, sk, OFF_SOCK_NET);
    key->netns = LOAD(u32, net, OFF_NET_INUM);
    key->laddr = LOAD(u32, sk, OFF_SOCK_LADDR);
    key->raddr = LOAD(u32, sk, OFF_SOCK_RADDR);
    key->ports = LOAD(u16, sk, OFF_SOCK_LPORT) << 16 | bpf_ntohs((u16)LOAD(u16, sk, OFF_SOCK_RPORT));
#ifdef KEY_OF_IPV6
#define LOAD_FROM_SOCK(offset) LOAD(u64, sk, offset)
    if (family == FAMILY_INET6)
        return KEY_OF_IPV6(key, LOAD_FROM_SOCK);
#endif
    return 1;
}

/* The same where the socket is an untyped pointer (kprobes). */
static inline int key_of_untyped_sock(struct conn_key *key, const void *sk)
{
    u16 family = read_u16(sk + OFF_SOCK_FAMILY);
    if ((family != FAMILY_INET && family != FAMILY_INET6) || read_u16(sk + OFF_SOCK_PROTOCOL) != PROTOCOL_TCP)
        return 0;
    u64 net = read_ptr(sk + OFF_SOCK_NET);
    key->netns = read_u32((void *)net + OFF_NET_INUM);
    key->laddr = read_u32(sk + OFF_SOCK_LADDR);
    key->raddr = read_u32(sk + OFF_SOCK_RADDR);
    u16 rport = read_u16(sk + OFF_SOCK_RPORT);
    key->ports = (u32)read_u16(sk + OFF_SOCK_LPORT) << 16 | bpf_ntohs(rport);
#ifdef KEY_OF_IPV6
#define READ_FROM_SOCK(offset) read_ptr(sk + (offset))
    if (family == FAMILY_INET6)
        return KEY_OF_IPV6(key, READ_FROM_SOCK);
#endif
    return 1;
}

static inline void emit_burst(struct conn *conn, const struct half *half, u64 first_ns, u32 bytes, u32 hook, u32 dir,
                              u64 id)
{
    struct burst *event = reserve_burst();
    if (!event)
        return;
    u64 last_ns = half->last_ns;
    PREFIX(event, EVENT_BURST, last_ns > first_ns ? last_ns : first_ns, conn->id, conn->key.netns, id);
    event->first_ns = first_ns;
    event->tail_ns = half->tail_ns;
    event->cwnd_ns = half->cwnd_ns;
    event->rwnd_ns = half->rwnd_ns;
    event->queue_ns = half->queue_ns;
    event->http2_ns = half->http2_ns;
    event->starved_ns = half->starved_ns;
    event->flight_ns = half->flight_ns;
    event->first_seq = half->first_seq;
    event->end_seq = half->end_seq;
    event->tail_end_seq = half->tail_end_seq;
    event->bytes = bytes;
    event->packets = half->packets;
    event->small_packets = half->small_packets;
    event->late_packets = half->late_packets;
    event->hook = hook;
    event->direction = dir;
    submit_burst(event);
}

static inline void reset_burst(struct half *half)
{
    half->last_ns = half->tail_ns = 0; /* who closes it has taken first_ns */
    half->cwnd_ns = half->rwnd_ns = half->queue_ns = 0;
    half->http2_ns = half->starved_ns = half->flight_ns = 0;
    half->first_seq = half->end_seq = half->tail_end_seq = 0;
    half->bytes = half->packets = half->small_packets = half->late_packets = 0;
}

static inline void close_burst(struct conn *conn, struct half *half, u32 hook, u32 dir, u64 id)
{
    u32 bytes = half->bytes;
    if (likely(!bytes))
        return;
    /* Two CPUs may be at it in one moment (tried: a connection's end and its application's last read). One of them
     * gets the time at which the burst began, and with it the burst. */
    u64 first_ns = __sync_lock_test_and_set(&half->first_ns, 0ULL);
    if (unlikely(!first_ns)) {
        half->bytes = 0;
        return;
    }
    emit_burst(conn, half, first_ns, bytes, hook, dir, id);
    reset_burst(half);
}

/* Whether payload in one direction is the end of what went in the other: frames are not, and end before it. */
static inline int ends_burst(const struct half *mine, const struct half *other, u32 bytes)
{
    return mine->bytes + bytes >= MESSAGE_BYTES || other->bytes < MESSAGE_BYTES;
}

/* The connection is over: nothing more will come that could close its bursts. */
static inline void end_conn(const struct conn_key *key, struct conn *conn)
{
    u32 wire = is_loopback(key->laddr) ? HOOK_LO : HOOK_ETH;
    /* One copy of the code for all four: compilers and verifiers would pay for each. */
#pragma clang loop unroll(disable)
    for (int i = 0; i < 4; i++) {
        struct half *half = i == 0 ? &conn->sock_tx : i == 1 ? &conn->sock_rx : i == 2 ? &conn->tx : &conn->rx;
        close_burst(conn, half, i < 2 ? HOOK_SOCK : wire, i & 1 ? DIR_RX : DIR_TX, 0);
    }
#ifdef WATCH_TURNS
    end_turns(conn, wire);
#endif
    free_conn(key, conn);
}

/* The connection that a SYN speaks of. Addresses and ports come again, in time: with another sequence number
 * it begins a connection of its own, and what was there before is over, whether its end was seen or not. */
static inline struct conn *open_conn(const struct conn_key *key, struct conn *conn, u32 flags, u32 seq, u32 ack)
{
    u32 first_seq = flags & FLAG_ACK ? ack - 1 : seq;
    if (conn && (flags & FLAG_ACK || (conn->opened_ns && conn->first_seq == first_seq)))
        return conn;
    if (conn)
        end_conn(key, conn);
    return new_conn(key, bpf_ktime_get_ns(), first_seq);
}
