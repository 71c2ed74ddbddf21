import pytest
import torch

# The tests' tensors are small: threads cost more than they give.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def annotation_caches(tmp_path_factory):
    """Keeps what tests cache, also in processes that they start, away from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALMS_DET_CACHE", str(tmp_path_factory.mktemp("caches")))
        yield
