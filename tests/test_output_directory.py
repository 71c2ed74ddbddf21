"""No run is lost in the output directory of another."""

import subprocess
import sys

import pytest

from balms_det.engine.output_directory import claim_for_training, make_writable
from balms_det.runtime.errors import InputError


@pytest.fixture
def used(tmp_path):
    for name in ("model_final.pth", "last_checkpoint", "metrics.json", "log.txt"):
        (tmp_path / name).write_text("earlier")
    return tmp_path


def claim(folder, *, resume=False, overwrite=False):
    """Claim a directory in a process of its own, which then ends."""
    code = (
        "import sys; from balms_det.engine.output_directory import claim_for_training as c\n"
        "c(sys.argv[1], resume=sys.argv[2] == 'True', overwrite=sys.argv[3] == 'True')"
    )
    arguments = [str(folder), str(resume), str(overwrite)]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_used_directory_is_refused_and_stays(used):
    with pytest.raises(InputError, match=r"model_final.pth\); add --resume .* --overwrite"):
        claim_for_training(str(used), resume=False, overwrite=False)
    assert (used / "model_final.pth").read_text() == "earlier"


def test_resuming_keeps_and_overwriting_deletes_the_run(used):
    assert claim(used, resume=True).returncode == 0
    assert (used / "model_final.pth").exists()
    assert claim(used, overwrite=True).returncode == 0
    assert not {"model_final.pth", "last_checkpoint", "metrics.json"} & {
        path.name for path in used.iterdir()
    }
    assert (used / "log.txt").exists()


def test_two_trainings_do_not_share_a_directory(tmp_path):
    claim_for_training(str(tmp_path), resume=False, overwrite=False)
    done = claim(tmp_path)
    assert "another process trains in this OUTPUT_DIR" in done.stderr


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(InputError, match=f"{tmp_path / place}: this OUTPUT_DIR cannot be"):
            make_writable(str(tmp_path / place))
