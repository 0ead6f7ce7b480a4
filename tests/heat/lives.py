"""Lives of stacks, as Heat's own engine goes through them.

usage: lives.py FOLDER [UPDATES] > lifecycle.jsonl, or lives.py < cases.jsonl > lifecycle.jsonl

Of every template below FOLDER a stack is made, updated UPDATES times by parameters by chance, and
deleted. A line of an input is a case without what Heat makes of it, or with: {"name", "steps"}, a
step {"op": create, update, delete, suspend, resume or check; of the first two "template",
"files", "environment"; "rollback": true where a failure is to be taken back; "fail": {"CREATE":
[names]} for what fails}. A line of the output is {"case", "expected"} as tests/contract/stack_lifecycles.rs
compares them in the folder that PILEUS_HEAT_CASES names.

The engine runs in this process, without convergence, on a database in memory; stacks inside are
created, changed and deleted as soon as they are asked for. Types that ask a cloud are replaced by
ones with the same properties that only write down what they are asked for.

Needs the package openstack-heat; see tests/bench/stack_heat.rs.
"""
import contextlib
import copy
import json
import random
import sys

import golden

from oslo_config import cfg
from oslo_db import options
from oslo_messaging.rpc import dispatcher

from heat.common import context
from heat.common import exception
from heat.common import template_format
from heat.db import api as db_api
from heat.db import models
from heat.engine import clients
from heat.engine import notification
from heat.engine import resource
from heat.engine import resources
from heat.engine import scheduler
from heat.engine import service
from heat.engine import stack as parser
from heat.engine.clients import client_plugin
from heat.engine.clients.os.keystone import fake_keystoneclient
from heat.engine.resources import stack_resource
from heat.engine.resources import template_resource
from heat.objects import event as event_object
from heat.objects import stack as stack_object
from heat.rpc import client as rpc_client

# Made by the engine itself.
INNER = {
    "OS::Heat::" + name
    for name in (
        "SoftwareConfig StructuredConfig SoftwareComponent CloudConfig MultipartMime RandomString"
        " TestResource ScalingPolicy Value None Delay"
    ).split()
}


class Boom(Exception):
    """What fails on purpose."""


class Cloud:
    """What is asked for, and what fails."""

    made = 0

    def begin(self, fails):
        self.calls = []
        self.fails = fails

    def asked(self, action, resource, *more):
        self.calls.append([action, resource.stack.name, resource.name, *more])
        if resource.name in self.fails.get(action, ()):
            raise Boom("%s of %s fails on purpose" % (action, resource.name))


CLOUD = Cloud()


def nothing(*args, **kwargs):
    pass


def done(*args):
    return True


class Faked:
    """What takes the place of a type's own handlers."""

    def handle_create(self):
        CLOUD.made += 1
        self.resource_id_set("%s-%d" % (self.name, CLOUD.made))
        CLOUD.asked("CREATE", self, self.resource_id)

    def handle_update(self, json_snippet, tmpl_diff, prop_diff):
        CLOUD.asked("UPDATE", self, self.resource_id, sorted(prop_diff))

    def handle_delete(self):
        if self.resource_id is not None:
            CLOUD.asked("DELETE", self, self.resource_id)

    check_create_complete = check_update_complete = check_delete_complete = done
    check_suspend_complete = check_resume_complete = check_check_complete = done
    check_snapshot_delete_complete = done

    handle_metadata_reset = prepare_for_replace = restore_prev_rsrc = _show_resource = nothing

    # Those of types ask a cloud.
    validate, get_live_state = resource.Resource.validate, resource.Resource.get_live_state
    needs_replace_failed = resource.Resource.needs_replace_failed
    get_reference_id = resource.Resource.get_reference_id

    def _resolve_attribute(self, name):
        kind = self.attributes_schema.get(name)
        return golden.attribute(self.name, name, kind and kind.type)

    _resolve_any_attribute = _resolve_attribute


def snapshot(self, state):
    CLOUD.asked("SNAPSHOT_DELETE", self, self.resource_id)


def faked(real):
    """A type with the schema and the handlers of `real` that only tells what it is asked."""
    own = {"__module__": __name__}
    for action in ("SUSPEND", "RESUME", "CHECK"):
        name = "handle_" + action.lower()
        if getattr(real, name, None):
            own[name] = lambda self, action=action: CLOUD.asked(action, self)
    if getattr(real, "handle_snapshot_delete", None):
        own["handle_snapshot_delete"] = snapshot
    return type("Fake_" + real.__name__, (Faked, real), own)


class Threads:
    """Does at once what the engine would do beside."""

    class Done:
        link = nothing

    def start(self, stack_id, func, *args, **kwargs):
        func(*args, **kwargs)
        return self.Done()

    def start_with_lock(self, cnxt, stack, engine_id, func, *args, **kwargs):
        func(*args, **kwargs)
        if stack.defer_state_persist():
            stack.persist_state_and_release_lock(engine_id)
        return self.Done()

    def start_with_acquired_lock(self, stack, lock, func, *args, **kwargs):
        self.start_with_lock(None, stack, lock.engine_id, func, *args, **kwargs)
        lock.release()

    add_msg_queue = remove_msg_queue = stop_timers = send = stop = nothing


@contextlib.contextmanager
def unwrapped():
    """Errors as they are: the engine wraps them for the way through the message bus."""
    try:
        yield
    except dispatcher.ExpectedException as wrapped:
        raise wrapped.exc_info[1] from None


class Client(rpc_client.EngineClient):
    """Asks the engine in this process."""

    engine = None

    __init__ = nothing

    def call(self, ctxt, msg, version=None, timeout=None):
        method, kwargs = msg
        with unwrapped():
            return getattr(self.engine, method)(ctxt, **copy.deepcopy(kwargs))

    cast = call


def prepare():
    options.set_defaults(cfg.CONF, connection="sqlite://")
    cfg.CONF.set_override("convergence_engine", False)
    cfg.CONF.set_override("max_stacks_per_tenant", -1)
    cfg.CONF.set_override("auth_encryption_key", "1" * 32)
    cfg.CONF.set_override("deferred_auth_method", "password")
    cfg.CONF.set_override("reauthentication_auth_method", "")
    models.BASE.metadata.create_all(db_api.get_engine())
    scheduler.ENABLE_SLEEP = False
    service.NotifyEvent.wait = notification.notify = nothing
    read = template_resource.TemplateResource.get_template_file
    template_resource.TemplateResource.get_template_file = staticmethod(
        lambda name, schemes: read(name.replace("/etc/heat", golden.ETC), schemes)
    )
    types = resources.global_env()
    # Hidden ones, too, which get_types() leaves out.
    for name, info in list(types.registry._registry.items()):
        real = getattr(info, "value", None)
        if isinstance(real, type) and name not in INNER:
            if not issubclass(real, stack_resource.StackResource):
                types.register_class(name, faked(real))
    resource.Resource._validate_service_availability = classmethod(lambda *args: None)
    translate = resource.Resource.translate_properties
    resource.Resource.translate_properties = lambda self, properties, *args, **kwargs: translate(
        self, properties, client_resolve=False
    )
    keystone = fake_keystoneclient.FakeKeystoneClient()
    clients.OpenStackClients.client = lambda self, name, version=None: (
        keystone if name == "keystone" else None
    )
    client_plugin.ClientPlugin.url_for = lambda self, **kwargs: "http://cloud.test"
    rpc_client.EngineClient = Client
    engine = service.EngineService("host", "topic")
    engine.thread_group_mgr = Threads()
    engine.engine_id = "engine"
    engine.resource_enforcer.enforce_stack = nothing
    Client.engine = engine
    return engine


def rows(stack):
    for each in stack.iter_resources(cfg.CONF.max_nested_stack_depth):
        yield {
            "action": each.action,
            "name": each.name,
            "physical_id": each.resource_id,
            "reason": each.status_reason,
            "required_by": sorted(each.required_by()),
            "stack": each.stack.name,
            "status": each.status,
            "type": each.type(),
        }


def events(cnxt, stack_id):
    for each in event_object.Event.get_all_by_stack(cnxt, stack_id, sort_dir="desc"):
        yield {
            "action": each.resource_action,
            "reason": each.resource_status_reason,
            "resource": each.resource_name,
            "status": each.resource_status,
        }


class Life:
    """A case: one stack."""

    def __init__(self, engine, name):
        self.engine = engine
        self.name = name
        self.identity = None
        known = {"username": "u", "password": "p", "roles": ["admin"], "is_admin": False}
        self.cnxt = context.RequestContext.from_dict({**golden.WHO, **known})

    def all(self, steps):
        """What comes of the steps, as long as there is a stack."""
        found = []
        for step in steps:
            found.append(self.step(step))
            now = found[-1].get("stack")
            if now is None or (now["action"], now["status"]) == ("DELETE", "COMPLETE"):
                break
        return found

    def step(self, step):
        CLOUD.begin(step.get("fail") or {})
        found = {"op": step["op"]}
        try:
            with unwrapped():
                self.do(step)
        except Exception as error:
            found["error"] = {"message": str(error), "type": type(error).__name__}
        found["calls"] = CLOUD.calls
        self.look(found)
        return json.loads(json.dumps(golden.plain(found)))

    def do(self, step):
        op = step["op"]
        if op not in ("create", "update"):
            method = "delete_stack" if op == "delete" else "stack_" + op
            if self.identity is None:
                raise exception.EntityNotFound(entity="Stack", name=self.name)
            getattr(self.engine, method)(self.cnxt, self.identity)
            return
        given = {
            "template": copy.deepcopy(step["template"]),
            "params": copy.deepcopy(step["environment"]),
            "files": dict(step["files"]),
            "args": {"disable_rollback": not step.get("rollback")},
        }
        if op == "create":
            self.identity = self.engine.create_stack(self.cnxt, self.name, **given)
        else:
            self.engine.update_stack(self.cnxt, self.identity, **given)

    def look(self, found):
        """What there is now."""
        known = self.identity and self.identity["stack_id"]
        data = stack_object.Stack.get_by_id(self.cnxt, known, show_deleted=True)
        if data is None:
            return
        stack = parser.Stack.load(self.cnxt, stack=data, show_deleted=True)
        state = {"action": stack.action, "reason": stack.status_reason, "status": stack.status}
        found.update(stack=state, events=list(events(self.cnxt, stack.id)))
        if "error" not in found:
            found["resources"] = list(rows(stack))


def cases_of(root, updates):
    """A case of each template, with parameters by chance, the same in every run."""
    for name, folder, text in golden.templates(root):
        try:
            found = template_format.parse(text)
            # What is no JSON is no case.
            json.dumps(found)
        except Exception:
            continue
        files = {}
        golden.gather(found, folder, files)
        steps = []
        for number in range(updates + 1):
            step = {"template": found, "files": files, "environment": {}}
            step["op"] = "update" if number else "create"
            chance = random.Random("%s %d" % (name, number)) if number else None
            try:
                golden.invent_parameters(step, chance)
            except Exception:
                # What Heat says of it is in `expected`.
                pass
            steps.append(step)
        yield {"name": name, "steps": [*steps, {"op": "delete"}]}


def main():
    engine = prepare()
    if len(sys.argv) > 1:
        cases = cases_of(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    else:
        cases = (json.loads(line) for line in sys.stdin)
    for number, case in enumerate(cases):
        case = case.get("case", case)
        case["stack_name"] = "s%d" % number
        expected = Life(engine, case["stack_name"]).all(case["steps"])
        case["steps"] = case["steps"][: len(expected)]
        print(json.dumps({"case": case, "expected": expected}), flush=True)


if __name__ == "__main__":
    main()
