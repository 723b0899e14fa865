"""KPFCNN with the parameter names and the padded neighbourhoods of KPConv-PyTorch, in plain torch.

An oracle: written from the formulas (Thomas et al. 2019) and the list of its blocks, importing no network of ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kpconv_ops import reference

BLOCKS = (
    *("simple", "resnetb"),
    *("resnetb_strided", "resnetb", "resnetb"),
    *("resnetb_strided", "resnetb", "resnetb"),
    *("resnetb_strided", "resnetb", "resnetb"),
    *("resnetb_strided", "resnetb", "resnetb"),
)
DEFORMABLE = range(9, 14)  # of these blocks, in the deformable variant
NUM_POINTS = 15


def pad(indices: Tensor, splits: Tensor, num_supports: int) -> Tensor:
    """Neighbourhoods as a matrix, as wide as the largest one; a number past the supports where there is none."""
    counts = splits.diff()
    columns = torch.arange(int(counts.max()))
    present = columns < counts[:, None]
    table = torch.full(present.shape, num_supports)
    table[present] = indices.long()
    return table


def act(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


class KPConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, cell: float, deformable: bool, modulated: bool = False):
        super().__init__()
        self.extent = 1.2 * cell
        self.weights = nn.Parameter(torch.randn(NUM_POINTS, in_channels, out_channels) / (4 * in_channels) ** 0.5)
        directions = F.normalize(torch.randn(NUM_POINTS, 3), dim=1)
        directions[0] = 0
        self.kernel_points = nn.Parameter(0.66 * 2.5 * cell * directions, requires_grad=False)
        if deformable:
            numbers = (4 if modulated else 3) * NUM_POINTS
            self.offset_conv = KPConv(in_channels, numbers, cell, deformable=False)
            self.offset_bias = nn.Parameter(0.1 * torch.randn(numbers))

    def forward(self, queries: Tensor, supports: Tensor, table: Tensor, x: Tensor) -> Tensor:
        places, modulations = self.kernel_points[None], None
        if hasattr(self, "offset_conv"):
            predicted = self.offset_conv(queries, supports, table, x) + self.offset_bias
            offsets = predicted[:, : 3 * NUM_POINTS].reshape(-1, NUM_POINTS, 3)
            places = places + self.extent * offsets
            if predicted.shape[1] == 4 * NUM_POINTS:
                modulations = 2 * torch.sigmoid(predicted[:, 3 * NUM_POINTS :])
        far = torch.full((1, 3), 1e6, dtype=supports.dtype)
        neighbors = torch.cat([supports, far])[table] - queries[:, None]
        distances = (neighbors[:, :, None] - places[:, None]).norm(dim=3)  # [M, H, P]
        influence = (1 - distances / self.extent).clamp(min=0)
        features = torch.cat([x, x.new_zeros(1, x.shape[1])])[table]
        if modulations is not None or hasattr(self, "offset_conv"):
            reached = (distances < self.extent).any(dim=2)
            features = features * reached[:, :, None]
        gathered = torch.einsum("mhp,mhc->mpc", influence, features)
        if modulations is not None:
            gathered = gathered * modulations[:, :, None]
        return torch.einsum("mpc,pcd->md", gathered, self.weights)


class BatchNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(channels, momentum=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.batch_norm(x)


class Bias(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Unary(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, norm: type = BatchNorm):
        super().__init__()
        self.mlp = nn.Linear(in_channels, out_channels, bias=False)
        self.batch_norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.batch_norm(self.mlp(x))


class Upsample(nn.Module):
    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]


class Simple(nn.Module):
    def __init__(self, in_channels: int, width: int, cell: float, deformable: bool, modulated: bool):
        super().__init__()
        self.KPConv = KPConv(in_channels, width // 2, cell, deformable, modulated)
        self.batch_norm = BatchNorm(width // 2)

    def forward(self, queries: Tensor, supports: Tensor, table: Tensor, x: Tensor) -> Tensor:
        return act(self.batch_norm(self.KPConv(queries, supports, table, x)))


class Resnet(nn.Module):
    def __init__(self, in_channels: int, width: int, cell: float, deformable: bool, modulated: bool, strided: bool):
        super().__init__()
        self.strided, middle = strided, width // 4
        self.unary1 = Unary(in_channels, middle) if in_channels != middle else nn.Identity()
        self.KPConv = KPConv(middle, middle, cell, deformable, modulated)
        self.batch_norm_conv = BatchNorm(middle)
        self.unary2 = Unary(middle, width)
        self.unary_shortcut = Unary(in_channels, width) if in_channels != width else nn.Identity()

    def forward(self, queries: Tensor, supports: Tensor, table: Tensor, x: Tensor) -> Tensor:
        y = act(self.unary1(x)) if isinstance(self.unary1, Unary) else x
        y = self.unary2(act(self.batch_norm_conv(self.KPConv(queries, supports, table, y))))
        if self.strided:
            x = torch.cat([x, x.new_zeros(1, x.shape[1])])[table].amax(dim=1)
        return act(y + self.unary_shortcut(x))


class OfficialKPFCNN(nn.Module):
    """The S3DIS network, rigid or deformable.

    Args:
        in_channels, num_classes, first_width, grid_size: as in our network.
        deformable: the blocks of `DEFORMABLE` are.
        modulated: they also weigh their kernel points.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        first_width: int,
        grid_size: float,
        deformable: bool = False,
        modulated: bool = False,
    ):
        super().__init__()
        self.grid_size, self.deformable = grid_size, deformable
        self.encoder_blocks, skips = nn.ModuleList(), []
        width, cell, channels = first_width, grid_size, in_channels
        for number, kind in enumerate(BLOCKS):
            moving = deformable and number in DEFORMABLE
            if kind == "simple":
                self.encoder_blocks.append(Simple(channels, width, cell, moving, modulated))
                channels = width // 2
                continue
            strided = kind.endswith("strided")
            if strided:
                skips.append(channels)
            self.encoder_blocks.append(Resnet(channels, width, cell, moving, modulated, strided))
            channels = width
            if strided:
                width, cell = 2 * width, 2 * cell
        self.decoder_blocks = nn.ModuleList()
        out = channels
        for skip in reversed(skips):
            out = skip
            self.decoder_blocks.append(Upsample())
            self.decoder_blocks.append(Unary(channels + skip, out))
            channels = out
        self.head_mlp = Unary(channels, first_width, norm=Bias)
        self.head_softmax = Unary(first_width, num_classes, norm=Bias)

    def forward(self, points: Tensor, offsets: Tensor, x: Tensor) -> Tensor:
        cell, level, waiting = self.grid_size, 0, []
        table = self._search((points, offsets), (points, offsets), level)
        for kind, block in zip(BLOCKS, self.encoder_blocks, strict=True):
            if not kind.endswith("strided"):
                x = block(points, points, table, x)
                continue
            waiting.append((points, offsets, x))
            cell *= 2
            coarse = reference.grid_subsample(points, offsets, cell)[:2]
            x = block(coarse[0], points, self._search(coarse, (points, offsets), level), x)
            points, offsets = coarse
            level += 1
            table = self._search(coarse, coarse, level)
        for upsample, unary in zip(self.decoder_blocks[0::2], self.decoder_blocks[1::2], strict=True):
            *finer, skip = waiting.pop()
            rows, _ = reference.nearest(*finer, points, offsets)
            x = act(unary(torch.cat([upsample(x, rows), skip], dim=1)))
            points, offsets = finer
        return self.head_softmax(act(self.head_mlp(x)))

    def _search(self, queries: tuple[Tensor, Tensor], supports: tuple[Tensor, Tensor], level: int) -> Tensor:
        """Neighbours among the points of a level, as far out as its convolutions look."""
        cells = 5.0 if self.deformable and level >= 3 else 2.5
        found = reference.radius_search(*queries, *supports, cells * self.grid_size * 2**level)
        return pad(*found[:2], len(supports[0]))
