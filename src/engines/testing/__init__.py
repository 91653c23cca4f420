"""What proves an implementation right, shipped with it: conformance kits, faults, a clock moved by hand.

Third parties run the kits on drivers of their own; pytest is imported here and nowhere else in the package.
"""
