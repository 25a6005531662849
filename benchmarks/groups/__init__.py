"""The groups of cases, in the order in which they run: one file each, which says what is compared."""

from benchmarks.group import Group
from benchmarks.groups import (
    attach,
    checkpoint,
    compose,
    forward,
    graphs,
    host,
    merge,
    paper_claims,
    paper_latency,
    precision,
    rows,
    switch,
    threads,
    training,
)

GROUPS: tuple[Group, ...] = (
    attach.GROUP,
    switch.GROUP,
    host.GROUP,
    forward.GROUP,
    rows.GROUP,
    merge.GROUP,
    checkpoint.GROUP,
    precision.GROUP,
    compose.GROUP,
    training.GROUP,
    threads.GROUP,
    graphs.GROUP,
    paper_latency.GROUP,
    paper_claims.GROUP,
)
