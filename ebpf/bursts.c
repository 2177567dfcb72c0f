/* SPDX-License-Identifier: Apache-2.0 */
/* Bulk data in the kernel: a burst per message, hop and direction, and what held its sender back in between. */

static inline void emit_gap(struct conn *conn, struct seen *seen, u64 since_ns, u64 now_ns, u64 frame_ns, u32 hook)
{
    struct gap *event = reserve_point();
    if (!event)
        return;
    PREFIX(event, EVENT_GAP, now_ns, conn->id, conn->key.netns, 0ULL);
    event->since_ns = since_ns;
    event->frame_ns = frame_ns;
    event->reached_seq = seen->seq;
    event->hook = hook;
    event->direction = seen->dir;
    submit_point(event);
}

static inline void emit_blocked_reader(struct conn *conn, struct seen *seen, u64 since_ns, u64 now_ns)
{
    struct blocked_reader *event = reserve_point();
    if (!event)
        return;
    PREFIX(event, EVENT_BLOCKED_READER, now_ns, conn->id, conn->key.netns, 0ULL);
    event->since_ns = since_ns;
    event->reached_seq = seen->seq;
    event->hook = HOOK_LO;
    event->direction = seen->dir;
    submit_point(event);
}

/* The pause before this packet, charged to what held the sender back after the last one. */
static inline void charge_pause(void *tp, struct seen *seen, struct conn *conn, struct half *mine, struct half *other,
                                u64 now_ns)
{
    u64 pause_ns = now_ns - mine->last_ns;
    u8 why = mine->why == WHY_QUEUE && pause_ns >= DEFERRED_NS ? deferred_for(tp, mine->last_ns, now_ns) : mine->why;
    if (why == WHY_CWND) {
        mine->cwnd_ns += pause_ns;
    } else if (why == WHY_RWND) {
        mine->rwnd_ns += pause_ns;
    } else if (why == WHY_QUEUE) {
        mine->queue_ns += pause_ns;
    } else {
        u64 since_ns = mine->last_ns;
        /* Nothing to send before a frame allowed it: the frame ended that wait, what the sender took
         * to go on is its own. */
        if (other->small_ns > since_ns && now_ns - other->small_ns < ANSWER_NS) {
            mine->http2_ns += other->small_ns - since_ns;
            since_ns = other->small_ns;
        }
        u64 acked_ns = all_acked_ns(tp, seen->seq);
        if (acked_ns > mine->last_ns && acked_ns < now_ns) {
            u64 free_ns = acked_ns > since_ns ? acked_ns : since_ns;
            mine->flight_ns += free_ns - since_ns;
            if (now_ns - free_ns >= GAP_NS)
                emit_gap(conn, seen, free_ns, now_ns, other->small_ns, HOOK_ETH);
            else
                mine->starved_ns += now_ns - free_ns;
        } else {
            mine->flight_ns += now_ns - since_ns;
        }
    }
}

static inline void account_small(struct __sk_buff *ctx, struct seen *seen, struct half *mine, struct half *other,
                                 u64 now_ns, int egress)
{
    u32 end_seq = seen->seq + seen->payload_bytes;
    if (mine->bytes) {
        mine->small_packets++;
        /* The message's end, unless the other side's frame came in between: then it is the answer to that. */
        if (egress && other->small_ns <= mine->last_ns && now_ns - mine->last_ns < TAIL_GAP_NS && seen->seq == mine->end_seq) {
            mine->last_ns = now_ns;
            mine->end_seq = end_seq;
            mine->bytes += seen->payload_bytes;
            mine->why = sender_limit(sender_of(ctx), end_seq, 1);
        } else if (!mine->tail_end_seq && after(end_seq, mine->end_seq)) {
            mine->tail_ns = now_ns;
            mine->tail_end_seq = end_seq;
        }
    }
    mine->small_ns = now_ns;
}

/* Whether these bytes go on where the burst is, as nearly all do. */
static inline int goes_on(struct seen *seen, struct half *mine, struct half *other, struct head *head)
{
    return likely(mine->bytes >= MESSAGE_BYTES && seen->payload_bytes >= SMALL_BYTES && seen->seq == mine->snd_max
                  && !mine->holes && !other->bytes && head->heads >= HEAD_PACKETS
                  && !(seen->flags & FLAGS_SETUP));
}

/* `tp`: the sender's socket, where it is this end's. `log_seq`: the first byte that was not sent before. */
static inline void extend_burst(struct __sk_buff *ctx, void *tp, struct seen *seen, struct conn *conn, struct half *mine,
                                u64 now_ns, u32 log_seq, u32 hook, int egress)
{
    u32 end_seq = seen->seq + seen->payload_bytes;
    u32 segments = ctx->gso_segs ? ctx->gso_segs : 1;
    mine->last_ns = now_ns;
    mine->packets += segments;
    mine->bytes += seen->payload_bytes;
    if (after(end_seq, mine->end_seq))
        mine->end_seq = end_seq;
    if (unlikely(mine->tail_end_seq && after(end_seq, mine->tail_end_seq)))
        mine->tail_end_seq = mine->tail_ns = 0;
    if (hook == HOOK_ETH && egress)
        log_send(&seen->key, conn, log_seq, now_ns);
    if (egress)
        mine->why = sender_limit(tp, end_seq, segments);
}

/* What is as long as data may be frames for all that: inside TLS, window updates that are written at once
 * (tried: 66 of them). Those are an answer to the other side's data, which goes on after them. What follows them
 * after a pause is another run, unless a frame ended the pause; on arrival it is the analysis that joins. */
static inline void account_beginning(struct seen *seen, struct conn *conn, struct half *mine, struct half *other,
                                     u64 now_ns, u32 hook, int egress)
{
    if (mine->bytes && mine->why == WHY_STARVED && now_ns - mine->last_ns >= TAIL_GAP_NS && !after(mine->end_seq, seen->seq)
        && !(egress && other->small_ns > mine->last_ns && now_ns - other->small_ns < ANSWER_NS))
        close_burst(conn, mine, hook, seen->dir, 0);
    if (mine->bytes + seen->payload_bytes < MESSAGE_BYTES)
        mine->small_ns = now_ns;
}

static inline void account_bulk(struct __sk_buff *ctx, void *tp, struct seen *seen, struct conn *conn, struct half *mine,
                                struct half *other, u64 now_ns, u32 hook, int egress)
{
    u32 end_seq = seen->seq + seen->payload_bytes;
    /* Bytes seen before are retransmissions; they move no edge. On arrival, bytes behind a hole
     * count as seen only once this end has acknowledged them: before that they may fill it. */
    if (!egress && mine->holes && (!mine->snd_max || after(conn->acked_seq, mine->snd_max)))
        mine->snd_max = conn->acked_seq;
    u32 seen_seq = mine->snd_max;
    if (seen_seq && !after(end_seq, seen_seq)) /* 0: nothing yet */
        return;
    if (!egress && mine->bytes && after(mine->end_seq, seen->seq))
        mine->late_packets++;
    if (mine->bytes < MESSAGE_BYTES)
        account_beginning(seen, conn, mine, other, now_ns, hook, egress);
    if (ends_burst(mine, other, seen->payload_bytes))
        close_burst(conn, other, hook, seen->dir == DIR_TX ? DIR_RX : DIR_TX, 0);
    if (!mine->bytes) {
        mine->first_ns = now_ns;
        mine->first_seq = mine->end_seq = seen->seq;
    } else if (after(mine->first_seq, seen->seq)) {
        /* Overtaken by a later packet: the first byte arrives only now. */
        mine->first_ns = now_ns;
        mine->first_seq = seen->seq;
    } else if (hook == HOOK_LO) {
        /* Held back by a reader that does not read is not a pause of the writer's. */
        if (now_ns - mine->last_ns >= GAP_NS) {
            if (window_limited(tp))
                emit_blocked_reader(conn, seen, mine->last_ns, now_ns);
            else if (mine->why == WHY_STARVED)
                emit_gap(conn, seen, mine->last_ns, now_ns, other->small_ns, HOOK_LO);
        }
    } else if (egress) {
        charge_pause(tp, seen, conn, mine, other, now_ns);
    }
    u32 log_seq = seen_seq && after(seen_seq, seen->seq) ? seen_seq : seen->seq;
    extend_burst(ctx, tp, seen, conn, mine, now_ns, log_seq, hook, egress);
    if (!egress) /* the end of a write is what can be seen here */
        mine->why = seen->flags & FLAG_PSH ? WHY_STARVED : WHY_QUEUE;
}
