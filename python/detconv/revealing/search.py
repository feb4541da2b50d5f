"""The search for the orders of all outputs of one part: probe, replay on random data, and probe where bits differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from detconv.revealing.box import Box, OutOfTime
from detconv.revealing.passes import Array, Geometry, Part, parts
from detconv.revealing.probes import NotATree, Position, Prober, like_rows
from detconv.revealing.replay import Classes, Labels, Region, boxes, compute, same_bits
from detconv.revealing.trees import NotExpressible
from detconv.revealing.trials import Operands, Trials
from detconv.summation import Summation

CHANCE = 1e-6  # that some output of another order has agreed in all trials
MOST_CLASSES = 48
FEWEST_TRIALS, MOST_TRIALS = 4, 64
_FAST = 0.02  # seconds of a call on the real shape up to which a smaller one is not worth it


class Search:
    """Finds the class of every output of a part. What is known when time runs out, or nothing fits, stays."""

    def __init__(
        self,
        box: Box,
        geometry: Geometry,
        part_number: int,
        trials: Trials,
        hypotheses: Sequence[str],
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.box, self.geometry, self.number, self.trials, self.say = box, geometry, part_number, trials, say
        self.part: Part = parts(geometry)[part_number]
        self.random = np.random.default_rng((seed, 1_000_000 + part_number))
        self.labels: Labels = np.full(self.part.shape, -1, np.int16)
        self.summations: list[Summation] = []
        self.hypotheses = list(dict.fromkeys(Summation.parse(text) for text in hypotheses))
        self.taken = 0  # trials that all classes have passed
        self.reason = ""
        self.not_a_tree = False

    def run(self) -> None:
        """Fill in labels, summations and, unless every output has passed all trials, the reason."""
        try:
            needed = FEWEST_TRIALS
            while self.taken < needed:
                self._trial(self.taken)
                self.taken += 1
                if self.reason and not self.matched:
                    return
                if self.taken == 1:
                    needed = self._trials_needed()
                    if any(s.method != "naive" or "d[" in s.order for s in self.summations):
                        needed *= 2  # only every second trial tells such sums apart
        except OutOfTime:
            self.reason = f"the budget ended after {self.taken} of the trials that rule out luck"

    @property
    def matched(self) -> int:
        return int(np.count_nonzero(self.labels >= 0))

    @property
    def classes(self) -> Classes:
        return Classes.of(self.summations, self.labels)

    # ---- Trials ----

    def _trial(self, trial: int) -> None:
        self.say(f"trial {trial + 1}")
        expected = self.part.select(self.trials.result(trial))
        operands = self._operands(trial)
        for number in range(len(self.summations)):
            self._check(number, self.labels == number, operands, expected, trial)
        while not self.reason and (unknown := self.labels < 0).any():
            if self._known(unknown, trial):
                continue
            if len(self.summations) >= MOST_CLASSES:
                self.reason = f"more than {MOST_CLASSES} orders"
                return
            self._new(unknown, trial)

    def _operands(self, trial: int) -> Operands:
        image, panel, bias = self.trials.operands(trial)
        return self.part.image(image), self.part.panel(panel), bias

    def _check(self, number: int, mask: Array, operands: Operands, expected: Array, trial: int) -> None:
        """Of the outputs in the mask, those whose bits are the class's get its label, the others none."""
        for box in boxes(mask):
            got, grown = (self._of_ones if trial % 2 else compute)(self.part, *operands, self.summations[number], box)
            at = tuple(slice(*span) for span in grown)
            same = same_bits(got, expected[at])
            own = mask[at]
            self.labels[at][own & same] = number
            self.labels[at][own & ~same & (self.labels[at] == number)] = -1

    def _of_ones(
        self, part: Part, image: Array, panel: Array, bias: Array | None, summation: Summation, box: Region
    ) -> tuple[Array, Region]:
        """As ``compute``, for an image of ones: outputs that read the same taps are equal, and computed once."""
        _, rows, *spans = box
        taps = part.valid_taps((image.shape[2], image.shape[3]))
        firsts, kinds = [], []
        for valid, (start, stop) in zip(taps, spans, strict=True):
            _, first, kind = np.unique(valid[start:stop], axis=0, return_index=True, return_inverse=True)
            firsts.append(first + start)
            kinds.append(kind.reshape(-1))
        table, grown = None, rows
        for a, p in enumerate(firsts[0].tolist()):
            for b, q in enumerate(firsts[1].tolist()):
                got, (_, grown, _, _) = compute(
                    part, image, panel, bias, summation, ((0, 1), rows, (p, p + 1), (q, q + 1))
                )
                if table is None:
                    table = np.empty((got.shape[1], len(firsts[0]), len(firsts[1])), got.dtype)
                table[:, a, b] = got[0, :, 0, 0]
        assert table is not None
        whole = table[:, kinds[0]][:, :, kinds[1]]
        samples = box[0][1] - box[0][0]
        return np.broadcast_to(whole, (samples, *whole.shape)), (box[0], grown, spans[0], spans[1])

    def _known(self, unknown: Array, trial: int) -> bool:
        """Try the orders that are known already, in all trials so far, where none has a label."""
        before = self.matched
        for number in range(len(self.summations)):
            mask = self.labels < 0
            if not mask.any():
                break
            if number < len(self.summations) - 1 or trial > 0:
                self._through(number, mask, trial)
        return self.matched > before

    def _through(self, number: int, mask: Array, trial: int) -> None:
        """Give the label to the outputs of the mask that pass all trials up to this one."""
        for earlier in range(trial + 1):
            if not mask.any():
                return
            self._check(number, mask, self._operands(earlier), self.part.select(self.trials.result(earlier)), earlier)
            mask = mask & (self.labels == number)

    def _trials_needed(self) -> int:
        """So many that other orders, which agree with a part of the outputs by luck, will not in all of them.

        The luck is that of orders in common use, on a sample of the outputs, in a trial of each kind.
        """
        part = self.part
        rows = min(part.rows, max(1, 64 // (part.rows // part.groups)) * (part.rows // part.groups))
        box = ((0, 1), (0, rows), (0, min(part.shape[2], 16)), (0, min(part.shape[3], 32)))
        last = part.terms - 1
        backwards = f'naive order="{last + 1}x(-1){{f{last}}} bias"'
        others = ["naive", "naive order=kh,kw,c", "naive products=rounded", "naive bias=first", backwards]
        luck = [0.1, 0.03]
        for trial in (0, 1):
            operands, expected = self._operands(trial), self.part.select(self.trials.result(trial))
            for text in others:
                got, grown = compute(part, *operands, Summation.parse(text), box)
                share = float(same_bits(got, expected[tuple(slice(*span) for span in grown)]).mean())
                if share < 0.95:
                    luck[trial] = max(luck[trial], min(share, 0.6))
        needed = 2 * math.ceil(math.log(CHANCE / self.labels.size) / math.log(luck[0] * luck[1]))
        return min(max(needed, FEWEST_TRIALS), MOST_TRIALS)

    # ---- New orders ----

    def _new(self, unknown: Array, trial: int) -> None:
        """Find the order of one output that no known order gives, and give its label to all that have it."""
        target = self._target(unknown)
        if self._hypothesis(target, unknown, trial):
            return
        problem = ""
        for geometry, position, row_sets in self._stages(target, unknown):
            for rows in row_sets:
                try:
                    summation = self._probe(geometry, position, target[1], rows)
                except NotATree as error:
                    problem = str(error)
                    continue
                except NotExpressible as error:
                    self.reason, self.not_a_tree = str(error), True
                    return
                except (RuntimeError, ValueError, TypeError):
                    if geometry is self.geometry:
                        raise
                    break  # fn does not take images of this size
                if self._accept(summation, target, unknown, trial):
                    return
                problem = "the order that the probes found does not give the bits of random data"
        self.reason, self.not_a_tree = problem, True

    def _accept(self, summation: Summation, target: tuple[int, int, int, int], unknown: Array, trial: int) -> bool:
        """Take the order as a class, if it gives the target's bits in all trials so far, and in a few more."""
        if summation in self.summations:
            return False
        at: Array = np.zeros_like(unknown)
        at[target] = True
        self.summations.append(summation)
        number = len(self.summations) - 1
        self._through(number, at, max(trial, FEWEST_TRIALS))
        if self.labels[target] != number:
            self.summations.pop()
            self.labels[self.labels == number] = -1
            return False
        self._through(number, unknown, trial)
        return True

    def _hypothesis(self, target: tuple[int, int, int, int], unknown: Array, trial: int) -> bool:
        """Try the given orders: by luck an output agrees with a wrong one, a row of them hardly."""
        n, row, _, _ = target
        some = np.zeros_like(unknown)
        some[n, row] = unknown[n, row]
        if np.count_nonzero(some) < 8:
            some[n] = unknown[n]
        if np.count_nonzero(some) < 8:
            return False
        operands, expected = self._operands(trial), self.part.select(self.trials.result(trial))
        shares = {s: self._share(s, some, operands, expected) for s in self.hypotheses if s not in self.summations}
        likely = sorted((s for s, share in shares.items() if share > 0.75), key=lambda s: -shares[s])
        return any(self._accept(summation, target, unknown, trial) for summation in likely)

    def _share(self, summation: Summation, mask: Array, operands: Operands, y: Array) -> float:
        same = total = 0
        for box in boxes(mask):
            (n, rows, p, q) = box
            box = (n, rows, (p[0], min(p[1], p[0] + 8)), q)
            try:
                got, grown = compute(self.part, *operands, summation, box)
            except ValueError:  # an order for another number of terms
                return 0.0
            at = tuple(slice(*span) for span in grown)
            same += int(np.count_nonzero(same_bits(got, y[at]) & mask[at]))
            total += int(np.count_nonzero(mask[at]))
        return same / max(total, 1)

    def _target(self, unknown: Array) -> tuple[int, int, int, int]:
        """The output to look at: the most terms outside the border first, then the most rows, then near the centre."""
        image_size = self.part.image(np.broadcast_to(np.float32(0), self.geometry.image_shape)).shape[2:]
        taps = self.part.valid_taps((image_size[0], image_size[1]))
        valid = taps[0].sum(1)[:, None] * taps[1].sum(1)
        rows = unknown.sum(axis=1)
        height, width = self.part.shape[2:]
        distance = np.hypot(np.arange(height)[:, None] - height / 2, np.arange(width) - width / 2)
        score = np.where(rows > 0, 1e6 * valid + rows - distance / (height + width + 1), -1)
        n, p, q = (int(i) for i in np.unravel_index(int(np.argmax(score)), score.shape))
        return n, int(np.flatnonzero(unknown[n, :, p, q])[0]), p, q

    def _stages(
        self, target: tuple[int, int, int, int], unknown: Array
    ) -> list[tuple[Geometry, Position, list[Array]]]:
        """Where to probe: on smaller images first, where a call of the real shape takes long."""
        n, row, p, q = target
        rows = np.flatnonzero(unknown[n, :, p, q])
        row_sets = [rows] if len(rows) == 1 else [rows, np.array([row])]
        stages = []
        if self.geometry.pass_ != "weight_gradient" and self.box.seconds / max(self.box.calls, 1) > _FAST:
            height, width = self.geometry.input_shape[2:]
            if len(self.summations) == 0:
                sizes = []
                for axis, size in enumerate((height, width)):
                    reach = (self.geometry.weight_shape[2 + axis] - 1) * self.geometry.dilation[axis] + 1
                    sizes.append(min(size, 2 * reach + 6 * self.geometry.stride[axis]))
                if sizes != [height, width]:
                    small = self.geometry.with_image(1, sizes[0], sizes[1])
                    stages.append((small, self._middle(small), row_sets[:1]))
            if self.geometry.input_shape[0] > 1:
                one = self.geometry.with_image(1, height, width)
                stages.append((one, (0, p, q), row_sets[:1]))
        stages.append((self.geometry, (n, p, q), row_sets))
        return stages

    def _middle(self, geometry: Geometry) -> Position:
        part = parts(geometry)[self.number]
        taps = part.valid_taps(part.image(np.broadcast_to(np.float32(0), geometry.image_shape)).shape[2:])
        middle = []
        for valid in taps:
            most = np.flatnonzero(valid.sum(1) == valid.sum(1).max())
            middle.append(int(most[len(most) // 2]))
        return 0, middle[0], middle[1]

    def _probe(self, geometry: Geometry, position: Position, row: int, rows: Array) -> Summation:
        prober = Prober(self.box, geometry, parts(geometry)[self.number], position, rows, self.say)
        prober.slots = like_rows(prober, row, rows, self.random, 8, 6)
        tree = prober.tree(self.random)
        prober.find_products(tree)
        prober.find_widths(tree)
        return Summation(order=tree.text())
