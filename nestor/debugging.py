"""``NESTOR_DEBUG``: write what a compilation did, stage by stage, into a folder of its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nestor.config import Config
from nestor.ir.loopnest import LoopNest
from nestor.ir.schedule import Schedule, schedule_to_json
from nestor.passes.nest import apply_schedule
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.compiler import CompiledProgram
    from nestor.gpu_program import GpuProgram
    from nestor.ir.program import Program
    from nestor.passes.pipeline import PassContext


def dump_compilation(
    compiled: CompiledProgram, context: PassContext, target: CpuTarget, config: Config
) -> Path | None:
    """Write the stages that ``config.debug`` asks for; None when it asks for nothing.

    ``passes``: the Program after each pass that changed it, and each decision with its reason.
    ``fusion``: refused fusions. ``schedule``: each kernel's Program, schedule and loop nest.
    ``legality``: time of each proof, and schedules that were refused. ``code``: LLVM IR.
    """
    if not config.debug:
        return None
    folder = _new_folder(config.debug_dir, compiled.main.name)
    if "passes" in config.debug:
        for number, (name, text) in enumerate(context.dumps):
            _write(folder / "passes" / f"{number:02d}_{name}.txt", text)
        _write(folder / "passes" / "log.txt", "\n".join(map(str, context.log)))
    if "fusion" in config.debug:
        _write(folder / "fusion.txt", "\n".join(compiled.refused_fusions))
    if "legality" in config.debug:
        _write(folder / "legality.json", json.dumps(_legality(compiled), indent=1))
    for number, (kernel, key) in enumerate(compiled.key_of.items()):
        _dump_kernel(folder / f"k{number}", kernel, key, compiled, target, config)
    return folder


def dump_gpu_compilation(program: GpuProgram, config: Config) -> Path | None:
    """As ``dump_compilation``, for a GPU: ``fusion``, ``schedule`` and ``code`` (of Triton)."""
    if not config.debug:
        return None
    folder = _new_folder(config.debug_dir, program.main.name)
    if "fusion" in config.debug:
        _write(folder / "fusion.txt", "\n".join(program.refused_fusions))
    for made in program.kernels.values():
        part = folder / made.name
        if "schedule" in config.debug:
            seconds = {"all": made.seconds}
            _dump_schedule(part, made.job.kernel, made.schedule, made.nest, seconds)
        if "code" in config.debug:
            _write(part / "kernel.py", made.triton.source)
    return folder


def _legality(compiled: CompiledProgram) -> dict[str, dict[str, object]]:
    return {
        f"k{number}": {
            "check_seconds": compiled.objects[key].seconds.get("check"),
            "refused": compiled.objects[key].refused,
        }
        for number, key in enumerate(compiled.key_of.values())
    }


def _dump_kernel(
    folder: Path,
    kernel: Program,
    key: str,
    compiled: CompiledProgram,
    target: CpuTarget,
    config: Config,
) -> None:
    made = compiled.objects[key]
    nest = apply_schedule(kernel, made.schedule)
    if "schedule" in config.debug:
        _dump_schedule(folder, kernel, made.schedule, nest, made.seconds)
    if "code" in config.debug:
        from nestor.codegen.llvm import emit_kernel

        _write(folder / "kernel.ll", emit_kernel(nest, target, function_name="kernel"))


def _dump_schedule(
    folder: Path,
    kernel: Program,
    schedule: Schedule,
    nest: LoopNest,
    seconds: Mapping[str, float],
) -> None:
    from nestor.ir.printer import print_nest, print_program

    _write(folder / "kernel.txt", print_program(kernel))
    _write(folder / "schedule.json", json.dumps(schedule_to_json(schedule), indent=1))
    _write(folder / "nest.txt", print_nest(nest))
    _write(folder / "seconds.json", json.dumps(dict(seconds)))


def _new_folder(parent: Path, name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = re.sub(r"[^\w.-]", "_", name) or "model"
    for number in range(1000):
        folder = parent / f"{base}-{stamp}{f'-{number}' if number else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"no free folder for '{base}' in {parent}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
