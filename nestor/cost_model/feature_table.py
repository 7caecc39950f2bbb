"""The features of a scheduled kernel: names, units, meanings. Their order is the vector's.

Wide spans are logarithms, ``log2(1 + x)``, named with the unit of ``x``. A change of any entry, or
of what one means, takes a new ``FEATURES_VERSION``: ensembles name the version they were made for.
"""

from __future__ import annotations

from dataclasses import dataclass

FEATURES_VERSION = 3


@dataclass(frozen=True, slots=True)
class Feature:
    """One entry of the vector.

    Attributes: unit: of the value, ``log2 x`` where it is a logarithm. meaning: in one line.
    """

    name: str
    unit: str
    meaning: str


def table(text: str, prefix: str = "", about: str = "") -> tuple[Feature, ...]:
    """Features of ``name | unit | meaning``, one a line."""
    out = []
    for row in text.strip().splitlines():
        name, unit, meaning = (x.strip() for x in row.split("|"))
        out.append(Feature(f"{prefix}{name}", unit, f"{about}{meaning}"))
    return tuple(out)


TARGET_FEATURES = table(
    """
    threads             | count          | threads that run the kernel, no more than there are cores
    vector_bits         | bits           | width of a vector register
    vector_registers    | count          | vector registers
    fma_bits            | bits per cycle | width of multiply-adds that one core starts
    l1d                 | log2 bytes     | first-level data cache of a core
    l2                  | log2 bytes     | second-level cache of a core
    l3                  | log2 bytes     | last-level cache
    """
)

KERNEL_FEATURES = table(
    """
    statements          | count          | statements in the kernel
    instances           | log2 instances | of all statements
    op_fma              | log2 ops       | multiply-adds
    op_add              | log2 ops       | floating-point additions, minima, maxima, roundings
    op_mul              | log2 ops       | floating-point products
    op_div              | log2 ops       | divisions, square roots, remainders
    op_transcendental   | log2 ops       | elementary functions
    op_integer          | log2 ops       | integer arithmetic
    op_select           | log2 ops       | comparisons and selections
    op_convert          | log2 ops       | casts between types
    element             | bytes          | widest element of the main statement
    compulsory          | log2 bytes     | tensors shared with other kernels, once
    input_bytes         | log2 bytes     | inputs and states
    parameter_bytes     | log2 bytes     | parameters and constants
    output_bytes        | log2 bytes     | outputs
    intensity           | log2 ops/byte  | floating-point operations for a compulsory byte
    roofline            | log2 ns        | least time by arithmetic and compulsory bytes
    roofline_balance    | log2 ratio     | least time by arithmetic over that by bytes
    """
)

SCHEDULE_FEATURES = table(
    """
    loops               | count          | different loops
    estimate            | log2 ratio     | the analytical estimate over the roofline
    core                | log2 ratio     | time of instructions, tile by tile, over the roofline
    thrash              | log2 ratio     | time of loads whose lines push each other out, likewise
    compute             | log2 ratio     | time of the arithmetic as vectorised over the roofline
    latency             | log2 ratio     | time of chains of dependent updates over the roofline
    l1_time             | log2 ratio     | time of loads and stores over the roofline
    l2_time             | log2 ratio     | time of what crosses into the first level, likewise
    l3_time             | log2 ratio     | time of what crosses into the second level
    memory_time         | log2 ratio     | time of what crosses into the last level
    overhead            | log2 ratio     | time of loop control over the roofline
    l1_bytes            | log2 bytes     | loads and stores
    l2_bytes            | log2 bytes     | that cross into the first-level cache
    l3_bytes            | log2 bytes     | that cross into the second-level cache
    memory_bytes        | log2 bytes     | that cross into the last-level cache
    l2_reuse            | log2 ratio     | bytes into the first-level cache over compulsory ones
    l3_reuse            | log2 ratio     | bytes into the second-level cache over compulsory ones
    memory_reuse        | log2 ratio     | bytes into the last-level cache over compulsory ones
    inner_iterations    | log2 count     | runs of all innermost bodies
    kept_registers      | log2 bytes     | temporaries in registers
    kept_local          | log2 bytes     | temporaries in local buffers
    memory_temps        | log2 bytes     | temporaries that stay in memory
    packed              | log2 bytes     | parameters that the schedule packs
    padding             | ratio          | share of packed parameters that is padding
    parallel            | log2 count     | parallel iterations of the main statement
    imbalance           | ratio          | the busiest thread's share over an even one
    grain               | log2 ns        | estimated work of one parallel iteration
    regions             | log2 count     | times that threads start and meet
    serial_share        | ratio          | estimated work outside parallel loops
    thread_bytes        | log2 bytes     | that one thread touches
    thread_in_l2        | log2 ratio     | that one thread touches over the second-level cache
    overlap             | ratio          | bytes touched by threads each over those touched by all
    write_run           | log2 bytes     | contiguous stores of one thread of the main statement
    """
)

_STATEMENT = """
    share               | ratio          | of the kernel's estimated arithmetic and loads
    instances           | log2 instances | it runs
    slots               | slots          | vector instructions for one vector of instances
    reduced             | log2 count     | instances that make one result
    density             | ratio          | share of its box of indices that is in the domain
    depth               | count          | loops around it
    lanes               | count          | elements of a vector register
    vector_extent       | log2 count     | iterations of its vector loop
    efficiency          | ratio          | of lanes in use, over all vectors
    vector_loop_reduced | flag           | its vector loop holds lanes of a split reduction
    masked              | flag           | an access of it has a predicate
    body_ops            | log2 count     | vector operations of one run of the body, per op
    body_code           | log2 count     | instructions of the body: operations, loads, stores
    unrolled_around     | log2 count     | copies of the body that unrolled loops further out make
    unroll_tail         | ratio          | share of the unrolled iterations that tails leave out
    accumulators        | log2 count     | registers of its reduction's state
    spilled             | ratio          | share of that state that is in memory, not in registers
    pressure            | ratio          | accumulators and reused operands over registers
    loads_per_op        | ratio          | loads and stores in the body for a vector operation
    unit                | ratio          | share of the body's accesses that are contiguous vectors
    broadcast           | ratio          | that one element serves
    strided             | ratio          | of lanes that lie apart
    gather              | ratio          | whose lanes jump
    first_stride        | log2 bytes     | greatest stride along the vector loop
    inner_trip          | log2 count     | iterations of the loop around the body
    inner_reduced       | flag           | that loop is reduced
    inner_stride        | log2 bytes     | greatest stride along the loop around the body
    second_trip         | log2 count     | iterations of the loop around that
    second_reduced      | flag           | that loop is reduced
    second_stride       | log2 bytes     | greatest stride along it
    third_trip          | log2 count     | iterations of the next loop
    blocked_sum         | flag           | its sum is taken in blocks
    state_scope         | code           | of its sum: 0 none, 1 memory or local, 2 register
    ws_body             | log2 bytes     | working set of one body
    ws_inner            | log2 bytes     | of the loop around the body
    ws_second           | log2 bytes     | of the loop around that
    ws_third            | log2 bytes     | of the next
    ws_fourth           | log2 bytes     | of the next
    fits_l1             | log2 count     | iterations inside the outermost loop that the L1 holds
    fits_l2             | log2 count     | iterations inside the outermost loop that the L2 holds
    l2_per_op           | bytes          | that cross into the first level for a vector operation
    l3_per_op           | bytes          | that cross into the second level for a vector operation
    memory_per_op       | bytes          | that cross into the last level for a vector operation
    conflicts           | log2 count     | lines of a stream in one set of the first level
    streams             | count          | different streams through memory
    pages_inner         | log2 count     | pages that the loop around the body touches
    pages_second        | log2 count     | pages that the loop around that touches
    rows                | log2 count     | unrolled iterations of the body apart from vectors
    columns             | log2 count     | registers along the vectors' index in the body
"""

MAIN_FEATURES = table(_STATEMENT, "main_", "the dominant statement: ")
SECOND_FEATURES = table(
    "\n".join(
        row
        for row in _STATEMENT.splitlines()
        if row.split("|")[0].strip()
        in (
            "share instances slots reduced efficiency vector_extent body_ops pressure loads_per_op "
            "unit strided inner_trip l2_per_op l3_per_op"
        ).split()
    ),
    "second_",
    "the next statement by work: ",
)

FEATURES: tuple[Feature, ...] = (
    *TARGET_FEATURES,
    *KERNEL_FEATURES,
    *SCHEDULE_FEATURES,
    *MAIN_FEATURES,
    *SECOND_FEATURES,
)
FEATURE_NAMES: tuple[str, ...] = tuple(f.name for f in FEATURES)
