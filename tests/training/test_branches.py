"""The three branches of Table 3 on trained networks' terms: the same backbone, decoded in three ways."""

import torch
from tiny import CLASSES, RADIUS, tiny_net

from dsp_sparse.data import collate, make_sample
from dsp_sparse.data.balls import rows_within
from dsp_sparse.inference import BasicBranch, CrossBranch, IntraBranch, Voting, evaluate, predict_probabilities
from dsp_sparse.reallocation import CSFR, ISFR

VOTING = Voting(radius=RADIUS, votes=1, batch_size=2)


def balls_of(scene, count=2):
    centres = scene.points[:: len(scene.points) // count][:count]
    return [make_sample(scene, scene.labels, c, rows_within(scene, c, RADIUS), scene.number) for c in centres]


def module_of(kind, net):
    module = kind(net.tap.channels)
    with torch.no_grad():
        module.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return module


def test_each_branch_decodes_its_own_features(store, backbone):
    """Basic is the network itself; intra decodes ISFR's features; cross those of CSFR for the first of the pair."""
    net = tiny_net(backbone).eval()
    csfr, isfr = module_of(CSFR, net), module_of(ISFR, net)
    balls = balls_of(store.group(["test"])[0])
    cross = CrossBranch(net, csfr, store.group(["train"]), VOTING)
    with torch.no_grad():
        answers = [branch(balls) for branch in (BasicBranch(net), IntraBranch(net, isfr), cross)]
        for number, ball in enumerate(balls):
            alone = collate([ball]).input
            tap, state = net.encode(alone)
            pair = collate([ball, cross.partner(ball)]).input
            pair_tap, pair_state = net.encode(pair)
            rebuilt = net.decode(csfr(pair_tap, torch.tensor([1, 0])).feat, pair_state)
            expected = [net(alone), net.decode(isfr(tap).feat, state), rebuilt[: len(ball.rows)]]
            for answer, value in zip(answers, expected, strict=True):
                torch.testing.assert_close(answer[number], value, rtol=1e-4, atol=1e-4)


def test_the_partner_of_a_ball_is_a_training_ball_fixed_by_the_seed(store):
    """The same ball meets the same partner, whatever was asked before; another seed draws others."""
    net = tiny_net("kpfcnn")
    balls = balls_of(store.group(["test"])[0], 6)
    train = store.group(["train"])

    def partners(seed, order):
        cross = CrossBranch(net, module_of(CSFR, net), train, Voting(radius=RADIUS, seed=seed))
        found = {i: cross.partner(balls[i]) for i in order}
        return [(found[i].scene, found[i].rows.tolist()) for i in range(6)]

    first = partners(0, range(6))
    assert first == partners(0, reversed(range(6))) != partners(1, range(6))
    assert {scene for scene, _ in first} <= {scene.number for scene in train}


def test_all_branches_can_be_evaluated(store, backbone):
    """Every branch scores every original point of the test scenes, the same way each time."""
    net, test = tiny_net(backbone), store.group(["test"])
    cross = CrossBranch(net, module_of(CSFR, net), store.group(["train"]), VOTING)
    probabilities = []
    for branch in (BasicBranch(net), IntraBranch(net, module_of(ISFR, net)), cross):
        first, second = (evaluate(branch, test, CLASSES, VOTING) for _ in range(2))
        assert first["points"] == sum(scene.num_original for scene in test)
        assert first["confusion"] == second["confusion"]
        probabilities.append(predict_probabilities(branch, test[0], VOTING))
    basic, intra, crossed = probabilities
    assert not torch.allclose(basic, intra) and not torch.allclose(basic, crossed)
