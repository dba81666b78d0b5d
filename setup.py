"""Which folders are packages; setup.cfg says everything else.

Two folders beside the package come with it, or an installation would know no manifest and no recipe.
"""

from setuptools import find_packages, setup

BESIDE = ("data_manifests", "pipelines")

setup(
    packages=[*find_packages(include=["proteinlm*"]), *(f"proteinlm.{name}" for name in BESIDE)],
    package_dir={f"proteinlm.{name}": name for name in BESIDE},
)
