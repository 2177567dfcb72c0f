/* SPDX-License-Identifier: Apache-2.0 */
/* What reaches Python: one struct per kind of event, read in batches by ztprobe/probes/ring.py.
 *
 * ztprobe/events/layout.py derives its numpy types from this file, and docs/events.md its
 * descriptions, so the spelling is narrow on purpose: one `type name;` or `u8 name[N];` a line with
 * its comment behind it, no padding that the compiler would have to add (a test compares sizes).
 * All records of a ring buffer have one size; members called `pad` fill them up.
 *
 * Times are CLOCK_MONOTONIC nanoseconds (bpf_ktime_get_ns). "local" is the pod's own end of a
 * connection, "remote" the other; on `lo` both are the pod's, and local is the one with the lower
 * port (the listener). Addresses have 16 bytes, IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2), in
 * network byte order; ports and sequence numbers are in host byte order.
 */

enum hook {
    HOOK_ETH = 1,  /* tc on the pod's interface */
    HOOK_LO = 2,   /* tc egress on the pod's loopback */
    HOOK_SOCK = 3, /* the application's own reads and writes */
};

enum direction {
    DIR_TX = 0, /* from the local end to the remote one */
    DIR_RX = 1, /* from the remote end to the local one */
};

enum how {
    HOW_FORK = 1, /* a copy of its parent */
    HOW_EXEC = 2, /* another program in the same process */
};

enum event_kind {
    EVENT_BURST = 1,
    EVENT_SETUP = 2,   /* a packet with SYN, FIN or RST */
    EVENT_PAYLOAD = 3, /* one of the first payloads of a connection */
    EVENT_DNS = 4,
    EVENT_CONNECTION = 5,
    EVENT_DROP = 6,
    EVENT_STATE_CHANGE = 7,
    EVENT_RETRANSMISSION = 8,
    EVENT_DUPLICATE_ACK = 9,
    EVENT_GAP = 10,
    EVENT_BLOCKED_READER = 11,
    EVENT_CPU_WAIT = 12,
    EVENT_TURN = 13,
    EVENT_PROCESS_START = 14,
    EVENT_MODULE_LOAD = 15,
};

/* What every event begins with. */
#define EVENT_PREFIX                                                                                  \
    u64 ts_ns;      /* when it happened; of what lasted, when it ended */                             \
    u64 connection; /* the connection's identity (connections.parquet); 0: none, or it is not known */ \
    u32 netns;      /* inode of the network namespace */                                              \
    u32 tid;        /* the thread that did it or waited; 0: no thread's doing */                      \
    u32 tgid;       /* the thread's process */                                                        \
    u32 kind;       /* enum event_kind */

/* A run of payload in one direction at one hook, closed by payload in the other direction or by the
 * end of the connection; ts_ns (saved as last_ns) is its last byte. Payloads below 256 bytes are control frames and do
 * not open a burst. The thread is the one that moved the last bytes (hook sock only). */
struct burst {
    EVENT_PREFIX
    u64 first_ns;      /* the first byte (lowest sequence number), which on arrival need not come first */
    u64 tail_ns;       /* first small payload behind the last large one; 0: none */
    u64 cwnd_ns;       /* time between two packets that the sender spent at its congestion window (eth, tx only) */
    u64 rwnd_ns;       /* time between two packets that it spent at the peer's receive window */
    u64 queue_ns;      /* time between two packets below the socket (small-queue limit, qdisc, pacing) */
    u64 http2_ns;      /* time with nothing to send until a control frame came */
    u64 starved_ns;    /* time with nothing to send and nothing in flight, in pauses too short for a gap */
    u64 flight_ns;     /* time with nothing to send while data was in flight */
    u32 first_seq;     /* sequence number of its lowest byte */
    u32 end_seq;       /* one past its highest byte (hook sock: copied_seq or write_seq) */
    u32 tail_end_seq;  /* one past the last byte of the small payload at tail_ns; 0: none */
    u32 bytes;         /* payload bytes */
    u32 packets;       /* wire-size packets (hook sock: calls) */
    u32 small_packets; /* small payloads seen while the burst was open */
    u32 late_packets;  /* packets that came behind later bytes: overtaken, or sent again (eth, rx only) */
    u32 hook;          /* enum hook */
    u32 direction;     /* enum direction */
    u8 pad[4];
};

/* A packet that sets up or ends a connection, or one of its first payloads (TLS records walked in
 * the kernel). Data in a SYN (TCP Fast Open) gives one record of each kind. */
struct packet {
    EVENT_PREFIX
    u32 seq;           /* sequence number of its first byte */
    u32 ack;           /* acknowledgement number */
    u32 payload_bytes; /* bytes behind the TCP header */
    u32 direction;     /* enum direction */
    u32 tcp_flags;     /* flags of the TCP header: FIN 1, SYN 2, RST 4, PSH 8, ACK 16 */
    u32 tls_records;   /* TLS record headers found in this packet */
    u32 tls_record0;   /* the first one: type << 24 | length */
    u32 tls_record1;   /* the second */
    u32 tls_record2;   /* the third */
    u32 tls_record3;   /* the fourth */
    u32 tls_record4;   /* the fifth */
    u32 tls_record5;   /* the sixth; later ones are only counted */
    u32 data_bytes;    /* how much of the payload was kept */
    u8 data[236];      /* the payload's first bytes */
};

/* A DNS message on the pod's interface: UDP, port 53 at either end. */
struct dns {
    EVENT_PREFIX
    u8 local[16];      /* the pod's address */
    u8 remote[16];     /* the other end's address */
    u32 local_port;    /* the pod's port */
    u32 remote_port;   /* the other end's port */
    u32 direction;     /* enum direction */
    u32 payload_bytes; /* bytes behind the UDP header */
    u32 data_bytes;    /* how much of them was kept */
    u8 data[236];      /* the message's first bytes */
};

/* A connection, from when the first of it was seen. The same addresses and ports with another first sequence number are another
 * connection; both ends of one have the same. On `lo` the connecting end's socket has a row of its
 * own, with local and remote exchanged. */
struct connection {
    EVENT_PREFIX
    u64 opened_ns;     /* its SYN; 0: older than the trace, or the SYN was not seen */
    u8 local[16];      /* the pod's address */
    u8 remote[16];     /* the other end's address */
    u32 local_port;    /* the pod's port */
    u32 remote_port;   /* the other end's port */
    u32 first_seq;     /* sequence number of the SYN (meaningless without opened_ns) */
    u32 family;        /* of its packets: 2 (AF_INET) or 10 (AF_INET6) */
    u8 pad[8];
};


/* A packet that the kernel dropped (skb:kfree_skb): TCP, UDP or ICMP over IPv4 or IPv6, not for a group. */
struct drop {
    EVENT_PREFIX
    u64 location;      /* the code that dropped it: an address in the kernel, saved as the symbol's name */
    u32 reason;        /* why: enum skb_drop_reason of the running kernel, saved by name */
    u32 ifindex;       /* the device that the packet was at, in its namespace; 0: none */
    u32 direction;     /* rx: it had come in through a device; tx: it was this namespace's own */
    u32 head_bytes;    /* how much of head is the packet's */
    u8 head[128];      /* the packet from the IP header on: enough for IPv6 and TCP with all its options */
};

/* A TCP socket's state changed. The thread owns the socket only while it calls; softirq borrows anybody's. */
struct state_change {
    EVENT_PREFIX
    u32 old_state;     /* TCP state before (include/net/tcp_states.h) */
    u32 new_state;     /* TCP state from now on */
    u32 family;        /* of the socket: 2 (AF_INET) or 10 (AF_INET6, which may carry IPv4) */
    u32 local_port;    /* the socket's own port; 0: not bound yet */
    u32 remote_port;   /* the peer's port */
    u8 pad[12];
};

/* TCP sent bytes again. */
struct retransmission {
    EVENT_PREFIX
    u64 first_sent_ns; /* when the packet with these bytes was first sent; 0: not known */
    u64 later_sent_ns; /* when later data was sent whose acknowledgement caused it; 0: a timer did */
    u32 seq;           /* first byte that was sent again */
    u32 bytes;         /* how many */
    u32 tcp_state;     /* the sender's TCP state (include/net/tcp_states.h) */
    u32 rtt_excess_us; /* by how much the sender's smoothed round trip exceeded its shortest one: what queues */
};

/* A receiver said that it got bytes twice (DSACK, RFC 2883); seen as that leaves the receiver. */
struct duplicate_ack {
    EVENT_PREFIX
    u32 seq;           /* first byte that came twice */
    u32 bytes;         /* how many */
    u8 pad[24];
};

/* The sender had nothing to send, in the middle of a burst. */
struct gap {
    EVENT_PREFIX
    u64 since_ns;      /* from when on there was nothing to send, and (eth) nothing in flight */
    u64 frame_ns;      /* the other side's last control frame before it ended; 0: none */
    u32 reached_seq;   /* sequence number of the payload that ended it */
    u32 hook;          /* enum hook */
    u32 direction;     /* enum direction */
    u8 pad[4];
};

/* The sender had bytes to send on loopback, and the reader's window was closed: it did not read. */
struct blocked_reader {
    EVENT_PREFIX
    u64 since_ns;      /* the last payload before */
    u32 reached_seq;   /* sequence number of the payload that ended it */
    u32 hook;          /* enum hook */
    u32 direction;     /* enum direction */
    u8 pad[12];
};

/* A thread got a CPU at ts_ns, and has waited for one for ts_ns - since_ns: in one piece, but for waits below 0.2 ms
 * since its last event, which are told with it. */
struct cpu_wait {
    EVENT_PREFIX
    u64 since_ns;      /* from when on it was runnable, if it has waited in one piece */
    u8 pad[24];
};

/* Payload in one direction, until there was payload in the other one, or none for 100 ms. Small payloads count, so
 * that requests and answers follow each other as they were spoken. Only of traces of deployments that ran already. */
struct turn {
    EVENT_PREFIX
    u64 first_ns;      /* its first payload */
    u32 first_seq;     /* sequence number of its lowest byte */
    u32 end_seq;       /* one past its highest byte */
    u32 first_ack_us;  /* from its first payload to the first acknowledgement of it; 0: not seen (eth, tx only) */
    u32 last_ack_us;   /* from its last payload to the acknowledgement of all of it; 0: not seen (eth, tx only) */
    u32 hook;          /* enum hook */
    u32 direction;     /* enum direction */
};

/* A process began, or began another program; its parent is one that is traced, and so is it from then on. Only of
 * traces of deployments that ran already. */
struct process_start {
    EVENT_PREFIX
    u32 parent;        /* the process that started it */
    u32 how;           /* enum how */
    u8 command[16];    /* the kernel's short name of what it runs */
    u8 pad[8];
};

/* A traced process opened files that hold code (modules of Python, shared libraries), none of them more than 250 ms
 * after the one before. Only of traces of deployments that ran already. */
struct module_load {
    EVENT_PREFIX
    u64 first_ns;      /* the first was opened; ts_ns (saved as last_ns): the last */
    u32 opens;         /* how many, those that were looked for in vain among them */
    u32 own_opens;     /* of them, those outside of the interpreter's libraries: the program's own */
    u64 own_ns;        /* the last of the program's own was opened; 0: none */
    u8 pad[8];
};
