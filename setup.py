"""Install with `pip install -e .`; the programs run from the repository's root."""

from setuptools import find_packages, setup

setup(
    name="glm-distill",
    version="0.1.0",
    description="Distil a large GLM into a small one: every method, every parallel size, CPU too",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            f"{name}{below}"
            for name in ("config", "mpu", "data_utils", "model", "tasks", "distill")
            for below in ("", ".*")
        ]
    ),
    package_data={"config": ["*.json", "**/*.json", "sweeps/*.yaml"], "data_utils": ["assets/*"]},
    install_requires=[
        "torch>=2.5",
        "numpy>=1.26",
        "tokenizers>=0.20",
        "sentencepiece>=0.2",
        "pyarrow>=15.0",
        "filelock>=3.12",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "tensorboard>=2.15",
        "tqdm>=4.66",
        "pyyaml>=6.0",
        "sqlalchemy>=2.0",
        "optuna>=4.0",
        "rich>=13.0",
        "matplotlib>=3.8",
    ],
    extras_require={
        "deepspeed": ["deepspeed>=0.16"],
        "slurm": ["submitit>=1.5"],
        "generation": ["transformers>=5.23", "rouge_score>=0.1.2", "sacrebleu>=2.4"],
        "english": ["py3langid>=0.3"],
        "dev": [
            "deepspeed>=0.16",
            "transformers>=5.23",
            "rouge_score>=0.1.2",
            "sacrebleu>=2.4",
            "datasets>=3.0",
            "py3langid>=0.3",
            "pytest>=9.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
        ],
    },
)
