"""What all tests share. No test reaches the network, and none writes outside its temporary folder."""

import gc
import os
import re
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest

# Read by Hugging Face's libraries when they are imported; without it they retry for a minute before they give up.
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _no_network():
    """Any connection beyond this machine fails at once, so that no test can come to depend on one."""
    connect = socket.socket.connect

    def guarded(self, address):
        local = self.family == getattr(socket, "AF_UNIX", None) or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise OSError(f"tests reach no network, and this one asked for {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def pytest_collection_finish() -> None:
    """What was imported stays, so the collections that follow memory running out need not walk it each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All tests of one family of models go to one worker, which builds it and its reference once; others go by file.

    Those of the page go together too, because its server takes long to start.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFamily(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            family = re.search(r"[\[-]((?:timm|hf|torchvision|open_clip|user)(?:_\w+)?)[\]-]", nodeid)
            file = nodeid.partition("::")[0]
            return family[1] if family else "tests/app" if file.startswith("tests/app/") else file

    return ByFamily(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs, weights and oracles beside the repository, which is no part of it."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("needs the real model and photographs of the folder ../shared, which is not there")
    return folder


@pytest.fixture(scope="session")
def vit_tiny(shared: Path):
    """The real ViT-Ti/16 of ImageNet-1k as a user loads it."""
    from vitrail.models import load

    weights = shared / "models" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    return load("timm/vit_tiny_patch16_224", checkpoint=weights)


@pytest.fixture(scope="module")
def cluster():
    """Ray on two processors, whatever the machine has; its Python is as new as its warnings are many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start
        import ray

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        tests = str(Path(__file__).parent)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}},
        )
        yield
        ray.shutdown()
