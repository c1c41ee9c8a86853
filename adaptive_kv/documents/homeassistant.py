"""What Home Assistant wants to be told to show a device. The keys are its own; most are short."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from adaptive_kv.documents.models import LEFT_OUT, Document


class Device(Document):
    """The box."""

    ids: tuple[str, ...]
    name: str
    mf: str
    mdl: str
    sw: str


class Origin(Document):
    """Who announces it."""

    name: str
    sw: str


class Component(Document):
    """An entity of the device."""

    p: Literal["sensor", "select"]
    """Its platform."""
    unique_id: str
    name: str
    value_template: str
    """How the entity's value is read from the state document."""
    icon: Annotated[str, Field(pattern="^mdi:")] | SkipJsonSchema[None] = LEFT_OUT
    device_class: str | SkipJsonSchema[None] = LEFT_OUT
    state_class: str | SkipJsonSchema[None] = LEFT_OUT
    unit_of_measurement: str | SkipJsonSchema[None] = LEFT_OUT
    suggested_display_precision: int | SkipJsonSchema[None] = LEFT_OUT
    entity_category: str | SkipJsonSchema[None] = LEFT_OUT
    expire_after: Annotated[int, Field(gt=0)] | SkipJsonSchema[None] = LEFT_OUT
    """Seconds without a state after which a sensor shows none."""
    options: tuple[str, ...] | SkipJsonSchema[None] = LEFT_OUT
    command_topic: str | SkipJsonSchema[None] = LEFT_OUT
    command_template: str | SkipJsonSchema[None] = LEFT_OUT


class DiscoveryDocument(Document):
    """A device with its entities; an empty message in its place removes them."""

    is_sparse = True

    dev: Device
    o: Origin
    avty_t: str
    """Topic of `online` and `offline`."""
    stat_t: str
    """Topic of the state document."""
    qos: Literal[1]
    cmps: dict[str, Component]
