"""What is measured of a differentiable operator: its result, or its result and gradients."""

import torch
from torch import Tensor

from . import inputs


def forward(function, leaves: list[Tensor], order: Tensor | None = None):
    """A call that gives `(result,)`. `order` is for `forward_backward`."""

    def call():
        with torch.no_grad():
            return (function(*leaves),)

    return call


def forward_backward(function, leaves: list[Tensor], order: Tensor | None = None):
    """A call that gives the result and gradients for a fixed gradient of the result.

    Args:
        function: the operator.
        leaves: what it is called with and differentiated by.
        order: row of ours of each row of the result, for an operator that returns them in another order.
    """
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    with torch.no_grad():
        result = function(*leaves)
    grad = inputs.normal(*result.shape, stream=4).to(result)
    grad = grad if order is None else grad[order]
    del result

    def call():
        result = function(*leaves)
        return result.detach(), *torch.autograd.grad(result, leaves, grad)

    return call


def as_graph(call):
    """The call as a CUDA graph: captured once, replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay():
        graph.replay()
        return result

    return replay
