/* SPDX-License-Identifier: Apache-2.0 */
/* When bytes were first sent: a log of packets, kept for each connection that sends, and looked up for a repair. */

BPF_TABLE("array", int, struct sendlog, fresh_sendlog, 1); /* all zero, only read */

/* Copy what stands in the connection to its log, as packets `from` (a multiple of SENT_SLOTS) and on.
 * 0: there is no room for a log. */
static inline struct sendlog *flush_sent(const struct conn_key *key, struct conn *conn, u32 from)
{
    struct sendlog *log = sendlogs.lookup((struct conn_key *)key);
    if (!log) {
        int zero = 0;
        struct sendlog *fresh = fresh_sendlog.lookup(&zero);
        if (!fresh || sendlogs.update((struct conn_key *)key, fresh))
            return 0;
        log = sendlogs.lookup((struct conn_key *)key);
        if (!log)
            return 0;
    }
    u32 slot = from & (SENDLOG_SLOTS - SENT_SLOTS);
#pragma unroll
    for (int i = 0; i < SENT_SLOTS; i++)
        log->slot[slot + i] = conn->sent[i];
    return log;
}

/* A log is 32 KB, of which each packet would touch a cold page: it gets eight at a time. */
static inline void log_send(const struct conn_key *key, struct conn *conn, u32 seq, u64 now_ns)
{
    u32 slot = conn->tx.logged++ & (SENT_SLOTS - 1);
    conn->sent[slot].seq = seq;
    conn->sent[slot].ts = now_ns >> 10;
    if (unlikely(slot == SENT_SLOTS - 1) && !flush_sent(key, conn, conn->tx.logged - SENT_SLOTS))
        count_many(LOSS_MAP_FULL, SENT_SLOTS);
}

/* When the packet that first had these bytes was sent; 0: not known. */
static inline u64 sent_ns(const struct conn_key *key, struct conn *conn, u32 seq, u64 now_ns)
{
    u32 count_now = conn->tx.logged;
    if (!count_now)
        return 0;
    struct sendlog *log = flush_sent(key, conn, (count_now - 1) & ~(SENT_SLOTS - 1));
    if (!log) {
        if (count_now & (SENT_SLOTS - 1))
            count(LOSS_MAP_FULL); /* others were counted when they should have been moved */
        return 0;
    }
    u32 most = SENDLOG_SLOTS - SENT_SLOTS, held = count_now < most ? count_now : most, first = count_now - held;
    u32 before = 0; /* how many begin with `seq` or before it */
#pragma unroll
    for (u32 bit = SENDLOG_SLOTS / 2; bit; bit >>= 1) {
        u32 at = first + before + bit - 1 & (SENDLOG_SLOTS - 1);
        u32 beyond = (held - before - bit | seq - log->slot[at].seq) >> 31;
        asm volatile("" : "+r"(beyond)); /* no branches, and no masks of 0 and -1: verifiers walk both ways, each time */
        before += (beyond ^ 1) * bit;
    }
    if (!before) {
        if (count_now > held)
            count(LOSS_MAP_FULL); /* later packets took the slot: when this was first sent is gone */
        return 0;
    }
    if (!after(conn->tx.snd_max, seq))
        return 0; /* no data: a FIN */
    u32 ago = (u32)(now_ns >> 10) - log->slot[first + before - 1 & (SENDLOG_SLOTS - 1)].ts;
    return now_ns - ((u64)ago << 10);
}
