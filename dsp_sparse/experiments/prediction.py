"""Prediction on a user's own clouds: every original point gets a label.

A cloud is read twice: once to label it tile by tile, once to write what was read together with the labels. In memory
there is never more than a tile. What waits on the disk, beside the result, is eight bytes a point between the two; of a
cloud that is cut, also its points on their way into tiles, see `data.tiles`.
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from ..data.clouds import read_cloud
from ..data.dataset import CHUNK, RawCloud
from ..data.readers import read_chunks
from ..data.tiles import TILE_POINTS, grid_cloud, tiles
from ..distributed import pick_device, rank, share, sum_over_ranks, together
from ..errors import UserError
from ..inference import BasicBranch, Voting, predict_probabilities
from ..training.checkpoint import Model, load_model
from .labelled_files import EXTENSIONS, PREDICTED, Format, nyu40_ids, write
from .prediction_jobs import Job, claimed, digest, folder_jobs, single_job


def predict(
    run: str | Path,
    source: str | Path,
    out: str | Path | None = None,
    format: Format = "ply",
    pattern: str | None = None,
    columns: Sequence[str] | None = None,
    votes: int = 3,
    rotations: int = 1,
    device: str = "auto",
    engine: str | None = None,
) -> int:
    """Label every point of a cloud, or of all clouds of a folder.

    Of a folder, clouds that have their file in `out` already are left out, and a cloud that cannot be read is reported
    and leaves the others alone. After `distributed.join` the ranks share the clouds.

    Args:
        run: run folder, or a model file.
        source: a file of any format of `data.readers` with the coordinates and measured features the model was trained
            on, or a folder that is searched for such files, subfolders and links too.
        out: file to write, `predicted` and the extension of the format by default; for a folder a folder, `predicted`
            by default, in which files are named as in `source`.
        format: see `labelled_files`.
        pattern: which files of a folder, as a glob relative to it; by default all whose suffix is known, with the
            format scannet all meshes `*_vh_clean_2.ply`.
        columns: names of the columns of files that do not name them.
        votes: how often every point is seen at least; probabilities are averaged.
        rotations: angles about the vertical axis that every ball is shown at.
        device: torch device; auto takes the GPU when there is one.
        engine: engine of a MinkUNet; the model's own by default.

    Returns:
        The number of clouds that could not be read, on all ranks together.

    Raises:
        UserError: not a model, an engine that is missing, nothing to label, or an `out` that cannot be or that another
            process writes into; of a single cloud, too, that it is broken, empty, not finite or without the needed
            fields.
    """
    source, folder = Path(source), Path(source).is_dir()
    with ExitStack() as held:
        with together():
            for name, value in (("votes", votes), ("rotations", rotations)):
                if value < 1:
                    raise UserError(f"{name} must be at least 1, got {value}")
            model = load_model(run, pick_device(device), engine)
            if format == "scannet":
                nyu40_ids(model.classes)  # classes that have none are named before anything is computed
            out = Path(out or f"predicted{'' if folder else EXTENSIONS[format]}")
            jobs = folder_jobs(source, out, format, pattern) if folder else [single_job(source, out, format)]
            if folder and rank() == 0:
                settings = {"format": format, "columns": columns, "votes": votes, "rotations": rotations}
                held.enter_context(claimed(out, {"model": digest(run), **settings, "engine": engine}))
        branch = BasicBranch(model.net)
        voting = Voting(radius=model.radius, max_points=model.max_points, votes=votes, rotations=rotations)
        if not folder:
            if rank() == 0:
                print(f"{out}: {label_cloud(branch, model, voting, jobs[0], format, columns)} points", flush=True)
            return 0
        # What rank 0 finds finished is so for all of them, and the others share the rest.
        finished = sum_over_ranks(np.array([rank() == 0 and job.out.exists() for job in jobs], np.int64))
        missing = [job for job, done in zip(jobs, finished, strict=True) if not done]
        mine = share(missing, lambda job: job.source.stat().st_size)
        failed = 0
        for number, job in enumerate(mine, 1):
            start = time.perf_counter()
            try:
                count = label_cloud(branch, model, voting, job, format, columns)
            except (UserError, PermissionError) as error:
                if isinstance(error, OSError) and error.filename != str(job.source):
                    raise
                print(f"dsp-sparse predict: error: {error}", file=sys.stderr, flush=True)
                failed += 1
            else:
                seconds = time.perf_counter() - start
                print(f"[{number}/{len(mine)}] {job.out}: {count} points, {seconds:.1f} s", flush=True)
        return int(sum_over_ranks(np.array([failed]))[0])


def label_cloud(
    branch: BasicBranch, model: Model, voting: Voting, job: Job, format: Format, columns: Sequence[str] | None = None
) -> int:
    """Label one cloud and write it; returns its number of points. UserError: see `predict`."""
    pieces = read_cloud(job.source, model.features, model.coordinates, columns)  # a missing file is named at once
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=job.out.parent) as scratch:
        count = label_points(branch, model.grid, voting, pieces, job.source, scratch, job.out.parent)
        scratch.seek(0)
        predicted = (np.fromfile(scratch, PREDICTED, min(CHUNK, count - row)) for row in range(0, count, CHUNK))
        write(format, job.out, count, predicted, read_chunks(job.source, columns), model.classes)
    return count


def label_points(
    branch: BasicBranch,
    grid: float,
    voting: Voting,
    pieces: Iterable[RawCloud],
    source: Path,
    result: BinaryIO,
    folder: Path,
    tile_points: int = TILE_POINTS,
) -> int:
    """Write label and confidence of every point of a cloud into a file, in the order of the points.

    Args:
        branch: what turns balls into logits.
        grid: cell size of its clouds.
        voting: how the tiles are covered.
        pieces: the cloud.
        source: where it comes from, for messages.
        result: an empty file, open for reading and writing.
        folder: for unnamed files, while a cloud is cut into tiles.
        tile_points: most points of a tile, which are what memory holds.

    Returns:
        The number of points, N; `result` holds `[N]` of `PREDICTED`.
    """
    count = 0
    arriving = tqdm(desc=f"{source.name}: read", unit="point", unit_scale=True, leave=False, delay=1)

    def counted() -> Iterator[RawCloud]:
        nonlocal count
        for piece in pieces:
            count += len(piece.points)
            arriving.update(len(piece.points))
            yield piece

    def dealt(points: int) -> None:
        if arriving.total is None:
            arriving.set_description(f"{source.name}: cut into tiles", refresh=False)
            arriving.reset(total=count)
        arriving.update(points)

    # Every piece is read before the first tile comes. The margin makes the surroundings of every point whole.
    settings = {"grid": grid, "tile_points": tile_points, "overlap": voting.radius, "scratch": folder}
    with arriving:
        for tile in tiles(counted(), **settings, dealt=dealt):
            arriving.close()
            try:
                cloud = grid_cloud(tile, grid)
            except UserError as error:
                raise UserError(f"{source}: {error}") from None
            rows, number, total = tile.rows, tile.number, tile.total
            del tile  # its points have become grid points
            title = f"{source.name} {number + 1}/{total}" if total > 1 else source.name
            with tqdm(total=len(cloud.points), desc=title, unit="point", unit_scale=True, leave=False) as bar:
                confidence, label = predict_probabilities(branch, cloud, voting, number, bar).max(1)
            result.truncate(count * PREDICTED.itemsize)
            predicted = np.memmap(result, PREDICTED, "r+", shape=count)
            predicted["label"][rows] = label.numpy()[cloud.inverse]
            predicted["confidence"][rows] = confidence.numpy()[cloud.inverse]
            del predicted, cloud, confidence, label, rows  # before the next tile is read
    return count
