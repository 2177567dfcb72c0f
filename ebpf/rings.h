/* SPDX-License-Identifier: Apache-2.0 */
/* Writing records into the ring buffers: room, what every event begins with, and handing over. */

/* Room for a record in each ring, counted whether there is any or not, and handing it over. The kinds of a ring
 * have one size. (BCC takes a map's functions outside macros only, and by the map's own name.) */
_Static_assert(sizeof(struct dns) == sizeof(struct packet), "one size a ring");
_Static_assert(sizeof(struct state_change) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct retransmission) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct duplicate_ack) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct blocked_reader) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct cpu_wait) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct process_start) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct module_load) == sizeof(struct gap), "one size a ring");
_Static_assert(sizeof(struct turn) == sizeof(struct gap), "one size a ring");

static inline void *reserve_burst(void)
{
    count(TRIED);
    void *event = bursts.ringbuf_reserve(sizeof(struct burst));
    if (!event)
        count(LOSS_BURSTS);
    return event;
}

static inline void submit_burst(void *event)
{
    bursts.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline void *reserve_packet(void)
{
    count(TRIED);
    void *event = packets.ringbuf_reserve(sizeof(struct packet));
    if (!event)
        count(LOSS_PACKETS);
    return event;
}

static inline void submit_packet(void *event)
{
    packets.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline void *reserve_connection(void)
{
    count(TRIED);
    void *event = connections.ringbuf_reserve(sizeof(struct connection));
    if (!event)
        count(LOSS_CONNECTIONS);
    return event;
}

static inline void submit_connection(void *event)
{
    connections.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline void *reserve_drop(void)
{
    count(TRIED);
    void *event = drops.ringbuf_reserve(sizeof(struct drop));
    if (!event)
        count(LOSS_DROPS);
    return event;
}

static inline void submit_drop(void *event)
{
    drops.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

static inline void *reserve_point(void)
{
    count(TRIED);
    void *event = points.ringbuf_reserve(sizeof(struct gap));
    if (!event)
        count(LOSS_POINTS);
    return event;
}

static inline void submit_point(void *event)
{
    points.ringbuf_submit(event, RINGBUF_FLAGS);
    count(EMITTED);
}

/* What every event begins with; `id`: bpf_get_current_pid_tgid's, or 0. */
#define PREFIX(event, what, when_ns, conn_id, ns, id) ({ \
    (event)->ts_ns = when_ns; \
    (event)->connection = conn_id; \
    (event)->netns = ns; \
    (event)->tid = id; \
    (event)->tgid = (u64)(id) >> 32; \
    (event)->kind = what; \
})
