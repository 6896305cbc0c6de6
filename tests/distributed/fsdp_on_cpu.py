"""`sft.train` with FSDP2 over gloo: accelerate shards only over devices, so it is made to believe that there are some.

For torchrun, instead of `-m sft.train`. Sharding, gathering, saving and loading are torch's and accelerate's own.
"""

import os

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from sft.distributed import sharding as spread
from sft.train import main

PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
spread.has_gpu = lambda: True

if __name__ == "__main__":
    main()
