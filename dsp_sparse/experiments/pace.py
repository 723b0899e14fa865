"""How fast this device trains and scores: a few steps of the training program itself, one scene of the evaluation."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import mean, stdev
from tempfile import TemporaryDirectory

from ..config import TrainConfig
from ..data import Batch
from ..distributed import pick_device
from ..inference import Voting, evaluate
from ..reallocation import MODULES
from ..training.loop import first_network, open_sources, train_stages
from ..training.run import Run
from .evaluation import MODULE_OF_BRANCH, decoder_of

# The first steps allocate memory.
WARM_UP = 3


@dataclass(frozen=True)
class Pace:
    """How fast work goes.

    Args:
        seconds: mean seconds a step or, of an evaluation, a grid point. The mean, not the median, since samples differ
            in size and a run takes the sum of its steps.
        spread: standard deviation over the steps; 0 of an evaluation.
        points: mean grid points of a step, or the grid points that were scored.
    """

    seconds: float
    spread: float
    points: float


def step_pace(config: TrainConfig, steps: int) -> Pace:
    """The pace of a training, which must have one stage, from so many steps, at least 2, after a warm-up.

    It runs in a temporary folder, from the weights that the training would begin with.
    """
    accumulate = config.optim.accumulate
    skipped = WARM_UP + -(-2 * config.data.workers // accumulate)  # a worker prepares two batches ahead of time
    optim = replace(config.optim, epochs=1, steps_per_epoch=skipped + steps + 1)
    config = replace(config, optim=optim, tensorboard=False)
    sources = open_sources(config)
    asked, sizes = [], []

    def timed(*place: int, **options: int) -> Iterator[Batch]:
        """The batches. From when one is asked for to when the next one is, it is read, moved and trained on."""
        asked.append(time.perf_counter())
        for batch in sources.batches(*place, **options):
            sizes.append(len(batch.labels))
            yield batch
            asked.append(time.perf_counter())

    with TemporaryDirectory() as folder:
        run = Run(folder, config)
        net = first_network(config, sources.store, run).to(pick_device(config.device))
        train_stages(net, config, replace(sources, batches=timed), run)
    seconds = [end - begin for begin, end in pairwise(asked[::accumulate][skipped : skipped + steps + 1])]
    points = sum(sizes[skipped * accumulate : (skipped + steps) * accumulate])
    return Pace(mean(seconds), stdev(seconds), points / steps)


def evaluation_pace(config: TrainConfig, branch: str) -> Pace:
    """The pace of scoring the test scene of median size, through a branch of an untrained network."""
    sources = open_sources(config)
    with TemporaryDirectory() as folder:
        net = first_network(config, sources.store, Run(folder, config)).to(pick_device(config.device))
    scenes = sorted(sources.test_scenes, key=lambda scene: scene.num_points)
    scene = scenes[len(scenes) // 2]
    voting = Voting(radius=config.data.radius, max_points=config.data.max_points, **asdict(config.eval))
    # A new module takes as long as a trained one.
    module = MODULES[MODULE_OF_BRANCH[branch]](net.tap.channels) if branch in MODULE_OF_BRANCH else None
    decoder = decoder_of(branch, net, module, config, voting)
    seconds = evaluate(decoder, [scene], sources.store.classes, voting)["seconds"]
    return Pace(seconds / scene.num_points, 0.0, scene.num_points)
