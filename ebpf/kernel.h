/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel's pointers lead to. Struct offsets come as -D OFF_... from the running kernel's BTF. */

/* The way that nearly every packet takes should stand in one piece: between two runs other code has taken
 * the instruction cache, and each line of it that is fetched again costs as much as ten instructions. */
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Plain loads, for pointers whose type the verifier knows: arguments of BTF tracepoints, sockets
 * of tc programs, and what these point to. A probe read costs some 30 ns more. The assembler
 * keeps BCC from making probe reads of them. */
#define LOAD(type, from, offset) ({ \
    u64 value_; \
    asm volatile("%0 = *(" #type " *)(%1 + %2)" : "=r"(value_) : "r"(from), "i"(offset)); \
    value_; \
})

/* The namespace that a packet was in: its device's, or its socket's before it has one. */
static inline u32 netns_of_packet(void *skb)
{
    void *dev = (void *)LOAD(u64, skb, OFF_SKB_DEV), *net = 0;
    if (dev)
        net = (void *)LOAD(u64, dev, OFF_DEV_NET);
    u32 netns = net ? LOAD(u32, net, OFF_NET_INUM) : 0;
    if (netns)
        return netns;
    void *sk = (void *)LOAD(u64, skb, OFF_SKB_SK);
    if (!sk)
        return 0;
    net = (void *)LOAD(u64, sk, OFF_SOCK_NET);
    return LOAD(u32, net, OFF_NET_INUM);
}
