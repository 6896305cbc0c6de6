"""Settings every test needs: two threads on busy cores stall small models, and no test may reach a hub."""

import os

import pytest
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # a core that others use makes an example slow, not wrong
settings.load_profile("busy")
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True, scope="session")
def no_native_bf16():
    """`model.dtype=auto` is fp32 in a test's own process on every machine; a test of bf16 says so."""
    from sft.model import dtype

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dtype, "native_bf16", lambda: False)
        yield
