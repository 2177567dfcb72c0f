/* SPDX-License-Identifier: Apache-2.0 */
/* Turns: who spoke when on a connection, small payloads included. Only where deployments are traced that ran
 * already: polls, heartbeats and the requests that fetch a message in parts are as small as control frames, and
 * bursts leave them out. */

#ifdef WATCH_TURNS
static inline void end_turn(struct conn *conn, struct speech *speech, u32 hook, u32 dir)
{
    if (!speech->first_ns)
        return;
    /* As with bursts: of two CPUs that end it in one moment, one gets it. */
    u64 first_ns = __sync_lock_test_and_set(&speech->first_ns, 0ULL), last_ns = speech->last_ns;
    if (unlikely(!first_ns))
        return;
    struct turn *event = reserve_point();
    if (event) {
        PREFIX(event, EVENT_TURN, last_ns > first_ns ? last_ns : first_ns, conn->id, conn->key.netns, speech->id);
        event->first_ns = first_ns;
        event->first_seq = speech->first_seq;
        event->end_seq = speech->end_seq;
        event->first_ack_us = speech->first_ack_us;
        event->last_ack_us = speech->last_ack_us;
        event->hook = hook;
        event->direction = dir;
        submit_point(event);
    }
}

/* Bytes up to `end_seq` that were not seen before, in one direction. */
static inline void speak(struct conn *conn, struct speech *mine, struct speech *other, u32 seq, u32 end_seq, u64 now_ns,
                         u32 hook, u32 dir, u64 id)
{
    end_turn(conn, other, hook, dir == DIR_TX ? DIR_RX : DIR_TX);
    if (mine->first_ns && now_ns > mine->last_ns && now_ns - mine->last_ns >= TURN_GAP_NS)
        end_turn(conn, mine, hook, dir);
    if (!mine->first_ns) {
        mine->first_ns = now_ns;
        mine->id = id;
        mine->first_ack_us = 0;
        mine->first_seq = seq;
        mine->end_seq = end_seq;
    }
    if (after(mine->first_seq, seq))
        mine->first_seq = seq;
    if (after(end_seq, mine->end_seq))
        mine->end_seq = end_seq;
    mine->last_ns = now_ns;
    mine->last_ack_us = 0;
}

/* An acknowledgement that arrived: the receiver's end has no probes of ours where it is on a machine of others. */
static inline void hear_ack(struct conn *conn, u32 ack)
{
    struct speech *mine = &conn->tx_speech;
    if (!mine->first_ns || mine->last_ack_us || !after(ack, mine->first_seq))
        return;
    u64 now_ns = bpf_ktime_get_ns();
    if (!mine->first_ack_us)
        mine->first_ack_us = (now_ns - mine->first_ns) / 1000 + 1;
    if (!after(mine->end_seq, ack))
        mine->last_ack_us = (now_ns - mine->last_ns) / 1000 + 1;
}

static inline void end_turns(struct conn *conn, u32 wire)
{
    end_turn(conn, &conn->tx_speech, wire, DIR_TX);
    end_turn(conn, &conn->rx_speech, wire, DIR_RX);
    end_turn(conn, &conn->sock_tx_speech, HOOK_SOCK, DIR_TX);
    end_turn(conn, &conn->sock_rx_speech, HOOK_SOCK, DIR_RX);
}

#define SPEAK_ON_WIRE(conn, seen, now_ns, hook) ({ \
    int tx_ = (seen)->dir == DIR_TX; \
    u32 end_seq_ = (seen)->seq + (seen)->payload_bytes; \
    speak(conn, tx_ ? &(conn)->tx_speech : &(conn)->rx_speech, tx_ ? &(conn)->rx_speech : &(conn)->tx_speech, \
          (seen)->seq, end_seq_, now_ns, hook, (seen)->dir, 0); \
})
#endif
