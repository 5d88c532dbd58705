"""What ``device.py`` and ``given_back.py`` ask of NVIDIA's driver is in cuda-bindings, which needs no GPU to be looked at."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")

from cuda.bindings import driver

from tortoise_rt.backends import device, given_back

FUNCTION = re.compile("cu[A-Z]")
#: those that are made -> what they are called
STRUCTURES = {"CUDA_MEMCPY3D": "parameters", "CUmemPoolProps": "wanted"}
SOURCE = [node for module in (device, given_back) for node in ast.parse(inspect.getsource(module)).body]


def nodes(kind: type[Any]) -> Iterator[Any]:
    return (node for part in SOURCE for node in ast.walk(part) if isinstance(node, kind))


def called() -> Iterator[tuple[str, int]]:
    """Functions of the driver -> how many arguments they are given; those that are to be called later with theirs, too."""
    for call in nodes(ast.Call):
        function, given = call.func, call.args
        if isinstance(function, ast.Attribute) and function.attr == "partial":
            function, *given = given
        if isinstance(function, ast.Attribute) and FUNCTION.match(function.attr):
            assert not call.keywords
            yield function.attr, len(given)


def members() -> Iterator[tuple[str, str]]:
    """Enumerations and the members of them that are named."""
    short = {  # names for enumerations
        node.targets[0].id: node.value.attr
        for node in nodes(ast.Assign)
        if isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Attribute)
    }
    for node in nodes(ast.Attribute):
        if node.attr.startswith("CU") and isinstance(node.value, ast.Attribute | ast.Name):
            of = node.value.attr if isinstance(node.value, ast.Attribute) else short.get(node.value.id, "")
            if of.startswith("CU"):
                yield of, node.attr


def test_functions_take_what_they_are_given() -> None:
    found = {*called()}
    assert {("cuInit", 1), ("cuCtxPopCurrent", 0), ("cuMemFreeAsync", 2), ("cuLaunchKernel", 11)} <= found
    named = {node.attr for node in nodes(ast.Attribute) if FUNCTION.match(node.attr)}
    assert {name for name, _ in found} == named and len(named) > 30
    assert {(name, len(inspect.signature(getattr(driver, name)).parameters)) for name in named} == found


def test_types_members_and_fields_are_there() -> None:
    types = {n.attr for n in nodes(ast.Attribute) if n.attr.startswith("cu") and not FUNCTION.match(n.attr)}
    assert types <= {*dir(driver)}
    found = {*members()}
    assert {("CUresult", "CUDA_SUCCESS"), ("CUmemorytype", "CU_MEMORYTYPE_DEVICE")} <= found
    assert len([of for of, _ in found if of == "CUdevice_attribute"]) == 2
    assert [(of, name) for of, name in found if name not in getattr(driver, of).__members__] == []
    assert driver.CUevent_flags.CU_EVENT_DISABLE_TIMING == device._WITHOUT_TIMES
    assert {call.func.attr for call in nodes(ast.Call) if "CU" in getattr(call.func, "attr", "")} == {
        *STRUCTURES
    }
    for structure, called in STRUCTURES.items():
        paths = {ast.unparse(node).partition(".") for node in nodes(ast.Attribute)}
        fields = [path for name, _, path in paths if name == called]
        assert len(fields) > 3
        for path in fields:
            *way, last = path.split(".")
            assert last in dir(functools.reduce(getattr, way, getattr(driver, structure)()))
