from __future__ import annotations

from collections.abc import Iterator

import pytest

from danlu import registry
from danlu.errors import RecipeError
from danlu.registry import Export, export, exported, kinds, lookup, name_of


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in registry._rooms:  # what importing them exports is to stay
        exported(kind)
    monkeypatch.setattr(registry, "_exports", dict(registry._exports))


def make(name: str, module: str = "somewhere") -> type:
    return type(name, (), {"__doc__": "What it is for.\n\nMore.", "__module__": module})


@pytest.mark.parametrize("kind", sorted(registry._rooms))
def test_what_is_exported_can_be_listed_looked_up_and_named(kind: str) -> None:
    found = exported(kind)
    assert [e.name for e in found] == sorted({e.name for e in found})
    assert found
    for entry in found:
        assert entry.kind == kind
        assert lookup(kind, entry.name) is entry.target
        assert name_of(entry.target) == entry.name
        assert entry.summary.endswith(".")
        assert "http" in entry.source


def test_architectures_of_the_plan_are_there() -> None:
    assert {"gpt2", "llama", "qwen2", "qwen3"} <= {e.name for e in exported("architecture")}


def test_a_kind_that_no_room_has_is_there_once_something_is_exported_as_it() -> None:
    assert "furnace" not in kinds()
    with pytest.raises(RecipeError, match="there is no kind 'furnace'"):
        exported("furnace")
    target = export("furnace", "small", source="nobody")(make("Small"))
    assert "furnace" in kinds()
    assert exported("furnace") == [Export("furnace", "small", target, "nobody")]
    assert exported("furnace")[0].summary == "What it is for."
    assert lookup("furnace", "small") is target


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no architecture is called 'lama'. Did you mean 'llama'\?"):
        lookup("architecture", "lama")
    with pytest.raises(RecipeError, match=r"Did you mean 'architecture'\?"):
        exported("architectures")
    with pytest.raises(RecipeError, match=r"Known: .*llama.*"):
        lookup("architecture", "zzzzz")


def test_two_classes_cannot_have_one_name() -> None:
    export("furnace", "small", source="")(make("Small"))
    for other in (make("Other"), make("Small", "elsewhere")):
        with pytest.raises(RecipeError, match="two furnaces are called 'small'"):
            export("furnace", "small", source="")(other)
    assert export("pot", "small", source="")(make("Other"))


def test_a_module_that_is_loaded_again_may_export_again() -> None:
    export("furnace", "small", source="")(make("Small"))
    again = export("furnace", "small", source="")(make("Small"))
    assert lookup("furnace", "small") is again


def test_a_class_that_is_not_exported_has_no_name() -> None:
    with pytest.raises(RecipeError, match=r"Small.* is not exported"):
        name_of(make("Small"))


def test_plugins_are_loaded_once_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Plugin:
        def load(self) -> None:
            loaded.append("plugin")
            export("furnace", "from_afar", source="a plugin")(make("FromAfar"))

    def entry_points(group: str) -> Iterator[Plugin]:
        assert group == "danlu"
        return iter([Plugin()])

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    assert lookup("furnace", "from_afar").__name__ == "FromAfar"
    assert "furnace" in kinds()
    assert loaded == ["plugin"]
