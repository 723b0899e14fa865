"""CSFR and ISFR against the explicit affinity matrix (Eq. 2-4, 6-8), and what they promise about memory."""

import subprocess
import sys

import pytest
import torch

from dsp_sparse.ragged import Ragged
from dsp_sparse.reallocation import CSFR, ISFR

CHANNELS = 5
LENGTHS = [7, 12, 0, 3, 1, 1, 0, 0, 4, 9]
PARTNER = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]
CROSSED = [9, 3, 4, 1, 2, 6, 5, 8, 7, 0]  # partners need not be neighbours in the batch


def tap_of(lengths, channels=CHANNELS, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return Ragged.pack(
        [
            (torch.randn(n, channels, generator=generator, dtype=dtype), torch.rand(n, 3, generator=generator))
            for n in lengths
        ]
    )


def module_of(kind, channels=CHANNELS, seed=1, dtype=torch.float64):
    module = kind(channels).to(dtype)
    with torch.no_grad():  # an asymmetric W: the direction of a pair shows
        module.weight.copy_(torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed)))
    return module


def oracle_cross(tap, partner, weight):
    """Both directions from one explicit affinity matrix `A = F_i W F_jᵀ`, as the paper writes them."""
    rebuilt = [None] * tap.batch_size
    for i, j in enumerate(partner):
        if i < j:
            first, second = tap.feat[tap.rows(i)], tap.feat[tap.rows(j)]
            affinity = first @ weight @ second.T
            rebuilt[i] = affinity.softmax(1) @ second
            rebuilt[j] = affinity.T.softmax(1) @ first
    return torch.cat(rebuilt)


def oracle_intra(tap, weight):
    samples = [tap.feat[tap.rows(b)] for b in range(tap.batch_size)]
    return torch.cat([(s @ weight @ s.T).softmax(1) @ s for s in samples])


CASES = [(CSFR, PARTNER), (CSFR, CROSSED), (ISFR, None)]


def run_both(kind, partner, tap, module):
    if kind is ISFR:
        return module(tap).feat, oracle_intra(tap, module.weight)
    return module(tap, torch.tensor(partner)).feat, oracle_cross(tap, partner, module.weight)


@pytest.mark.parametrize(("kind", "partner"), CASES)
def test_values_and_gradients_equal_the_explicit_matrix(kind, partner):
    """Reallocation is softmax(T W Sᵀ) S exactly: values, feature gradients and the gradient of W, in float64."""
    tap, module = tap_of(LENGTHS), module_of(kind)
    tap = tap.with_feat(tap.feat.requires_grad_())
    seed = torch.randn(tap.feat.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []
    for output in run_both(kind, partner, tap, module):
        gradients = torch.autograd.grad(output, (tap.feat, module.weight), seed)
        results.append((output, *gradients))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "partner"), [(CSFR, [2, 3, 0, 1]), (ISFR, None)])
def test_gradcheck(kind, partner):
    """The gradients of features and W are the derivatives of the output."""
    tap, module = tap_of([3, 0, 4, 2], channels=3), module_of(kind, 3)
    arguments = () if partner is None else (torch.tensor(partner),)

    def rebuilt(feat, weight):
        return torch.func.functional_call(module, {"weight": weight}, (tap.with_feat(feat), *arguments)).feat

    assert torch.autograd.gradcheck(rebuilt, (tap.feat.requires_grad_(), module.weight))


def test_a_sample_gathers_only_from_its_partner():
    """No row leaks to another pair: other samples change neither the output nor the gradients of a pair."""
    lengths, partner = [6, 4, 5, 3], torch.tensor([1, 0, 3, 2])
    csfr, isfr = module_of(CSFR), module_of(ISFR)
    one, two = tap_of(lengths, seed=0), tap_of(lengths, seed=9)
    mixed = one.with_feat(torch.cat([one.feat[:10], two.feat[10:]]))
    assert torch.equal(csfr(one, partner).feat[:10], csfr(mixed, partner).feat[:10])
    assert torch.equal(isfr(one).feat[:6], isfr(mixed).feat[:6])
    leaf = mixed.feat.clone().requires_grad_()
    csfr(mixed.with_feat(leaf), partner).feat[:6].sum().backward()  # sample 0 is made of sample 1, weighed by sample 0
    assert leaf.grad[:10].abs().sum(1).all()
    assert not leaf.grad[10:].any()


def test_the_content_comes_from_the_partner_alone():
    """Every rebuilt feature lies within the range of the partner's features: a weighted sum with weights 1."""
    tap, partner = tap_of([20, 30]), torch.tensor([1, 0])
    rebuilt = module_of(CSFR)(tap, partner).feat
    for rows, source in ((slice(0, 20), slice(20, 50)), (slice(20, 50), slice(0, 20))):
        assert (rebuilt[rows] <= tap.feat[source].amax(0) + 1e-12).all()
        assert (rebuilt[rows] >= tap.feat[source].amin(0) - 1e-12).all()


def test_an_empty_source_gives_zeros_and_an_empty_target_nothing():
    """The sum over no source point is zero, with a zero gradient; a single source point is copied."""
    tap = tap_of([3, 0, 2, 1])
    tap = tap.with_feat(tap.feat.requires_grad_())
    module = module_of(CSFR)
    rebuilt = module(tap, torch.tensor([1, 0, 3, 2])).feat
    assert not rebuilt[:3].any()
    torch.testing.assert_close(rebuilt[3:5], tap.feat[5:].expand(2, -1))
    rebuilt[:3].sum().backward()
    assert not tap.feat.grad.any()
    assert not module.weight.grad.any()


def test_the_initial_weight_is_scaled_dot_product_similarity():
    """Before training, of two source points the one more similar to the target weighs more, and neither everything."""
    tap = Ragged.pack([(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.zeros(1, 3)), (torch.eye(4), torch.zeros(4, 3))])
    row = CSFR(4).affinity_rows(tap, torch.tensor([0]), torch.tensor([1, 0]))[0]
    assert row[0] == row[1] > row[2] == row[3] > 0.1


@pytest.mark.parametrize("kind", [CSFR, ISFR])
def test_affinity_rows_are_the_rows_behind_the_output(kind):
    """A row of the affinity sums to 1, covers the source sample, and times the source features gives the output."""
    tap, module = tap_of([4, 0, 6, 3]), module_of(kind)
    arguments = (torch.tensor([2, 3, 0, 1]),) if kind is CSFR else ()
    source_of = [2, 3, 0, 1] if kind is CSFR else [0, 1, 2, 3]
    points = torch.tensor([9, 0, 3, 4])
    rebuilt = module(tap, *arguments).feat
    rows = module.affinity_rows(tap, points, *arguments)
    for point, row in zip(points.tolist(), rows, strict=True):
        source = tap.feat[tap.rows(source_of[int(tap.batch_index[point])])]
        torch.testing.assert_close(row.sum(), torch.ones((), dtype=row.dtype))
        torch.testing.assert_close(row @ source, rebuilt[point])


@pytest.mark.parametrize("kind", [CSFR, ISFR])
def test_autocast_runs_in_the_lower_precision(kind):
    """Under autocast the output is bfloat16, close to float32, and the gradient of W stays float32."""
    tap, module = tap_of([40, 30], dtype=torch.float32), module_of(kind, dtype=torch.float32)
    arguments = (torch.tensor([1, 0]),) if kind is CSFR else ()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rebuilt = module(tap, *arguments).feat
    rebuilt.float().sum().backward()
    assert rebuilt.dtype == torch.bfloat16
    assert module.weight.grad.dtype == torch.float32
    torch.testing.assert_close(rebuilt.float(), module(tap, *arguments).feat, rtol=0.05, atol=0.1)


PROBE = """
import resource, torch
from dsp_sparse.ragged import Ragged
from dsp_sparse.reallocation import ISFR
torch.manual_seed(0)
tap = Ragged(torch.randn({points}, 8, dtype=torch.{dtype}), torch.zeros({points}, 3), torch.tensor([0, {points}]))
module = ISFR(8).to(tap.feat.dtype)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
module(tap.with_feat(tap.feat.requires_grad_())).feat.sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("dtype", "points"), [("float32", 12_000), ("float64", 8_000)])
def test_memory_is_linear_in_the_points(dtype, points):
    """Forward and backward stay far below the affinity matrix (0.6 GB in float32, 0.5 GB in float64)."""
    script = PROBE.format(dtype=dtype, points=points)
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(grown) < 100  # MiB; measured: 17


def test_errors_name_the_argument():
    """A partner list that is no pairing, and a tap of another width, are refused by name."""
    tap = tap_of([2, 3])
    for partner in ([0, 1], [1], [1, 2], [-1, 0], [1, 1]):
        with pytest.raises(ValueError, match="partner must pair up the 2 samples"):
            CSFR(CHANNELS)(tap, torch.tensor(partner))
    with pytest.raises(ValueError, match="tap must have 4 features a point, got 5"):
        ISFR(4)(tap)
    with pytest.raises(ValueError, match="channels must be at least 1"):
        ISFR(0)
