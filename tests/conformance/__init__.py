"""Conformance: the library's functions against vectors of inputs and expected outputs, one file a published method.

Run `python -m tests.conformance FOLDER [--slug SLUG]`. A module beside this one, named as the file with underscores
for dashes, maps each function of the vectors to a call of the library in its dictionary `FUNCTIONS`. It holds no
arithmetic: it renames inputs and outputs. What every function shares is done by the runner.
"""
