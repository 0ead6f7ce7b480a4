"""Heat's own engine over the cases that `pileus stack render --cases` takes.

usage: render.py CASES [ROUNDS]

Makes of each case what the project's engine makes of it: the template parsed, parameters
checked, dependencies sorted, every resource's properties resolved and put through the type's
schema, outputs resolved. Nothing is stored and no cloud is asked: reference ids and attributes
are those of the case, names looked up in a cloud stay as they are. Prints one line of JSON:
seconds that the engine took for all cases (the best of ROUNDS), seconds that it took to load, and
what came of the cases. Reading them and writing the results are not counted.

Needs the package openstack-heat; see tests/bench/stack_heat.rs.
"""
import collections
import json
import logging
import os
import sys
import time
import warnings

begun = time.perf_counter()
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

from oslo_config import cfg

cfg.CONF([], project="heat", default_config_files=[], default_config_dirs=[])
# What the package has beside the engine: types that are other types or templates.
ETC = os.path.join(sys.prefix, "etc", "heat")

from heat.common import context
from heat.engine import constraints
from heat.engine import environment
from heat.engine import function
from heat.engine import resource
from heat.engine import resources
from heat.engine import stack as parser
from heat.engine import template
from heat.engine import translation

cfg.CONF.set_override("environment_dir", os.path.join(ETC, "environment.d"))
cfg.CONF.set_override("template_dir", os.path.join(ETC, "templates"))
resources.initialise()

# What is known of the resources of the case at work: {name: {"refid", "attrs"}}.
known = {}


def ref_id(self):
    entry = known.get(self.name)
    return entry["refid"] if entry else self.name


def attribute(self, key, *path):
    value = known.get(self.name, {}).get("attrs", {}).get(key)
    for step in path:
        if value is None:
            return None
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def attributes(self):
    return known.get(self.name, {}).get("attrs", {})


def every_class():
    found = {resource.Resource}
    left = [resource.Resource]
    while left:
        for sub in left.pop().__subclasses__():
            if sub not in found:
                found.add(sub)
                left.append(sub)
    return found


for each in every_class():
    for name, stub in (
        ("FnGetRefId", ref_id),
        ("get_reference_id", ref_id),
        ("FnGetAtt", attribute),
        ("FnGetAtts", attributes),
    ):
        if name in each.__dict__:
            setattr(each, name, stub)

# A name is its own id: no cloud is asked.
translation.Translation.translate = (
    lambda self, key, value=None, data=None, *rest, **more: value
)
constraints.CustomConstraint._is_valid = (
    lambda self, value, schema, context: True
)
# Resources exist, so that attributes are read.
resource.Resource.action = property(lambda self: "CREATE", lambda self, value: None)
resource.Resource.status = property(lambda self: "COMPLETE", lambda self, value: None)


class Unknown(resource.Resource):
    """Stands for types that are not Heat's, which would stop it from rendering the rest."""

    properties_schema = {}


def know_types(case):
    found = case["template"] if isinstance(case["template"], dict) else {}
    found = found.get("resources", found.get("Resources"))
    registry = environment.Environment(case.get("environment") or {}).registry
    for each in (found if isinstance(found, dict) else {}).values():
        name = each.get("type", each.get("Type")) if isinstance(each, dict) else None
        if not isinstance(name, str) or not name:
            continue
        try:
            registry.get_class(name, files=case.get("files") or {})
        except Exception:
            if "." not in name.rsplit("/", 1)[-1]:
                resource._register_class(name, Unknown)


def resolve(stack, each):
    """One resource as the project's engine shows it."""
    result = {"type": each.type()}
    definition = each.t
    result["requires"] = sorted(other.name for other in definition.dependencies(stack))
    result["deletion_policy"] = definition.deletion_policy()
    result["condition"] = definition.condition()
    result["external_id"] = definition.external_id()
    result["metadata"] = definition.metadata()
    result["update_policy"] = function.resolve(definition._update_policy)
    result["properties"] = function.resolve(definition._properties)
    # As a plugin sees them.
    found = definition.properties(each.properties_schema, each.context)
    result["typed_properties"] = {name: found[name] for name in each.properties_schema}
    return result


def render(case, ctx):
    """The case rendered, and what of it could not be had, as counts."""
    missed = collections.Counter()
    result = {"resources": {}, "outputs": {}}
    env = environment.Environment(case.get("environment") or {})
    made = template.Template(
        case["template"], files=case.get("files") or {}, env=env
    )
    stack = parser.Stack(ctx, case.get("stack_name") or "stack", made)
    stack.parameters.validate(validate_value=True, context=ctx)
    result["parameters"] = dict(stack.parameters)
    try:
        result["order"] = [each.name for each in stack.dependencies]
    except Exception:
        missed["order"] += 1
    for name, each in stack.items():
        try:
            result["resources"][name] = resolve(stack, each)
        except Exception:
            missed["properties"] += 1
    for name, output in stack.outputs.items():
        try:
            result["outputs"][name] = output.get_value()
        except Exception:
            missed["outputs"] += 1
    return result, missed


def main():
    global known
    path = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with open(path) as lines:
        cases = [json.loads(line)["case"] for line in lines]
    ctx = context.RequestContext.from_dict(
        {"tenant": "t", "project_id": "t", "user_id": "u", "roles": [], "is_admin": False}
    )
    loading = time.perf_counter() - begun
    best, told = None, None
    for _ in range(rounds):
        spent, counts = 0.0, collections.Counter()
        for case in cases:
            # The engine may change what it is given.
            own = json.loads(json.dumps(case))
            known = own.get("resources") or {}
            know_types(own)
            start = time.perf_counter()
            try:
                counts += render(own, ctx)[1]
                counts["rendered"] += 1
            except Exception as error:
                counts["refused"] += 1
                if "-v" in sys.argv:
                    print(case["name"], repr(error)[:80], str(error)[:160].replace("\n", " "), file=sys.stderr)
            spent += time.perf_counter() - start
        if best is None or spent < best:
            best, told = spent, counts
    print(json.dumps({"cases": len(cases), "seconds": best, "loading": loading, **told}))


main()
