"""Stands in for torchmetrics in processes that tests start: Lightning imports it, and nothing here uses it.

Importing the real one, which brings transformers and scipy.signal along, is two fifths of a process's start.
"""

import torch

__version__ = "1.0.0"


class Metric(torch.nn.Module):
    pass


class MetricCollection(torch.nn.ModuleDict):
    pass
