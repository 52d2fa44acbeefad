"""Fuzz tests of the public commands.

Valid inputs are mutated by hypothesis, one file of strategies for each kind of input. `sandbox.py`
lays an input out in a folder of its own and runs a command on it in a child process with bounded
memory, time and file size, forked by `server.py`. `oracle.py` says what is accepted: all done, an
input skipped with a reason, or one line and exit code 2. `python -m tests.fuzz.survey` counts the
faults of many inputs by class; `test_fuzz.py` stops at the first and saves its input.
"""
