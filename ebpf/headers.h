/* SPDX-License-Identifier: Apache-2.0 */
/* Packet headers as they stand on the wire, and the kernel's numbers that the programs compare with.
 *
 * Structs are not packed: clang would read packed members byte by byte. An IP header behind an
 * Ethernet one is two bytes off its alignment, which every machine that runs BPF's JIT can load. */

struct eth_header {
    u8 target[6];
    u8 source[6];
    u16 type;
};

struct ipv4_header { /* RFC 791 */
    u8 version_and_words;
    u8 service;
    u16 total_bytes;
    u16 identification;
    u16 fragment;
    u8 ttl;
    u8 protocol;
    u16 checksum;
    u32 source;
    u32 target;
};

struct ipv6_header { /* RFC 8200 */
    u32 version_and_flow;
    u16 payload_bytes;
    u8 next_header;
    u8 hop_limit;
    u8 source[16];
    u8 target[16];
};

struct tcp_header { /* RFC 9293 */
    u16 source;
    u16 target;
    u32 seq;
    u32 ack;
    u8 words; /* of the header, in the upper half */
    u8 flags;
    u16 window;
    u16 checksum;
    u16 urgent;
};

struct udp_header { /* RFC 768 */
    u16 source;
    u16 target;
    u16 bytes;
    u16 checksum;
};

/* The options of an acknowledgement that carries SACK blocks, as Linux writes them
 * (net/ipv4/tcp_output.c, tcp_options_write). */
struct sack_options {
    u8 nops_before_timestamp[2];
    u8 timestamp[10];
    u8 nops_before_sack[2];
    u8 sack_kind;
    u8 sack_bytes;
    u32 from0, to0;
};

struct arp_header { /* RFC 826, for IPv4 over Ethernet; addresses in halves, which an odd place cuts */
    u16 hardware, protocol;
    u8 hardware_bytes, protocol_bytes;
    u16 operation;
    u8 sender_mac[6];
    u16 sender_low, sender_high;
    u8 target_mac[6];
    u16 target_low, target_high;
};

#define ACK_OPTIONS_OFFSET (sizeof(struct eth_header) + sizeof(struct ipv4_header) + sizeof(struct tcp_header))
#define IPV6_MORE_BYTES (sizeof(struct ipv6_header) - sizeof(struct ipv4_header))
#define ACK_WITH_SACK_BYTES (sizeof(struct tcp_header) + sizeof(struct sack_options))

enum { IPV4_WORDS_20 = 0x45, FRAGMENT_OFFSET = 0x1fff, IPV4_VERSION = 4, IPV6_VERSION = 6 };
enum { MULTICAST_IPV4 = 0xe0, MULTICAST_IPV6 = 0xff }; /* the first byte of a group's address; of IPv4 its upper half */
enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_ARP = 0x0806, ETHERTYPE_IPV6 = 0x86dd };
enum { PROTOCOL_ICMP = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17, PROTOCOL_ICMPV6 = 58, PROTOCOL_SCTP = 132 };
enum { DNS_PORT = 53, LOOPBACK_NET = 127 };
enum { FLAG_FIN = 1, FLAG_SYN = 2, FLAG_RST = 4, FLAG_PSH = 8, FLAG_ACK = 16 };
#define FLAGS_SETUP (FLAG_SYN | FLAG_FIN | FLAG_RST)
enum { TCP_OPTION_SACK = 5, SACK_TWO_BLOCKS = 18 };
enum { TLS_CHANGE_CIPHER_SPEC = 20, TLS_HANDSHAKE_RECORD = 22, TLS_APPLICATION_DATA = 23, TLS_MAJOR = 3 };
enum { TLS_RECORD_MAX_BYTES = 16640, TLS_CLIENT_HELLO = 1, RECORDS_WALKED = 12, RECORDS_TOLD = 6 };

/* include/linux/socket.h, include/net/tcp_states.h, net/ipv4's enum tcp_ca_state and tcp_chrono */
enum { FAMILY_INET = 2, FAMILY_INET6 = 10 };
enum { STATE_SYN_SENT = 2, STATE_TIME_WAIT = 6, STATE_CLOSE = 7, STATE_LISTEN = 10, STATE_NEW_SYN_RECV = 12 };
enum { CA_STATE_BITS = 31, CA_RECOVERY = 3, CHRONO_BITS = 3, CHRONO_RWND_LIMITED = 2 };
enum { MINMAX_VALUE = 4 }; /* struct minmax begins with a time and the smallest value (include/linux/win_minmax.h) */
enum { MSG_PEEK_FLAG = 2, TASK_DEAD_STATE = 0x80 };

#define PASS_ON (-1) /* TC_ACT_UNSPEC, TCX_NEXT: other programs on the hook run */

static inline int after(u32 a, u32 b)
{
    return (s32)(a - b) > 0;
}

/* Of an address in network byte order. */
static inline int is_loopback(u32 address)
{
    return (address & 0xff) == LOOPBACK_NET;
}

/* IPv4 mapped into IPv6 (RFC 4291, section 2.5.5.2), as two words in network byte order. */
static inline void map_address(u8 *to, u32 address)
{
    *(u64 *)to = 0;
    *(u64 *)(to + 8) = (u64)address << 32 | 0xffff0000;
}
