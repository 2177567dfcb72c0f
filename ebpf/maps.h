/* SPDX-License-Identifier: Apache-2.0 */
/* Maps and the few helpers that every signal shares.
 *
 * No map here evicts: an insertion that fails is counted (LOSS_MAP_FULL) and what it would
 * have kept is lost in the open. Struct offsets come as -D OFF_... from the running kernel's
 * BTF, and -D CPUS is the number of CPUs that it can have. */

#define SMALL_BYTES 256        /* HTTP/2 control frames and TLS tickets stay below (tried: 255) */
#ifdef WATCH_TURNS
#define SMALLEST_KNOWN 1       /* payload that makes a connection known which is older than the trace */
#else
#define SMALLEST_KNOWN SMALL_BYTES
#endif
#define MESSAGE_BYTES 8192     /* less is no message but frames, however many packets they take (analysis agrees) */
#define TAIL_GAP_NS 2000000ULL /* a small payload this soon after a large one ends the same message */
#define GAP_NS 500000ULL       /* a pause worth an event of its own */
#define ANSWER_NS 20000000ULL  /* a frame that allows to go on is answered this soon, waits for a CPU included */
#define DEFERRED_NS 100000ULL  /* a pause worth a look at what ended it */
#define PROMPT_US 1000         /* TCP sends this soon after an acknowledgement that lets it */
#define TURN_GAP_NS 100000000ULL /* silence that ends a turn; what goes on after a slow path's round trip is joined later */
#define WAIT_NS 200000ULL      /* waiting for a CPU worth an event: one wait, or several together */
#define BULK_RECORD_BYTES 12288 /* a TLS record that begins a message; tickets with certificates have less */
#define HEAD_PACKETS 16        /* payloads per direction in which a TLS handshake must be over */
#define LO_HEAD_PACKETS 2      /* on loopback nothing is encrypted: enough to know a connection's beginning */
#define SENDLOG_SLOTS 4096     /* unacknowledged packets (segments: 5.9 MB); a loss further back is counted as lost */
#define SENT_SLOTS 8           /* the last ones, in a cache line of the connection's own */

#ifdef WATCH_TURNS
/* An address of IPv6 in network byte order, as two words. */
struct address6 {
    u64 high, low;
};
#endif

/* Addresses of IPv6 stand in it by their aliases (connections.h). */
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
    u32 late_packets;
    u32 pads[2];
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
#ifdef WATCH_TURNS
/* What is being said in one direction. */
struct speech {
    u64 first_ns, last_ns; /* first_ns 0: nothing */
    u64 id;                /* of the thread that moved the first of it; hook sock only */
    u32 first_seq, end_seq;
    u32 first_ack_us, last_ack_us; /* 0: not acknowledged yet */
};
#endif

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
#ifdef WATCH_TURNS
    struct speech tx_speech, rx_speech, sock_tx_speech, sock_rx_speech;
#endif
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
#ifndef ADDRESSES6_ENTRIES
#define ADDRESSES6_ENTRIES 8192
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
#ifdef WATCH_TURNS
BPF_HASH(addresses6, u32, struct address6, ADDRESSES6_ENTRIES); /* by alias */
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
