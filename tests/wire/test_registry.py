"""Classes that both sides know by one name: what may be added, found, made and required."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian import ClientStep, Noise, register_client_step, register_noise
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.steps.base import CLIENT_STEPS
from fedmedian.wire.registry import Registry
from fedmedian.wire.scalars import WireError


class Shape:
    """The base of a kind."""


@dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0

    name = "circle"

    def __post_init__(self):
        if self.radius <= 0:
            raise ValueError(f"radius must be > 0, got {self.radius}")


class Square(Shape):
    name = "square"


def registry_of_circles():
    shapes = Registry(Shape, "shape", "register_shape")
    shapes.add(Circle)
    return shapes


class TestAdding:
    def test_returns_the_class_so_that_it_decorates(self):
        shapes = registry_of_circles()
        assert shapes.add(Square) is Square
        assert list(shapes) == [Circle, Square]

    @given(cls=st.sampled_from([int, type("Line", (), {"name": "line"})]))
    def test_a_class_of_another_kind_is_refused(self, cls):
        shapes = registry_of_circles()
        with pytest.raises(TypeError, match=rf"Shape\b.*{cls.__name__}"):
            shapes.add(cls)

    @given(name=st.sampled_from(["", "-", "a.b", "a b", "a_b", "kreis-größe"]))
    def test_a_name_that_cannot_stand_on_the_wire_is_refused(self, name):
        shapes = registry_of_circles()
        with pytest.raises(ValueError, match=r"Line\.name") as refused:
            shapes.add(type("Line", (Shape,), {"name": name}))
        assert repr(name) in str(refused.value)

    @given(members=st.sampled_from([{}, {"name": None}, {"name": 3}]))
    def test_a_class_without_a_name_is_refused(self, members):
        shapes = registry_of_circles()
        with pytest.raises(TypeError, match=r"Line\.name"):
            shapes.add(type("Line", (Shape,), members))

    def test_a_name_that_another_class_has_is_refused_with_both(self):
        shapes = registry_of_circles()
        with pytest.raises(ValueError, match=r"Disc\.name.*'circle'.*Circle"):
            shapes.add(type("Disc", (Shape,), {"name": "circle"}))
        assert shapes.find("circle") is Circle

    def test_a_class_that_is_defined_once_more_takes_the_place_of_the_former(self):
        shapes = registry_of_circles()
        again = type("Circle", (Shape,), {"name": "circle", "__module__": Circle.__module__})
        shapes.add(again)
        assert shapes.find("circle") is again
        assert list(shapes) == [again]


class TestFinding:
    def test_a_class_is_found_by_its_name(self):
        shapes = registry_of_circles()
        assert shapes.find("circle") is Circle

    def test_an_unknown_name_is_refused_with_kind_and_name(self):
        shapes = registry_of_circles()
        with pytest.raises(WireError, match="shape 'square'"):
            shapes.find("square")


class TestMaking:
    def test_an_instance_is_made_of_parameters_from_the_wire(self):
        shapes = registry_of_circles()
        assert shapes.make("circle", {"radius": 2.0}) == Circle(2.0)

    @given(case=st.sampled_from([({"edge": 1.0}, "edge"), ({"radius": -1.0}, "-1.0")]))
    def test_parameters_that_the_class_does_not_take_are_refused(self, case):
        shapes, (parameters, named) = registry_of_circles(), case
        with pytest.raises(WireError, match=f"'circle'.*{named}"):
            shapes.make("circle", parameters)

    def test_an_unknown_name_is_refused(self):
        shapes = registry_of_circles()
        with pytest.raises(WireError, match="'square'"):
            shapes.make("square", {})


class TestRequiring:
    def test_an_instance_of_a_registered_class_passes(self):
        shapes = registry_of_circles()
        shapes.require("outline", Circle())

    @given(value=st.sampled_from([None, "circle", 1.0, Circle]))
    def test_what_is_not_of_the_kind_is_refused_by_argument_and_value(self, value):
        shapes = registry_of_circles()
        with pytest.raises(TypeError, match=r"^outline\b.*shape") as refused:
            shapes.require("outline", value)
        assert repr(value) in str(refused.value)

    def test_an_instance_of_a_class_that_is_not_registered_is_refused_with_the_decorator(self):
        shapes = registry_of_circles()
        with pytest.raises(ValueError, match=r"^outline\b.*Square\b.*register_shape"):
            shapes.require("outline", Square())

    def test_a_class_of_a_registered_name_is_not_that_class(self):
        shapes = registry_of_circles()
        with pytest.raises(ValueError, match=r"^outline\b.*Disc"):
            shapes.require("outline", type("Disc", (Circle,), {})())


@pytest.mark.parametrize(
    ("registry", "base", "register"),
    [(CLIENT_STEPS, ClientStep, register_client_step), (NOISE_FAMILIES, Noise, register_noise)],
    ids=["client steps", "noise families"],
)
def test_what_clients_know_is_listed_by_name_and_takes_no_other_kind(registry, base, register):
    assert all(registry.find(cls.name) is cls and issubclass(cls, base) for cls in registry)
    with pytest.raises(TypeError, match=rf"{base.__name__}\b.*Square"):
        register(Square)
