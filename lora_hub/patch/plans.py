"""The plans and tables of one model that are kept, since the same choices come again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_hub.patch.choice import Choice
from lora_hub.patch.plan import Plan, make_plan
from lora_hub.patch.state import State
from lora_hub.patch.table import Table

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter

_PLANS = 64  # for all rows alike
_TABLES = 2  # for routes
_SPARE = 2  # how many choices a table may have, for each that a route needs


class Plans:
    """What was made of earlier choices. Threads may call at once: at worst one makes what another made already."""

    def __init__(self) -> None:
        self._plans: dict[tuple[tuple[str, float], ...], Plan] = {}
        self._tables: tuple[Table, ...] = ()

    def __reduce__(self) -> tuple[type[Plans], tuple[()]]:
        return Plans, ()  # what is kept for speed is neither copied nor written down

    def make(self, state: State, choice: Choice) -> Plan:
        """Return a plan of *choice* for *state*; raise `StateError` if it cannot run."""
        others = {name for name, handle in choice.meant.items() if state.handles.get(name) is not handle}
        handles = state.handles
        if others:
            handles = {name: handle for name, handle in handles.items() if name not in others}
        if len(choice.rows) > 1:
            plan = make_plan(handles, state.merged, choice.sums, choice.rows)
            if len(plan.rows) > 1 and not any(handle.trainable for handle in plan.handles):
                plan.use_table(self._table_for(plan, handles))
            return plan
        return self._same_for_all(state, handles, choice.sums[0])

    def forget(self, handle: AppliedAdapter) -> None:
        """Keep nothing of *handle*."""
        self._plans = {key: plan for key, plan in self._plans.items() if handle not in plan.handles}
        self._tables = tuple(table for table in self._tables if handle not in table.handles)

    def _same_for_all(self, state: State, handles: Mapping[str, AppliedAdapter], weights: Mapping[str, float]) -> Plan:
        key = tuple(weights.items())
        kept = self._plans.get(key)
        if kept is not None and kept.holds(handles, state.merged):
            return kept
        plan = make_plan(handles, state.merged, [weights])
        # A new dict, so that a thread that looks into the old one sees it whole.
        self._plans = dict([*self._plans.items(), (key, plan)][-_PLANS:])
        return plan

    def _table_for(self, plan: Plan, handles: Mapping[str, AppliedAdapter]) -> Table:
        """Return a table that has the choices of *plan* and not many others; routes to come will find it."""
        tables = [table for table in self._tables if table.holds(handles)]
        wanted = dict.fromkeys(plan.sums)
        for table in tables:
            if wanted.keys() <= table.number_of.keys() and len(table.sums) <= _SPARE * len(wanted):
                return table
        also = tables[0].sums if tables and len(wanted.keys() | tables[0].number_of) <= _SPARE * len(wanted) else ()
        table = Table((*wanted, *also))
        self._tables = (table, *tables)[:_TABLES]
        return table
