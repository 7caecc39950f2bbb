"""What happens to a loop kernel's Program before a schedule is chosen, in order."""

from __future__ import annotations

from nestor.ir.program import Domain, Program
from nestor.passes.accumulations import recognize_accumulations
from nestor.passes.reassociation import shorten_recurrences
from nestor.passes.self_copies import drop_self_copies
from nestor.passes.separate_sums import separate_sums
from nestor.passes.split_statements import split_at_own_reads


def prepare_affine(program: Program, *, reassociate: bool) -> Program:
    """The Program that schedules are chosen for.

    Args: reassociate: whether rounding may change: sums in any order, constants inverted.
    """
    from nestor.passes.polyhedral.expansion import expand_arrays

    if reassociate:
        program = separate_sums(program)
        program = recognize_accumulations(program)
        program = shorten_recurrences(program)
    program = drop_self_copies(expand_arrays(program))
    return split_at_own_reads(program, is_empty)


def is_empty(program: Program, domain: Domain) -> bool:
    """Whether ``domain`` has no point for any sizes of ``program``."""
    from nestor.passes.polyhedral.model import domain_points

    return bool(domain_points(program, domain, domain.names).domain().is_empty())
