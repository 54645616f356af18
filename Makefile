.PHONY: ext
ext:
	@/work/venv/bin/python -c "from setuptools import setup; setup()" build_ext --inplace -q
