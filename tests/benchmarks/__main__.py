"""``make benchmark``: prints every table, with the machine they were measured on."""

import os
import platform

import torch

from tests.benchmarks import average_precision, bootstrap, head

if __name__ == "__main__":
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(head.benchmark(device))
    print(average_precision.benchmark())
    print(bootstrap.benchmark())
