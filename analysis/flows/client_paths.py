"""A client's way through one phase of a round: server, hub, node, task and back, hop by hop.

A *phase* begins when the server sends models and ends when it sends the next ones, or with the round:
training is one, an evaluation by the clients another. Whoever holds the message owns the time until it moves
on: on loopback or not, through as many processes as there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from analysis.flows.client_path import ClientPath
from analysis.flows.copies import Copy, Phase, Update, copies_of, taken_of
from analysis.flows.exchanges import SAME_KIND_BYTES, TRAILING_NS, Exchange, Handed, in_vain_bytes
from analysis.flows.hops import Talk, hop_segments
from analysis.flows.phases import came_at, phases_of, preparation
from analysis.flows.processes import Process, Processes
from analysis.flows.roles import Parts
from analysis.flows.turns import Channel, Turn
from analysis.intervals import Segment

__all__ = ("ClientPaths", "Phase")

# An answer that takes longer was held back until there was something to say.
_LONG_POLL_NS = 200_000_000
# Who hands an update to its node asks one thing after the other; what it said longer before was a heartbeat.
_HANDING_PAUSE_NS = 100_000_000
# Code is loaded with pauses, for what runs as it is imported.
_LOADS_ON_NS = 3_000_000_000
_NOTEWORTHY_NS = 20_000_000


class ClientPaths:
    """Of one run."""

    def __init__(self, parts: Parts, channels: Sequence[Channel], processes: Processes) -> None:
        self.parts = parts
        self._processes = processes
        self._server = frozenset((parts.server,))
        self._edge = frozenset((parts.edge,))
        self.clients = tuple(parts.nodes)
        self._at_edge = {
            client: Talk.between(channels, self._edge, nodes) for client, nodes in parts.nodes.items()
        }
        self._inside = {
            client: Talk.between(channels, parts.nodes[client], parts.tasks.get(client, frozenset()))
            for client in self.clients
        }
        self._came_ns = {name: came_at(channels, self._edge, nodes) for name, nodes in parts.nodes.items()}
        lone = sorted(
            size for client, nodes in parts.nodes.items() for size in self._at_edge[client].lone_bytes(nodes)
        )
        # Of heartbeats, which all clients send alike.
        self._aside_bytes = [less for less, more in pairwise(lone) if more - less <= SAME_KIND_BYTES]
        self._at_server = Talk.between(channels, self._server, self._edge) if parts.hub is not None else None
        # Of an answer that says no.
        self._no_bytes = in_vain_bytes(self._at_server.polls(self._server)) if self._at_server else 0
        # What a task's starter asked its node, before it started it.
        self._channels = channels

    def phases(self, start_ns: int, end_ns: int, ready_ns: int = 0) -> list[Phase]:
        """Of one round.

        :param ready_ns: when the application said that the first model could be had; 0: it did not say.
        """
        return phases_of(self.parts, self._at_server, self._at_edge, start_ns, end_ns, ready_ns)

    def of_phase(self, phase: Phase) -> dict[str, ClientPath]:
        """Every client's way, by client."""
        ways = {client: ClientPath(client) for client in self.clients}
        pulled = {
            client: self._at_edge[client].large(self._edge, phase.sent[0].first_ns, phase.end_ns)
            for client in self.clients
        }
        copies = self._copies(phase, pulled)
        handed: dict[str, Handed] = {}
        for client, way in ways.items():
            found = self._to_edge(way, phase, pulled[client], copies.get(client))
            if found is not None:
                handed[client] = found
        self._to_server(ways, handed, phase)
        for way in ways.values():
            if way.arrival_ns is not None:
                way.arrival_ns = min(way.arrival_ns, phase.end_ns)
                way.base.insert(0, Segment(way.arrival_ns, phase.end_ns, "server"))
        return ways

    def _copies(self, phase: Phase, pulled: Mapping[str, Sequence[Turn]]) -> dict[str, Copy]:
        """The models in the hub by whose they are; what is small of them comes behind the last."""
        if self._at_server is None:
            return {}
        found = copies_of(phase, pulled, self._at_edge)
        last_ns = max((copy.had_ns for copy in found.values()), default=0)
        whole = self._at_server.handed(
            phase.sent[-1], max(last_ns, phase.sent[-1].had_ns), pause_ns=TRAILING_NS
        )
        return {
            client: Copy(copy.first_ns, *whole) if copy.had_ns == last_ns else copy
            for client, copy in found.items()
        }

    def _to_edge(
        self, way: ClientPath, phase: Phase, pulled: Sequence[Turn], copy: Copy | None
    ) -> Handed | None:
        """From the server's preparation to the hub's (or server's) receipt of the update; when that was."""
        talk, nodes = self._at_edge[way.client], self.parts.nodes[way.client]
        holder = "store_and_forward" if self.parts.hub is not None else "server"
        available_ns = phase.start_ns
        if copy is not None:
            available_ns = self._to_hub(way, phase, copy, pulled)
        if not pulled:
            return None
        updates = talk.large(nodes, pulled[0].first_ns, phase.end_ns)
        models = [turn for turn in pulled if not updates or turn.first_ns < updates[0].first_ns]
        way.turns += [*models, *updates]
        way.has_update = bool(updates)
        way.message_bytes = sum(turn.bytes for turn in models)
        if self.parts.hub is None:
            came_ns = self._came_ns[way.client]
            available_ns = max(came_ns, self._available_ns(way.client, phase, models[0]))
            way.base[:0] = preparation(phase, available_ns, came_ns)
        self._fetch(way, talk, models, available_ns, holder)
        polls = talk.polls(nodes)
        had_ns = self._read_ns(way, talk, models, holder, polls)
        if self.parts.tasks.get(way.client):
            had_ns = self._task(way, phase, models, had_ns or 0)
            unasked = "store_and_forward"
        elif any(node.is_watched for node in nodes):
            unasked = "compute"
        else:
            unasked = "client_and_return_path"
        if had_ns is None:
            return None
        if updates:
            began_ns = talk.fetch_began_ns(updates[0], had_ns, talk.asides(nodes))
            # A hub has it with the small parts behind it; a server is asked for the next one at once.
            if self.parts.hub is not None:
                handed = talk.handed(updates[-1], max(one.had_ns for one in updates), self._aside_bytes)
            else:
                end_ns = talk.over_ns(updates[-1], max(turn.whole_ns for turn in updates), polls)
                handed = Handed(end_ns, end_ns)
        elif (told := talk.reply(nodes, had_ns, phase.end_ns)) is not None:
            began_ns, handed = told.first_ns, talk.handed(told, told.had_ns, self._aside_bytes)
        else:
            return None
        way.handing_ns, way.handed_ns = began_ns, handed.had_ns
        way.base.insert(0, Segment(had_ns, began_ns, unasked))
        if unasked == "compute":
            way.compute = (had_ns, began_ns)
        end_ns = handed.had_ns
        way.base[:0] = hop_segments(
            talk.during(began_ns, end_ns), began_ns, end_ns, asked=holder, unasked=unasked
        )
        if self.parts.hub is None:
            way.arrival_ns = end_ns
        return handed

    def _to_hub(self, way: ClientPath, phase: Phase, copy: Copy, pulled: Sequence[Turn]) -> int:
        """From the server's preparation to the model that could be had of the hub; when that was."""
        assert self._at_server is not None
        way.base[:0] = [
            *hop_segments(
                self._at_server.during(copy.first_ns, copy.had_ns),
                copy.first_ns,
                copy.had_ns,
                asked="store_and_forward",
                unasked="server",
            ),
            Segment(phase.start_ns, copy.first_ns, "server"),
        ]
        if not copy.stored_ns or not pulled:
            return copy.had_ns
        return way.could_be_had_ns(Handed(copy.had_ns, copy.stored_ns), pulled[0].first_ns)

    def _available_ns(self, client: str, phase: Phase, first: Turn) -> int:
        """From when on a client could have had a model of a server that it speaks with itself.

        Known where the application says it, and of interest where the client polls. Otherwise it is when the
        first of it left: what came before was the server's.
        """
        known = phase.start_ns <= phase.ready_ns <= first.first_ns
        polls = known and self._at_edge[client].fetches_by_polls(self.parts.nodes[client])
        return phase.ready_ns if polls else first.first_ns

    def _read_ns(
        self, way: ClientPath, talk: Talk, parts: Sequence[Turn], holder: str, polls: Sequence[Exchange]
    ) -> int | None:
        """When a message had been read with all that belongs to it and came behind it."""
        arrived_ns = max(turn.whole_ns for turn in parts)
        read_ns = talk.over_ns(parts[-1], max(turn.had_ns for turn in parts), polls)
        way.base[:0] = hop_segments(
            talk.during(arrived_ns, read_ns), arrived_ns, read_ns, asked=holder, unasked="transmission"
        )
        return read_ns

    def _fetch(
        self, way: ClientPath, talk: Talk, parts: Sequence[Turn], available_ns: int, holder: str
    ) -> None:
        """A message from one that holds it to one that asks for it (or is sent it unasked)."""
        end_ns = max(turn.whole_ns for turn in parts)
        if parts[0].asks:  # the holder opened the connection: nobody need ask
            began_ns, unasked = available_ns, holder
        else:
            askers = frozenset(turn.listener for turn in parts)
            beside = talk.heartbeats(askers, self._aside_bytes)
            began_ns = talk.fetch_began_ns(parts[0], available_ns, beside, askers)
            unasked = "poll_wait"
        way.base[:0] = [
            *hop_segments(talk.during(began_ns, end_ns), began_ns, end_ns, asked=holder, unasked=unasked),
            Segment(available_ns, began_ns, unasked),
        ]

    def _task(self, way: ClientPath, phase: Phase, models: Sequence[Turn], had_ns: int) -> int | None:
        """From the node's receipt of the model through a task's process and back; when the node had the
        update."""
        talk, nodes = self._inside[way.client], self.parts.nodes[way.client]
        given = talk.large(nodes, models[0].first_ns, phase.end_ns)
        if not given:
            return None
        task = given[0].listener
        updates = talk.large(frozenset((task,)), given[0].first_ns, phase.end_ns)
        given = [
            turn
            for turn in given
            if turn.listener == task and (not updates or turn.first_ns < updates[0].first_ns)
        ]
        started_ns = task.forked_ns
        if models[0].first_ns <= started_ns <= given[0].first_ns:
            self._start(way, task, had_ns, started_ns)
            end_ns = max(turn.whole_ns for turn in given)
            way.base[:0] = [
                Segment(started_ns, given[0].arrived_ns, "task_start"),
                *hop_segments(
                    talk.during(given[0].first_ns, end_ns),
                    given[0].first_ns,
                    end_ns,
                    asked="store_and_forward",
                    unasked="poll_wait",
                ),
            ]
        else:
            self._fetch(way, talk, given, had_ns, "store_and_forward")
        read_ns = talk.over_ns(given[-1], max(turn.whole_ns for turn in given))
        if updates:
            began_ns = talk.fetch_began_ns(updates[0], read_ns, pause_ns=_HANDING_PAUSE_NS)
            end_ns = talk.over_ns(updates[-1], max(turn.had_ns for turn in updates))
        elif (said := talk.last_words(task, read_ns, phase.end_ns)) is not None:
            began_ns, end_ns = said
        else:
            return None
        ready_ns = self._loaded_ns(way, task, read_ns, began_ns)
        way.compute = (ready_ns, began_ns)
        way.base[:0] = [
            Segment(read_ns, ready_ns, "task_start"),
            *hop_segments(
                talk.during(began_ns, end_ns), began_ns, end_ns, asked="store_and_forward", unasked="compute"
            ),
            Segment(read_ns, began_ns, "compute"),
        ]
        return end_ns

    def _loaded_ns(self, way: ClientPath, task: Process, read_ns: int, began_ns: int) -> int:
        """When a process that was started for the task had loaded what it needs: some do once they have read.

        What it works with is its own program, which it opens last before it begins; libraries that are loaded
        after that belong to the work. Without a program of its own, all of it is the start.
        """
        if not task.forked_ns:
            return read_ns
        loads = self._processes.loading(task, began_ns)
        way.imports = [(load.first_ns, load.last_ns) for load in loads]
        # What comes before it opens its own program is the start, however long the pauses in it.
        own = [load for load in loads if load.own_ns]
        is_open = not own or own[0].own_ns <= read_ns
        ready_ns, own_ns = read_ns if is_open else max(read_ns, own[0].first_ns), 0
        for load in loads:
            if load.first_ns - ready_ns > _LOADS_ON_NS:
                break
            own_ns = max(own_ns, load.own_ns)
            ready_ns = max(ready_ns, min(load.last_ns, began_ns))
        if own_ns > read_ns:
            return min(own_ns, began_ns)
        way.loads_late = ready_ns - read_ns > _NOTEWORTHY_NS
        return ready_ns

    def _start(self, way: ClientPath, task: Process, had_ns: int, started_ns: int) -> None:
        """From the node's receipt of a model to the start of a process for it."""
        nodes = self.parts.nodes[way.client]
        if any(task.parent == node.pid for node in nodes):
            way.base.insert(0, Segment(had_ns, started_ns, "store_and_forward"))
            return
        starters = frozenset(
            turn.speaker
            for channel in self._channels
            for turn in channel.turns
            if turn.speaker.pid == task.parent and turn.listener in nodes
        )
        asked = Talk.between(self._channels, starters, nodes).within(had_ns, started_ns)
        if asked:
            way.base[:0] = hop_segments(
                asked[-1:],
                asked[-1].begun_ns,
                max(asked[-1].over_ns, asked[-1].begun_ns),
                asked="store_and_forward",
                unasked="poll_wait",
            )
            way.base.insert(0, Segment(had_ns, asked[-1].begun_ns, "poll_wait"))

    def _to_server(self, ways: dict[str, ClientPath], handed: dict[str, Handed], phase: Phase) -> None:
        """From the hub to the server: what came first goes first."""
        if self._at_server is None:
            return
        parts = self._at_server.large(self._edge, phase.sent[0].first_ns, phase.end_ns)
        updates = {
            client: [turn for turn in ways[client].turns if turn.speaker in self.parts.nodes[client]]
            for client in handed
        }
        asked = self._at_server.after_pauses(self._server, phase.start_ns, phase.end_ns)
        polls_ns = [one.begun_ns for one in asked]
        found = taken_of(
            parts,
            {
                client: Update(ways[client].handing_ns, handed[client].had_ns, tuple(turns))
                for client, turns in updates.items()
                if turns
            },
            polls_ns,
            self._at_server.asked_again(self._server, phase.start_ns, phase.end_ns),
        )
        for client, way in ways.items():
            if client not in handed:
                continue
            if not updates[client]:
                self._small_to_server(way, handed[client], phase)
            if (mine := found.get(client)) is not None:
                way.turns += mine
                available_ns = way.could_be_had_ns(handed[client], mine[0].first_ns)
                self._fetch(way, self._at_server, mine, available_ns, "store_and_forward")
                way.arrival_ns = max(handed[client].had_ns, *(turn.whole_ns for turn in mine))

    def _small_to_server(self, way: ClientPath, handed: Handed, phase: Phase) -> None:
        """A result that is no message: whatever the server asks for next brings it."""
        assert self._at_server is not None
        had_ns = handed.had_ns
        answered = [
            exchange
            for exchange in self._at_server.after_pauses(self._server, phase.start_ns, phase.end_ns)
            if exchange.request is not None
            and exchange.answer is not None
            and exchange.answer.first_ns >= had_ns
            # Asked after that, or waiting since before; what was just being answered was too late.
            and (exchange.request.whole_ns >= had_ns or exchange.waited_ns > _LONG_POLL_NS)
        ]
        told = [one for one in answered if one.answer and one.answer.bytes > self._no_bytes + SAME_KIND_BYTES]
        pending = told or answered
        if not pending:
            return
        answer = pending[0].answer
        assert answer is not None
        available_ns = way.could_be_had_ns(handed, answer.first_ns)
        began_ns = max(available_ns, pending[0].begun_ns)
        end_ns = self._at_server.over_ns(answer, answer.whole_ns)
        way.base[:0] = [
            *hop_segments(
                self._at_server.during(began_ns, end_ns),
                began_ns,
                end_ns,
                asked="store_and_forward",
                unasked="poll_wait",
            ),
            Segment(available_ns, began_ns, "poll_wait"),
        ]
        way.arrival_ns = end_ns
