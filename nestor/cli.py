"""The ``nestor`` command: ``compile``, ``run``, ``bench``, ``explain``, ``cache``, ``doctor``.

Built on ``argparse``, because ``nestor run`` and ``nestor doctor`` must work where only Python and
NumPy are installed. Tables go to standard output, progress and errors to standard error. Exit
status: 0 done, 1 a check of ``doctor`` failed, 2 something given is wrong, 3 not supported yet,
4 a fault of Nestor's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from nestor.cli_cache_parser import add_cache_commands
from nestor.config import Config
from nestor.errors import InternalError, NestorError, Unsupported, UserError

EXIT_USER, EXIT_UNSUPPORTED, EXIT_INTERNAL = 2, 3, 4

Handler = Callable[[argparse.Namespace, Config], int]

_MODEL_HELP = (
    "FILE.pt2 (a saved torch.export program), FILE.py:function or package.module:function; the "
    "function takes no arguments and returns (model, example_inputs), and as a third, optional "
    "item the dynamic_shapes for nestor.compile"
)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors point to an example."""

    def error(self, message: str) -> NoReturn:
        example = (self.epilog or "").strip().splitlines()
        hint = f"\n  {example[-1].strip()}" if example else ""
        self.exit(EXIT_USER, f"{self.prog}: {message}\n  see {self.prog} --help{hint}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each subcommand sets ``handler``."""
    parser = _Parser(
        prog="nestor",
        description="Compile PyTorch models to native code.",
        epilog="example:\n  nestor compile net.py:make -o net.nst",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=_Parser
    )
    _add_compile(commands)
    _add_run(commands)
    _add_bench(commands)
    _add_tune(commands)
    _add_train(commands)
    _add_explain(commands)
    _add_cache(commands)
    _add_doctor(commands)
    return parser


_Commands = argparse._SubParsersAction


def _add(commands: _Commands[_Parser], name: str, about: str, example: str) -> _Parser:
    parser = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _add_compile(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "compile",
        "compile a model into an artifact: one file that runs without PyTorch or a compiler",
        "nestor compile net.py:make -o net.nst",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="artifact to write")
    parser.add_argument(
        "--target",
        help="CPU to compile for (default: native, this machine's), or GPUs: sm_80,sm_90; auto: "
        "the GPU that the inputs lie on if there is code for it, else this CPU",
    )
    parser.add_argument("--threads", help="threads of a call (default: one a core)")
    parser.add_argument("--schedules", action="store_true", help="show each kernel's schedule too")
    parser.set_defaults(handler="nestor.cli_commands:compile_command")


def _add_run(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "run",
        "run an artifact or a model once on given inputs",
        "nestor run net.nst --input x.npy --output y.npz",
    )
    parser.add_argument("model", metavar="MODEL", help="FILE.nst (an artifact), " + _MODEL_HELP)
    _add_inputs(parser)
    parser.add_argument("--output", metavar="FILE", help="write the outputs (.npy for one, .npz)")
    parser.add_argument("--threads", help="threads of the call (default: one a core)")
    parser.set_defaults(handler="nestor.cli_commands:run_command")


def _add_inputs(parser: _Parser) -> None:
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="FILE",
        help=".npy: one input; .npz: all its arrays, in the file's order; may be repeated. "
        "Without it a model runs on its example inputs",
    )
    parser.add_argument(
        "--random",
        type=int,
        metavar="SEED",
        help="give an artifact random inputs of the right shapes, dynamic sizes at their least",
    )


def _add_bench(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "bench",
        "time a model against its peers, taking turns in processes of their own",
        "nestor bench net.py:make --peers eager,compile,nestor",
    )
    parser.add_argument("model", metavar="MODEL", help="FILE.nst (an artifact), " + _MODEL_HELP)
    _add_inputs(parser)
    parser.add_argument(
        "--peers",
        help="comma-separated; ratios are against the first "
        "(default: eager,nestor; of an artifact: nestor alone)",
    )
    parser.add_argument("--threads", help="threads of each peer (default: one a core)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each peer (default: 15)")
    parser.set_defaults(handler="nestor.cli_commands:bench_command")


def _add_tune(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "tune",
        "search better schedules for a model's kernels; later compilations find them",
        "nestor tune net.py:make --time 10m",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--time", metavar="SPAN", help="60s, 10m or 1h (default: 60s)")
    parser.add_argument("--trials", type=int, metavar="N", help="candidates at most")
    parser.add_argument(
        "--kernel", action="append", default=[], metavar="NAME", help="only this one; repeatable"
    )
    parser.add_argument(
        "--strategy",
        default="bayesian",
        help="bayesian, evolution, random or exhaustive (default: bayesian)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--report", metavar="FILE.html", help="write plots of the search")
    parser.add_argument("--peer", help="also time this one once, as of nestor bench: eager, …")
    parser.add_argument("--target", help="CPU to tune for (default: native, this machine's)")
    parser.add_argument("--threads", help="threads of a call (default: one a core)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="measure on a Ray cluster: auto, HOST:PORT or ray://…"
    )
    parser.set_defaults(handler="nestor.cli_tune:tune_command")


def _add_train(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "train",
        "train a cost model from records of tuning; searches start from its opinion",
        "nestor train -o mine.npz",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="cost model to write (.npz)")
    parser.add_argument(
        "--records",
        action="append",
        default=[],
        metavar="FILE",
        help="exported records (nestor cache export); may be repeated. Default: the database",
    )
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="FILE",
        help="exported records that are not trained on, but say how good the model is",
    )
    parser.add_argument(
        "--families", metavar="FILE", help="JSON: what each kernel is, by digest (default: alike)"
    )
    parser.add_argument(
        "--leave-family-out",
        action="store_true",
        help="also train without each family and say how good that model is on it",
    )
    parser.add_argument("--rounds", type=int, default=300, help="trees at most (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.set_defaults(handler="nestor.cli_train:train_command")


def _add_explain(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "explain",
        "explain a loop kernel: its dependences, its schedule and why, the loops before and after",
        "nestor explain kernels.py:jacobi --sizes N=2000 --try \"Interchange(loops=('t', 'i'))\"",
    )
    parser.add_argument(
        "kernel",
        metavar="KERNEL",
        help="FILE.py:function or package.module:function, with @nestor.kernel above it",
    )
    parser.add_argument("--sizes", metavar="N=1000,M=800", help="choose the schedule for these")
    parser.add_argument(
        "--reassociate", action="store_true", help="let sums be evaluated in any order"
    )
    parser.add_argument(
        "--schedule", metavar="FILE.json", help="a schedule of your own in place of the chosen one"
    )
    parser.add_argument("--as-written", action="store_true", help="start from the nest as written")
    parser.add_argument(
        "--try",
        action="append",
        default=[],
        dest="attempts",
        metavar="STEP",
        help="prove this step on top of the schedule, or show why not; may be repeated",
    )
    parser.add_argument("--target", help="CPU to choose for (default: native, this machine's)")
    parser.add_argument(
        "--lines", type=int, default=100, help="lines of the nest after; 0: all (default: 100)"
    )
    parser.add_argument("--picture", metavar="FILE.svg", help="draw the iterations of a statement")
    parser.add_argument("--statement", metavar="NAME", help="which statement to draw")
    parser.add_argument("--picture-sizes", metavar="N=8", help="sizes in the picture")
    parser.set_defaults(handler="nestor.cli_explain:explain_command")


def _add_cache(commands: _Commands[_Parser]) -> None:
    parser = commands.add_parser(
        "cache",
        help="look after what is kept between runs: objects and tuning records",
        description="Look after what is kept between runs: objects and tuning records.",
        epilog="example:\n  nestor cache info",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", title="actions", parser_class=_Parser, required=True
    )
    add_cache_commands(actions, _add, _MODEL_HELP)
    parser.set_defaults(handler="nestor.cli_cache:cache_command")


def _add_doctor(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "doctor",
        "check this machine: packages, CPU, threads, cache, and a kernel compiled and run",
        "nestor doctor --json",
    )
    parser.set_defaults(handler="nestor.cli_doctor:doctor_command")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status.

    Args: arguments: as typed, without the program's name; None: the process's own.
    """
    parser = build_parser()
    given = parser.parse_args(arguments)
    if given.version:
        from nestor import __version__

        print(__version__)
        return 0
    if given.command is None:
        parser.print_help()
        return EXIT_USER
    return run_guarded(lambda: _dispatch(given))


def _dispatch(given: argparse.Namespace) -> int:
    """Load the subcommand's module, which may need more than NumPy, and run it."""
    import importlib

    module, _, name = given.handler.partition(":")
    config = Config.load(
        threads=getattr(given, "threads", None),
        target=getattr(given, "target", None),
        ray=getattr(given, "ray", None),
    )
    handler: Handler = getattr(importlib.import_module(module), name)
    return handler(given, config)


def run_guarded(action: Callable[[], int]) -> int:
    """Run ``action``; errors become a message and an exit status.

    With ``NESTOR_DEBUG`` set the trace is shown as well.
    """
    try:
        return action()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`nestor … | head`): nothing more to say, and
        # nothing left for the interpreter to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        if os.environ.get("NESTOR_DEBUG"):
            import traceback

            traceback.print_exc()
        print(_message(error), file=sys.stderr)
        return _status(error)


def _status(error: Exception) -> int:
    """The exit status of an error's family."""
    if isinstance(error, UserError):
        return EXIT_USER
    return EXIT_UNSUPPORTED if isinstance(error, Unsupported) else EXIT_INTERNAL


def _message(error: Exception) -> str:
    """What a person is told."""
    if not isinstance(error, NestorError):
        return (
            f"InternalError: {type(error).__name__}: {error}\n"
            "  this is a fault of Nestor's; for the trace: NESTOR_DEBUG=all"
        )
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, InternalError) and error.reproducer:
        text += f"\n  reproduce: {error.reproducer}"
    return text
