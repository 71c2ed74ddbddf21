"""Every command of the documents would run: its script, flags, configuration and overrides."""

import subprocess
import sys

import commands_in_docs
import pytest
import yaml
from commands_in_docs import DOCUMENTS, ROOT, blocks, commands, fault
from detectron2.config import CfgNode, get_cfg

from balms_det.config import add_balms_config, config_file

FOUND = sorted(
    {
        (str(document.relative_to(ROOT)), command)
        for document in DOCUMENTS
        for command in commands(document.read_text(encoding="utf-8"))
    }
)


@pytest.mark.e2e
@pytest.mark.parametrize("document", sorted({document for document, _ in FOUND}))
def test_every_command_of_a_document_would_run(document):
    faults = {command: fault(command) for name, command in FOUND if name == document}
    assert {command: why for command, why in faults.items() if why} == {}


def test_the_commands_of_blocks_and_sentences_are_found():
    text = "Run `make demo`, or\n\n```\npython a.py \\\n    --b C\npip install .\n```\n\nand `x`."
    assert list(commands(text)) == ["python a.py      --b C", "pip install .", "make demo"]
    starts = {command.split()[0] for _, command in FOUND}
    assert {"python", "make", "pip"} <= starts and len(FOUND) > 40


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("python tools/no_such_tool.py", "there is no script"),
        ("python tools/check_dataset.py --no-such-flag", "has no flag --no-such-flag"),
        ("python tools/check_dataset.py --hel", "has no flag --hel"),
        ("python tools/compare.py --ablation no_such", "does not name no_such"),
        ("python tools/benchmark.py image no_such_work --repeat 3", "does not name no_such_work"),
        ("python -m detectron2.no_such_module", "there is no module"),
        ("python tools/train_net.py --config-file configs/no_such.yaml", "no such configuration"),
        (
            "python tools/train_net.py --config-file configs/lvis_r50_balsig.yaml "
            "MODEL.LONG_TAIL.NO_SUCH_KEY 1",
            "NO_SUCH_KEY",
        ),
        (
            "python tools/train_net.py --config-file configs/lvis_r50_balsig.yaml "
            "MODEL.LONG_TAIL.LOSS.NAME no_such_loss",
            "no_such_loss",
        ),
        (
            "python tools/train_classifier.py --config-file digits_lt+softmax IMBALANCE 0",
            "IMBALANCE",
        ),
        ("make no-such-target", "no target"),
        ("rm -rf output", "this test knows"),
        ("pip install '.[no_such_extra]'", "has no extra no_such_extra"),
    ],
)
def test_a_command_that_would_not_run_is_a_fault(command, why):
    assert why in fault(command)


@pytest.mark.e2e
def test_the_installed_command_is_looked_up_where_it_is_declared(tmp_path, monkeypatch):
    monkeypatch.setattr(commands_in_docs, "ROOT", tmp_path)
    (tmp_path / "setup.py").write_text("")
    assert "no command balms-det" in fault("balms-det --help")
    (tmp_path / "setup.py").write_text('"balms-det = command_in_test:main"')
    (tmp_path / "command_in_test.py").write_text(
        "import argparse\n"
        "def main():\n"
        "    parser = argparse.ArgumentParser()\n"
        "    parser.add_argument('--seeds')\n"
        "    parser.add_subparsers().add_parser('train').add_argument('--minutes')\n"
        "    parser.parse_args()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert fault("balms-det --seeds 1") is None
    assert fault("balms-det train --minutes 1") is None
    assert "has no flag --hours" in fault("balms-det train --hours 1")


@pytest.mark.e2e
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_of_documents_runs(document, tmp_path):
    for code in blocks(document.read_text(encoding="utf-8"), "python"):
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_of_documents_is_a_configuration(document):
    for text in blocks(document.read_text(encoding="utf-8"), "yaml"):
        cfg = get_cfg()
        add_balms_config(cfg)
        content = yaml.safe_load(text)
        for base in content.pop("_BASE_", ()):
            cfg.merge_from_file(config_file(base))
        cfg.merge_from_other_cfg(CfgNode(content))
