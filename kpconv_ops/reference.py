from . import *
from . import grid_subsample, radius_search, nearest, kpconv, max_pool
