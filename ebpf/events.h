/* SPDX-License-Identifier: Apache-2.0 */
/* What reaches Python: one struct per ring buffer, read in batches by
 * ztprobe/probes/ring.py. ztprobe/events derives its numpy types from this file, so
 * the spelling is narrow on purpose: one `type name;` or `u8 name[N];` a line, no
 * padding that the compiler would have to add (a test compares sizes).
 *
 * Times are CLOCK_MONOTONIC nanoseconds (bpf_ktime_get_ns). Addresses are IPv4 in
 * network byte order, ports in host byte order; "l" is the pod's own end. On `lo`
 * both ends are the pod's, and "l" is the one with the lower port (the listener).
 */

enum hook {
    HOOK_ETH = 1,  /* tc on the pod's interface */
    HOOK_LO = 2,   /* tc egress on the pod's loopback */
    HOOK_SOCK = 3, /* the application's own reads and writes */
};

enum direction {
    DIR_TX = 0, /* from l to r */
    DIR_RX = 1, /* from r to l */
};

/* A run of payload in one direction at one hook, closed by payload in the other
 * direction or by the end of the connection. Payloads below SMALL_BYTES are control
 * frames and do not open a burst. */
struct burst {
    u64 first_ns;      /* the first byte (lowest sequence number), which on arrival need not come first */
    u64 last_ns;
    u64 tail_ns;       /* first small payload behind the last large one (0: none) ... */
    u64 cwnd_ns;       /* eth0 egress: time between two packets spent at the congestion window, */
    u64 rwnd_ns;       /* ... at the peer's receive window, */
    u64 queue_ns;      /* ... below the socket (small-queue limit, qdisc, pacing), */
    u64 http2_ns;      /* ... with nothing to send until a control frame came, */
    u64 starved_ns;    /* ... with nothing to send and nothing in flight (gaps too short for a point) */
    u64 flight_ns;     /* ... with nothing to send while data was in flight */
    u32 netns;
    u32 laddr;
    u32 raddr;
    u32 ports;         /* l << 16 | r */
    u32 first_seq;
    u32 max_seq;       /* one past the highest byte (HOOK_SOCK: copied_seq or write_seq) */
    u32 tail_seq;      /* ... and one past its last byte */
    u32 bytes;
    u32 packets;
    u32 small;         /* small payloads seen while the burst was open */
    u32 tid;           /* HOOK_SOCK: the thread that moved the last bytes */
    u32 tgid;
    u32 hook;
    u32 dir;
};

/* The head of a packet on the pod's interface: connection set-up and end, the first
 * payloads of a connection (TLS records walked in the kernel), DNS messages. */
struct packet {
    u64 ts_ns;
    u32 netns;
    u32 laddr;
    u32 raddr;
    u32 ports;
    u32 seq;
    u32 ack;
    u32 payload_bytes;
    u32 dir;
    u32 kind;          /* enum packet_kind */
    u32 flags;         /* TCP flags */
    u32 records;       /* TLS record headers found in this packet ... */
    u32 record0;       /* ... type << 24 | length, in order */
    u32 record1;
    u32 record2;
    u32 record3;
    u32 record4;
    u32 record5;
    u32 data_bytes;
    u8 data[232];
};

enum packet_kind {
    PACKET_SETUP = 1,   /* SYN, SYN-ACK, FIN, RST */
    PACKET_PAYLOAD = 2, /* one of the first payloads of a connection */
    PACKET_DNS = 3,
};

/* Something that happened once. */
struct point {
    u64 ts_ns;
    u64 since_ns;      /* where it has a beginning: POINT_GAP, POINT_BLOCKED, POINT_WAIT, POINT_RETRANSMIT (first sent) */
    u64 small_ns;      /* POINT_GAP: the control frame that came last before it ended; POINT_RETRANSMIT: when
                        * later data was sent whose acknowledgement caused it (0: a timer did); POINT_DROP: of TCP,
                        * the sequence number */
    u32 netns;
    u32 laddr;
    u32 raddr;
    u32 ports;
    u32 kind;          /* enum point_kind */
    u32 a;
    u32 b;
    u32 c;
    u32 tid;
    u32 tgid;
};

enum point_kind {
    POINT_STATE = 1,      /* a: old TCP state, b: new, c: family */
    POINT_RETRANSMIT = 2, /* a: sequence, b: length, c: TCP state */
    POINT_DSACK = 3,      /* a: sequence, b: length that the receiver had already */
    POINT_DROP = 4,       /* a: reason number, b: protocol << 16 | TCP flags, c: payload or datagram bytes */
    POINT_GAP = 5,        /* a: sequence reached, b: enum hook, c: enum direction */
    POINT_WAIT = 6,       /* runnable from since_ns, on a CPU at ts_ns */
    POINT_BLOCKED = 7,    /* as POINT_GAP, but there was something to send: the reader did not read */
};
