/* SPDX-License-Identifier: Apache-2.0 */
/* What the sender's own socket says of a packet that leaves: what held it back, and when it was sent.
 *
 * `tp` is the socket's TCP part (`sender_of`), 0 where there is none: a pod that forwards, TIME_WAIT. */

/* The TCP part of the packet's own socket; 0: it has none (any more). */
static inline void *sender_of(struct __sk_buff *ctx)
{
    void *sk = ctx->sk;
    return sk ? tcp_of(sk) : 0;
}

/* What holds the sender back now, from the socket's own counters (net/ipv4/tcp_output.c,
 * tcp_write_xmit: the packet that we see is not yet counted in packets_out). */
static inline u8 sender_limit(void *tp, u32 end_seq, u32 segments)
{
    if (!tp || (u32)LOAD(u32, tp, OFF_TCP_WRITE_SEQ) == end_seq)
        return WHY_STARVED;
    u32 in_flight = LOAD(u32, tp, OFF_TCP_PACKETS_OUT) + segments + LOAD(u32, tp, OFF_TCP_RETRANS_OUT)
                    - LOAD(u32, tp, OFF_TCP_SACKED_OUT) - LOAD(u32, tp, OFF_TCP_LOST_OUT);
    if (in_flight >= (u32)LOAD(u32, tp, OFF_TCP_SND_CWND))
        return WHY_CWND;
    if (after(end_seq + 1448, LOAD(u32, tp, OFF_TCP_SND_UNA) + LOAD(u32, tp, OFF_TCP_SND_WND)))
        return WHY_RWND;
    return WHY_QUEUE;
}

/* Whether the packet that is now sent waited for the receiver's window: TCP's own account of that
 * (tcp_chrono_start in net/ipv4/tcp_output.c) is closed only after it has been sent. */
static inline int window_limited(void *tp)
{
    return tp && (LOAD(u8, tp, OFF_TCP_CHRONO_TYPE) & CHRONO_BITS) == CHRONO_RWND_LIMITED;
}

/* What a sender waited for although its windows had room: TCP does not use the last of a window, but
 * waits for an acknowledgement that lets it send a larger piece (tcp_tso_should_defer). What such an
 * acknowledgement ended was not below the socket, nor what a timer did, more than a round trip without one. */
static inline u8 deferred_for(void *tp, u64 since_ns, u64 now_ns)
{
    if (!tp)
        return WHY_QUEUE;
    if ((LOAD(u8, tp, OFF_TCP_CHRONO_TYPE) & CHRONO_BITS) == CHRONO_RWND_LIMITED)
        return WHY_RWND;
    u64 delivered_us = LOAD(u64, tp, OFF_TCP_DELIVERED_MSTAMP), now_us = now_ns / 1000, since_us = since_ns / 1000;
    if (delivered_us > since_us)
        return now_us < delivered_us + PROMPT_US ? WHY_CWND : WHY_QUEUE;
    return now_us - since_us > (u32)LOAD(u32, tp, OFF_TCP_SRTT_US) >> 3 ? WHY_CWND : WHY_QUEUE;
}

/* When the peer had acknowledged everything before this packet; 0: it has not. By TCP's own account of the
 * latest packet that was delivered (tcp_rack_advance in net/ipv4/tcp_recovery.c): its sending and its RTT.
 * Without SACK there is no such account. */
static inline u64 all_acked_ns(void *tp, u32 seq)
{
    if (!tp || (u32)LOAD(u32, tp, OFF_TCP_SND_UNA) != seq)
        return 0;
    return (LOAD(u64, tp, OFF_TCP_RACK_MSTAMP) + (u32)LOAD(u32, tp, OFF_TCP_RACK_RTT_US)) * 1000;
}

/* How much longer a round trip takes than the shortest of late: what the packets in flight wait for one another. */
static inline u32 rtt_excess_us(void *tp)
{
    u32 smoothed_us = (u32)LOAD(u32, tp, OFF_TCP_SRTT_US) >> 3; /* kept in eighths */
    u32 shortest_us = LOAD(u32, tp, OFF_TCP_RTT_MIN + MINMAX_VALUE);
    return smoothed_us > shortest_us ? smoothed_us - shortest_us : 0;
}

/* Now: a clock read is a third of what a run takes, and TCP has just looked at the clock before it sends
 * (tcp_write_xmit), once for all that it may send then. The last of these has a time of its own. */
static inline u64 sent_at(void *tp, u32 end_seq, u64 last_ns)
{
    if (tp) {
        u64 cached_ns = LOAD(u64, tp, OFF_TCP_CLOCK_CACHE);
        if (cached_ns > last_ns)
            return cached_ns;
        if ((u32)LOAD(u32, tp, OFF_TCP_WRITE_SEQ) != end_seq)
            return last_ns;
    }
    return bpf_ktime_get_ns();
}
