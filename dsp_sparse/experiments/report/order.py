"""Whether one's own runs put the methods in the paper's order.

Two methods are compared seed by seed, on the same weak labels. A difference is told from noise by Student's paired t
interval: with three seeds only differences far above their spread can be.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev

from ..table import differences, methods_by_place
from .html import bullets, folded, paragraph, section, table, text
from .scores import Printed
from .sources import Subject, place_of

# Two-sided 95 % quantiles of Student's t, by degrees of freedom; the last holds for all more.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Pair:
    """Two methods that the paper puts in an order.

    Args:
        better: the method with the paper's higher mIoU.
        worse: the other.
        paper: how much higher, in percent points.
        own: one's own differences, seed by seed, in percent points.
    """

    better: str
    worse: str
    paper: float
    own: list[float]

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95 % interval of the mean difference; None for one seed."""
        count = len(self.own)
        if count < 2:
            return None
        return T95[min(count - 1, len(T95)) - 1] * stdev(self.own) / math.sqrt(count)

    @property
    def verdict(self) -> str:
        """Whether one's own mean difference has the paper's sign, and whether it can be told from none."""
        average, width = mean(self.own), self.half_width
        if average == 0:
            return "no difference"
        direction = "as in the paper" if average > 0 else "reversed"
        if width is None:
            return f"{direction}, one seed"
        return direction if abs(average) > width else f"{direction}, within the spread"


def order_section(subject: Subject) -> str:
    """The verdicts, a line for every backbone and share of labels, and the pairs behind them."""
    printed = Printed(subject.paper)
    lines, tables = [], []
    for (rate, backbone, _), own in methods_by_place(subject.runs).items():
        if not (pairs := pairs_of(own, {m: printed.score(rate, backbone, m) for m in own})):
            continue
        place = place_of(next(iter(own.values()))[0])
        if printed.backbone(backbone) != backbone:
            place += f" (beside the paper's {printed.backbone(backbone)})"
        lines.append(f"{place}: {summary(pairs)}")
        rows = [[f"{text(p.better)} &gt; {text(p.worse)}", f"{p.paper:+.1f}", *_own(p), text(p.verdict)] for p in pairs]
        head = ["the paper's order", "paper", "here", "95 % interval", "seeds in that order", "here it is"]
        tables.append(table(f"{place}: differences of mIoU in percent points", head, rows, kind="words"))
    if not lines:
        return ""
    note = (
        "Differences are paired: the same seed, the same weak labels. “Within the spread” means that the paired 95 % "
        "interval (Student's t) holds 0: more seeds could turn the order. Of twenty pairs without any difference one "
        "would be beyond the spread by chance."
    )
    return section(
        "order", "The paper's order", bullets(lines), paragraph(note), folded("All pairs of methods", *tables)
    )


def pairs_of(own: dict[str, list[dict]], paper: dict[str, dict | None]) -> list[Pair]:
    """Every two methods with different scores in the paper and a seed in common here."""
    pairs = []
    for one, other in combinations(own, 2):
        if not paper[one] or not paper[other] or paper[one]["miou"] == paper[other]["miou"]:
            continue
        better, worse = sorted((one, other), key=lambda method: -paper[method]["miou"])
        found = [100 * value for value in differences(own[better], own[worse])]
        if found:
            pairs.append(Pair(better, worse, paper[better]["miou"] - paper[worse]["miou"], found))
    return sorted(pairs, key=lambda pair: -pair.paper)


def summary(pairs: list[Pair]) -> str:
    """How many pairs are in the paper's order, how many of them for certain, and how the method itself does."""
    agreeing = [pair for pair in pairs if mean(pair.own) > 0]
    certain = sum(pair.verdict == "as in the paper" for pair in pairs)
    against = sum(pair.verdict == "reversed" for pair in pairs)
    words = f"{len(agreeing)} of {len(pairs)} pairs of methods are in the paper's order"
    if any(pair.half_width is not None for pair in pairs):
        words += f", {certain} of them beyond the spread; {against} are reversed beyond the spread"
    main = next((pair for pair in pairs if {pair.better, pair.worse} == {"csfr-isfr", "baseline"}), None)
    if main:
        sign = 1 if main.better == "csfr-isfr" else -1
        words += f". csfr-isfr against the baseline: {_interval(main, sign)} (paper {sign * main.paper:+.1f})"
    return words + "."


def _own(pair: Pair) -> list[str]:
    width = pair.half_width
    average = mean(pair.own)
    interval = "" if width is None else f"{average - width:+.1f} … {average + width:+.1f}"
    return [f"{average:+.1f}", interval, f"{sum(value > 0 for value in pair.own)} of {len(pair.own)}"]


def _interval(pair: Pair, sign: int) -> str:
    width = pair.half_width
    return f"{sign * mean(pair.own):+.1f}" + ("" if width is None else f" ± {width:.1f} (95 %)")
