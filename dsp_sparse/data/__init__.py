"""From raw scans to batches: loaders of data sets, the scene store, weak labels, balls and pairs."""

from .balls import BallSampler, cover, make_sample
from .batch import Batch, Sample, collate, network_features
from .dataset import Dataset, RawCloud, RawScene
from .loader import fetched, split, train_loader
from .pairs import PairSampler, collate_pairs
from .prepare import prepare
from .rooms import generate_rooms
from .store import Scene, SceneStore
from .tiles import GridCloud, Tile, grid_cloud, tiles
from .weak_labels import Labelling, WeakLabels, draw, label_table, weak_labels

__all__ = [
    "BallSampler",
    "Batch",
    "Dataset",
    "GridCloud",
    "Labelling",
    "PairSampler",
    "RawCloud",
    "RawScene",
    "Sample",
    "Scene",
    "SceneStore",
    "Tile",
    "WeakLabels",
    "collate",
    "collate_pairs",
    "cover",
    "draw",
    "fetched",
    "generate_rooms",
    "grid_cloud",
    "label_table",
    "make_sample",
    "network_features",
    "prepare",
    "split",
    "tiles",
    "train_loader",
    "weak_labels",
]
