"""Weights that are a function of their parameter's name, so that golden vectors need no weight files.

A name is hashed (64-bit FNV-1a); value i is SplitMix64's output i of that seed, as a uniform number of unit variance. Parameters with one
axis are 0.1 of it, around 1 for weights and 0 for biases; others are divided by the root of their fan-in.

Made with: Python 3.11.7, torch 2.15.0, numpy 2.4.6
"""

import numpy as np
import torch


def uniform(name, count):
    """`count` numbers in [-sqrt 3, sqrt 3), float64."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) % 2**64
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.sqrt(3.0) * (2.0 * (z >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 1.0)


def named(name, shape):
    """The weights of parameter `name`, float32."""
    values = uniform(name, int(np.prod(shape))).reshape(shape)
    if len(shape) == 1:
        values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    else:
        values = values / np.sqrt(float(np.prod(shape[1:])))
    return values.astype(np.float32)


def direction(name, shape):
    """A direction to take the product of a gradient with, float64."""
    return uniform("direction." + name, int(np.prod(shape))).reshape(shape)


def fill(model, rename=lambda name: name):
    """Gives every parameter the values of its (renamed) name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(named(rename(name), tuple(parameter.shape))))
    return model
