"""Fair shares of tenants: each sequence gets a virtual start time, and the earlier one comes first.

Start-time fair queueing (Goyal, Vin and Cheng, "Start-time Fair Queueing: A Scheduling Algorithm for
Integrated Services Packet Switching Networks", 1996), with tokens in place of bits as in the Virtual Token
Counter (Sheng et al., "Fairness in Serving Large Language Models", 2024):

    start of a sequence  = finish of the tenant's sequence before it
                           or, if its tenant had none waiting, max(that, virtual time)
    finish of a sequence = start + (tokens of the prompt + tokens that it may generate) / weight
    virtual time         = min over running sequences of (start + computed tokens / weight)

Sequences are charged for all that they may generate when they come. Where one ends earlier, its tenant's
later ones start earlier by as much. Sequences without a tenant start at 0.
"""

import attrs

from .sequence import Sequence, State


def _cost(sequence: Sequence) -> float:
    return (len(sequence.prompt) + sequence.max_new_tokens) / sequence.weight


def _unspent(sequence: Sequence) -> float:
    """Return the part of the cost that a sequence that ends now has not used."""
    if not sequence.admitted:
        return _cost(sequence)
    return (sequence.max_new_tokens - sequence.generated + sequence.cached) / sequence.weight


@attrs.define(eq=False)
class Tenant:
    """A client that has a share."""

    finish: float = 0.0
    """Virtual time at which the last of its sequences is to end."""
    sequences: list[Sequence] = attrs.field(factory=list)
    """Sequences that wait or run, in no particular order."""
    running: int = 0


@attrs.define(eq=False)
class FairQueue:
    """Virtual starts of the sequences of all tenants. `Schedule` orders its lists by them."""

    time: float = 0.0
    """Virtual time, which never goes back while there is work."""
    tenants: dict[str, Tenant] = attrs.field(factory=dict)

    def enter(self, sequence: Sequence) -> bool:
        """Set the virtual start of a new sequence; return whether others start at another time now.

        A tenant's own sequences are ordered by priority, those that have not run yet.
        """
        running = [s for one in self.tenants.values() for s in one.sequences if s.state is State.RUNNING]
        self.time = max(self.time, min([s.progress() for s in running], default=self.time))
        if sequence.tenant not in self.tenants:
            self.tenants = {name: one for name, one in self.tenants.items() if self._matters(one)}
        tenant = self.tenants.setdefault(sequence.tenant, Tenant())
        waiting = [one for one in tenant.sequences if not one.admitted]
        if not waiting:
            tenant.finish = max(tenant.finish, self.time)
        later = [one for one in waiting if one.priority > sequence.priority]
        sequence.virtual_start = min([tenant.finish, *(one.virtual_start for one in later)])
        self._shift(tenant, later, _cost(sequence))
        tenant.sequences.append(sequence)
        return bool(later)

    def leave(self, sequence: Sequence) -> bool:
        """Forget a sequence that has ended; return whether others start at another time now."""
        tenant = self.tenants[sequence.tenant]
        tenant.sequences.remove(sequence)
        later = [one for one in tenant.sequences if one.place() > sequence.place()]
        self._shift(tenant, later, -_unspent(sequence))
        if not any(one.sequences for one in self.tenants.values()):
            self.tenants.clear()
            self.time = 0.0
        return bool(later)

    def yields(self, running: Sequence, waiting: Sequence) -> bool:
        """Return whether a running sequence should make way for another tenant's that comes before it.

        It should if its tenant has more than its share, compared with the other's, also afterwards. So
        tenants that take turns never take each other's places for ever.
        """
        theirs, ours = self.tenants[running.tenant], self.tenants[waiting.tenant]
        return (theirs.running - 1) / running.weight >= (ours.running + 1) / waiting.weight

    def _matters(self, tenant: Tenant) -> bool:
        return bool(tenant.sequences) or tenant.finish > self.time

    def _shift(self, tenant: Tenant, sequences: list[Sequence], by: float) -> None:
        tenant.finish += by
        for sequence in sequences:
            sequence.virtual_start += by
