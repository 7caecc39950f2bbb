"""``make demo``: a sentence search and an image network, by PyTorch and by Nestor.

Embeds real sentences with the pretrained MiniLM, finds each query's nearest, shows that the answers
agree with PyTorch's, and times eager, torch.compile and Nestor in turns; then ResNet-50.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from nestor.benchmarking.turns import Timing
from nestor.cli import run_guarded
from nestor.cli_progress import progress_bar
from nestor.tables import Table, format_bytes, format_seconds, print_tables

SENTENCES = (
    "The committee postponed the vote until all members could attend.",
    "Fresh bread smells best in the early morning.",
    "A violin concerto opened the evening at the town hall.",
    "The bridge was closed after engineers found cracks in a pillar.",
    "Her flight was delayed by a thunderstorm over the coast.",
    "He repaired the old bicycle with parts from the attic.",
    "Sales of electric cars doubled within a single year.",
    "The recipe asks for two eggs, flour and a pinch of salt.",
    "Scientists measured the melting of the glacier from space.",
    "The goalkeeper saved a penalty in the last minute.",
    "A compiler turns source code into instructions for a processor.",
    "The library lends books, maps and musical scores.",
    "Heavy rain flooded the cellar of the museum.",
    "The patient recovered quickly after the operation.",
    "Wolves have returned to the forests along the border.",
    "The orchestra rehearses every Thursday night.",
)

QUERIES = (
    "classical music performance",
    "how do programs become machine code",
    "bad weather disrupts travel",
    "baking at home",
)


def sentence_inputs() -> tuple[Any, Any]:
    """The pretrained encoder and the demo's sentences as tokens, for a peer's process."""
    from benchmarks.pretrained import load_minilm, tokenize

    return load_minilm(), tokenize([*SENTENCES, *QUERIES])


def image_inputs() -> tuple[Any, Any]:
    """ResNet-50 (random weights of the published sizes) and a generated image."""
    from benchmarks.models import model_case

    return model_case("resnet50").build(), (_image(),)


def _image() -> Any:
    """Rings and a gradient, normalised like a photograph: shape (1, 3, 224, 224)."""
    import torch

    line = torch.linspace(-1.0, 1.0, 224)
    y, x = torch.meshgrid(line, line, indexing="ij")
    radius = torch.sqrt(x * x + y * y)
    planes = torch.stack([torch.sin(8 * math.pi * radius), x, y * radius])
    return ((planes - planes.mean()) / planes.std()).unsqueeze(0)


def show_search(rows: Any, eager_rows: Any) -> None:
    """Print each query's nearest sentences, and whether PyTorch finds the same."""
    sentences, queries = rows[: len(SENTENCES)], rows[len(SENTENCES) :]
    scores = queries @ sentences.T
    eager_scores = eager_rows[len(SENTENCES) :] @ eager_rows[: len(SENTENCES)].T
    lines = []
    for query, own, eager in zip(QUERIES, scores, eager_scores, strict=True):
        order = own.argsort()[::-1]
        same = bool((order[:3] == eager.argsort()[::-1][:3]).all())
        for rank in range(2):
            best = int(order[rank])
            agreement = ("same three nearest" if same else "DIFFERENT") if rank == 0 else ""
            lines.append(
                (query if rank == 0 else "", SENTENCES[best], f"{own[best]:.3f}", agreement)
            )
    columns = ("query", "nearest sentences", ">cosine", "as PyTorch?")
    print_tables(Table(title="Nearest sentences, by Nestor", columns=columns, rows=tuple(lines)))


def show_classes(scores: Any, eager_scores: Any) -> None:
    """Print the highest classes and whether PyTorch ranks them so too."""
    own, eager = (s[0].argsort()[::-1][:5] for s in (scores, eager_scores))
    print(f"highest classes: Nestor {own.tolist()}, PyTorch {eager.tolist()} (random weights)")


def timing_table(title: str, result: harness.CaseResult) -> Table:
    """One row a peer: call, speed against eager, compile time, memory, error."""
    rows: list[tuple[str, ...]] = []
    for peer in result.peers:
        call, ratio = peer.call_seconds, peer.ratio
        if peer.failure or call is None or ratio is None:
            rows.append((peer.name, "–", "–", "–", "–", peer.failure.splitlines()[0]))
            continue
        verdict = result.verdicts[peer.name]
        error = f"{verdict.error:.1e}" + ("" if verdict.correct else f"  WRONG: {verdict.reason}")
        rows.append(
            (
                peer.name,
                format_seconds(call.median),
                f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})",
                format_seconds(peer.compile_seconds) if peer.compile_seconds else "–",
                format_bytes(peer.peak_bytes),
                error,
            )
        )
    allowed = max((v.allowed for v in result.verdicts.values()), default=0.0)
    caption = (
        "Speed against eager: median of rounds taken in turns (quartiles). Memory: what the first "
        "call (after compiling) takes above the loaded model. Error: the largest, against float64; "
        f"{allowed:.1e} is allowed."
    )
    return Table(
        title=title,
        columns=("", ">call", ">speed", ">compile", ">memory", "largest error"),
        rows=tuple(rows),
        caption=caption,
    )


def run_demo(threads: int, rounds: int, peers: Sequence[str]) -> int:
    """Both parts; 1 if an answer is wrong or Nestor could not take part."""
    worked = True
    parts = (
        ("sentence_inputs", f"MiniLM, {len(SENTENCES) + len(QUERIES)} sentences at once"),
        ("image_inputs", "ResNet-50, one image"),
    )
    for loader, title in parts:
        start = time.perf_counter()
        with progress_bar() as tell:
            result = harness.run_loader(
                title,
                f"benchmarks.demo:{loader}",
                {},
                peers,
                threads=threads,
                timing=Timing(rounds=rounds),
                progress=lambda what, done, title=title: tell(f"{title}: {what}", done),
            )
        own, eager = result.peer("nestor"), result.peer("eager")
        if own is not None and eager is not None:
            show = show_search if loader == "sentence_inputs" else show_classes
            show(own.outputs[0], eager.outputs[0])
        name = f"{title}, {threads} threads ({format_seconds(time.perf_counter() - start)} in all)"
        print()
        print_tables(timing_table(name, result))
        print()
        worked &= own is not None and all(v.correct for v in result.verdicts.values())
    return 0 if worked else 1


def main(given: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each peer")
    parser.add_argument("--peers", default="eager,compile,nestor")
    options = parser.parse_args(given)
    return run_guarded(lambda: run_demo(options.threads, options.rounds, options.peers.split(",")))


if __name__ == "__main__":
    sys.exit(main())
