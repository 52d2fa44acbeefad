"""Independent parts for the packages above: configs, files, images, windows, metrics, ranks.

They build on the standard library, torch, numpy and small libraries; they import none of the
packages above, and never Ray, zarr or pyarrow. Nothing is exported here: import from the module
that defines it. Read config.py and files.py first; the subpackage cpu holds the kernels on
private torch operations.
"""
