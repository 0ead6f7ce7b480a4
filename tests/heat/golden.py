"""Cases of a folder's templates, with what Heat's own engine makes of them.

usage: golden.py FOLDER [VARIANTS] > golden.jsonl

Takes every HOT and CloudFormation template below FOLDER, invents parameters that it has no
default for, reference ids and attributes, and writes a line for each: {"case", "expected"}, as
`pileus stack render --cases` takes them and tests/stack_heat.rs compares them in the folder that
PILEUS_HEAT_CASES names. VARIANTS more cases of each template have parameters by chance, the same
in every run. No cloud is asked; what is named in one keeps its name.

Needs the package openstack-heat; see tests/bench/stack_heat.rs.
"""
import collections.abc
import copy
import hashlib
import json
import logging
import os
import random
import re
import sys
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

from oslo_config import cfg

cfg.CONF([], project="heat", default_config_files=[], default_config_dirs=[])
# What the package has beside the engine: types that are other types or templates.
ETC = os.path.join(sys.prefix, "etc", "heat")

from heat.common import context
from heat.common import identifier
from heat.common import template_format
from heat.engine import attributes
from heat.engine import constraints
from heat.engine import environment
from heat.engine import function
from heat.engine import node_data
from heat.engine import resources
from heat.engine import stack as parser
from heat.engine import stk_defn
from heat.engine import template
from heat.engine.resources import template_resource

cfg.CONF.set_override("environment_dir", os.path.join(ETC, "environment.d"))
cfg.CONF.set_override("template_dir", os.path.join(ETC, "templates"))
cfg.CONF.set_override("region_name_for_services", "ap-southeast-1")
cfg.CONF.set_override("max_template_size", 1 << 26)
cfg.CONF.set_override("max_json_body_size", 1 << 26)
resources.initialise()
constraints.CustomConstraint._is_valid = lambda self, value, schema, context: True
for each in (stk_defn.StackDefinition, parser.Stack):
    each.get_availability_zones = lambda self: ["nova"]

STACK_ID = "11111111-2222-3333-4444-555555555555"
WHO = {"tenant": "t", "project_id": "t", "tenant_id": "t", "user_id": "u", "roles": []}
CONTEXT = context.RequestContext.from_dict(
    {**WHO, "is_admin": False, "region_name": "ap-southeast-1"}
)
VERSION = re.compile(r"heat_template_version|AWSTemplateFormatVersion|HeatTemplateFormatVersion")
TEMPLATE_NAME = re.compile(r"\.(yaml|yml|template|json)$")
# Texts that templates are given and stumble over.
WORDS = ["x", "a-b", "10.0.0.1", "fd00::1", "a.example.com", "true", "3", "é", "$(id)", "a b", "", "a,b"]


def failed(stage, error):
    try:
        message = str(error)
    except Exception:
        message = repr(error)
    return {"stage": stage, "type": type(error).__name__, "message": message}


def plain(value):
    """As JSON has it: Heat's own maps and lists are views."""
    if isinstance(value, collections.abc.Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if isinstance(value, collections.abc.Iterable):
        return [plain(item) for item in value]
    return str(value)


class Attributes(dict):
    """A resource's attributes, paths into them followed as the resource would."""

    def __missing__(self, key):
        if isinstance(key, tuple) and key[0] in self:
            return attributes.select_from_attribute(self[key[0]], key[1:])
        raise KeyError(key)


def parsed(case):
    env = environment.Environment(copy.deepcopy(case["environment"]))
    return template.Template(copy.deepcopy(case["template"]), files=dict(case["files"]), env=env)


def expected(case):
    """What Heat makes of a case, or where it stops."""
    stage = "template"
    try:
        made = parsed(case)
        stage = "stack"
        stack = parser.Stack(CONTEXT, case["stack_name"], made)
        ident = identifier.HeatIdentifier("t", case["stack_name"], STACK_ID)
        stack.identifier = lambda: ident
        nodes = {
            name: node_data.NodeData(
                1, name, "u-" + name, known["refid"], Attributes(known["attrs"]), "CREATE", "COMPLETE"
            )
            for name, known in case["resources"].items()
        }
        stack.defn = stk_defn.StackDefinition(CONTEXT, made, ident, nodes)
        stack.defn.parameters.set_stack_id(ident)
        stage = "parameters"
        stack.parameters.validate(validate_value=True, context=CONTEXT)
        stage = "resources"
        made.resource_definitions(stack.defn)
        names = stack.defn.enabled_rsrc_names()
        definitions = {name: stack.defn.resource_definition(name) for name in names}
        requires = {
            name: sorted(definition.required_resource_names())
            for name, definition in definitions.items()
        }
        stage = "outputs"
        outputs = {name: stack.defn.output_definition(name) for name in made.outputs(stack.defn)}
    except Exception as error:
        return {"error": failed(stage, error)}
    result = {"parameters": shown_parameters(stack), "resources": {}, "outputs": {}}
    for name, definition in definitions.items():
        shown = shown_resource(stack, name, definition)
        shown["requires"] = requires[name]
        result["resources"][name] = shown
    try:
        result["order"] = [each.name for each in stack.dependencies]
    except Exception as error:
        result["order_error"] = failed("dependencies", error)
    for name, output in outputs.items():
        shown = result["outputs"][name] = {"description": output.description()}
        try:
            shown["value"] = plain(output.get_value())
        except Exception as error:
            shown["error"] = failed("output", error)
    return result


def shown_parameters(stack):
    shown = {}
    for name in stack.parameters:
        try:
            shown[name] = plain(stack.parameters[name])
        except Exception:
            pass
    return shown


def shown_resource(stack, name, definition):
    shown = {"type": definition.resource_type}
    parts = {
        "deletion_policy": definition.deletion_policy,
        "condition": definition.condition,
        "external_id": definition.external_id,
        "metadata": lambda: function.resolve(definition._metadata),
        "update_policy": lambda: function.resolve(definition._update_policy),
        "properties": lambda: function.resolve(definition._properties),
    }
    for key, part in parts.items():
        try:
            value = part()
            if value is not None and not (key == "properties" and value == {}):
                shown[key] = plain(value)
        except Exception as error:
            shown[key + "_error"] = failed(key, error)
    try:
        # Types that are not Heat's fail all of a stack here.
        for each in stack.resources.values():
            each.stack.has_cache_data = lambda name: False
        resource = stack.resources[name]
        resource.reparse(client_resolve=False)
        values = {key: resource.properties[key] for key in resource.properties_schema}
        shown["typed_properties"] = {k: plain(v) for k, v in values.items() if v is not None}
    except Exception as error:
        shown["typed_properties_error"] = failed("typed_properties", error)
    return shown


def attribute(resource, name, kind):
    special = {
        "first_address": "10.0.0.5",
        "networks": {"private": ["10.0.0.5", "fd00::5"], "public": ["192.0.2.5"]},
        "addresses": {"private": [{"addr": "10.0.0.5", "version": 4}]},
        "fixed_ips": [{"ip_address": "10.0.0.5", "subnet_id": resource + "-subnet"}],
        "show": {"id": resource + "-id", "name": resource},
    }
    text = "%s.%s" % (resource, name)
    by_kind = {"List": [text], "Map": {"k": text}, "Integer": 1, "Boolean": True}
    return special.get(name, by_kind.get(kind, text))


def below(path, leaf):
    """A value in which `path` leads to `leaf`."""
    for step in reversed(path):
        if isinstance(step, int) or step.isdigit():
            leaf = [leaf] * (min(int(step), 50) + 1)
        else:
            leaf = {step: leaf}
    return leaf


def calls(value, names):
    """The arguments of every call of a function of these names."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in names:
                yield item
            yield from calls(item, names)
    elif isinstance(value, list):
        for item in value:
            yield from calls(item, names)


def invent_parameters(case, chance):
    """Values of parameters: those without a default, and by chance of others."""
    made = parsed(case)
    given = case["environment"].setdefault("parameters", {})
    for name, schema in made.param_schemata({}).items():
        needed = schema.default is None and name not in given
        if not needed and (chance is None or schema.constraints or chance.random() < 0.4):
            continue
        allowed = [c for c in schema.constraints if isinstance(c, constraints.AllowedValues)]
        if allowed:
            given[name] = list(allowed[0].allowed)[0]
            continue
        values = {
            schema.NUMBER: [1, 0, "4", 7.5, -1],
            schema.LIST: ["a,b", "", "a", ["x", "y"], [], "a, b ,c"],
            schema.MAP: [{"k": "v", "list": [1, 2]}, {}, '{"k": 1.5}', {"a": {"b": [None]}}],
            schema.BOOLEAN: [True, False, "true", "yes", "0"],
        }
        word = re.sub("[^a-z0-9]", "", name.lower()) or "v"
        values = values.get(schema.type, [word] + WORDS)
        given[name] = values[0] if chance is None else chance.choice(values)


def invent_resources(case):
    """Reference ids and attributes: those of the type, and those that the template asks for."""
    made = parsed(case)
    ident = identifier.HeatIdentifier("t", case["stack_name"], STACK_ID)
    definition = stk_defn.StackDefinition(CONTEXT, made, ident, {})
    known = case["resources"]
    for name in sorted(definition.enabled_rsrc_names()):
        attrs = {}
        kind = definition.resource_definition(name).resource_type
        try:
            found = made.env.registry.get_class(kind, name, files=made.files)
            if not issubclass(found, template_resource.TemplateResource):
                schemata = found.attributes_schema.items()
                attrs = {key: attribute(name, key, schema.type) for key, schema in schemata}
                attrs.setdefault("show", attribute(name, "show", None))
        except Exception:
            # A type that is not Heat's.
            pass
        known[name] = {"refid": name + "-id", "attrs": attrs}
    for asked in calls(case["template"], ("get_attr", "Fn::GetAtt")):
        asked = asked.split(".", 1) if isinstance(asked, str) else asked
        if not isinstance(asked, list) or len(asked) < 2 or asked[0] not in known:
            continue
        if all(isinstance(step, (str, int)) for step in asked[1:]):
            name, key, *path = asked
            value = attribute(name, key, None)
            value = below(path, value) if isinstance(value, str) else value
            known[name]["attrs"].setdefault(key, value)


def gather(found, folder, files, depth=0):
    """The files that a template names, and those that these name."""
    named = list(calls(found, ("get_file",)))
    inner = [name for name in calls(found, ("type", "Type")) if isinstance(name, str)]
    inner = [name for name in inner if TEMPLATE_NAME.search(name)]
    for name in named + inner:
        if not isinstance(name, str) or "://" in name or name in files:
            continue
        text = read(os.path.join(folder, name))
        if text is None:
            continue
        files[name] = text
        if name in inner and depth < 4:
            try:
                further = template_format.parse(text)
            except Exception:
                continue
            gather(further, os.path.dirname(os.path.join(folder, name)), files, depth + 1)


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return None


def templates(root):
    """Name, folder and text of every template."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            text = read(os.path.join(folder, name)) if TEMPLATE_NAME.search(name) else None
            if text and VERSION.search(text):
                yield os.path.relpath(os.path.join(folder, name), root), folder, text


def main():
    root = os.path.abspath(sys.argv[1])
    variants = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    refused = 0
    for name, folder, text in templates(root):
        digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            found = template_format.parse(text)
            # What is no JSON is no case.
            json.dumps(found)
        except Exception:
            refused += 1
            continue
        files = {}
        gather(found, folder, files)
        for variant in range(variants + 1):
            case = {
                "name": "%s/%s#%d" % (os.path.basename(root), name, variant),
                "template": found,
                "files": files,
                "environment": {},
                "stack_name": "teststack",
                "resources": {},
            }
            try:
                chance = random.Random("%s %d" % (digest, variant)) if variant else None
                invent_parameters(case, chance)
                invent_resources(case)
            except Exception:
                # What Heat says of it is in `expected`.
                pass
            print(json.dumps({"case": case, "expected": expected(copy.deepcopy(case))}))
    print("%d templates are refused by Heat's parser" % refused, file=sys.stderr)


if __name__ == "__main__":
    main()
