"""What all tests share. No test reaches the network, and none writes outside its temporary folder."""

import os
import socket
from pathlib import Path

import pytest
from families import FAMILIES

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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of one family go to one worker (`--dist loadgroup`), which builds it and its reference once."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        for key in ("family", "name"):
            if parameters.get(key) in FAMILIES:
                item.add_marker(pytest.mark.xdist_group(parameters[key]))


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
