"""Heat's own engine over the cases that `pileus stack render --cases` takes.

usage: render.py CASES > RESULTS
       render.py --seconds ROUNDS CASES

The first prints what Heat makes of each case, one line of JSON each, shaped like `expected`: what
`pileus stack render --cases` does. The second prints one line of JSON: the seconds that the engine
takes for all cases once it is loaded and the cases are read, results neither made plain nor
written (the best of ROUNDS), and the seconds that it took to load.

Needs the package openstack-heat; see tests/bench/stack_heat.rs.
"""
import copy
import json
import os
import sys
import time

begun = time.perf_counter()
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "heat"))

import golden
from heat.engine import environment
from heat.engine import resource


class Unknown(resource.Resource):
    """Stands for types that only Heat's own tests have."""

    properties_schema = {}


def know_types(case):
    """Makes the types of Heat's own tests known, which have plain names."""
    found = case["template"] if isinstance(case["template"], dict) else {}
    found = found.get("resources", found.get("Resources"))
    registry = environment.Environment(case["environment"]).registry
    for each in (found if isinstance(found, dict) else {}).values():
        name = each.get("type", each.get("Type")) if isinstance(each, dict) else None
        if not isinstance(name, str) or not name:
            continue
        try:
            registry.get_class(name, files=case["files"])
        except Exception:
            if "::" not in name and "." not in name:
                resource._register_class(name, Unknown)


def read(path):
    with open(path) as lines:
        for line in lines:
            case = json.loads(line)["case"]
            for key, nothing in (("files", {}), ("environment", {}), ("stack_name", "stack")):
                case[key] = case.get(key) or nothing
            know_types(case)
            yield case


def seconds(cases):
    spent = 0.0
    for case in cases:
        # The engine may change what it is given.
        own = copy.deepcopy(case)
        start = time.perf_counter()
        golden.expected(own)
        spent += time.perf_counter() - start
    return spent


def main():
    if sys.argv[1] != "--seconds":
        for case in read(sys.argv[1]):
            print(json.dumps(golden.expected(case)))
        return
    cases = list(read(sys.argv[3]))
    loading = time.perf_counter() - begun
    golden.plain = lambda value: value
    best = min(seconds(cases) for _ in range(int(sys.argv[2])))
    print(json.dumps({"seconds": best, "loading": loading}))


main()
