"""Where stored numbers say they come from."""

import subprocess

import pytest

from lab.provenance import commit


@pytest.fixture
def repository(tmp_path):
    for name in ("code.py", "docs/runs/run.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=A", "-c", "user.email=a@b", "commit", "--quiet", "-m", "all"],
    ):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    return tmp_path


def test_runs_that_are_stored_do_not_make_the_code_dirty(repository):
    clean = commit(repository)
    assert len(clean) == 12
    (repository / "docs/runs/run.json").write_text("after")
    (repository / "output").mkdir()
    assert commit(repository) == clean
    (repository / "code.py").write_text("after")
    assert commit(repository) == f"{clean}-dirty"


def test_without_git_there_is_no_commit(tmp_path):
    assert commit(tmp_path) is None
