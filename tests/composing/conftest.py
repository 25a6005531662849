"""One thread: what is compared here is small."""

import torch

torch.set_num_threads(1)
