"""Kernels of a text in MSL or CUDA C++ are compiled by g++; tests that need it skip with the reason without it."""

import shutil

import pytest


@pytest.fixture(scope="session", autouse=True)
def gpp():
    if shutil.which("g++") is None:
        pytest.skip("no g++ (Debian package g++)")
