"""Operators that can be differentiated once."""

import torch


def differentiable_once(name: str) -> None:
    """A derivative of operator `name`, itself a backward pass, is a RuntimeError: autograd would take it for zero."""

    def refuse(ctx, *grads):
        raise RuntimeError(f"{name.removesuffix('_backward')} can be differentiated only once")

    torch.library.register_autograd(f"kpconv_ops::{name}", refuse)
