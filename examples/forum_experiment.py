"""The experiment of the forum, reproducible: a small network is trained on handwritten digits, the same way every time.

    make experiment          # or: python examples/forum_experiment.py [--epochs 6] [--plot drift.png]

An all-convolutional network learns the 8x8 digits that ship with scikit-learn, from the same first weights and in the
same order of samples: with torch's convolutions and with detconv's, on 1 and on 2 threads, twice each. The table shows
the SHA-256 of the final weights, the loss and the accuracy; the plot, how far each run has drifted from the first of
its kind. Everything else in a step (ReLU, cross-entropy, SGD) is torch's and does the same on any number of threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import detconv
import detconv.nn
from detconv.drawing import BLUE, INK, VERMILION, figure, plain

THREADS, REPEATS, BATCH, SUMMATION = (1, 2), 2, 64, "pairwise"


@dataclass
class Run:
    convolutions: str
    threads: int
    repeat: int
    sha256: str = ""
    loss: float = 0.0
    accuracy: float = 0.0
    weights: list[torch.Tensor] = field(default_factory=list)  # after every step, flattened

    def drift(self, other: Run) -> list[float]:
        """The distance of the weights from the other run's after every step, relative to their norm."""
        return [float((a - b).norm() / b.norm()) for a, b in zip(self.weights, other.weights, strict=True)]


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (N, 1, 8, 8) in 0..1 and labels: 1500 to train on, the other 297 to test."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    return images[:1500], labels[:1500], images[1500:], labels[1500:]


def network() -> nn.Module:
    """8x8 pixels to ten scores; no pooling, whose sums would be torch's."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 10, 4),
        nn.Flatten(),
    )


def batches(count: int, epochs: int) -> Iterator[torch.Tensor]:
    """The same samples in the same order in every run."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(BATCH)


def train(run: Run, epochs: int, progress: tqdm[None]) -> None:
    torch.set_num_threads(run.threads)
    detconv.set_num_threads(run.threads)
    images, labels, test_images, test_labels = digits()
    model = network()
    if run.convolutions == "detconv":
        model, _ = detconv.convert(model, SUMMATION)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in batches(len(images), epochs):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        run.weights.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
        progress.update()
    with torch.no_grad():
        scores = model(test_images)
        run.loss = float(nn.functional.cross_entropy(scores, test_labels))
        run.accuracy = float((scores.argmax(1) == test_labels).float().mean())
    run.sha256 = detconv.weights_sha256(model)


def plot(runs: list[Run], path: Path) -> None:
    """How far each run drifts from the first of its kind; detconv's lie on one line."""
    picture = figure(8, 4.5, layout="constrained")
    axes = picture.subplots()
    smallest = 1e-9  # a distance of zero is drawn here
    for convolutions, color in (("torch", VERMILION), ("detconv", BLUE)):
        kind = [run for run in runs if run.convolutions == convolutions]
        drifts = [[max(d, smallest) for d in run.drift(kind[0])] for run in kind]
        for drift in drifts:
            axes.semilogy(range(1, len(drift) + 1), drift, color=color, linewidth=1.6, alpha=0.8)
        highest = max(drifts, key=max)
        count = f"{len(kind)} runs on {' and '.join(map(str, THREADS))} threads"
        said = "no difference in any bit" if max(highest) == smallest else "they drift apart"
        # detconv's name stands below its line, torch's above: where torch does not drift either, the lines are one.
        below = convolutions == "detconv"
        place: Any = {"textcoords": "offset points", "ha": "right", "va": "top" if below else "bottom", "fontsize": 10}
        at = len(highest), max(highest[-len(highest) // 4 :])
        axes.annotate(f"{convolutions}, {count}: {said}", at, (0, -8 if below else 8), color=color, **place)
    axes.set_ylim(smallest / 10, max(1e-6, 10 * axes.get_ylim()[1]))
    axes.set_xlabel("training step", fontsize=11, color=INK)
    axes.set_ylabel("distance of the weights from the first run,\nrelative to their norm", fontsize=11, color=INK)
    axes.set_title("The same training, again and on more threads", loc="left", fontsize=13, color=INK, pad=10)
    plain(axes)
    picture.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--plot", type=Path, default=Path("forum-experiment.png"), metavar="PATH")
    options = parser.parse_args()
    runs = [
        Run(convolutions, threads, repeat + 1)
        for convolutions in ("torch", "detconv")
        for threads in THREADS
        for repeat in range(REPEATS)
    ]
    steps = options.epochs * len(list(batches(1500, 1)))
    with tqdm(total=len(runs) * steps, unit="step") as progress:
        for run in runs:
            progress.set_description(f"{run.convolutions}, {run.threads} thread(s)")
            train(run, options.epochs, progress)

    print(f"\n{'convolutions':14}{'threads':>7}{'run':>5}   {'SHA-256 of the weights':24}{'loss':>12}{'accuracy':>10}")
    for run in runs:
        print(
            f"{run.convolutions:14}{run.threads:7}{run.repeat:5}   {run.sha256[:20] + '...':24}"
            f"{run.loss:12.8f}{run.accuracy:10.4f}"
        )
    hashes = {kind: {r.sha256 for r in runs if r.convolutions == kind} for kind in ("torch", "detconv")}
    print()
    for kind, different in hashes.items():
        print(f"{kind}: {len(runs) // 2} runs ended with {len(different)} different set(s) of weights")
    plot(runs, options.plot)
    print(f"How far the runs drift apart: {options.plot}")
    return 0 if len(hashes["detconv"]) == 1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
