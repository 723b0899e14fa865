"""From raw scans to batches: loaders of data sets, the scene store, weak labels, balls and pairs."""

from .balls import BallSampler, cover, make_sample
from .batch import Batch, Sample, collate, network_features
from .dataset import Dataset, RawCloud, RawScene
from .loader import train_loader
from .pairs import PairSampler, collate_pairs
from .rooms import generate_rooms
from .store import GridCloud, Scene, SceneStore, grid_cloud, prepare
from .weak_labels import draw, label_table, weak_labels

__all__ = [
    "BallSampler",
    "Batch",
    "Dataset",
    "GridCloud",
    "PairSampler",
    "RawCloud",
    "RawScene",
    "Sample",
    "Scene",
    "SceneStore",
    "collate",
    "collate_pairs",
    "cover",
    "draw",
    "generate_rooms",
    "grid_cloud",
    "label_table",
    "make_sample",
    "network_features",
    "prepare",
    "train_loader",
    "weak_labels",
]
