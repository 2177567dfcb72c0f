/* SPDX-License-Identifier: Apache-2.0 */
/* What reaches Python of dropped packets that somebody watches live; spelled as events.h is. */

/* What makes dropped packets alike. A packet's source port is not among it: a client that tries again has another. */
struct drop_kind {
    u64 location;      /* the code that dropped it: an address in the kernel */
    u8 source[16];     /* address that it came from; IPv4 mapped into IPv6; of ARP the sender's */
    u8 target[16];     /* address that it was for */
    u32 netns;         /* inode of the network namespace that it was dropped in */
    u32 reason;        /* enum skb_drop_reason of the running kernel */
    u16 target_port;   /* 0: none */
    u16 ethertype;     /* 0x0800 IPv4, 0x86dd IPv6, 0x0806 ARP, or another */
    u8 protocol;       /* of IP; 0: it is not IP */
    u8 tcp_flags;      /* SYN, FIN, RST and ACK of the TCP header; 0: no TCP */
    u8 direction;      /* enum direction of events.h */
    u8 pad[1];
};

/* How many of a kind. */
struct drop_count {
    u64 collected;     /* packets that were counted here alone, and not passed up */
    u64 bytes;         /* ... and the bytes behind their transport headers */
    u64 last_ns;       /* when the last packet was, passed up or not */
    u64 window_ns;     /* since when `passed` counts */
    u64 passed;        /* packets passed up in this window */
};

/* A dropped packet that is passed up. */
struct dropped {
    u8 kind[56];       /* struct drop_kind */
    u64 ts_ns;         /* when: CLOCK_MONOTONIC */
    u32 ifindex;       /* the device that it was at, in its namespace; 0: none */
    u32 packet_bytes;  /* its length from the IP header on */
    u32 payload_bytes; /* ... of which so many lie behind the transport header */
    u32 head_bytes;    /* how much of head is the packet's */
    u32 source_port;   /* 0: none */
    u8 pad[4];
    u8 head[128];      /* the packet from the IP header on */
};
