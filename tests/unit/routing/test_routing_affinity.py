"""Response ids that lead back to where the response lives, for the one who made it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aisix.core.endpoints import ENDPOINTS
from aisix.core.exchange import Exchange, Payload, Timings
from aisix.core.resources import Deployment
from aisix.core.snapshot import Snapshot
from aisix.errors import BadRequest, Forbidden, GatewayError, NotFound
from aisix.routing.addressing import Addressing, check_family
from aisix.routing.affinity import Affinity, Origin
from tests.support.builders import make_alias, make_deployment, make_key, make_request

SPECS = {spec.operation: spec for spec in ENDPOINTS}
KEY = make_key(id="key-1", key_hash="1" * 64, allowed_models=("gpt-*",))
OTHER_KEY = make_key(id="key-2", key_hash="2" * 64, allowed_models=("gpt-*",))
WEST = make_deployment(name="west-4o", provider_key_id="west")
EAST = make_deployment(name="east-4o", provider_key_id="east")
ALIAS = make_alias(id="m-1", name="gpt-4o", deployment=WEST)
BESIDE = make_alias(id="m-2", name="gpt-4o-mini", deployment=replace(WEST, name="west-mini"))
AWAY = make_alias(id="m-3", name="gpt-away", deployment=EAST)
ORIGIN = Origin("west", "m-1", "gpt-4o", "west-4o", WEST.api_version, "resp_abc123")
SEAL_KEY = b"a key of the store"
SEALS = Affinity(SEAL_KEY)
ID = SEALS.seal(ORIGIN, KEY)


def snapshot(*aliases, homes: tuple[Deployment, ...] = (WEST, EAST)) -> Snapshot:
    return Snapshot.build(
        revision=1,
        taken_at=0.0,
        keys=[KEY, OTHER_KEY],
        aliases=aliases or (ALIAS, BESIDE, AWAY),
        homes=[replace(home, name="") for home in homes],
        seal_key=SEAL_KEY,
    )


def exchange(operation: str, *, of: Snapshot | None = None, **fields) -> Exchange:
    request = make_request(SPECS[operation], **fields)
    return Exchange(request=request, snapshot=of or snapshot(), timings=Timings(arrived=0.0))


def find(found: Exchange, payload: Payload, caller=KEY) -> Exchange:
    found.payload = payload
    Addressing().find(found, caller, payload)
    return found


def read(id: str, *, caller=KEY, of: Snapshot | None = None) -> Exchange:
    found = exchange("get_response", of=of, resource=id, query="limit=2")
    return find(found, Payload(document={}, requested=""), caller)


def create(previous: object, *, model: str = "gpt-4o", caller=KEY, of: Snapshot | None = None):
    document = {"model": model, "previous_response_id": previous}
    payload = Payload(document=document, requested=model, raw=b"as it came")
    return find(exchange("create_response", of=of), payload, caller)


def test_the_same_id_is_always_sealed_to_the_same_text():
    assert Affinity(SEAL_KEY).seal(ORIGIN, KEY) == ID
    assert ID.startswith("resp_")
    assert "abc123" not in ID
    assert SEALS.open(ID, KEY) == ORIGIN


def test_nobody_else_opens_it():
    assert SEALS.open(ID, OTHER_KEY) is None
    assert Affinity(b"another store").open(ID, KEY) is None
    assert SEALS.seal(ORIGIN, OTHER_KEY) != ID


@pytest.mark.parametrize(
    "id",
    [
        "",
        "resp_",
        "resp_abc123",
        "msg_1",
        ID[:-1],
        ID + "A",
        "resp_" + "A" * 3000,
        "resp_é",
        "resp_-",
    ],
)
def test_what_was_never_given_out_opens_nothing(id):
    assert SEALS.open(id, KEY) is None


def test_every_letter_counts():
    for at in range(5, len(ID) - 1):
        letter = "A" if ID[at] != "A" else "B"
        assert SEALS.open(ID[:at] + letter + ID[at + 1 :], KEY) is None


def test_a_read_goes_where_the_response_is():
    found = read(ID)
    assert (found.alias, found.deployment) == (ALIAS, WEST)
    assert found.payload is not None
    assert found.payload.errand is not None
    assert (found.payload.errand.resource, found.payload.errand.query) == ("resp_abc123", "limit=2")
    assert found.payload.requested == "gpt-4o"
    assert found.seal is not None
    assert found.seal("resp_abc123") == ID


def test_a_read_goes_there_although_the_model_leads_elsewhere_by_now():
    moved = replace(ALIAS, deployment=EAST)
    found = read(ID, of=snapshot(moved))
    assert found.alias == moved
    assert found.deployment == WEST


def test_a_read_of_the_resource_left_is_of_the_version_that_made_it():
    """The provider key's own version, which is a home's, may know no responses."""
    newer = replace(ORIGIN, api_version="v1")
    found = read(SEALS.seal(newer, KEY), of=snapshot(replace(ALIAS, deployment=EAST)))
    assert found.deployment == replace(WEST, api_version="v1")


def test_an_id_stays_as_it_was_shown_when_its_model_changes():
    changed = snapshot(replace(ALIAS, deployment=replace(WEST, api_version="v1")), BESIDE)
    for found in (
        read(ID, of=changed),
        create(ID, of=changed),
        create(ID, of=changed, model="gpt-4o-mini"),
    ):
        assert found.seal is not None
        assert found.seal("resp_abc123") == ID
        assert found.seal("resp_new") != ID


@pytest.mark.parametrize(
    ("id", "caller", "of"),
    [
        (ID, OTHER_KEY, snapshot()),
        ("resp_abc123", KEY, snapshot()),
        (ID, KEY, snapshot(BESIDE)),
        (ID, KEY, snapshot(replace(ALIAS, deployment=EAST), homes=(EAST,))),
    ],
    ids=["another key's", "the upstream's own", "model gone", "resource gone"],
)
def test_a_read_of_what_is_not_there_is_404(id, caller, of):
    with pytest.raises(NotFound) as refused:
        read(id, caller=caller, of=of)
    assert refused.value.status == 404
    assert id in refused.value.message


def test_a_key_that_lost_the_model_is_told_so():
    with pytest.raises(Forbidden):
        read(ID, caller=replace(KEY, allowed_models=("other",)))


def test_a_response_goes_on_beside_the_one_before():
    found = create(ID)
    assert found.deployment == WEST
    assert found.payload is not None
    assert found.payload.document["previous_response_id"] == "resp_abc123"
    assert found.payload.raw == b"", "what came says something else"


def test_another_model_at_the_same_resource_may_go_on():
    found = create(ID, model="gpt-4o-mini")
    assert found.deployment == BESIDE.deployment


def test_a_moved_model_goes_on_where_it_was():
    found = create(ID, of=snapshot(replace(ALIAS, deployment=EAST)))
    assert found.deployment == WEST


def test_a_model_elsewhere_cannot_go_on_and_says_why():
    with pytest.raises(BadRequest) as refused:
        create(ID, model="gpt-away")
    assert refused.value.param == "previous_response_id"
    assert "another resource" in refused.value.message


@pytest.mark.parametrize(("previous", "caller"), [("resp_abc123", KEY), (ID, OTHER_KEY), ("", KEY)])
def test_going_on_from_what_one_does_not_have_is_404(previous, caller):
    with pytest.raises(NotFound) as refused:
        create(previous, caller=caller)
    assert refused.value.code == "previous_response_not_found"


@pytest.mark.parametrize("previous", [None, 7, ["x"]])
def test_what_is_no_id_is_azure_s_to_judge(previous):
    found = create(previous)
    assert found.payload is not None
    assert found.payload.raw == b"as it came"
    assert found.payload.document["previous_response_id"] == previous


# ── objects of a resource ──


def pass_to(headers=None, *, caller=KEY, of: Snapshot | None = None, **fields) -> Exchange:
    found = exchange("files", of=of, headers=headers, method="GET", resource="/file-1", **fields)
    return find(found, Payload(document={}, requested=""), caller)


def test_the_resource_is_that_of_the_named_alias():
    assert pass_to({"x-aisix-model": "gpt-away"}).deployment == EAST
    assert pass_to(path_name="gpt-4o").deployment == WEST


def test_the_only_alias_of_a_key_need_not_be_named():
    caller = replace(KEY, allowed_models=("gpt-away", "gone"))
    found = pass_to(caller=caller)
    assert found.deployment == EAST
    assert found.payload is not None
    assert found.payload.requested == "gpt-away"


def test_a_wildcard_is_no_model_that_could_be_meant():
    everything = make_alias(id="m-8", name="gpt-*", deployment=replace(WEST, name="west-*"))
    assert pass_to(of=snapshot(everything, ALIAS)).alias == ALIAS
    with pytest.raises(BadRequest, match="x-aisix-model"):
        pass_to(of=snapshot(everything))
    assert pass_to({"x-aisix-model": "gpt-9"}, of=snapshot(everything)).alias == everything


def test_which_of_several_is_asked():
    with pytest.raises(BadRequest) as refused:
        pass_to()
    assert refused.value.param == "x-aisix-model"


@pytest.mark.parametrize(("name", "status"), [("nobody", 404), ("secret", 403)])
def test_an_alias_in_the_header_is_checked_like_any(name, status):
    secret = make_alias(id="m-9", name="secret", deployment=WEST)
    with pytest.raises(GatewayError) as refused:
        pass_to({"x-aisix-model": name}, of=snapshot(ALIAS, secret))
    assert refused.value.status == status


def test_families_are_for_keys_that_were_given_them():
    caller = replace(KEY, allowed_resources=("files",))
    check_family(SPECS["files"], caller)
    check_family(SPECS["chat_completions"], KEY)
    with pytest.raises(Forbidden, match="allowed_resources"):
        check_family(SPECS["batches"], caller)
    with pytest.raises(Forbidden):
        check_family(SPECS["files"], KEY)
