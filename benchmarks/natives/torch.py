"""The baselines in PyTorch: eager, as its users write a step; an LSTM cell in a Python loop."""

import os

import numpy as np
import torch
import torch.nn.functional as F
from native import MOMENTUM, RATE
from torch.utils.benchmark import Timer

DEVICE = torch.device(os.environ.get("KERNELK_DEVICE", "cpu"))


def harness(call, calls):
    """PyTorch's own timer, which sets the number of threads: as many as it has anyway."""
    return Timer("kept = call()", globals={"call": call}, num_threads=torch.get_num_threads()).timeit(calls).mean


def empty():
    return lambda: torch.ones(()).numpy()


def loss_of(logits, t):
    p = torch.softmax(logits, -1).clamp(1e-7, 1 - 1e-7)
    return torch.mean(-torch.sum(t * torch.log(p), -1))


def parameters(weights):
    return [torch.tensor(w, requires_grad=True, device=DEVICE) for w in weights]


def placed(array):
    """The array as a tensor on the device; on a processor in the array's own memory."""
    return torch.from_numpy(array).to(DEVICE)


def finished(loss):
    """The loss, once all of the step is done: a GPU computes beside Python."""
    if DEVICE.type != "cpu":
        torch.cuda.synchronize(DEVICE)
    return loss.detach().cpu().numpy()


def kept(x):
    return x


def half(x):
    """Dropout as PyTorch has it."""
    return F.dropout(x, 0.5)


def mlp_dropout(weights, x, t):
    return mlp(weights, x, t, half)


def mlp(weights, x, t, drop=kept):
    ws = parameters(weights)
    velocities = [torch.zeros_like(w) for w in ws]

    def step():
        given, wanted = placed(x), placed(t)
        hidden = drop(torch.relu(given @ ws[0] + ws[1]))
        loss = loss_of(hidden @ ws[2] + ws[3], wanted)
        gradients = torch.autograd.grad(loss, ws)
        with torch.no_grad():
            for w, v, g in zip(ws, velocities, gradients):
                v.mul_(MOMENTUM).sub_(g, alpha=RATE)
                w.add_(v)
        return finished(loss)

    return step


def descend(weights, logits_of, x, t):
    """A step of plain gradient descent."""
    ws = parameters(weights)

    def step():
        loss = loss_of(logits_of(ws, placed(x)), placed(t))
        gradients = torch.autograd.grad(loss, ws)
        with torch.no_grad():
            for w, g in zip(ws, gradients):
                w.sub_(g, alpha=RATE)
        return finished(loss)

    return step


def lenet_dropout(weights, x, t):
    return lenet(weights, x, t, half)


def lenet(weights, x, t, drop=kept):
    # PyTorch's own layouts: channels before rows, kernels as (out, in, rows, columns).
    weights = [w.transpose(3, 2, 0, 1).copy() if w.ndim == 4 else w for w in weights]
    x = x.transpose(0, 3, 1, 2).copy()

    def logits_of(w, x):
        for kernel, bias in ((w[0], w[1]), (w[2], w[3])):
            x = F.max_pool2d(torch.relu(F.conv2d(x, kernel, bias)), 2)
        x = x.flatten(1)
        for matrix, bias in ((w[4], w[5]), (w[6], w[7])):
            x = drop(torch.relu(x @ matrix + bias))
        return x @ w[8] + w[9]

    return descend(weights, logits_of, x, t)


def lstm(weights, x, t):
    def logits_of(w, x):
        h = c = torch.zeros(x.shape[0], w[1].shape[0], device=DEVICE)
        for piece in x.unbind(1):
            a, b, d, e = (piece @ w[0] + h @ w[1] + w[2]).chunk(4, 1)
            c = torch.sigmoid(b) * c + torch.sigmoid(a) * torch.tanh(d)
            h = torch.sigmoid(e) * torch.tanh(c)
        return h @ w[3] + w[4]

    return descend(weights, logits_of, x, t)


def holder(array):
    held = placed(array.copy())
    return (lambda value: held.copy_(torch.from_numpy(value))), (lambda: np.copy(held.cpu().numpy()))


def gemm(a, b):
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: a @ b


def conv(x, kernel):
    # Channels last, as they come; PyTorch takes such a view as it is.
    x, kernel = torch.from_numpy(x), torch.from_numpy(kernel)
    return lambda: F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)).permute(0, 2, 3, 1)


def chain(x):
    x = torch.from_numpy(x)

    def call():
        # In place from the first product on, as kernelk does it and a user who minds memory.
        y = (x * 0.5).add_(0.1).tanh_()
        for _ in range(3):
            y.mul_(0.5).add_(0.1).tanh_()
        return y

    return call


def sigmoid(x):
    x = torch.from_numpy(x)
    return lambda: torch.sigmoid(x)


def softplus(x):
    x = torch.from_numpy(x)
    return lambda: F.softplus(x)
