"""Stands in for the builder in one test: says something, then dies as TensorRT does."""

import os
import sys

sys.stdin.readline()
print("this is the end", flush=True)
os.abort()
