"""Install with `pip install -e .`; the programs run from the repository's root."""

from setuptools import find_packages, setup

setup(
    name="glm-distill",
    version="0.1.0",
    description="Distil a large GLM into a small one: every method, every parallel size, CPU too",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            f"{name}{below}"
            for name in ("config", "mpu", "data_utils", "model", "tasks", "distill")
            for below in ("", ".*")
        ]
    ),
    package_data={"config": ["*.json", "**/*.json"], "data_utils": ["assets/*"]},
)
