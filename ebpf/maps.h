/* SPDX-License-Identifier: Apache-2.0 */
/* Maps and the few helpers that every signal shares.
 *
 * No map here evicts: an insertion that fails is counted (LOSS_MAP_FULL) and what it would
 * have kept is lost in the open. Struct offsets come as -D OFF_... from the running kernel's
 * BTF, and -D CPUS is the number of CPUs that it can have. */

#define SMALL_BYTES 256        /* HTTP/2 control frames and TLS tickets stay below (tried: 255) */
#define MESSAGE_BYTES 8192     /* less is no message but frames, however many packets they take (analysis agrees) */
#define TAIL_GAP_NS 2000000ULL /* a small payload this soon after a large one ends the same message */
#define GAP_NS 500000ULL       /* a pause worth an event of its own */
#define ANSWER_NS 20000000ULL  /* a frame that allows to go on is answered this soon, waits for a CPU included */
#define DEFERRED_NS 100000ULL  /* a pause worth a look at what ended it */
#define PROMPT_US 1000         /* TCP sends this soon after an acknowledgement that lets it */
#define WAIT_NS 200000ULL      /* a wait for a CPU worth an event of its own */
#define BULK_RECORD_BYTES 12288 /* a TLS record that begins a message; tickets with certificates have less */
#define HEAD_PACKETS 16        /* payloads per direction in which a TLS handshake must be over */
#define LO_HEAD_PACKETS 2      /* on loopback nothing is encrypted: enough to know a connection's beginning */
#define SENDLOG_SLOTS 4096     /* unacknowledged packets (segments: 5.9 MB); a loss further back is counted as lost */
#define SENT_SLOTS 8           /* the last ones, in a cache line of the connection's own */

/* The way that nearly every packet takes should stand in one piece: between two runs other code has taken
 * the instruction cache, and each line of it that is fetched again costs as much as ten instructions. */
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

struct conn_key {
    u32 netns;
    u32 laddr;
    u32 raddr;
    u32 ports;
};

/* One direction of a connection at one hook: two cache lines, of which every packet needs the first.
 * On a busy machine a line that is not touched is worth more than an instruction saved, and one that no
 * other CPU writes more than either. */
struct half {
    u64 last_ns;
    u64 cwnd_ns, queue_ns, flight_ns;
    u32 first_seq, end_seq, tail_end_seq;
    u32 bytes, packets;
    u32 snd_max;   /* one past the highest byte sent in this direction, or that arrived with none missing before */
    u32 logged;    /* packets whose time of sending was logged: the last few in `sent`, all before in a sendlog */
    u8 why;        /* what held back the sender after its last packet */
    u8 holes;      /* something did not arrive in order */
    u16 pad;

    u64 first_ns, tail_ns;
    u64 small_ns;  /* last small payload in this direction */
    u64 rwnd_ns, http2_ns, starved_ns;
    u32 small_packets;
    u32 pads[3];
};

/* What is known of the TLS in one direction. Settled by a connection's first payloads. */
struct head {
    u32 record_seq; /* TLS_HANDSHAKE: where the next record header stands; TLS_DATA: where data began */
    u8 heads;
    u8 tls;         /* enum tls_phase ... */
    u8 tls_seen;    /* ... and what went by: TLS_SEEN_... */
    u8 pad;
};

/* When packets with new data were sent, in order, by the first byte that was new. */
struct sent { u32 seq; u32 ts; }; /* ts: in units of 1,024 ns */
struct sendlog { struct sent slot[SENDLOG_SLOTS]; };

/* A connection as its packets and, on the pod's own socket, its reads and writes show it. Whole cache
 * lines, by who writes them: data that leaves, data that arrives, acknowledgements that leave, the
 * application. They run on different CPUs, and none should take another's line away. */
struct conn {
    struct conn_key key; /* netns 0: not in use */
    u64 id;              /* what events carry: how often the number was given away << 32 | number */
    u64 opened_ns;       /* its SYN; 0: not seen */
    u32 first_seq;       /* ... and that one's sequence number */
    struct head tx_head, rx_head;
    u32 pad[3];
    struct half tx, rx;
    struct sent sent[SENT_SLOTS];
    u32 acked_seq; /* the highest acknowledgement that left */
    u32 acked_pad[15];
    struct half sock_tx, sock_rx;
};

enum tls_phase { NOT_TLS, TLS_HANDSHAKE, TLS_DATA };
/* ClientHello, ChangeCipherSpec, encrypted records. */
enum { TLS_SEEN_CLIENT = 1, TLS_SEEN_CHANGE = 2, TLS_SEEN_SEALED = 4 };

enum { WHY_STARVED = 1, WHY_CWND = 2, WHY_RWND = 3, WHY_QUEUE = 4 };

/* TRIED counts what wanted to go into a ring, before it is known whether it fits: TRIED = EMITTED
 * plus those of full rings, or an event was lost in silence. ztprobe/probes/kernel.py has the same order. */
enum {
    LOSS_BURSTS,
    LOSS_PACKETS,
    LOSS_CONNECTIONS,
    LOSS_DROPS,
    LOSS_POINTS,
    LOSS_MAP_FULL,
    LOSS_PARSE,
    LOSS_IPV6,
    EMITTED,
    TRIED
};

#define COUNTER_SLOTS 16 /* of 8 bytes: no two CPUs share a cache line */

/* Tests shrink them to see a full map counted. */
#ifndef CONNS_ENTRIES
#define CONNS_ENTRIES 16384
#endif
#ifndef SENDLOGS_ENTRIES
#define SENDLOGS_ENTRIES 4096
#endif
#ifndef LAST_READ_ENTRIES
#define LAST_READ_ENTRIES 4096
#endif
#ifndef PAIRS_ENTRIES
#define PAIRS_ENTRIES 16384
#endif
#ifndef DELAYS_ENTRIES
#define DELAYS_ENTRIES 16384
#endif

enum { PROCESS_APP = 1, PROCESS_PROXY = 2 };
#define PROCESS_WORDS 131072 /* 32 processes of two bits a word, for every number that Linux gives (PID_MAX_LIMIT) */
#define RECENT_BITS 11
#define INTERFACES 3072 /* ztprobe/probes/interfaces.py has the same number */

BPF_RINGBUF_OUTPUT(bursts, RING_PAGES);
BPF_RINGBUF_OUTPUT(packets, RING_PAGES);
BPF_RINGBUF_OUTPUT(connections, FEW_PAGES);
BPF_RINGBUF_OUTPUT(drops, RING_PAGES);
BPF_RINGBUF_OUTPUT(points, RING_PAGES); /* the kinds that happen at one moment, of one size */
/* One row of counters a CPU. Not a per-CPU map: this one the reader can map and look at for nothing. */
BPF_F_TABLE("array", int, u64, counters, CPUS * COUNTER_SLOTS, 1024 /* BPF_F_MMAPABLE */);

BPF_HASH(pods, u32, u32, 1024);                       /* netns inode -> 1: pod, 2: node */
BPF_ARRAY(watching, u32, 1);                          /* 0: nothing is traced any more */
BPF_ARRAY(processes, u64, PROCESS_WORDS);             /* PROCESS_..., two bits each by tgid */
#ifndef HAVE_TCX
BPF_ARRAY(interfaces, u32, INTERFACES);               /* a tc filter's number -> netns inode */
#endif
BPF_HASH(numbers, struct conn_key, u32, CONNS_ENTRIES);
/* By number; 0 is nobody's. Maps that could be mapped begin with a cache line, others in the middle of one. */
BPF_F_TABLE("array", int, struct conn, conns, CONNS_ENTRIES + 1, 1024 /* BPF_F_MMAPABLE */);
BPF_STACK(free_numbers, u32, CONNS_ENTRIES);          /* the reader fills it once */
BPF_ARRAY(recent, u32, 1 << RECENT_BITS);             /* the number that was last asked for, by a few bits of the key */
BPF_F_TABLE("hash", struct conn_key, struct sendlog, sendlogs, SENDLOGS_ENTRIES, 1 /* BPF_F_NO_PREALLOC */);

static inline void count_many(int slot, u64 many)
{
    int index = bpf_get_smp_processor_id() * COUNTER_SLOTS + slot;
    u64 *n = counters.lookup(&index);
    if (n)
        __sync_fetch_and_add(n, many); /* an interrupt's program may count in the middle of ours */
}

static inline void count(int slot)
{
    count_many(slot, 1);
}

/* Plain loads, for pointers whose type the verifier knows: arguments of BTF tracepoints, sockets
 * of tc programs, and what these point to. A probe read costs some 30 ns more. The assembler
 * keeps BCC from making probe reads of them. */
#define LOAD(type, from, offset) ({ \
    u64 value_; \
    asm volatile("%0 = *(" #type " *)(%1 + %2)" : "=r"(value_) : "r"(from), "i"(offset)); \
    value_; \
})

/* The TCP part of a socket; 0: it has none. Where the verifier takes our word for it (Linux 6.2, see
 * ztprobe/probes/casts.py) this costs next to nothing, and 20 ns where a helper has to look. */
static inline void *tcp_of(void *sk)
{
#ifdef KFUNC_RDONLY_CAST
    void *tp = ((void *(*)(void *, u32))KFUNC_RDONLY_CAST)(sk, TYPE_TCP_SOCK);
    u64 state = LOAD(u8, tp, OFF_SOCK_STATE); /* TCP_TIME_WAIT and TCP_NEW_SYN_RECV are no whole sockets */
    return state != STATE_TIME_WAIT && state != STATE_NEW_SYN_RECV
                   && LOAD(u16, tp, OFF_SOCK_PROTOCOL) == PROTOCOL_TCP ? tp : 0;
#else
    return bpf_skc_to_tcp_sock(sk);
#endif
}

/* A reader that comes by every few milliseconds need not be woken, which takes an interrupt. */
#define RINGBUF_FLAGS 1 /* BPF_RB_NO_WAKEUP */

static inline u64 read_ptr(const void *from)
{
    u64 value = 0;
    bpf_probe_read_kernel(&value, sizeof(value), from);
    return value;
}

static inline u32 read_u32(const void *from)
{
    u32 value = 0;
    bpf_probe_read_kernel(&value, sizeof(value), from);
    return value;
}

static inline u16 read_u16(const void *from)
{
    u16 value = 0;
    bpf_probe_read_kernel(&value, sizeof(value), from);
    return value;
}

/* PROCESS_..., or 0 for a process that nobody has named. */
static inline u32 process_kind(u32 tgid)
{
    int index = tgid / 32;
    u64 *word = processes.lookup(&index);
    return word ? *word >> tgid % 32 * 2 & 3 : 0;
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

/* Room for a record in each ring, counted whether there is any or not, and handing it over. The kinds of a ring
 * have one size. (BCC takes a map's functions outside macros only, and by the map's own name.) */
_Static_assert(sizeof(struct dns) == sizeof(struct packet), "one size a ring");
_Static_assert(sizeof(struct state_change) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct retransmission) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct duplicate_ack) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct blocked_reader) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct cpu_wait) == sizeof(struct gap), "one size a ring");

static inline void *reserve_burst(void)
{
    count(TRIED);
    void *event = bursts.ringbuf_reserve(sizeof(struct burst));
    if (!event)
        count(LOSS_BURSTS);
    return event;
}

static inline void submit_burst(void *event)
{
    bursts.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline void *reserve_packet(void)
{
    count(TRIED);
    void *event = packets.ringbuf_reserve(sizeof(struct packet));
    if (!event)
        count(LOSS_PACKETS);
    return event;
}

static inline void submit_packet(void *event)
{
    packets.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline void *reserve_connection(void)
{
    count(TRIED);
    void *event = connections.ringbuf_reserve(sizeof(struct connection));
    if (!event)
        count(LOSS_CONNECTIONS);
    return event;
}

static inline void submit_connection(void *event)
{
    connections.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline void *reserve_drop(void)
{
    count(TRIED);
    void *event = drops.ringbuf_reserve(sizeof(struct drop));
    if (!event)
        count(LOSS_DROPS);
    return event;
}

static inline void submit_drop(void *event)
{
    drops.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline void *reserve_point(void)
{
    count(TRIED);
    void *event = points.ringbuf_reserve(sizeof(struct gap));
    if (!event)
        count(LOSS_POINTS);
    return event;
}

static inline void submit_point(void *event)
{
    points.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

/* What every event begins with; `id`: bpf_get_current_pid_tgid's, or 0. */
#define PREFIX(event, what, when_ns, conn_id, ns, id) ({ \
    (event)->ts_ns = when_ns; \
    (event)->connection = conn_id; \
    (event)->netns = ns; \
    (event)->tid = id; \
    (event)->tgid = (u64)(id) >> 32; \
    (event)->kind = what; \
})

/* IPv4 mapped into IPv6 (RFC 4291, section 2.5.5.2), as two words in network byte order. */
static inline void map_address(u8 *to, u32 address)
{
    *(u64 *)to = 0;
    *(u64 *)(to + 8) = (u64)address << 32 | 0xffff0000;
}

static inline void emit_connection(struct conn *conn, u64 now_ns)
{
    struct connection *event = reserve_connection();
    if (!event)
        return;
    PREFIX(event, EVENT_CONNECTION, now_ns, conn->id, conn->key.netns, 0ULL);
    event->opened_ns = conn->opened_ns;
    map_address(event->local, conn->key.laddr);
    map_address(event->remote, conn->key.raddr);
    event->local_port = conn->key.ports >> 16;
    event->remote_port = conn->key.ports & 0xffff;
    event->first_seq = conn->first_seq;
    event->family = FAMILY_INET;
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

/* A socket's connection: on loopback packets go by the key of the listener's end alone. */
static inline struct conn *conn_of_socket(const struct conn_key *key)
{
    struct conn *conn = conn_of(key);
    if (conn || !is_loopback(key->laddr))
        return conn;
    struct conn_key other = other_end(key);
    return conn_of(&other);
}

/* For a socket of which no packet has made a connection. On loopback the connecting end, whose reads and
 * writes are kept apart, has the identity that packets gave to the listener's. */
static inline struct conn *new_conn_of_socket(const struct conn_key *key)
{
    struct conn *packets_of = conn_of_socket(key);
    return packets_of ? new_conn(key, packets_of->opened_ns, packets_of->first_seq) : new_conn(key, 0, 0);
}

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
    return 1;
}

static inline void emit_burst(struct conn *conn, const struct half *half, u32 hook, u32 dir, u64 id)
{
    struct burst *event = reserve_burst();
    if (!event)
        return;
    PREFIX(event, EVENT_BURST, half->last_ns, conn->id, conn->key.netns, id);
    event->first_ns = half->first_ns;
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
    event->bytes = half->bytes;
    event->packets = half->packets;
    event->small_packets = half->small_packets;
    event->hook = hook;
    event->direction = dir;
    submit_burst(event);
}

static inline void reset_burst(struct half *half)
{
    half->first_ns = half->last_ns = half->tail_ns = 0;
    half->cwnd_ns = half->rwnd_ns = half->queue_ns = 0;
    half->http2_ns = half->starved_ns = half->flight_ns = 0;
    half->first_seq = half->end_seq = half->tail_end_seq = 0;
    half->bytes = half->packets = half->small_packets = 0;
}

static inline void close_burst(struct conn *conn, struct half *half, u32 hook, u32 dir, u64 id)
{
    if (likely(!half->bytes))
        return;
    emit_burst(conn, half, hook, dir, id);
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
    u32 hook = is_loopback(key->laddr) ? HOOK_LO : HOOK_ETH;
    close_burst(conn, &conn->sock_tx, HOOK_SOCK, DIR_TX, 0);
    close_burst(conn, &conn->sock_rx, HOOK_SOCK, DIR_RX, 0);
    close_burst(conn, &conn->tx, hook, DIR_TX, 0);
    close_burst(conn, &conn->rx, hook, DIR_RX, 0);
    free_conn(key, conn);
}

static inline void forget(const struct conn_key *key)
{
    struct conn *conn = conn_of(key);
    if (conn)
        end_conn(key, conn);
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
    if (is_loopback(key->laddr)) {
        struct conn_key other = other_end(key);
        forget(&other); /* the connecting socket's own */
    }
    return new_conn(key, bpf_ktime_get_ns(), first_seq);
}
